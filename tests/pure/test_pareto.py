"""Dominance, the front and its hypervolume, against slow references and the laws they must keep."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.records import Configuration, Objective, Reading, TrialRecord
from sweeper.results.front import (
    dominates,
    front,
    hypervolume,
    oriented,
    reference_point,
    sides_of,
    tied,
    undominated,
)

SPEED_AND_WATTS = (Objective("tokens_per_second", "maximize"), Objective("watts", "minimize"))

small = st.integers(0, 6).map(float)
planes = st.lists(st.tuples(small, small), max_size=9)
spaces = st.lists(st.tuples(small, small, small), max_size=7)


def trial(number, speed, watts, noise=0.0, **changes):
    def reading(value):
        return Reading(value, value * (1 - noise), value * (1 + noise), 10)

    metrics = {"tokens_per_second": reading(speed), "watts": reading(watts)}
    return TrialRecord(number, "complete", Configuration(), metrics=metrics, **changes)


def slow_hypervolume(points, reference):
    """Inclusion and exclusion over all subsets."""
    total = 0.0
    boxes = [[x - r for x, r in zip(p, reference, strict=True)] for p in points]
    boxes = [box for box in boxes if min(box) > 0]
    for size in range(1, len(boxes) + 1):
        for subset in itertools.combinations(boxes, size):
            volume = 1.0
            for column in zip(*subset, strict=True):
                volume *= min(column)
            total += volume if size % 2 else -volume
    return total


@given(planes)
def test_a_plane_agrees_with_inclusion_and_exclusion(points):
    assert hypervolume(points, (1.0, 0.0)) == pytest.approx(slow_hypervolume(points, (1.0, 0.0)))


@given(spaces)
def test_a_space_agrees_with_inclusion_and_exclusion(points):
    reference = (0.0, 1.0, -1.0)
    assert hypervolume(points, reference) == pytest.approx(slow_hypervolume(points, reference))


@given(st.lists(st.tuples(small), max_size=6))
def test_a_line_is_its_best_point(points):
    assert hypervolume(points, (2.0,)) == max([p[0] - 2 for p in points if p[0] > 2], default=0)


@given(spaces, st.tuples(small, small, small))
def test_adding_a_point_never_takes_volume_away(points, new):
    reference = (0.5, 0.5, 0.5)
    assert hypervolume([*points, new], reference) >= hypervolume(points, reference) - 1e-9


@given(planes, st.randoms())
def test_order_and_dominated_points_do_not_matter(points, rng):
    shuffled = points[:]
    rng.shuffle(shuffled)
    kept = [points[i] for i in undominated(points)]
    assert hypervolume(shuffled, (0, 0)) == pytest.approx(hypervolume(points, (0, 0)))
    assert hypervolume(kept, (0, 0)) == pytest.approx(hypervolume(points, (0, 0)))


@given(planes)
def test_undominated_is_what_no_other_beats(points):
    kept = [points[i] for i in undominated(points)]
    beaten = {p for p in points for q in points if q != p and q[0] >= p[0] and q[1] >= p[1]}
    assert sorted(kept) == sorted(set(points) - beaten)


def test_what_cannot_be_a_volume_is_refused():
    with pytest.raises(ValueError, match="one, two or three"):
        hypervolume([], (0, 0, 0, 0))
    with pytest.raises(ValueError, match="finite"):
        hypervolume([(1.0, float("nan"))], (0, 0))


@given(st.lists(st.tuples(small, small), min_size=1, max_size=9))
def test_every_point_lies_above_the_reference(points):
    reference = reference_point(points)
    assert all(x > r for point in points for x, r in zip(point, reference, strict=True))


def test_a_reference_keeps_its_margin_and_needs_a_point():
    assert reference_point([(0.0, -50.0), (10.0, -70.0)]) == pytest.approx((-1.0, -72.0))
    assert reference_point([(5.0, 0.0)]) == pytest.approx((4.5, -0.1))
    with pytest.raises(ValueError, match="at least one"):
        reference_point([])


def beats(one, other, **how):
    return dominates(sides_of(one, SPEED_AND_WATTS), sides_of(other, SPEED_AND_WATTS), **how)


noisy_trials = st.lists(
    st.tuples(st.floats(1, 100), st.floats(1, 100), st.sampled_from([0.0, 0.01, 0.05, 0.3])), max_size=12
).map(lambda rows: [trial(i, *row) for i, row in enumerate(rows)])


@settings(max_examples=60)
@given(noisy_trials)
def test_the_front_holds_the_front_of_the_medians_and_nothing_beaten_beyond_noise(trials):
    kept = front(trials, SPEED_AND_WATTS)
    points = [oriented(t, SPEED_AND_WATTS) for t in trials]
    beaten = {t.number for t in trials if any(beats(o, t, beyond_noise=True) for o in trials)}
    assert set(kept) == {t.number for t in trials} - beaten
    assert set(undominated(points)) <= set(kept)
    speeds = [trials[number].metrics["tokens_per_second"].median for number in kept]
    assert speeds == sorted(speeds, reverse=True)


@given(noisy_trials)
def test_dominance_beyond_noise_is_dominance_and_orders_strictly(trials):
    for a, b in itertools.product(trials, repeat=2):
        if beats(a, b, beyond_noise=True):
            assert beats(a, b)
            assert not beats(b, a)
            assert not tied(a, b, SPEED_AND_WATTS)


def test_a_near_tie_stays_on_the_front_and_is_said():
    best, near, worse = trial(0, 20, 60, 0.02), trial(1, 19.9, 60.2, 0.02), trial(2, 15, 61, 0.02)
    numbers = front([worse, near, best], SPEED_AND_WATTS)
    assert numbers == (0, 1)
    assert tied(best, near, SPEED_AND_WATTS)
    assert not tied(best, worse, SPEED_AND_WATTS)


def test_without_noise_the_near_tie_goes():
    assert front([trial(0, 20, 60), trial(1, 19.9, 60.2)], SPEED_AND_WATTS) == (0,)
    assert front([trial(0, 20, 60), trial(1, 20, 60)], SPEED_AND_WATTS) == (0, 1)


def test_a_front_is_made_of_what_counts():
    good = trial(0, 10, 60, remeasured=True)
    once = trial(1, 11, 60)
    broken = trial(2, 30, 10, violations={"time_to_first_token_seconds <= 0.5": 0.2})
    failed = TrialRecord(3, "failed", Configuration(), reason="SIGSEGV")
    blind = TrialRecord(4, "complete", Configuration(), metrics={"tokens_per_second": Reading(9, 9, 9, 1)})
    trials = [good, once, broken, failed, blind]
    assert front(trials, SPEED_AND_WATTS) == (1,)
    assert front(trials, SPEED_AND_WATTS, remeasured_only=True) == (0,)
    assert front([], SPEED_AND_WATTS) == ()
