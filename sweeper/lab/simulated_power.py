"""The power meter and the limits of machines in virtual time, simulated or replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from sweeper.errors import LimitRefused, SweeperError
from sweeper.lab.virtual_time import PowerTrace
from sweeper.limits.base import Action, LimitInForce, LimitRange, RestoreOutcome
from sweeper.records import EnergyReading, PowerSource

SIMULATED_SOURCE = PowerSource(
    name="simulated",
    interface="analytic model",
    scope="simulated",
    kind="simulated",
    update_period_seconds=0.01,
    note="no sensor: watts follow from a formula",
)


class SimulatedMeter:
    """A `PowerMeter` that reads the power trace of the engine. It is its own `PowerWindow`."""

    def __init__(
        self, trace: PowerTrace, clock: Callable[[], float], source: PowerSource = SIMULATED_SOURCE
    ) -> None:
        self._trace = trace
        self._clock = clock
        self._source = source

    @property
    def source(self) -> PowerSource:
        """The source of these watts."""
        return self._source

    @property
    def update_period_seconds(self) -> float:
        """The update period of the source, in s."""
        return self._source.update_period_seconds or 0.0

    @contextmanager
    def window(self) -> Iterator[SimulatedMeter]:
        """A window over the code inside the block."""
        yield self

    def reading(self, started: float, ended: float) -> EnergyReading:
        """The energy between two moments of virtual time."""
        return EnergyReading(self._source, ended - started, self._trace.joules(started, ended), samples=2)

    def watts_now(self) -> float | None:
        """The present power, in W."""
        return self._trace.watts_at(self._clock())

    def temperature_celsius(self) -> float | None:
        """None: a simulated machine has no temperature."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: the meter holds no resource."""


class SimulatedLimits:
    """A `LimitControl` over named ranges. It only stores the values: the engine applies a configuration's limits.

    ``in_force`` stands for the machine. Code outside may change it, as another tool would.
    """

    def __init__(self, ranges: Mapping[str, LimitRange]) -> None:
        self._ranges = dict(ranges)
        self.in_force: dict[str, int | None] = {name: r.found for name, r in self._ranges.items()}
        self._ours: dict[str, int | None] = {}  # the last value that this control set
        self.outcomes: tuple[RestoreOutcome, ...] = ()
        self.replayed: tuple[RestoreOutcome, ...] = ()  # no earlier run left a limit here

    def ranges(self) -> Mapping[str, LimitRange]:
        """The limits of this machine."""
        return self._ranges

    def refusals(self) -> Mapping[str, SweeperError]:
        """Empty: every limit of this machine can be set."""
        return {}

    def set(self, name: str, value: int | None) -> LimitInForce:
        """Set a limit. Raises LimitRefused outside its range, and if another tool changed the limit meanwhile."""
        if name not in self._ranges:
            raise LimitRefused(f"this simulated machine has no {name}")
        limits = self._ranges[name]
        if value is not None and not limits.low <= value <= limits.high:
            raise LimitRefused(f"{name}={value} is outside the range {limits.low} to {limits.high}")
        if value is not None or name in self._ours:
            if self.in_force[name] != self._ours.get(name, limits.found):
                raise LimitRefused(
                    f"another tool changed {name} to {self.in_force[name]}: sweeper leaves it alone"
                )
            self._ours[name] = self.in_force[name] = limits.found if value is None else value
        return LimitInForce(name, value, self.in_force[name])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the values found, unless another tool changed them."""
        self.outcomes = tuple(self._give_back(name) for name in self._ours)
        self._ours = {}

    def _give_back(self, name: str) -> RestoreOutcome:
        limits, present = self._ranges[name], self.in_force[name]
        if present == limits.found:
            action, reason = Action.AS_FOUND, f"{present}, as found"
        elif present != self._ours[name]:
            action, reason = Action.LEFT_ALONE, f"another tool set {present}; the sweep found {limits.found}"
        else:
            action, reason = Action.RESTORED, f"from {present} to {limits.found}"
            self.in_force[name] = limits.found
        return RestoreOutcome(limits.device, name, limits.found, self.in_force[name], action, reason)
