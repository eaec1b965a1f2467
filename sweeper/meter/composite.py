"""Combined sensors: the sum of several devices of one scope, and a sensor with the result of its trust check.

sweeper never adds different scopes: a GPU inside a package, or a package behind a wall plug, would count twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from sweeper.errors import ConfigError, ReadingFailed
from sweeper.meter.base import DeviceState, Sample, Sensor
from sweeper.records import Caveat, PowerSource

if TYPE_CHECKING:
    from sweeper.meter.trust import Trust


class SumSensor(Sensor):
    """The sum of several devices of one kind and scope, such as the GPUs that a model is split over."""

    def __init__(self, sensors: Sequence[Sensor]) -> None:
        """Open nothing yet. The sum reads ``sensors`` one after the other, within a few ms."""
        if not sensors:
            raise ConfigError("no sensor to add up")
        super().__init__()
        self._sensors = tuple(sensors)
        self._describe()

    @property
    def power_source(self) -> PowerSource:
        """The value of ``source`` without counters."""
        return _together([sensor.power_source for sensor in self._sensors])

    def _describe(self) -> None:
        self.source = _together([sensor.source for sensor in self._sensors])
        self.caveats = tuple(dict.fromkeys(c for sensor in self._sensors for c in sensor.caveats))
        self.driver = self._sensors[0].driver

    def _find(self) -> None:
        """Open all of them, or none. Raises ConfigError if their scopes or interfaces differ."""
        with ExitStack() as opened:
            for sensor in self._sensors:
                sensor.open()
                opened.callback(sensor.close)
            sources = [sensor.source for sensor in self._sensors]
            if len({(s.name, s.scope) for s in sources}) > 1:
                told = ", ".join(f"{s.device}: {s.name} ({s.scope})" for s in sources)
                raise ConfigError(
                    f"watts of different scopes do not add up ({told}): name one with power.device"
                )
            opened.pop_all()
        self._describe()

    def _take(self) -> Sample:
        """The sum, at the mean moment. It fails if one sensor fails, since a sum would be too low."""
        samples = [sensor.read() for sensor in self._sensors]
        return Sample(
            sum(s.monotonic_seconds for s in samples) / len(samples),
            energy_joules=_sum([s.energy_joules for s in samples]),
            power_watts=_sum([s.power_watts for s in samples]),
            epoch=sum(s.epoch for s in samples),
            parts=tuple(samples),
        )

    def state(self) -> DeviceState:
        """The highest temperature, the mean clock, all reasons, the sum of the limits."""
        states = [sensor.state() for sensor in self._sensors]
        temperatures = [s.temperature_celsius for s in states if s.temperature_celsius is not None]
        clocks = [s.clock_mhz for s in states if s.clock_mhz is not None]
        capped = [s.power_capped for s in states if s.power_capped is not None]
        others = [s.other_processes for s in states if s.other_processes is not None]
        return DeviceState(
            temperature_celsius=max(temperatures, default=None),
            clock_mhz=sum(clocks) / len(clocks) if clocks else None,
            throttle_reasons=tuple(sorted({reason for s in states for reason in s.throttle_reasons})),
            power_capped=any(capped) if capped else None,
            enforced_limit_watts=_sum([s.enforced_limit_watts for s in states]),
            other_processes=max(others, default=None),
        )

    def leave_power_out(self) -> None:
        """Stop reading power beside the counters."""
        for sensor in self._sensors:
            sensor.leave_power_out()

    def close(self) -> None:
        """Close all of them."""
        super().close()
        for sensor in self._sensors:
            sensor.close()


def _together(sources: Sequence[PowerSource]) -> PowerSource:
    periods = [s.update_period_seconds for s in sources if s.update_period_seconds is not None]
    notes = dict.fromkeys(s.note for s in sources if s.note)
    return replace(
        sources[0],
        update_period_seconds=max(periods, default=None),
        device="+".join(s.device or "?" for s in sources),
        note="; ".join([f"the sum of {len(sources)} devices", *notes]),
        settling_seconds=max((s.settling_seconds for s in sources if s.settling_seconds), default=None),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum, or None if a value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


class TrustedSensor(Sensor):
    """A sensor with the result of its trust check: update period, caveats, and no counter that stands still."""

    def __init__(self, sensor: Sensor, trust: Trust) -> None:
        """Wrap ``sensor``. ``trust`` must belong to this device, driver and kernel."""
        super().__init__()
        self._sensor = sensor
        self._trust = trust
        self._describe()

    def _describe(self) -> None:
        source = self._sensor.source
        if self._trust.counter_stands_still:
            interface = f"power instead of {source.interface}, which stands still"
            source = replace(self._sensor.power_source, interface=interface)
        period = self._trust.period_seconds
        if period is not None:
            if source.settling_seconds is not None:  # refreshing a mean more often does not make it finer
                period = max(period, source.update_period_seconds or 0.0)
            source = replace(source, update_period_seconds=period)
        self.source = source
        conflict = (Caveat.SENSOR_CONFLICT,) if self._trust.in_conflict else ()
        self.caveats = tuple(dict.fromkeys((*self._sensor.caveats, *conflict)))

    def _find(self) -> None:
        """Open the sensor. After the check, it no longer reads power beside a working counter."""
        self._sensor.open()
        if self._trust.counter_period_seconds is not None:
            self._sensor.leave_power_out()
        self._describe()

    def _take(self) -> Sample:
        """Read the sensor, without the energy of a counter that stands still."""
        sample = self._sensor.read()
        if not self._trust.counter_stands_still:
            return sample
        if sample.power_watts is None:
            interface = self._sensor.source.interface
            raise ReadingFailed(f"{interface} stands still, and there is no power reading")
        parts = tuple(replace(part, energy_joules=None) for part in sample.parts)
        return replace(sample, energy_joules=None, parts=parts)

    def state(self) -> DeviceState:
        """The sensor's state."""
        return self._sensor.state()

    def close(self) -> None:
        """Close the sensor."""
        super().close()
        self._sensor.close()
