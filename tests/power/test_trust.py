"""What polling finds out about a sensor, and how long it is believed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_nvml import RTX_4090, FakeNvml
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.errors import ReadingFailed
from sweeper.meter.base import Sample, Sensor
from sweeper.meter.composite import SumSensor, TrustedSensor
from sweeper.meter.sensors.nvml import NvmlSensor
from sweeper.meter.trust import Trust, cache_path, examine_sensor, judge, known_or_examined
from sweeper.records import Caveat, PowerSource


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Staircase(Sensor):
    """A counter and a power that refresh each once a period, at 100 W; ``gain`` makes the counter lie."""

    driver = "580.1"

    def __init__(
        self, clock: Clock, counter: float = 0.02, power: float = 0.1, gain: float = 1.0, phase: float = 0.0
    ) -> None:
        super().__init__(clock)
        self.clock, self.counter, self.power, self.gain, self.phase = clock, counter, power, gain, phase
        self.reads = 0

    source = PowerSource("nvml", "staircase", "gpu", "measured", device="GPU-1")

    def _find(self) -> None: ...

    def read(self) -> Sample:
        self.reads += 1
        refreshes = int((self.clock.now + self.phase) / self.counter + 1e-9)
        joules = 100.0 * self.gain * refreshes * self.counter
        watts = 100.0 + int(self.clock.now / self.power + 1e-9) % 2
        return Sample(self.clock.now, energy_joules=joules, power_watts=watts)


@settings(max_examples=40)
@given(counter=st.floats(0.012, 0.2), power=st.floats(0.012, 0.3))
def test_finds_both_update_periods(counter: float, power: float) -> None:
    clock = Clock()
    trust = examine_sensor(Staircase(clock, counter, power), 10.0, clock, clock.sleep)
    assert trust.counter_period_seconds == pytest.approx(counter, abs=0.0051)
    assert trust.power_period_seconds == pytest.approx(power, abs=0.0051)
    assert not trust.counter_stands_still
    assert not trust.in_conflict


@pytest.mark.parametrize(("gain", "is_conflict"), [(1.0, False), (1.04, False), (1.08, True), (0.9, True)])
def test_a_counter_more_than_five_percent_off_is_in_conflict(gain: float, is_conflict: bool) -> None:
    clock = Clock()
    sensor = Staircase(clock, gain=gain)
    trust = examine_sensor(sensor, 10.0, clock, clock.sleep)
    assert trust.in_conflict is is_conflict
    assert (Caveat.SENSOR_CONFLICT in TrustedSensor(sensor, trust).caveats) is is_conflict


def test_a_counter_that_stands_still_is_left_aside() -> None:
    clock = Clock()
    sensor = Staircase(clock, gain=0.0)
    trust = examine_sensor(sensor, 2.0, clock, clock.sleep)
    assert trust.counter_stands_still
    trusted = TrustedSensor(sensor, trust)
    trusted.open()
    sample = trusted.read()
    assert sample.energy_joules is None
    assert sample.power_watts is not None
    assert "stands still" in trusted.source.interface
    assert trusted.source.update_period_seconds == pytest.approx(0.1, abs=0.006)


def test_a_sum_is_as_slow_as_its_slowest_device() -> None:
    clock = Clock()
    both = SumSensor([Staircase(clock, 0.1, phase=0.0), Staircase(clock, 0.1, phase=0.03)])
    both.open()
    trust = examine_sensor(both, 10.0, clock, clock.sleep)
    assert trust.counter_period_seconds == pytest.approx(0.1, abs=0.006)
    one_dead = SumSensor([Staircase(clock, 0.1), Staircase(clock, 0.1, gain=0.0)])
    one_dead.open()
    trust = examine_sensor(one_dead, 10.0, clock, clock.sleep)
    assert trust.counter_stands_still
    trusted = TrustedSensor(one_dead, trust)
    trusted.open()
    sample = trusted.read()
    assert sample.energy_joules is None
    assert [part.energy_joules for part in sample.parts] == [None, None]


def test_nothing_is_guessed_from_too_few_changes() -> None:
    samples = [Sample(t / 10, energy_joules=float(t // 5), power_watts=7.0) for t in range(12)]
    trust = judge(samples)
    assert trust.counter_period_seconds is None
    assert trust.power_period_seconds is None
    assert judge([]) == Trust(0, 0.0)


def test_a_sensor_that_gives_nothing_fails() -> None:
    clock = Clock()

    class Dead(Staircase):
        def read(self) -> Sample:
            raise ReadingFailed("silence")

    with pytest.raises(ReadingFailed, match="silence"):
        examine_sensor(Dead(clock), 1.0, clock, clock.sleep)


def test_is_kept_by_device_driver_and_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    sensor = Staircase(clock)
    first = known_or_examined(sensor, tmp_path, 2.0, clock, clock.sleep)
    asked = sensor.reads
    assert known_or_examined(sensor, tmp_path, 2.0, clock, clock.sleep) == first
    assert sensor.reads == asked
    sensor.driver = "590.2"
    known_or_examined(sensor, tmp_path, 2.0, clock, clock.sleep)
    assert sensor.reads > asked
    asked = sensor.reads
    monkeypatch.setattr("platform.release", lambda: "99.0")
    known_or_examined(sensor, tmp_path, 2.0, clock, clock.sleep)
    assert sensor.reads > asked


def test_a_longer_check_replaces_a_shorter_and_a_spoilt_file_is_made_anew(tmp_path: Path) -> None:
    clock = Clock()
    sensor = Staircase(clock)
    known_or_examined(sensor, tmp_path, 2.0, clock, clock.sleep)
    assert known_or_examined(sensor, tmp_path, 10.0, clock, clock.sleep).seconds > 9
    assert known_or_examined(sensor, tmp_path, 2.0, clock, clock.sleep).seconds > 9
    for spoilt in ("", "{", '{"trust": {"schema": 1}}', '{"trust": {"schema": 0}}', "[]"):
        cache_path(sensor, tmp_path).write_text(spoilt)
        assert known_or_examined(sensor, tmp_path, 2.0, clock, clock.sleep).polls > 100


def test_a_counter_that_stands_still_is_asked_again_next_time(tmp_path: Path) -> None:
    clock = Clock()
    sensor = Staircase(clock, gain=0.0)
    assert known_or_examined(sensor, tmp_path, 2.0, clock, clock.sleep).counter_stands_still
    sensor.gain = 1.0
    assert not known_or_examined(sensor, tmp_path, 2.0, clock, clock.sleep).counter_stands_still


@pytest.mark.parametrize(("lies_until", "is_conflict"), [(1.5, False), (99.0, True)])
def test_a_conflict_is_believed_when_it_is_seen_twice(
    lies_until: float, is_conflict: bool, tmp_path: Path
) -> None:
    clock = Clock()

    class Settling(Staircase):
        def read(self) -> Sample:
            sample = super().read()
            late = 100.0 if self.clock.now < lies_until else 0.0  # an average that still remembers a load
            return Sample(sample.monotonic_seconds, sample.energy_joules, (sample.power_watts or 0) + late)

    trust = known_or_examined(Settling(clock), tmp_path, 2.0, clock, clock.sleep)
    assert trust.in_conflict is is_conflict


def test_finds_the_periods_of_a_gpu_through_pynvml(make_fake_nvml: Callable[..., FakeNvml]) -> None:
    nvml = make_fake_nvml(RTX_4090)
    nvml.gpus[0].update_period(energy_seconds=0.1)
    with nvml.in_process():
        sensor = NvmlSensor("0")
        sensor.open()
        try:
            trust = examine_sensor(sensor, 1.0, time.monotonic, time.sleep)
        finally:
            sensor.close()
    assert trust.counter_period_seconds == pytest.approx(0.1, abs=0.02)
