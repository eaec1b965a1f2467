"""The estimate is held against whole sweeps, known to their end."""

import random
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.report.progress import Plan
from sweeper.report.time_left import TimeLeft, in_words, typical

FINALISTS = 5


def steady(rng: random.Random) -> list[float]:
    return [12 + rng.random() for _ in range(30)]


def loads_now_and_then(rng: random.Random) -> list[float]:
    """A third of the trials loads a model first."""
    return [14 + rng.random() + (9 if rng.random() < 0.33 else 0) for _ in range(40)]


def quantises_first(rng: random.Random) -> list[float]:
    """The first trials make the quantised files that all later ones find."""
    return [95.0, *(10 + rng.random() for _ in range(39))]


def some_fail_at_once(rng: random.Random) -> list[float]:
    return [0.3 if rng.random() < 0.15 else 16 + rng.random() for _ in range(60)]


def one_hangs(rng: random.Random) -> list[float]:
    """One trial early on runs into its time-out of two minutes."""
    return [11 + rng.random() if number != 5 else 120.0 for number in range(45)]


def control_every_tenth(rng: random.Random) -> list[float]:
    return [10 + rng.random() + (12 if number % 10 == 9 else 0) for number in range(60)]


KINDS = [steady, loads_now_and_then, quantises_first, some_fail_at_once, one_hangs, control_every_tenth]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_third_the_estimate_is_right_within_a_quarter(kind, seed) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(seed)
    trials = kind(rng)
    # A finalist is measured twice as long, with its own scatter.
    finalists = [2 * sorted(trials)[len(trials) // 2] * rng.uniform(0.9, 1.1) for _ in range(FINALISTS)]
    left = TimeLeft(Plan(finalist_measurements=FINALISTS, finalist_cost=2.0))
    whole = list(accumulate(trials))
    moments = {-(-len(trials) // 3), len(trials) // 2, 2 * len(trials) // 3}
    for done, cost in enumerate(trials, 1):
        left.trial_took(cost)
        if done not in moments:
            continue
        truth = whole[-1] - whole[done - 1] + sum(finalists)
        guess = left.seconds(len(trials) - done, whole[done - 1])
        assert guess == pytest.approx(truth, rel=0.25), f"{kind.__name__}: after {done} of {len(trials)}"


def test_nothing_is_guessed_before_the_first_trial() -> None:
    assert TimeLeft(Plan()).seconds(10) is None
    assert in_words(None) == "time left not known yet"


def test_a_bound_in_minutes_bounds_the_search_but_not_the_finalists() -> None:
    left = TimeLeft(Plan(finalist_measurements=2, finalist_cost=3.0, minutes=5))
    left.trial_took(10)
    assert left.seconds(1000, elapsed=240) == pytest.approx(60 + 2 * 30)
    assert left.seconds(1000, elapsed=400) == pytest.approx(2 * 30)


def test_the_finalists_own_costs_count_as_soon_as_there_are_any() -> None:
    left = TimeLeft(Plan(finalist_measurements=4, finalist_cost=2.0))
    left.trial_took(10)
    left.finalists_started(3)
    assert left.seconds(3) == pytest.approx(60)
    left.trial_took(50)
    assert left.seconds(2) == pytest.approx(100)


@given(st.lists(st.floats(min_value=0.01, max_value=1e4), min_size=1))
def test_the_typical_cost_lies_between_the_least_and_the_most(costs: list[float]) -> None:
    found = typical(costs)
    assert found is not None
    assert min(costs) * 0.999 <= found <= max(costs) * 1.001


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "about 5 s left"), (42, "about 40 s left"), (200, "about 3 min left"), (9000, "about 2.5 h left")],
)
def test_the_words_are_as_coarse_as_the_estimate(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


# From start to start in a real sweep of a 15M model on 2 cores that ten other jobs kept busy: 12 trials,
# then 8 measurements of finalists, each with 1.4 times a trial's windows and the same load and warm-up.
RECORDED_TRIALS = [18.9, 15.9, 9.2, 6.4, 13.3, 19.7, 24.3, 17.4, 18.1, 27.1, 6.0, 11.7]
RECORDED_FINALISTS = [23.2, 13.2, 14.8, 14.3, 16.1, 8.9, 8.7, 19.1]


@pytest.mark.parametrize("done", [4, 6, 8])
def test_a_recorded_sweep_is_foreseen_within_a_quarter(done: int) -> None:
    left = TimeLeft(Plan(len(RECORDED_FINALISTS), 1.2))
    for cost in RECORDED_TRIALS[:done]:
        left.trial_took(cost)
    truth = sum(RECORDED_TRIALS[done:]) + sum(RECORDED_FINALISTS)
    assert left.seconds(len(RECORDED_TRIALS) - done) == pytest.approx(truth, rel=0.25)
