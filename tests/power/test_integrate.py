"""Joules from samples, against truths that are known: wraps, resets, gaps, lost and doubled samples."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.meter.base import Sample
from sweeper.meter.counter_edges import edges_of
from sweeper.meter.integrate import CounterTrack, Integral, integrate
from sweeper.meter.sampling import MOST_BUSY_SHARE, look_seconds

Power = Callable[[float], float]
LOOK_COST_SECONDS = 0.00026  # as measured by benchmarks/sampler_cost.py on a busy machine


class Truth:
    """A power that steps, with its exact energy: what a device really draws."""

    def __init__(self, steps: list[tuple[float, float]]) -> None:
        self.steps = steps  # (from this moment on, W), sorted, the first at or before 0

    def watts(self, moment: float) -> float:
        return [w for t, w in self.steps if t <= moment][-1]

    def joules(self, started: float, ended: float) -> float:
        edges = [*[t for t, _ in self.steps], math.inf]
        return sum(
            w * max(0.0, min(ended, edges[i + 1]) - max(started, t)) for i, (t, w) in enumerate(self.steps)
        )

    def at_refresh(self, moment: float, period: float, phase: float) -> float:
        """When the value that a sensor shows at ``moment`` was taken."""
        return moment if period == 0 else math.floor((moment - phase) / period) * period + phase


def pause_of(period: float, is_counter: bool = True) -> float:
    """Seconds between the meter's looks."""
    return look_seconds(period, is_counter, 10.0, LOOK_COST_SECONDS, MOST_BUSY_SHARE)


@st.composite
def truths(draw: st.DrawFn) -> Truth:
    """Rest, then load from about 10 s to 30 s, whose power wanders by up to a fifth; then rest again."""
    load = draw(st.floats(20, 700))
    rest = load * draw(st.floats(0.05, 0.9))
    begin, end = 10.0, 30.0
    moments = sorted(draw(st.lists(st.floats(begin + 0.5, end - 0.5), max_size=6)))
    levels = [load * draw(st.floats(0.8, 1.2)) for _ in moments]
    return Truth([(-100.0, rest), (begin, load), *zip(moments, levels, strict=True), (end, rest)])


def counter_samples(
    truth: Truth, moments: list[float], period: float, phase: float, range_joules: float | None, origin: float
) -> list[Sample]:
    track = CounterTrack(range_joules, max_watts=1500.0)
    samples = []
    for moment in moments:
        raw = origin + truth.joules(-100.0, truth.at_refresh(moment, period, phase))
        total, epoch = track.advance(moment, raw % range_joules if range_joules else raw)
        samples.append(Sample(moment, energy_joules=total, epoch=epoch))
    return samples


def sampled_moments(
    rng: random.Random, started: float, ended: float, lose: float = 0.0, pause: float = 0.1
) -> list[float]:
    """Looks with the jitter of a busy machine, some lost, always one before and one after the window."""
    moments, moment = [], started - rng.uniform(0.001, 0.1)
    while moment < ended:
        if not moments or rng.random() >= lose:
            moments.append(moment)
        moment += pause + rng.uniform(0, 0.01)
    return [*moments, ended + rng.uniform(0.0, 0.02)]


PERIODS = [0.0, 0.001, 0.02, 0.05, 0.1]


@given(
    truth=truths(),
    seed=st.integers(0, 2**32),
    period=st.sampled_from(PERIODS),
    range_joules=st.sampled_from([None, 262_143.32885, 65_532.610987]),
    lose=st.sampled_from([0.0, 0.0, 0.2]),
)
def test_a_counter_errs_by_at_most_one_percent(
    truth: Truth, seed: int, period: float, range_joules: float | None, lose: float
) -> None:
    rng = random.Random(seed)
    started = 10.0 + rng.uniform(0.0, 0.5)
    ended = started + rng.uniform(5.0, 19.0)
    # The counter is about to wrap, at a random moment of the window.
    origin = rng.uniform(0, 1e6) if range_joules is None else range_joules - rng.uniform(0, 20_000)
    moments = sampled_moments(rng, started, ended, lose, pause_of(period))
    samples = counter_samples(truth, moments, period, rng.uniform(0, 1), range_joules, origin)
    integral = integrate(samples, started, ended, period)
    expected = truth.joules(started, ended)
    assert integral.joules is not None
    assert abs(integral.joules / expected - 1) <= 0.01
    assert integral.error_fraction is not None


