"""Contract suites that adapters must pass. A test subclasses one and gives the fixture that it asks for.

::

    class TestMySensor(SensorContract):
        @pytest.fixture
        def sensor(self, tmp_path):
            ...
            return MySensor(...)

The suites are plain asserts, so that importing this module needs no test framework.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import get_args

from sweeper.engine.base import Engine
from sweeper.errors import MissingError, ReadingFailed, TrialFailed
from sweeper.power.base import DeviceState, Sample, Sensor
from sweeper.power.meter import SampledMeter
from sweeper.records import Caveat, Configuration, EnergyReading, Kind, Scope


class SensorContract:
    """What every power sensor keeps. The fixture ``sensor`` is one that is closed and can be opened.

    Its readings must move as time goes on, as a live device's do. ``expected_watts`` may give the power
    that it shows, in W, and ``tolerance`` how far its mean over a quarter of a second may be from that.
    """

    expected_watts: float | None = None
    tolerance: float = 0.2

    def test_tells_its_source_before_it_is_opened(self, sensor: Sensor) -> None:
        """Name, interface, scope and kind are known words; asking needs no handle."""
        source = sensor.source
        assert source.name
        assert source.interface
        assert source.scope in get_args(Scope)
        assert source.kind in get_args(Kind)
        assert source.update_period_seconds is None or source.update_period_seconds > 0

    def test_says_so_where_it_estimates(self, sensor: Sensor) -> None:
        """An estimate carries its label as kind and as caveat; a measurement carries neither."""
        assert all(isinstance(caveat, Caveat) for caveat in sensor.caveats)
        assert (sensor.source.kind == "estimated") == (Caveat.ESTIMATED in sensor.caveats)

    def test_fails_to_read_before_it_is_opened(self, sensor: Sensor) -> None:
        """No handle, no figure: and no zero."""
        assert _reading_fails(sensor)

    def test_gives_energy_or_power(self, sensor: Sensor) -> None:
        """A sample has one of the two or both, finite, not negative, stamped between question and answer."""
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
        """Moments go on, and energy does not fall within an epoch."""
        samples = self._samples(sensor, count=4)
        for before, after in pairwise(samples):
            assert after.monotonic_seconds >= before.monotonic_seconds
            if before.energy_joules is not None and after.epoch == before.epoch:
                assert after.energy_joules is not None
                assert after.energy_joules >= before.energy_joules

    def test_tells_the_state_beside(self, sensor: Sensor) -> None:
        """State is a record, with None for what the device does not tell."""
        sensor.open()
        try:
            state = sensor.state()
        finally:
            sensor.close()
        assert isinstance(state, DeviceState)
        assert state.temperature_celsius is None or -40 < state.temperature_celsius < 150
        assert state.clock_mhz is None or state.clock_mhz >= 0

    def test_closes_twice_and_opens_again(self, sensor: Sensor) -> None:
        """Closing twice does no harm; a closed sensor gives nothing, but still says what it was."""
        sensor.open()
        opened = sensor.source
        sensor.close()
        sensor.close()
        assert _reading_fails(sensor)
        assert sensor.source == opened
        assert self._samples(sensor, count=1)

    def test_serves_a_meter(self, sensor: Sensor) -> None:
        """A window ends in joules, or in None with a reason; the bar grows where samples are few."""
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
    """What a sensor does where its device is missing. The fixture ``sensor`` is one that cannot be opened."""

    def test_says_how_to_mend_it(self, sensor: Sensor) -> None:
        """Opening raises one line that names what is missing and what to do, and leaves nothing open."""
        try:
            sensor.open()
        except MissingError as error:
            text = str(error)
        else:
            raise AssertionError("opened a device that is not there")
        assert "\n" not in text
        assert len(text) > 20
        assert _reading_fails(sensor)
        sensor.close()


def _reading_fails(sensor: Sensor) -> bool:
    try:
        sensor.read()
    except ReadingFailed:
        return True
    return False


class EngineContract:
    """What every engine keeps. The fixture ``engine`` is a fresh one, ``configuration`` one that it can run."""

    def test_names_itself(self, engine: Engine, configuration: Configuration) -> None:
        """A record with name and version."""
        with engine:
            assert engine.record.name
            assert engine.record.version

    def test_counts_tokens_and_seconds(self, engine: Engine, configuration: Configuration) -> None:
        """Windows last as long as asked for, and their tokens are whole rounds."""
        with engine:
            report = engine.load(configuration)
            assert report.reloaded
            assert report.load_seconds > 0
            for window in (engine.prefill(16, 0, 0.05, 5.0), engine.decode(8, 0, 0.05, 5.0)):
                assert window.tokens > 0
                assert window.seconds > 0
                assert window.ended - window.started >= 0.05 - 1e-6
                assert window.ended - window.started >= window.seconds - 1e-6
                assert window.tokens_per_second == window.tokens / window.seconds

    def test_decode_ends_at_its_limit(self, engine: Engine, configuration: Configuration) -> None:
        """A round that would last longer than ``max_seconds`` is cut."""
        with engine:
            engine.load(configuration)
            window = engine.decode(10_000, 0, 0.01, 0.05)
            assert 0 < window.tokens < 10_000

    def test_keeps_the_model_where_only_the_context_changes(
        self, engine: Engine, configuration: Configuration
    ) -> None:
        """No second load for a change that needs none."""
        with engine:
            engine.load(configuration)
            assert not engine.load(configuration.with_(n_ubatch=configuration.n_ubatch // 2)).reloaded
            assert engine.load(configuration.with_(use_mmap=not configuration.use_mmap)).reloaded

    def test_refuses_windows_without_a_load(self, engine: Engine, configuration: Configuration) -> None:
        """A window on nothing is a trial that failed, and the engine can be used afterwards."""
        with engine:
            refused = False
            try:
                engine.decode(8, 0, 0.01, 1.0)
            except TrialFailed:
                refused = True
            assert refused
            engine.load(configuration)
            assert engine.decode(8, 0, 0.01, 1.0).tokens > 0

    def test_close_may_be_called_twice(self, engine: Engine, configuration: Configuration) -> None:
        """Closing what is closed does nothing."""
        engine.load(configuration)
        engine.close()
        engine.close()
