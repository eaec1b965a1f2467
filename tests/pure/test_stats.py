"""Statistics of repeats, against slow references and against what the intervals promise."""

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper import stats

values = st.floats(-1e9, 1e9, allow_nan=False)
samples = st.lists(values, min_size=1, max_size=12)
positive = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=12)


def test_the_interval_of_a_mean_is_students():
    low, high = stats.mean_interval([1.0, 2.0, 3.0, 4.0])
    assert (low + high) / 2 == pytest.approx(2.5)
    assert (high - low) / 2 == pytest.approx(3.18245 * statistics.stdev([1, 2, 3, 4]) / 2, rel=1e-5)
    assert stats.mean_interval([7.0]) == (7.0, 7.0)
    assert stats.mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert stats.mean_interval([0.0, 1.0])[0] == 0.0  # nothing of this kind is negative
    assert stats.mean_interval([-1.0, 1.0])[0] < -1


@pytest.mark.parametrize("count", [2, 3, 8, 16])
def test_the_interval_of_a_mean_holds_in_95_of_100_cases(count):
    draw = random.Random(count)
    cases = [[draw.gauss(5, 1) for _ in range(count)] for _ in range(2000)]
    held = sum(low <= 5 <= high for low, high in map(stats.mean_interval, cases))
    assert 0.93 < held / len(cases) < 0.97


@given(samples)
def test_median_and_mad_agree_with_numpy(sample):
    centre = float(np.median(sample))
    assert stats.median(sample) == pytest.approx(centre, rel=1e-12, abs=1e-9)
    assert stats.mad(sample) == pytest.approx(float(np.median(np.abs(np.array(sample) - centre))), abs=1e-6)


@pytest.mark.parametrize(
    "call", [stats.median, stats.mad, stats.reading, stats.outliers, stats.interval, stats.mean_interval]
)
@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_nothing_is_said_about_no_value_or_no_number(call, bad):
    with pytest.raises(ValueError, match="value"):
        call(bad)


@settings(max_examples=25, deadline=None)
@given(samples)
def test_a_reading_holds_its_median_and_is_the_same_each_time(sample):
    reading = stats.reading(sample)
    assert reading.low <= reading.median <= reading.high
    assert reading.n == len(sample)
    assert stats.reading(sample) == reading


@settings(max_examples=25, deadline=None)
@given(positive)
def test_no_reading_of_positive_values_reaches_below_zero(sample):
    assert stats.reading(sample).low >= 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1, 1e6), min_size=6, max_size=12), st.floats(0.5, 20))
def test_an_interval_scales_with_its_unit(sample, factor):
    low, high = stats.interval(sample)
    scaled_low, scaled_high = stats.interval([value * factor for value in sample])
    assert scaled_low == pytest.approx(low * factor, rel=1e-9)
    assert scaled_high == pytest.approx(high * factor, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1, 1e6), min_size=6, max_size=12))
def test_a_bootstrap_stays_inside_the_range(sample):
    low, high = stats.interval(sample)
    assert min(sample) <= low <= high <= max(sample)


@pytest.mark.parametrize("count", [3, 5, 6, 10])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(count):
    rng = random.Random(5)
    hits = 0
    for _ in range(300):
        low, high = stats.interval([rng.gauss(100, 2) for _ in range(count)])
        hits += low <= 100 <= high
    assert 0.90 <= hits / 300 <= 1.0


def test_one_value_has_no_spread():
    assert stats.interval([4.0]) == (4.0, 4.0)


@given(st.lists(st.floats(1, 1e6), min_size=2, max_size=12))
def test_cv_agrees_with_numpy(sample):
    expected = float(np.std(sample, ddof=1) / np.mean(sample))
    assert stats.coefficient_of_variation(sample) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cv_is_none_where_it_means_nothing():
    assert stats.coefficient_of_variation([3.0]) is None
    assert stats.coefficient_of_variation([-1.0, 1.0]) is None