@pytest.mark.parametrize("with_window", [True, False])
@pytest.mark.parametrize("period", PERIODS)
def test_a_steady_load_stays_within_its_bar_however_it_meets_the_window(
    period: float, with_window: bool
) -> None:
    rng = random.Random(f"{period} {with_window}")
    held = []
    for _ in range(100):
        watts, rest = rng.uniform(20, 700), rng.uniform(0.05, 2.0)  # above 1: prefill before decode
        started, ended = 10.0, 10.0 + rng.uniform(1.0, 15.0)
        spare = 0.0 if with_window else 1.0
        truth = Truth([(-100.0, watts * rest), (started - spare, watts), (ended + spare, watts * rest)])
        moments = sampled_moments(rng, started, ended, rng.choice([0.0, 0.2]), pause_of(period))
        samples = counter_samples(truth, moments, period, rng.uniform(0, 1), None, 0.0)
        integral = integrate(samples, started, ended, period)
        assert integral.joules is not None
        assert integral.error_fraction is not None
        error = abs(integral.joules / truth.joules(started, ended) - 1)
        held.append(error <= integral.error_fraction)
    assert sum(held) >= 93


@given(
    phase=st.floats(0, 0.1),
    gaps=st.lists(st.floats(0.002, 0.3), min_size=1, max_size=30),
    period=st.floats(0.01, 0.1),
)
def test_an_edge_lies_where_it_is_said_to_be(phase: float, gaps: list[float], period: float) -> None:
    moments = list(accumulate([1.0, *gaps]))
    refreshes = [math.floor((moment - phase) / period) for moment in moments]
    edges = edges_of([(m, float(r)) for m, r in zip(moments, refreshes, strict=True)], period)
    assert [edge.joules for edge in edges] == sorted({float(r) for r in refreshes})
    for edge in edges:
        assert abs(edge.moment - (edge.joules * period + phase)) <= edge.slack + 1e-6
        assert edge.slack <= period / 2


@given(seed=st.integers(0, 2**32), watts=st.lists(st.floats(20, 700), min_size=2, max_size=4))
def test_devices_that_refresh_at_different_moments_are_counted_one_by_one(
    seed: int, watts: list[float]
) -> None:
    rng = random.Random(seed)
    moments = sampled_moments(rng, 10.0, 20.0, pause=pause_of(0.1))
    devices = [
        counter_samples(Truth([(-100.0, w)]), moments, 0.1, rng.uniform(0, 0.1), None, 0.0) for w in watts
    ]
    samples = [
        Sample(parts[0].monotonic_seconds, sum(p.energy_joules or 0.0 for p in parts), parts=parts)
        for parts in zip(*devices, strict=True)
    ]
    integral = integrate(samples, 10.0, 20.0, 0.1)
    assert integral.joules == pytest.approx(sum(watts) * 10, rel=0.005)
    alone = [integrate(own, 10.0, 20.0, 0.1) for own in devices]
    errors = sum((one.joules or 0.0) * (one.error_fraction or 0.0) for one in alone)
    assert integral.joules is not None
    assert integral.error_fraction == pytest.approx(errors / integral.joules)
    devices[1] = [Sample(s.monotonic_seconds, energy_joules=7.0) for s in devices[1]]
    samples = [Sample(p[0].monotonic_seconds, parts=p) for p in zip(*devices, strict=True)]
    assert "stood still" in _reason(integrate(samples, 10.0, 20.0, 0.1))


def averaged(truth: Truth, moments: list[float], phase: float) -> list[Sample]:
    """Power as NVML shows it on most cards: the mean of the last second, refreshed every 100 ms."""
    shown = [truth.at_refresh(moment, 0.1, phase) for moment in moments]
    return [Sample(m, power_watts=truth.joules(s - 1.0, s)) for m, s in zip(moments, shown, strict=True)]


@given(
    before=st.floats(0.05, 2.0),
    watts=st.floats(20, 700),
    seconds=st.floats(2.5, 60.0),
    seed=st.integers(0, 2**32),
)
def test_averaged_power_tells_nothing_of_what_ran_before_the_window(
    before: float, watts: float, seconds: float, seed: int
) -> None:
    rng = random.Random(seed)
    truth = Truth([(-100.0, before * watts), (10.0, watts)])  # as decode follows prefill
    moments = sampled_moments(rng, 10.0, 10.0 + seconds, pause=0.5)
    samples = averaged(truth, moments, rng.uniform(0, 0.1))
    integral = integrate(samples, 10.0, 10.0 + seconds, 1.0, settling_seconds=1.2)
    assert integral.joules == pytest.approx(watts * seconds, rel=1e-6)
    assert integral.error_fraction is not None


