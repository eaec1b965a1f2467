"""What measures power and what sets limits, as Protocols. Adapters pass the suites in ``sweeper.testing``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from sweeper.records import Caveat, EnergyReading, PowerSource


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of a sensor. A counter gives joules (cumulative, any origin), a power sensor watts."""

    monotonic_seconds: float
    energy_joules: float | None = None
    power_watts: float | None = None
    epoch: int = 0  # counts up where the counter lost its origin: energies of two epochs do not subtract
    parts: tuple[Sample, ...] = ()  # of a sum: each device's own, refreshed at moments of its own


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What stands beside a sample. None and empty where the device does not say."""

    temperature_celsius: float | None = None
    clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    power_capped: bool | None = None
    enforced_limit_watts: float | None = None
    other_processes: int | None = None


class Sensor(Protocol):
    """One source of samples: a counter, a power reading, or an estimate. It converts to W and J once."""

    @property
    def source(self) -> PowerSource:
        """Name, interface, scope, kind, update period."""
        ...

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """What is known to be wrong with this sensor, from its trust check."""
        ...

    def open(self) -> None:
        """Take the handle. Raises SensorMissingError or RightMissingError with the line that mends it."""
        ...

    def read(self) -> Sample:
        """One sample, now. Raises ReadingFailed where the sensor gave none."""
        ...

    def state(self) -> DeviceState:
        """Temperature, clocks, throttling, now."""
        ...

    def close(self) -> None:
        """Give the handle back. May be called twice."""
        ...


class PowerWindow(Protocol):
    """Samples around one stretch of inference. Ask for the reading after the ``with`` block ended."""

    def reading(self, started: float, ended: float) -> EnergyReading:
        """Energy between two ``time.monotonic()`` moments inside the window."""
        ...


class PowerMeter(Protocol):
    """Samples one ranking sensor (and others beside it) in a thread that never spins."""

    @property
    def source(self) -> PowerSource:
        """The source that ranks."""
        ...

    @property
    def update_period_seconds(self) -> float:
        """The ranking sensor's update period, from which window lengths follow."""
        ...

    def window(self) -> AbstractContextManager[PowerWindow]:
        """Sample while the block runs."""
        ...

    def watts_now(self) -> float | None:
        """The latest power in W, for the live display only."""
        ...

    def temperature_celsius(self) -> float | None:
        """The ranking device's temperature now, or None."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class LimitRange:
    """What a limit may be set to on this device, never above ``found``; in W or MHz as its name says."""

    name: str  # power_limit_watts, clock_limit_mhz
    device: str
    low: int
    high: int
    found: int | None  # as it was before the sweep; None: not locked
    step: int = 1


@dataclass(frozen=True, slots=True)
class LimitInForce:
    """A limit as asked for and as the device reads it back."""

    name: str
    requested: int | None
    enforced: int | None


class LimitControl(Protocol):
    """Sets limits and gives back what was found, however the sweep ends. Enter it around a whole sweep.

    ``__exit__`` restores. Nothing is journalled and no guardian started before the first ``set``.
    """

    def ranges(self) -> Mapping[str, LimitRange]:
        """The limits that can be set here by name; empty on a machine without any."""
        ...

    def reasons(self) -> Mapping[str, str]:
        """For each limit that cannot be set: why, and how to grant it, in one line."""
        ...

    @property
    def outcomes(self) -> Sequence[object]:
        """What leaving did to each limit that was set, as words by ``str``; empty before."""
        ...

    def set(self, name: str, value: int | None) -> LimitInForce:
        """Set a limit, None for what was found. Raises LimitRefused where the read-back differs."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
