"""Combined sensors: the sum of several devices of one scope, and a sensor with the result of its trust check.

sweeper never adds different scopes: a GPU inside a package, or a package behind a wall plug, would count twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sweeper.errors import ConfigError, ReadingFailed
from sweeper.meter.base import DeviceState, Sample, Sensor
from sweeper.records import Caveat, PowerSource

if TYPE_CHECKING:
    from sweeper.meter.trust import Trust


@runtime_checkable
class PowerBeside(Protocol):
    """A sensor that reads power beside its counter, so that sweeper can compare the two."""

    @property
    def power_source(self) -> PowerSource:
        """The value of ``source`` without the counter."""
        ...

    def leave_power_out(self) -> None:
        """Read only the counter from now on."""
        ...


class SumSensor:
    """The sum of several devices of one kind and scope, such as the GPUs that a model is split over."""

    def __init__(self, sensors: Sequence[Sensor]) -> None:
        """Open nothing yet. The sum reads ``sensors`` one after the other, within a few ms."""
        if not sensors:
            raise ConfigError("no sensor to add up")
        self._sensors = tuple(sensors)

    @property
    def source(self) -> PowerSource:
        """The first sensor's source, for all devices, with the longest update period."""
        return self._over_all([sensor.source for sensor in self._sensors])

    @property
    def power_source(self) -> PowerSource:
        """The value of ``source`` without counters."""
        return self._over_all([_power_source(sensor) for sensor in self._sensors])

    def leave_power_out(self) -> None:
        """Stop reading power beside a counter."""
        for sensor in self._sensors:
            if isinstance(sensor, PowerBeside):
                sensor.leave_power_out()

    def _over_all(self, sources: Sequence[PowerSource]) -> PowerSource:
        periods = [s.update_period_seconds for s in sources if s.update_period_seconds is not None]
        notes = dict.fromkeys(s.note for s in sources if s.note)
        total = f"the sum of {len(sources)} devices"
        return replace(
            sources[0],
            update_period_seconds=max(periods, default=None),
            device="+".join(s.device or "?" for s in sources),
            note="; ".join([total, *notes]),
            settling_seconds=max((s.settling_seconds for s in sources if s.settling_seconds), default=None),
        )

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """The caveats of all devices."""
        return tuple(dict.fromkeys(c for sensor in self._sensors for c in sensor.caveats))

    @property
    def driver(self) -> str | None:
        """The first device's driver."""
        return getattr(self._sensors[0], "driver", None)

    def open(self) -> None:
        """Open all of them, or none.

        Raises:
            SensorMissingError: one sensor is missing.
            ConfigError: the sensors have different scopes or interfaces.
        """
        opened: list[Sensor] = []
        try:
            for sensor in self._sensors:
                sensor.open()
                opened.append(sensor)
            self._demand_alike()
        except Exception:
            for sensor in opened:
                sensor.close()
            raise

    def read(self) -> Sample:
        """The sum, at the mean moment.

        Raises:
            ReadingFailed: one sensor gave nothing, so a sum would be too low.
        """
        samples = [sensor.read() for sensor in self._sensors]
        joules = [s.energy_joules for s in samples]
        watts = [s.power_watts for s in samples]
        return Sample(
            sum(s.monotonic_seconds for s in samples) / len(samples),
            energy_joules=None if None in joules else sum(j for j in joules if j is not None),
            power_watts=None if None in watts else sum(w for w in watts if w is not None),
            epoch=sum(s.epoch for s in samples),
            parts=tuple(samples),
        )

    def state(self) -> DeviceState:
        """The highest temperature, the mean clock, all reasons, the sum of the limits."""
        states = [sensor.state() for sensor in self._sensors]
        temperatures = [s.temperature_celsius for s in states if s.temperature_celsius is not None]
        clocks = [s.clock_mhz for s in states if s.clock_mhz is not None]
        capped = [s.power_capped for s in states if s.power_capped is not None]
        limits = [s.enforced_limit_watts for s in states]
        others = [s.other_processes for s in states if s.other_processes is not None]
        return DeviceState(
            temperature_celsius=max(temperatures, default=None),
            clock_mhz=sum(clocks) / len(clocks) if clocks else None,
            throttle_reasons=tuple(sorted({reason for s in states for reason in s.throttle_reasons})),
            power_capped=any(capped) if capped else None,
            enforced_limit_watts=None if None in limits else sum(w for w in limits if w is not None),
            other_processes=max(others, default=None),
        )

    def close(self) -> None:
        """Close all of them."""
        for sensor in self._sensors:
            sensor.close()

    def _demand_alike(self) -> None:
        sources = [sensor.source for sensor in self._sensors]
        if len({(s.name, s.scope) for s in sources}) > 1:
            told = ", ".join(f"{s.device}: {s.name} ({s.scope})" for s in sources)
            raise ConfigError(f"watts of different scopes do not add up ({told}): name one with power.device")


class TrustedSensor:
    """A sensor with the result of its trust check: update period, caveats, and no counter that stands still."""

    def __init__(self, sensor: Sensor, trust: Trust) -> None:
        """Wrap ``sensor``. ``trust`` must belong to this device, driver and kernel."""
        self._sensor = sensor
        self._trust = trust

    @property
    def source(self) -> PowerSource:
        """The sensor's source with the update period that the check found."""
        source = self._sensor.source
        if self._trust.counter_stands_still:
            interface = f"power instead of {source.interface}, which stands still"
            source = replace(_power_source(self._sensor), interface=interface)
        period = self._trust.period_seconds
        if period is None:
            return source
        if source.settling_seconds is not None:  # refreshing a mean more often does not make it finer
            period = max(period, source.update_period_seconds or 0.0)
        return replace(source, update_period_seconds=period)

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """The sensor's caveats, and a conflict if counter and power disagree."""
        found = (Caveat.SENSOR_CONFLICT,) if self._trust.in_conflict else ()
        return tuple(dict.fromkeys((*self._sensor.caveats, *found)))

    def open(self) -> None:
        """Open the sensor. After the check, it no longer reads power beside a working counter."""
        self._sensor.open()
        if isinstance(self._sensor, PowerBeside) and self._trust.counter_period_seconds is not None:
            self._sensor.leave_power_out()

    def read(self) -> Sample:
        """Read the sensor, without the energy of a counter that stands still.

        Raises:
            ReadingFailed: there is nothing else to read.
        """
        sample = self._sensor.read()
        if not self._trust.counter_stands_still:
            return sample
        if sample.power_watts is None:
            raise ReadingFailed(
                f"{self._sensor.source.interface} stands still, and there is no power reading"
            )
        parts = tuple(replace(part, energy_joules=None) for part in sample.parts)
        return replace(sample, energy_joules=None, parts=parts)

    def state(self) -> DeviceState:
        """The sensor's state."""
        return self._sensor.state()

    def close(self) -> None:
        """Close the sensor."""
        self._sensor.close()


def _power_source(sensor: Sensor) -> PowerSource:
    return sensor.power_source if isinstance(sensor, PowerBeside) else sensor.source