def test_averaged_power_over_a_short_window_says_how_little_it_knows() -> None:
    truth = Truth([(-100.0, 50.0), (10.0, 100.0)])
    moments = [9.9, 10.4, 10.9, 11.4, 11.9, 12.01]
    integral = integrate(averaged(truth, moments, 0.0), 10.0, 12.0, 1.0, settling_seconds=1.2)
    assert integral.joules is not None
    assert integral.error_fraction == pytest.approx(0.6, abs=0.02)
    assert abs(integral.joules - 200) <= 200 * 0.6
    assert "shorter than" in _reason(
        integrate(averaged(truth, moments, 0.0), 10.0, 11.0, 1.0, settling_seconds=1.2)
    )


@given(truth=truths(), seed=st.integers(0, 2**32), period=st.sampled_from([0.02, 0.1, 1.0]))
def test_polled_power_is_exact_at_steady_load(truth: Truth, seed: int, period: float) -> None:
    rng = random.Random(seed)
    steady = Truth([truth.steps[0], truth.steps[1], truth.steps[-1]])
    started = 10.0 + rng.choice([0.0, rng.uniform(0.0, 0.5)])
    ended = rng.choice([30.0, started + rng.uniform(5.0, 19.0)])
    phase = rng.uniform(0, 1)
    samples = [
        Sample(t, power_watts=steady.watts(steady.at_refresh(t, period, phase)))
        for t in sampled_moments(rng, started, ended, pause=pause_of(period, is_counter=False))
    ]
    integral = integrate(samples, started, ended, period)
    assert integral.joules == pytest.approx(steady.joules(started, ended), rel=1e-6)
    assert not integral.in_step


@given(truth=truths(), seed=st.integers(0, 2**32))
def test_doubled_and_shuffled_samples_change_nothing(truth: Truth, seed: int) -> None:
    rng = random.Random(seed)
    moments = sampled_moments(rng, 11.0, 21.0)
    samples = counter_samples(truth, moments, 0.02, 0.3, None, 5.0)
    messy = [*samples, *rng.choices(samples, k=7)]
    rng.shuffle(messy)
    assert integrate(messy, 11.0, 21.0, 0.02) == integrate(samples, 11.0, 21.0, 0.02)


@given(
    values=st.lists(
        st.tuples(
            st.floats(0, 30),
            st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
            st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
            st.integers(0, 2),
        ),
        max_size=12,
    ),
    started=st.floats(0, 20),
    seconds=st.floats(0, 10),
    period=st.one_of(st.none(), st.floats(0, 2)),
)
def test_whatever_comes_the_answer_is_positive_or_has_a_reason(
    values: list[tuple[float, float | None, float | None, int]],
    started: float,
    seconds: float,
    period: float | None,
) -> None:
    samples = [Sample(t, energy_joules=j, power_watts=w, epoch=e) for t, j, w, e in values]
    integral = integrate(samples, started, started + seconds, period)
    if integral.joules is None:
        assert integral.reason
        assert integral.error_fraction is None
    else:
        assert integral.joules > 0
        assert math.isfinite(integral.joules)
        assert integral.reason is None


@given(
    steps=st.lists(st.tuples(st.floats(0.001, 60.0), st.floats(0.0, 400.0)), min_size=1, max_size=40),
    origin=st.floats(0, 65_532.0),
)
def test_a_track_follows_every_wrap(steps: list[tuple[float, float]], origin: float) -> None:
    span = 65_532.610987
    track = CounterTrack(span, max_watts=1000.0)
    moment, truth = 0.0, 0.0
    track.advance(moment, origin % span)
    for seconds, watts in steps:
        moment += seconds
        truth += seconds * watts
        total, epoch = track.advance(moment, (origin + truth) % span)
        assert epoch == 0
        assert total == pytest.approx(truth, abs=1e-6 * (1 + truth))


