"""The interfaces of power measurement. Sensors pass ``tests/power/sensor_contract.py``."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from sweeper.errors import ReadingFailed, SensorMissingError
from sweeper.records import Caveat, EnergyReading, PowerSource

# The fix for a machine without a sensor; conf/power/plug.yaml has its keys.
PLUG = "set power=plug power.plug.url=http://ADDRESS (a network plug)"
# The fix for a sensor that is there but gives no reading, whatever its kind.
ANOTHER = "power=auto takes the best sensor that works here"


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of a sensor. A counter gives joules (cumulative, any origin), a power sensor gives watts."""

    monotonic_seconds: float
    energy_joules: float | None = None
    power_watts: float | None = None
    epoch: int = 0  # increases when the counter loses its origin: energies of two epochs cannot be subtracted
    parts: tuple[
        Sample, ...
    ] = ()  # for a sum: the sample of each device; devices refresh at different moments


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The device's state beside a sample. Values that the device does not report are None or empty."""

    temperature_celsius: float | None = None
    clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    power_capped: bool | None = None
    enforced_limit_watts: float | None = None
    other_processes: int | None = None


class Sensor:
    """One source of samples: a counter, a power reading, or an estimate. It converts to W and J once.

    A subclass sets ``source``, finds its device in ``_find``, and reads it in ``_take``.
    """

    source: PowerSource  # known before ``open``, which may add to it
    caveats: tuple[Caveat, ...] = ()  # known problems of this sensor
    driver: str | None = None  # the version of the device's driver

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Read nothing yet. ``clock`` stamps the samples."""
        self._clock = clock
        self._is_open = False

    @property
    def power_source(self) -> PowerSource:
        """The value of ``source`` without the counter; the same for a sensor that does not have both."""
        return self.source

    def open(self) -> None:
        """Open the sensor. Raises SensorMissingError or RightMissingError; the message contains the fix.

        A device that is there but gives no reading is a SensorMissingError, caused by the ReadingFailed.
        """
        try:
            self._find()
        except ReadingFailed as error:
            raise SensorMissingError(str(error), ANOTHER) from error
        self._is_open = True

    def read(self) -> Sample:
        """Take one sample now. Raises ReadingFailed if the sensor gave none, or is not open."""
        self._demand_open()
        return self._take()

    def state(self) -> DeviceState:
        """The present temperature, clocks and throttling, as far as the device reports them."""
        return DeviceState()

    def leave_power_out(self) -> None:
        """From now on, read only the counter of a sensor that reads power beside it."""

    def close(self) -> None:
        """Close the sensor. Its source stays known. May be called twice."""
        self._is_open = False

    def _find(self) -> None:
        raise NotImplementedError

    def _take(self) -> Sample:
        raise NotImplementedError

    def _demand_open(self) -> None:
        if not self._is_open:
            raise ReadingFailed(f"the sensor {self.source.name} is not open")


class PowerWindow(Protocol):
    """Samples around one stretch of inference. Call ``reading`` after the ``with`` block has ended."""

    def reading(self, started: float, ended: float) -> EnergyReading:
        """Energy between two ``time.monotonic()`` moments inside the window."""
        ...


class PowerMeter(Protocol):
    """Samples the ranking sensor, and any sensors beside it, in threads that block between samples."""

    @property
    def source(self) -> PowerSource:
        """The source that ranks trials."""
        ...

    @property
    def update_period_seconds(self) -> float:
        """The ranking sensor's update period, which sets the window lengths."""
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
