"""Error bars hold the true error for loads that step, ramp and repeat, as benchmarks/error_bars.py shows in full."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from sweeper.meter.integrate import Integral
from sweeper.meter.sampling import next_pause

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from energy_error import Sensor, Truth, read_window
from error_bars import SENSORS, coverage

COUNTER = Sensor("counter", True, 0.1)
FAST = Sensor("power, 20 ms", False, 0.02)
SLOW = Sensor("power, 100 ms", False, 0.1)


@pytest.mark.parametrize("sensor", SENSORS, ids=lambda sensor: sensor.name)
def test_bars_hold_in_95_of_100_windows_and_are_narrow_where_load_is_steady(sensor: Sensor) -> None:
    found = coverage(sensor, windows=40)
    assert found.all_held >= 0.94  # of 200 windows
    assert found.held["steady"] >= 0.9
    assert found.bar <= 0.01
    assert found.bar <= 6 * found.error


def _square(
    rng: random.Random, sensor: Sensor, high: float, low: float, period: float, seconds: float = 5.0
) -> tuple[float, Integral]:
    """The true energy of a window inside a square wave, and its reading."""
    moment, steps = 9.0 - rng.uniform(0, period), [(0.0, low)]
    while moment < 12.0 + seconds:
        steps += [(moment, high), (moment + period / 2, low)]
        moment += period
    truth = Truth(steps)
    return truth.joules(10.0 + seconds) - truth.joules(10.0), read_window(
        rng, sensor, truth, 10.0, 10.0 + seconds
    )


@pytest.mark.parametrize("low", [60.0, 120.0])
@pytest.mark.parametrize("period", [0.7, 0.73])  # seven refreshes of 100 ms, and not
@pytest.mark.parametrize("sensor", [COUNTER, FAST, SLOW], ids=lambda sensor: sensor.name)
def test_large_steps_stay_within_the_bar(sensor: Sensor, period: float, low: float) -> None:
    rng = random.Random(f"{sensor.name} {period} {low}")
    held = 0
    for _ in range(60):
        joules, reading = _square(rng, sensor, 200.0, low, period)
        assert reading.joules is not None
        assert reading.error_fraction is not None
        held += abs(reading.joules - joules) <= reading.error_fraction * reading.joules
    assert held >= 56


def test_a_load_in_step_is_reported_and_a_steady_one_is_not() -> None:
    rng = random.Random(1)
    assert sum(_square(rng, SLOW, 200.0, 60.0, 0.7)[1].in_step for _ in range(60)) >= 50
    noisy = []
    for _ in range(60):
        truth = Truth([(0.0, 100.0), *((9.0 + 0.03 * n, rng.gauss(100, 2)) for n in range(300))])
        noisy.append(read_window(rng, SLOW, truth, 10.0, 15.0).in_step)
    assert sum(noisy) <= 2


def test_uneven_pauses_break_the_step_of_samples_and_load() -> None:
    rng = random.Random(1)
    assert next_pause(0.1, 0.1, rng) == 0.1  # an uneven pause would miss refreshes
    assert next_pause(0.5, 1.0, rng) == 0.5
    pauses = [next_pause(0.1, 0.02, rng) for _ in range(200)]
    assert min(pauses) >= 0.05
    assert max(pauses) <= 0.15
    assert sum(pauses) / 200 == pytest.approx(0.1, rel=0.05)
    moments = [sum(pauses[:n]) for n in range(200)]
    high = sum(moment % 0.1 < 0.05 for moment in moments)  # even pauses would see one level alone
    assert 70 <= high <= 130