@given(gap=st.floats(66.0, 10_000.0), raw=st.floats(0, 65_000))
def test_a_gap_in_which_it_may_have_wrapped_twice_starts_a_new_epoch(gap: float, raw: float) -> None:
    track = CounterTrack(65_532.0, max_watts=1000.0)
    track.advance(0.0, 30_000.0)
    assert track.advance(gap, raw)[1] == 1


def test_a_reset_is_no_wrap() -> None:
    track = CounterTrack(262_143.0, max_watts=1000.0)
    track.advance(0.0, 5_000.0)
    assert track.advance(1.0, 3.0) == (0.0, 1)  # a wrap would have needed 257,146 J in a second
    assert track.advance(2.0, 53.0) == (50.0, 1)


def test_a_counter_without_a_range_never_wraps() -> None:
    track = CounterTrack(None, max_watts=1000.0)
    track.advance(0.0, 5_000.0)
    assert track.advance(1.0, 4_999.0)[1] == 1


def _counter(*pairs: tuple[float, float], epoch: int = 0) -> list[Sample]:
    return [Sample(t, energy_joules=j, epoch=epoch) for t, j in pairs]


def _line(until: float = 10.0) -> list[Sample]:
    return _counter(*((t / 10, 5 * t) for t in range(int(until * 10) + 1)))  # 50 W


def _reason(integral: Integral) -> str:
    assert integral.joules is None
    assert integral.reason is not None
    return integral.reason


def test_a_straight_counter_is_exact() -> None:
    integral = integrate(_line(), 2.03, 7.71, 0.0)
    assert integral.joules == pytest.approx(50 * 5.68)
    assert integral.samples == 59
    assert integral.largest_gap_seconds == pytest.approx(0.1)


def test_a_counter_bridges_a_gap() -> None:
    samples = [s for s in _line() if not 3 < s.monotonic_seconds < 5]
    integral = integrate(samples, 2.0, 7.0, 0.0)
    assert integral.joules == pytest.approx(250)
    assert integral.largest_gap_seconds == pytest.approx(2.0)


def test_a_counter_that_stands_still_has_a_reason() -> None:
    samples = [Sample(s.monotonic_seconds, energy_joules=42.0) for s in _line()]
    assert "stood still" in _reason(integrate(samples, 1.0, 9.0, 0.1))


def test_a_counter_that_stops_in_the_middle_has_a_reason() -> None:
    samples = [Sample(s.monotonic_seconds, energy_joules=min(s.energy_joules or 0.0, 200.0)) for s in _line()]
    assert "stood still for" in _reason(integrate(samples, 1.0, 9.0, 0.02))


def test_a_new_epoch_inside_the_window_has_a_reason_and_outside_does_no_harm() -> None:
    samples = [
        Sample(s.monotonic_seconds, s.energy_joules, epoch=int(s.monotonic_seconds > 5)) for s in _line()
    ]
    assert "reset, or wrapped" in _reason(integrate(samples, 4.0, 6.0, 0.0))
    assert integrate(samples, 1.0, 4.0, 0.0).joules == pytest.approx(150)
    assert integrate(samples, 6.0, 9.0, 0.0).joules == pytest.approx(150)


def test_samples_that_end_early_have_a_reason() -> None:
    assert "before the window's end" in _reason(integrate(_line(5.0), 1.0, 9.0, 0.0))
    late = [s for s in _line() if s.monotonic_seconds > 4]
    assert "after the window's start" in _reason(integrate(late, 1.0, 9.0, 0.0))
    assert "no sample" in _reason(integrate([], 1.0, 9.0, 0.0))


def test_power_that_is_missing_for_half_the_window_has_a_reason() -> None:
    samples = [Sample(t / 10, power_watts=50.0) for t in range(101) if not 20 < t < 80]
    assert "no power sample for" in _reason(integrate(samples, 1.0, 9.0, 0.1))


def test_a_window_shorter_than_the_update_period_has_a_reason() -> None:
    samples = [Sample(t / 10, power_watts=50.0) for t in range(101)]
    assert "shorter than the sensor's update period" in _reason(integrate(samples, 4.0, 4.5, 1.0))


def test_power_of_zero_throughout_has_a_reason() -> None:
    samples = [Sample(t / 10, power_watts=0.0) for t in range(101)]
    assert "0 W" in _reason(integrate(samples, 1.0, 9.0, 0.1))


def test_a_window_without_length_has_a_reason() -> None:
    assert "no length" in _reason(integrate(_line(), 4.0, 4.0, 0.0))
