"""The Protocols of power measurement. Adapters pass the suites in ``sweeper.lab.contracts``."""

from __future__ import annotations

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
