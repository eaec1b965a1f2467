"""Contract suites that adapters must pass. A test subclasses a suite and provides the fixture that it needs.

::

    class TestMySensor(SensorContract):
        @pytest.fixture
        def sensor(self, tmp_path):
            ...
            return MySensor(...)

The suites use plain asserts, so that importing this module needs no test framework.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Protocol, get_args

from sweeper.engine.base import Engine
from sweeper.errors import LimitRefused, MissingError, ReadingFailed, TrialFailed
from sweeper.limits.base import LimitControl, LimitRange
from sweeper.meter.base import DeviceState, Sample, Sensor
from sweeper.meter.sampling import SampledMeter
from sweeper.records import Caveat, Configuration, EnergyReading, Kind, Scope


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
        assert _reading_fails(sensor)

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
        assert _reading_fails(sensor)
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
        try:
            sensor.open()
        except MissingError as error:
            text = str(error)
        else:
            raise AssertionError("the sensor opened although its device is missing")
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
    """The contract of every engine.

    The fixture ``engine`` is a fresh engine, and ``configuration`` is a configuration that it can run.
    """

    def test_names_itself(self, engine: Engine, configuration: Configuration) -> None:
        """The record has a name and a version."""
        with engine:
            assert engine.record.name
            assert engine.record.version

    def test_counts_tokens_and_seconds(self, engine: Engine, configuration: Configuration) -> None:
        """Windows last at least as long as requested, and their tokens are whole rounds."""
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
        """The engine cuts a round that would last longer than ``max_seconds``."""
        with engine:
            engine.load(configuration)
            window = engine.decode(10_000, 0, 0.01, 0.05)
            assert 0 < window.tokens < 10_000

    def test_keeps_the_model_where_only_the_context_changes(
        self, engine: Engine, configuration: Configuration
    ) -> None:
        """A change that needs no load of the model causes none."""
        with engine:
            engine.load(configuration)
            assert not engine.load(configuration.with_(n_ubatch=configuration.n_ubatch // 2)).reloaded
            assert engine.load(configuration.with_(use_mmap=not configuration.use_mmap)).reloaded

    def test_refuses_windows_without_a_load(self, engine: Engine, configuration: Configuration) -> None:
        """A window without a load fails the trial, and the engine can be used afterwards."""
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
        """Closing a closed engine does nothing."""
        engine.load(configuration)
        engine.close()
        engine.close()


class LimitedDevice(Protocol):
    """The device behind a `LimitControl`, as another tool sees and sets it, in W or MHz."""

    def limit(self, name: str) -> int | None:
        """The value in force; None if the clock is not locked."""
        ...

    def change(self, name: str, value: int) -> None:
        """Set a limit without the control. The suite calls it only for limits that are read back."""
        ...


class LimitControlContract:
    """The contract of every limit control. Fixtures: ``limits``, not entered, and ``device``, the device behind it.

    At least one limit can be set, is read back, and has room between its lowest value and the value found.
    """

    def test_ranges_never_reach_above_what_was_found(
        self, limits: LimitControl, device: LimitedDevice
    ) -> None:
        """A range starts from the device's own value. A limit without a range has a reason of one line."""
        assert limits.ranges()
        for name, one in limits.ranges().items():
            assert one.name == name
            assert one.low < one.high
            assert one.step >= 1
            assert one.found == device.limit(name)
            assert one.found is None or one.high <= one.found
        for name, refusal in limits.refusals().items():
            assert name not in limits.ranges()
            assert str(refusal)
            assert "\n" not in str(refusal)

    def test_entering_and_leaving_changes_nothing(self, limits: LimitControl, device: LimitedDevice) -> None:
        """Setting None, for the value found, also changes nothing."""
        found = _shown(limits, device)
        with limits:
            for name in found:
                assert limits.set(name, None).requested is None
            assert _shown(limits, device) == found
        assert _shown(limits, device) == found
        assert not limits.outcomes

    def test_tells_what_the_device_took(self, limits: LimitControl, device: LimitedDevice) -> None:
        """The device has the value or its next lower one. ``enforced`` is the value read back, or None."""
        read_back = []
        with limits:
            for name, one in limits.ranges().items():
                for value in (_between(one), one.low, one.high):
                    taken = limits.set(name, value)
                    assert (taken.name, taken.requested) == (name, value)
                    shown = device.limit(name)
                    assert shown is not None
                    assert value - one.step < shown <= value
                    assert taken.enforced in (None, shown)
                    read_back.append(taken.enforced)
        assert any(value is not None for value in read_back)

    def test_refuses_what_is_out_of_range_and_touches_nothing(
        self, limits: LimitControl, device: LimitedDevice
    ) -> None:
        """The control refuses values below the lowest one and above the value found, and unknown limits."""
        found = _shown(limits, device)
        with limits:
            for name, one in limits.ranges().items():
                assert _refusal(limits, name, one.low - 1)
                assert _refusal(limits, name, one.high + 1)
            assert _refusal(limits, "no_such_limit", 1)
            assert _shown(limits, device) == found
        assert not limits.outcomes

    def test_gives_back_what_was_found(self, limits: LimitControl, device: LimitedDevice) -> None:
        """On exit, the control restores each limit and reports an outcome for it; also after a second entry."""
        found = _shown(limits, device)
        for _ in range(2):
            with limits:
                for name, one in limits.ranges().items():
                    limits.set(name, _between(one))
                    limits.set(name, one.low)
                    assert device.limit(name) == one.low
            assert _shown(limits, device) == found
            told = " ".join(str(outcome) for outcome in limits.outcomes)
            assert all(name in told for name in found)

    def test_gives_back_for_none(self, limits: LimitControl, device: LimitedDevice) -> None:
        """Setting None restores the value found before the exit."""
        with limits:
            for name, one in limits.ranges().items():
                limits.set(name, one.low)
                limits.set(name, None)
                assert device.limit(name) == one.found

    def test_gives_back_after_an_error(self, limits: LimitControl, device: LimitedDevice) -> None:
        """The control restores the limits and lets the error propagate."""
        found = _shown(limits, device)
        handed_on = False
        try:
            with limits:
                for name, one in limits.ranges().items():
                    limits.set(name, one.low)
                _fail()
        except ZeroDivisionError:
            handed_on = True
        assert handed_on
        assert _shown(limits, device) == found

    def test_leaves_alone_what_another_tool_set(self, limits: LimitControl, device: LimitedDevice) -> None:
        """The control keeps another tool's value, both when it sets a limit and on exit, and reports it."""
        with limits:
            changed = {}
            for name, one in limits.ranges().items():
                if limits.set(name, _between(one)).enforced is None:
                    continue  # not read back, so the control cannot see a change by another tool
                changed[name] = one.low + 1
                device.change(name, changed[name])
                assert "another tool" in (_refusal(limits, name, one.low) or "")
                assert device.limit(name) == changed[name]
        assert changed
        assert {name: device.limit(name) for name in changed} == changed
        for name in changed:
            assert any(name in str(o) and "another tool" in str(o) for o in limits.outcomes)


def _fail() -> None:
    raise ZeroDivisionError


def _shown(limits: LimitControl, device: LimitedDevice) -> dict[str, int | None]:
    return {name: device.limit(name) for name in limits.ranges()}


def _between(one: LimitRange) -> int:
    return (one.low + one.high) // 2


def _refusal(limits: LimitControl, name: str, value: int) -> str | None:
    try:
        limits.set(name, value)
    except LimitRefused as refused:
        return str(refused)
    return None
