"""The contract of power sensors. A test subclasses it and provides the fixture ``sensor``::

class TestMySensor(SensorContract):
    @pytest.fixture
    def sensor(self, tmp_path):
        ...
        return MySensor(...)
"""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import get_args

import pytest

from sweeper.errors import MissingError, ReadingFailed
from sweeper.meter.base import DeviceState, Sample, Sensor
from sweeper.meter.sampling import SampledMeter
from sweeper.records import Caveat, EnergyReading, Kind, Scope


class SensorContract:
    """The contract of every power sensor. The fixture ``sensor`` is a closed sensor that can be opened.

    Its readings must change over time, like those of a live device. A subclass may set ``expected_watts`` to the
    power that the sensor shows, in W. ``tolerance`` is then the allowed relative error of its mean over a quarter of
    a second.
    """

    expected_watts: float | None = None
    tolerance: float = 0.2

    def test_tells_its_source_before_it_is_opened(self, sensor: Sensor) -> None:
        """Name and interface are not empty, scope and kind are known words, and no handle is needed."""
        source = sensor.source
        assert source.name
        assert source.interface
        assert source.scope in get_args(Scope)
        assert source.kind in get_args(Kind)
        assert source.update_period_seconds is None or source.update_period_seconds > 0

    def test_says_so_where_it_estimates(self, sensor: Sensor) -> None:
        """An estimate has the kind and the caveat ``estimated``; a measurement has neither."""
        assert all(isinstance(caveat, Caveat) for caveat in sensor.caveats)
        assert (sensor.source.kind == "estimated") == (Caveat.ESTIMATED in sensor.caveats)

    def test_fails_to_read_before_it_is_opened(self, sensor: Sensor) -> None:
        """Without a handle, reading fails and does not return zero."""
        with pytest.raises(ReadingFailed):
            sensor.read()

    def test_gives_energy_or_power(self, sensor: Sensor) -> None:
        """A sample has energy, power or both, finite and not negative, with a time stamp during the read."""
        sensor.open()
        try:
            before = time.monotonic()
            sample = sensor.read()
            after = time.monotonic()
        finally:
            sensor.close()
        assert before <= sample.monotonic_seconds <= after
        values = [v for v in (sample.energy_joules, sample.power_watts) if v is not None]
        assert values
        assert all(math.isfinite(value) and value >= 0 for value in values)

    def test_never_runs_backwards(self, sensor: Sensor) -> None:
        """Time stamps do not decrease, and energy does not decrease within an epoch."""
        samples = self._samples(sensor, count=4)
        for before, after in pairwise(samples):
            assert after.monotonic_seconds >= before.monotonic_seconds
            if before.energy_joules is not None and after.epoch == before.epoch:
                assert after.energy_joules is not None
                assert after.energy_joules >= before.energy_joules

    def test_tells_the_state_beside(self, sensor: Sensor) -> None:
        """The state is a record, with None for each value that the device does not report."""
        sensor.open()
        try:
            state = sensor.state()
        finally:
            sensor.close()
        assert isinstance(state, DeviceState)
        assert state.temperature_celsius is None or -40 < state.temperature_celsius < 150
        assert state.clock_mhz is None or state.clock_mhz >= 0

    def test_closes_twice_and_opens_again(self, sensor: Sensor) -> None:
        """Closing twice does no harm. A closed sensor cannot be read but keeps its source."""
        sensor.open()
        opened = sensor.source
        sensor.close()
        sensor.close()
        with pytest.raises(ReadingFailed):
            sensor.read()
        assert sensor.source == opened
        assert self._samples(sensor, count=1)

    def test_serves_a_meter(self, sensor: Sensor) -> None:
        """A window ends with joules, or with None and a reason. The error bar grows if samples are few."""
        reading = self._window(sensor, seconds=0.25)
        assert (reading.joules is None) == (reading.reason is not None)
        if self.expected_watts is not None:
            assert reading.watts is not None, reading.reason
            assert abs(reading.watts / self.expected_watts - 1) <= self.tolerance
        if reading.source.kind == "measured" and reading.joules is not None:
            assert reading.error_fraction is not None
            assert reading.error_fraction >= 0

    def _samples(self, sensor: Sensor, count: int) -> list[Sample]:
        sensor.open()
        try:
            samples = []
            for _ in range(count):
                samples.append(sensor.read())
                time.sleep(0.02)
            return samples
        finally:
            sensor.close()

    def _window(self, sensor: Sensor, seconds: float) -> EnergyReading:
        with SampledMeter(sensor) as meter:
            with meter.window() as window:
                time.sleep(0.05)
                started = time.monotonic()
                time.sleep(seconds)
                ended = time.monotonic()
            return window.reading(started, ended)


class AbsentSensorContract:
    """The contract of a sensor without its device. The fixture ``sensor`` is a sensor that cannot be opened."""

    def test_says_how_to_mend_it(self, sensor: Sensor) -> None:
        """Opening raises one line that names the missing part and the fix, and leaves nothing open."""
        with pytest.raises(MissingError) as caught:
            sensor.open()
        text = str(caught.value)
        assert "\n" not in text
        assert len(text) > 20
        with pytest.raises(ReadingFailed):
            sensor.read()
        sensor.close()
