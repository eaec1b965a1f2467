"""A model of all trials in place of single noisy ones, for choosing whom to measure again."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.simulator import MACHINES, SimulatedEngine, machine_record, model_record
from sweeper.lab.virtual_time import VirtualClock
from sweeper.records import Configuration, Objective, Reading, SweepRecord, TrialRecord, Workload
from sweeper.search.smoothing import LEAST_TRIALS, smoothed
from sweeper.space.space import Traits, build_space
from sweeper.stats import reading, relative_noise

SPACE = build_space(
    {
        "quant": ["F16", "Q8_0", "Q4_K_M"],
        "n_threads": [1, 2, 4, 8],
        "flash_attn": [True, False],
        "n_ubatch": [64, 512],
    },
    Configuration(quant="F16"),
    Traits(),
)
NOISE = 0.15


def true_speed(c):
    return (
        10.0
        * {"F16": 1.0, "Q8_0": 1.6, "Q4_K_M": 2.2}[c.quant]
        * c.n_threads**0.5
        * (1.2 if c.flash_attn else 1.0)
    )


def true_watts(c):
    return 12.0 + 4.0 * c.n_threads


def record_of(trials):
    machine = MACHINES["minipc"]
    engine = SimulatedEngine(machine, VirtualClock())
    return SweepRecord(
        sweep="s",
        state="running",
        machine=machine_record(machine),
        engine=engine.record,
        model=model_record(machine),
        workload=Workload(),
        objectives=(Objective("tokens_per_second", "maximize"), Objective("watts", "minimize")),
        constraints=(),
        power=SimulatedMeter(engine.trace, engine.clock).source,
        space={},
        trials=tuple(trials),
        front=(),
        baseline=None,
        recommended=None,
    )


def noisy(number, configuration, rng):
    speeds = [true_speed(configuration) * math.exp(rng.gauss(0, NOISE)) for _ in range(3)]
    watts = [true_watts(configuration) * math.exp(rng.gauss(0, 0.01)) for _ in range(3)]
    metrics = {
        "tokens_per_second": reading(speeds),
        "watts": reading(watts),
        "joules_per_token": reading([w / s for w, s in zip(watts, speeds, strict=True)]),
    }
    return TrialRecord(number, "complete", configuration, metrics)


@pytest.fixture(scope="module")
def record():
    rng = random.Random(5)
    chosen = rng.sample(list(SPACE.grid()), 30)
    return record_of(noisy(i, c, rng) for i, c in enumerate(chosen))


def errors(record):
    return [
        abs(math.log(t.metrics["tokens_per_second"].median / true_speed(t.configuration)))
        for t in record.trials
    ]


def test_luck_is_taken_out(record):
    assert statistics.fmean(errors(smoothed(record, SPACE))) < 0.75 * statistics.fmean(errors(record))


def test_energy_follows_and_nothing_else_is_touched(record):
    for before, after in zip(record.trials, smoothed(record, SPACE).trials, strict=True):
        m = after.metrics
        assert m["joules_per_token"].median == pytest.approx(
            m["watts"].median / m["tokens_per_second"].median
        )
        assert m["tokens_per_second"].n == before.metrics["tokens_per_second"].n
        assert replace(after, metrics=before.metrics) == before


def test_few_trials_and_failed_ones_stand_as_they_are(record):
    few = replace(record, trials=record.trials[: LEAST_TRIALS - 1])
    assert smoothed(few, SPACE) is few
    failed = TrialRecord(99, "failed", Configuration(), reason="signal 11")
    assert smoothed(replace(record, trials=(*record.trials, failed)), SPACE).trials[-1] is failed


def test_values_that_do_not_differ_are_left_alone(record):
    same = {"tokens_per_second": reading([5.0, 5.1, 5.2]), "watts": reading([9.0, 9.1, 9.2])}
    flat = replace(record, trials=tuple(replace(t, metrics=same) for t in record.trials))
    assert smoothed(flat, SPACE) == flat


def test_the_noise_of_a_median_is_found_from_its_repeats(record):
    found = relative_noise(t.metrics["tokens_per_second"] for t in record.trials)
    assert found == pytest.approx(NOISE * 1.25 / math.sqrt(3), rel=0.3)
    assert relative_noise([reading([3.0])]) is None


def test_what_has_no_noise_is_left_as_it_is(record):
    def with_context(trial):
        n_ctx = 1024.0 * (1 + trial.number % 3)
        return replace(trial, metrics={**trial.metrics, "n_ctx": Reading(n_ctx, n_ctx, n_ctx, 1)})

    objectives = (Objective("n_ctx", "maximize"), *record.objectives)
    whole = replace(record, objectives=objectives, trials=tuple(map(with_context, record.trials)))
    found = smoothed(whole, SPACE).trials
    assert [t.metrics["n_ctx"] for t in found] == [t.metrics["n_ctx"] for t in whole.trials]
    assert found != whole.trials
