"""The meter: threads, windows, failures, several sensors at once, and what a reading carries."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from fake_plugs import FakePlug, serving
from hypothesis import given
from hypothesis import strategies as st
from sysfs_trees import plant, running

from sweeper.errors import ConfigError, ReadingFailed, SensorMissingError
from sweeper.meter.base import DeviceState, Sample, Sensor
from sweeper.meter.choose import measure_idle
from sweeper.meter.sampling import SampledMeter, look_seconds
from sweeper.meter.sensors.estimate import EstimateSensor
from sweeper.meter.sensors.plug import PlugSensor
from sweeper.meter.sensors.rapl import RaplSensor
from sweeper.power_settings import EstimateSettings, PlugSettings
from sweeper.records import Caveat, EnergyReading, PowerSource, from_plain, to_plain


class Scripted(Sensor):
    """A sensor whose power, state and failures a test sets; it is a real one to the meter."""

    def __init__(
        self, watts: float = 50.0, period: float | None = 0.02, settling: float | None = None
    ) -> None:
        super().__init__()
        self.source = PowerSource("scripted", "test", "custom", "measured", period, settling_seconds=settling)
        self.watts = watts
        self.failure: str | None = None
        self.beside = DeviceState(temperature_celsius=50.0)
        self.reads = 0

    @property
    def is_open(self) -> bool:
        return self._is_open

    def _find(self) -> None: ...

    def _take(self) -> Sample:
        self.reads += 1
        if self.failure is not None:
            raise ReadingFailed(self.failure)
        return Sample(time.monotonic(), power_watts=self.watts)

    def state(self) -> DeviceState:
        return self.beside


def _window(meter: SampledMeter, seconds: float) -> EnergyReading:
    with meter.window() as window:
        started = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
    return window.reading(started, ended)


def test_counts_a_real_tree_within_one_percent_over_a_wrap(tmp_path: Path) -> None:
    root = plant("epyc_two_sockets", tmp_path)
    span = 65532610987
    zones = [root / f"class/powercap/intel-rapl:{n}/energy_uj" for n in (0, 1)]
    zones[0].write_text(f"{span - 60_000_000:<20}\n")  # wraps after 0.6 s
    with (
        running(
            {zones[0]: 100.0, zones[1]: lambda t: 40.0 + 20.0 * (int(t * 3) % 2)}, dict.fromkeys(zones, span)
        ) as counters,
        SampledMeter(RaplSensor(root)) as meter,
    ):
        with meter.window() as window:
            time.sleep(0.1)
            started = time.monotonic()
            time.sleep(1.2)
            ended = time.monotonic()
            time.sleep(0.05)
        reading = window.reading(started, ended)
        truth = sum(counters.truth(zone, started, ended) for zone in zones)
    assert reading.joules == pytest.approx(truth, rel=0.01)
    assert reading.error_fraction is not None
    assert reading.error_fraction < 0.05


def test_a_sensor_beside_is_recorded_and_never_added(tmp_path: Path) -> None:
    root = plant("intel_desktop", tmp_path)
    zone = root / "class/powercap/intel-rapl:0/energy_uj"
    with (
        serving(FakePlug("shelly", 95.0)) as plug,
        running({zone: 40.0}),
        SampledMeter(RaplSensor(root), beside=[PlugSensor(PlugSettings("shelly", plug.url))]) as meter,
    ):
        reading = _window(meter, 1.35)
    assert reading.source.scope == "package"
    assert reading.watts == pytest.approx(40, rel=0.1)
    (wall,) = reading.beside
    assert wall.source.scope == "wall"
    assert wall.watts == pytest.approx(95, rel=0.01)
    assert from_plain(to_plain(reading), EnergyReading) == reading


def test_a_slow_plug_beside_delays_no_counter(tmp_path: Path) -> None:
    root = plant("intel_desktop", tmp_path)
    zone = root / "class/powercap/intel-rapl:0/energy_uj"
    with (
        serving(FakePlug("shelly", 95.0)) as plug,
        running({zone: 40.0}),
        SampledMeter(RaplSensor(root), beside=[PlugSensor(PlugSettings("shelly", plug.url))]) as meter,
    ):
        time.sleep(0.2)
        plug.delay_seconds = 1.0  # much longer than a busy machine holds up a sampler
        reading = _window(meter, 0.8)
    assert reading.samples > 4
    assert reading.largest_gap_seconds is not None
    assert reading.largest_gap_seconds < 0.7


def test_a_sensor_that_fails_throughout_gives_none_and_its_words() -> None:
    sensor = Scripted()
    with SampledMeter(sensor) as meter:
        sensor.failure = "the meter fell off the bench"
        reading = _window(meter, 0.3)
    assert reading.joules is None
    assert reading.watts is None
    assert "fell off the bench" in (reading.reason or "")


def test_single_failures_are_lost_samples() -> None:
    sensor = Scripted()
    with SampledMeter(sensor, hz=20) as meter:
        with meter.window() as window:
            started = time.monotonic()
            time.sleep(0.3)
            sensor.failure = "once"
            time.sleep(0.06)
            sensor.failure = None
            time.sleep(0.3)
            ended = time.monotonic()
        reading = window.reading(started, ended)
    assert reading.joules == pytest.approx(50 * reading.seconds, rel=0.01)


def test_temperatures_clocks_and_reasons_are_gathered() -> None:
    sensor = Scripted()
    sensor.beside = DeviceState(60.0, 1500.0, (), False, 300.0, 0)
    with SampledMeter(sensor) as meter:
        with meter.window() as window:
            started = time.monotonic()
            time.sleep(0.55)
            sensor.beside = DeviceState(80.0, 1700.0, ("hw_thermal_slowdown",), True, 250.0, 2)
            time.sleep(0.55)
            ended = time.monotonic()
        reading = window.reading(started, ended)
        assert meter.temperature_celsius() == 80.0
    assert (reading.temperature_start_celsius, reading.temperature_end_celsius) == (60.0, 80.0)
    assert reading.temperature_max_celsius == 80.0
    assert reading.clock_mhz is not None
    assert 1500 < reading.clock_mhz < 1700
    assert reading.throttle_reasons == ("hw_thermal_slowdown",)
    assert reading.capped_share is not None
    assert 0 < reading.capped_share < 1
    assert reading.enforced_limit_watts == 250.0
    assert reading.other_processes == 2
    assert set(reading.caveats) == {Caveat.THERMALLY_THROTTLED, Caveat.POWER_CAPPED, Caveat.BUSY_MACHINE}


def test_rests_between_windows_and_samples_at_its_rate_inside() -> None:
    sensor = Scripted(period=0.1)
    with SampledMeter(sensor, hz=10) as meter:
        time.sleep(0.4)
        at_rest = sensor.reads
        reading = _window(meter, 0.6)
    assert at_rest <= 2
    assert 3 <= reading.samples <= 15  # a busy machine loses some


@pytest.mark.parametrize(
    ("period", "is_counter", "cost", "seconds"),
    [
        (None, True, 0.0, 0.1),  # nothing to go by
        (0.001, True, 0.0, 0.1),  # RAPL: every look sees a fresh value
        (0.02, True, 0.0, 0.1),  # five looks a period would be too many, and one tells nothing more
        (0.1, True, 0.0, 0.02),  # NVML's counter
        (0.1, True, 0.0004, 0.05),  # a driver that takes long to answer: the budget goes first
        (0.1, True, 0.01, 0.1),  # but what was asked for is kept
        (0.02, False, 0.0, 0.02),
        (0.1, False, 0.0, 0.1),
        (1.2, False, 0.0, 0.6),  # a plug
        (8.0, False, 0.0, 1.0),
    ],
)
def test_looks_as_often_as_it_tells_something_and_may_cost(
    period: float | None, is_counter: bool, cost: float, seconds: float
) -> None:
    assert look_seconds(period, is_counter, 10.0, cost, 0.008) == pytest.approx(seconds)


@given(
    period=st.floats(1e-4, 20.0),
    is_counter=st.booleans(),
    hz=st.floats(1.0, 20.0),
    cost=st.floats(0.0, 0.01),
)
def test_looks_beyond_those_asked_for_keep_to_their_budget(
    period: float, is_counter: bool, hz: float, cost: float
) -> None:
    pause = look_seconds(period, is_counter, hz, cost, 0.008)
    assert pause >= 1 / hz / 5 * 0.999
    assert pause >= 1 / hz * 0.999 or cost / pause <= 0.008 * 1.001
    assert look_seconds(period, is_counter, hz, cost, 0.0) >= 1 / hz * 0.999


def test_averaged_power_asks_for_windows_that_outlast_its_settling() -> None:
    sensor = Scripted(settling=1.2)
    with SampledMeter(sensor) as meter:
        assert meter.update_period_seconds == 1.2
        idle = measure_idle(meter, 0.1, windows=1)
    assert idle is not None
    assert idle.median == pytest.approx(50.0)


def test_a_slow_sensor_is_asked_no_more_than_twice_a_period() -> None:
    sensor = Scripted(period=1.0)
    with SampledMeter(sensor, hz=20) as meter:
        _window(meter, 1.1)
    assert sensor.reads <= 7


@pytest.mark.parametrize("hz", [0.5, 25.0])
def test_the_rate_is_bounded(hz: float) -> None:
    with pytest.raises(ConfigError, match="sample_hz"):
        SampledMeter(Scripted(), hz=hz)


def test_leaves_no_thread_and_no_handle_behind() -> None:
    sensor, before = Scripted(), threading.active_count()
    with SampledMeter(sensor) as meter:
        assert threading.active_count() == before + 1
        assert meter.watts_now() in (None, 50.0)
    assert threading.active_count() == before
    assert not sensor.is_open


def test_closes_the_first_sensor_where_the_second_cannot_be_opened() -> None:
    class Absent(Scripted):
        def open(self) -> None:
            raise SensorMissingError("not here: choose another")

    first, before = Scripted(), threading.active_count()
    with pytest.raises(SensorMissingError), SampledMeter(first, beside=[Absent()]):
        pass
    assert not first.is_open
    assert threading.active_count() == before


def test_live_watts_come_from_a_counter_too(tmp_path: Path) -> None:
    root = plant("intel_desktop", tmp_path)
    zone = root / "class/powercap/intel-rapl:0/energy_uj"
    with running({zone: 40.0}), SampledMeter(RaplSensor(root)) as meter:
        _window(meter, 0.4)
        watts = meter.watts_now()
    assert watts == pytest.approx(40, rel=0.5)


def test_idle_is_measured_with_its_spread() -> None:
    with SampledMeter(Scripted(watts=12.0)) as meter:
        idle = measure_idle(meter, 0.3)
    assert idle is not None
    assert idle.median == pytest.approx(12.0)
    assert idle.low <= idle.median <= idle.high
    assert idle.n == 5


def test_idle_of_a_dead_meter_is_none() -> None:
    sensor = Scripted()
    with SampledMeter(sensor) as meter:
        sensor.failure = "gone"
        assert measure_idle(meter, 0.3) is None


def test_an_estimate_carries_its_label_and_no_error_bar() -> None:
    with SampledMeter(EstimateSensor(EstimateSettings(20.0, 60.0))) as meter:
        reading = _window(meter, 0.4)
    assert reading.source.kind == "estimated"
    assert Caveat.ESTIMATED in reading.caveats
    assert reading.error_fraction is None
    assert reading.watts is not None
    assert 20.0 * 0.99 <= reading.watts <= 60.0 * 1.01


def _stat(root: Path, cpus: int, busy: int, idle: int) -> None:
    lines = [
        f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0",
        *(f"cpu{n} 0 0 0 0 0 0 0 0 0 0" for n in range(cpus)),
        "intr 1",
    ]
    (root / "stat").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("busy_ticks", "watts"), [(0, 20.0), (200, 40.0), (400, 60.0)])
def test_an_estimate_is_utilisation_times_rating(busy_ticks: int, watts: float, tmp_path: Path) -> None:
    now = [10.0]
    _stat(tmp_path, 4, 1000, 5000)
    settings = EstimateSettings(20.0, 60.0)
    sensor = EstimateSensor(settings, procfs_root=tmp_path, clock=lambda: now[0], ticks_per_second=100)
    sensor.open()
    now[0] = 11.0
    _stat(tmp_path, 4, 1000 + busy_ticks, 5400 - busy_ticks)
    sample = sensor.read()
    assert sample.power_watts == pytest.approx(watts)
    assert sample.energy_joules == pytest.approx(watts * 1.0)


def test_an_estimate_without_ratings_says_that_it_guesses(tmp_path: Path) -> None:
    _stat(tmp_path, 4, 0, 0)
    guessed = EstimateSensor(procfs_root=tmp_path, gpu_used=True)
    assert "power.estimate.idle_watts and power.estimate.busy_watts to your own" in (
        guessed.source.note or ""
    )
    assert "GPU's power is not included" in (guessed.source.note or "")
    assert guessed.caveats == (Caveat.ESTIMATED, Caveat.MISSING_DOMAIN)
    rated = EstimateSensor(EstimateSettings(20.0, 60.0), procfs_root=tmp_path)
    assert "guess" not in (rated.source.note or "")