def test_outliers_are_found_and_noise_is_not():
    assert stats.outliers([100, 101, 99, 100.5, 60]) == (4,)
    assert stats.outliers([100, 101, 99, 100.5, 97]) == ()
    # Two equal repeats make the MAD 0; a per cent is still no outlier, a half is.
    assert stats.outliers([100, 100, 101]) == ()
    assert stats.outliers([100, 100, 50]) == (2,)
    assert stats.outliers([0, 0, 0]) == ()


def test_a_slow_first_run_is_told_from_a_slow_other_and_from_noise():
    assert stats.slow_first_run([50, 100, 101, 99, 100])
    assert stats.slow_first_run([50, 100, 100])
    assert not stats.slow_first_run([100, 50, 100, 101])
    assert not stats.slow_first_run([99, 100, 101])
    assert not stats.slow_first_run([99, 100, 100])
    assert not stats.slow_first_run([150, 100, 101, 99])
    assert not stats.slow_first_run([50, 100])


def test_of_three_two_that_agree_by_chance_make_no_outlier_of_the_third():
    assert stats.outliers([100, 100.1, 95]) == ()
    assert not stats.slow_first_run([95, 100, 100.1])
    assert stats.outliers([100, 100.1, 93]) == (2,)
    # Of many the same distance is one.
    assert stats.outliers([100, 100.1, 99.9, 100, 100.1, 99.9, 95]) == (6,)


# Visits


def drawn_visits(rng, *, between, within, visits=3, windows=4):
    """Windows of some visits to a configuration whose truth is 1."""
    return [
        [rng.gauss(1 + shift, within) for _ in range(windows)]
        for shift in (rng.gauss(0, between) for _ in range(visits))
    ]


def held(rng, between, stages=60):
    """Of final stages with a finalist for each of ``between``: how often windows alone and visits hold the truth."""
    alone, known, widths = [], [], []
    for _ in range(stages):
        each = [drawn_visits(rng, between=b, within=0.01) for b in between]
        medians = [[stats.median(v) for v in visits] for visits in each]
        noise = stats.VisitNoise.of(medians)
        assert noise is not None
        for visits, own in zip(each, medians, strict=True):
            reading = stats.reading([x for v in visits for x in v])
            wide = noise.widened(reading, own)
            alone.append(reading.low <= 1 <= reading.high)
            known.append(wide.low <= 1 <= wide.high)
            widths.append(wide.high - wide.low)
    return statistics.fmean(alone), statistics.fmean(known), widths


@pytest.mark.parametrize("between", [0.0, 0.02, 0.05])
def test_with_visits_the_interval_holds_the_truth_where_windows_alone_do_not(between):
    alone, known, _ = held(random.Random(7), [between] * 6)
    assert known >= 0.93
    if between >= 0.02:
        assert alone < 0.8


def test_one_noisy_finalist_does_not_make_the_others_look_so_and_is_wide_itself():
    _, known, widths = held(random.Random(8), [0.01] * 5 + [0.5])
    assert known >= 0.92
    quiet = [w for place, w in enumerate(widths) if place % 6 < 5]
    noisy = widths[5::6]
    assert statistics.median(quiet) < 0.06
    assert statistics.median(noisy) > 0.4


def test_a_widened_interval_is_never_narrower_and_never_below_nothing():
    reading = stats.Reading(1.0, 0.5, 1.5, 12)
    assert stats.VisitNoise(1e-6, 4).widened(reading, [1.0, 1.0, 1.0]) == reading
    wide = stats.VisitNoise(1.0, 2).widened(reading, [1.0])
    assert (wide.low, wide.median, wide.n) == (0.0, 1.0, 12)
    assert wide.high > 3


def test_visits_say_nothing_of_noise_where_none_was_repeated():
    assert stats.VisitNoise.of([[1.0], [2.0]]) is None
    assert stats.VisitNoise.of([]) is None
