"""What a trial would cost, and that the cheaper of two equal promises is asked for first."""

import numpy as np
import pytest

from sweeper.records import Configuration
from sweeper.search.encoding import Encoder
from sweeper.search.trial_cost import LEAST_TRIALS, Cost, TrialCost
from sweeper.space.space import Traits, build_space

SPACE = build_space(
    {"quant": ["F16", "Q8_0", "Q4_K_M"], "n_threads": [1, 2, 4, 8], "flash_attn": [True, False]},
    Configuration(quant="F16"),
    Traits(),
)
GRID = list(SPACE.grid())
ENCODE = Encoder(SPACE)


def seconds(configuration):
    return 40.0 / configuration.n_threads


def cost_of(trials):
    """Trials as they were run; a load takes 9 s for F16 and 3 s for the others."""
    costs, loaded = [], None
    for c in trials:
        load = None if c.quant == loaded else 9.0 if c.quant == "F16" else 3.0
        loaded = c.quant
        costs.append(Cost(c, seconds(c) + (load or 0.0), load))
    return TrialCost(costs, ENCODE(trials))


def test_nothing_is_said_before_there_are_trials_enough():
    few = GRID[: LEAST_TRIALS - 1]
    assert cost_of(few)(GRID, ENCODE(GRID)).tolist() == [1.0] * len(GRID)
    assert TrialCost([], ENCODE([]))(GRID, ENCODE(GRID)).tolist() == [1.0] * len(GRID)


def test_a_model_that_is_loaded_costs_no_load_and_a_known_one_its_own():
    trials = sorted(GRID, key=lambda c: c.quant != "F16")  # F16 first, so another is loaded at the end
    cost = cost_of(trials)
    loaded = trials[-1].quant
    for c in GRID:
        same = c.with_(quant=loaded)
        (there, anew) = cost([same, c], ENCODE([same, c]))
        expected = 0.0 if c.quant == loaded else 9.0 if c.quant == "F16" else 3.0
        near = cost([c], ENCODE([c]))[0] - expected
        assert there > 0
        assert near > 0
        if c.quant != loaded:
            assert anew - expected == pytest.approx(near)


def test_what_ran_long_is_expected_to_run_long():
    cost = cost_of(GRID)
    loaded = GRID[-1]
    slow, fast = (cost([c], ENCODE([c]))[0] for c in (loaded.with_(n_threads=1), loaded.with_(n_threads=8)))
    assert slow > 3 * fast


def test_no_expectation_leaves_what_was_seen():
    trials = [c for c in GRID if c.n_threads in (2, 4)]
    expected = cost_of(trials)(GRID, ENCODE(GRID))
    assert np.all(expected >= 10.0 * 0.999)
    assert np.all(expected <= 20.0 * 1.001 + 9.0)
