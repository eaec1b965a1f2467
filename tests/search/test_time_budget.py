"""The limit of the whole job: the search ends early enough for the final stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeper.measure.trial import Stage
from sweeper.metrics import FIRST_WHEN_FULL
from sweeper.records import (
    Configuration,
    EnergyReading,
    Fill,
    PowerSource,
    Reading,
    TrialRecord,
    Visit,
    Window,
    Workload,
)
from sweeper.search.finals import visit_stage
from sweeper.search.study import SweepStudy
from sweeper.search.time_budget import ExpectedTime, TimeBudget, again_seconds
from sweeper.search.timekeeper import Room
from sweeper.space.space import Traits, build_space


@pytest.mark.parametrize(("now", "over"), [(0.0, False), (89.0, False), (91.0, True), (200.0, True)], ids=str)
def test_the_search_leaves_the_time_of_all_visits(now: float, over: bool) -> None:
    budget = TimeBudget(120.0, lambda: now)
    assert budget.search_is_over(finalists=1, visit_seconds=5.0) is over  # 2 * 3 visits take 30 s


def test_the_search_keeps_half_of_the_time() -> None:
    assert not TimeBudget(120.0, lambda: 59.0).search_is_over(finalists=9, visit_seconds=60.0)
    assert TimeBudget(120.0, lambda: 61.0).search_is_over(finalists=9, visit_seconds=60.0)


def test_preparation_counts_and_so_do_the_reports() -> None:
    assert TimeBudget(120.0, lambda: 1000.0, began=900.0).left() == 20.0
    assert TimeBudget(120.0, lambda: 1000.0, began=900.0, closing_seconds=5.0).left() == 15.0
    assert TimeBudget(120.0, lambda: 1000.0, began=900.0, closing_seconds=5.0).used() == 100.0


WORKLOAD = Workload(screening_seconds=6.0, screening_repeats=3, final_seconds=30.0, final_repeats=9)
SCREENING, FINAL = Stage.screening(WORKLOAD), visit_stage(WORKLOAD)
SPACE = build_space(
    {"n_ctx": [1024, 2048, 4096, 8192], "n_threads": [1, 2, 4, 8], "quant": ["Q8_0", "Q4_0"]},
    Configuration(),
    Traits(),
)
BASE = Configuration(n_ctx=1024, n_threads=8, quant="Q8_0")


def reading(value: float, n: int = 3) -> Reading:
    return Reading(value, value, value, n)


def trial(configuration: Configuration = BASE, **more: Any) -> TrialRecord:
    """A trial that loaded for 2 s and ran for 10 s, 6 s of which were decode windows."""
    return TrialRecord(
        0,
        "complete",
        configuration,
        **{"seconds": 99.0, "load_seconds": 2.0, "run_seconds": 10.0, "prompt_seconds": 2.0, **more},
    )


def expected(*trials: TrialRecord, workload: Workload = WORKLOAD, **more: Any) -> ExpectedTime:
    return ExpectedTime(trials, SPACE, workload, 0.0, **more)


def visit_of(found: ExpectedTime, configuration: Configuration = BASE, stage: Stage = FINAL) -> float:
    return found.visit(configuration, stage, SCREENING)


def test_a_visit_takes_what_a_trial_takes_beside_its_windows() -> None:
    windows = 10.0 + 6.0 + 1.0  # of the visit: decode, three prompts of 2 s, at rest
    assert visit_of(expected(trial())) == pytest.approx(2.0 + 4.0 + windows)
    assert visit_of(expected()) == pytest.approx(10.0 + 5.0 + 1.0)  # of the shortest prompts
    slow = {
        "prompt_tokens_per_second": reading(512 / 30, n=1)
    }  # a prompt takes longer than the decode windows
    prompted = trial(metrics=slow, run_seconds=6.0 + 30.0 + 4.0)
    assert visit_of(expected(prompted)) == pytest.approx(2.0 + 4.0 + 10.0 + 30.0 + 1.0)
    without = replace(FINAL, least_prefill=0)
    assert visit_of(expected(prompted), stage=without) == pytest.approx(2.0 + 4.0 + 10.0 + 1.0)
    both = expected(trial(BASE.with_(n_threads=4)), prompted)
    assert both.usual_visit(FINAL, SCREENING) == pytest.approx((2.0 + 4.0 + windows + 2.0 + 4.0 + 41.0) / 2)


def test_a_prompt_that_no_trial_measured_takes_what_the_warm_up_expects() -> None:
    assert visit_of(expected(trial(prompt_seconds=60.0))) == pytest.approx(2.0 + 4.0 + 10.0 + 60.0 + 1.0)


def test_only_what_is_not_loaded_yet_is_loaded() -> None:
    alone = expected(trial(), loaded=BASE)
    assert alone.trial(BASE) == pytest.approx(10.0)
    assert alone.trial(BASE.with_(n_threads=4)) == pytest.approx(
        12.0
    )  # a server loads for each configuration
    kept = trial(BASE.with_(n_threads=4), load_seconds=None)
    assert expected(trial(), kept, loaded=BASE).trial(BASE.with_(n_threads=2)) == pytest.approx(10.0)
    assert expected(trial(), kept).trial(BASE) == pytest.approx(12.0)
    other = trial(BASE.with_(quant="Q4_0"), load_seconds=7.0)
    assert expected(trial(), other, kept, loaded=BASE).trial(BASE.with_(quant="Q4_0")) == pytest.approx(17.0)


DEEP = replace(WORKLOAD, depth=None, prompt_tokens=512, generated_tokens=64)


def depth(n_ctx: int) -> int:
    return n_ctx - 512 - 64


def filled(seconds_per_token: float, deepest: float, configuration: Configuration = BASE) -> TrialRecord:
    """A trial that filled its context at a mean speed, with prompts at its end at another one."""
    first = depth(configuration.n_ctx) * seconds_per_token + 512 * deepest
    metrics = {"prompt_tokens_per_second": reading(1 / deepest), FIRST_WHEN_FULL: reading(first, 1)}
    return trial(configuration, metrics=metrics)


def test_a_longer_context_takes_its_fill_at_the_speed_of_the_most_similar_trial() -> None:
    longer = BASE.with_(n_ctx=4096)
    even = expected(filled(0.01, 0.01), filled(0.04, 0.04, BASE.with_(n_threads=1)), workload=DEEP)
    assert even.trial(BASE) == pytest.approx(12.0 + 0.01 * depth(1024))
    assert even.trial(longer) == pytest.approx(12.0 + 0.01 * depth(4096))
    assert even.trial(longer.with_(n_threads=1)) == pytest.approx(12.0 + 0.04 * depth(4096))
    assert even.trial(longer.with_(n_threads=4)) == pytest.approx(12.0 + 0.01 * depth(4096))


def test_a_fill_that_slows_down_with_its_depth_takes_longer_than_in_proportion() -> None:
    short, long = depth(2048), depth(8192)
    here = filled(0.010 + 1e-6 * short / 2, 0.010 + 1e-6 * short, BASE.with_(n_ctx=2048))
    found = expected(here, workload=DEEP).trial(BASE.with_(n_ctx=8192)) - 12.0
    assert found == pytest.approx(0.010 * long + 1e-6 * long**2 / 2)
    noise = filled(0.011, 0.010, BASE.with_(n_ctx=2048))  # no fill becomes faster with its depth
    assert expected(noise, workload=DEEP).trial(BASE.with_(n_ctx=8192)) - 12.0 == pytest.approx(0.011 * long)


def test_a_context_that_was_not_timed_takes_the_time_of_prompts() -> None:
    restored = trial(metrics={"prompt_tokens_per_second": reading(100.0)})
    assert expected(restored, workload=DEEP).trial(BASE) == pytest.approx(12.0 + depth(1024) / 100)


def test_a_kept_context_is_not_filled_again() -> None:
    found = expected(
        filled(0.01, 0.01),
        workload=DEEP,
        restores=lambda c, tokens: (c.n_threads, tokens) == (4, depth(1024)),
    )
    assert found.trial(BASE.with_(n_threads=4)) == pytest.approx(12.0)
    assert found.trial(BASE) > 12.0
    assert expected(filled(0.01, 0.01), workload=DEEP, loaded=BASE).trial(BASE) == pytest.approx(10.0)


def test_records_of_before_have_times_too() -> None:
    old = TrialRecord(0, "complete", BASE, seconds=10.0, load_seconds=3.0)
    assert expected(old).trial(BASE) == pytest.approx(10.0)
    assert expected(replace(old, state="failed")).trial(BASE) == 0.0
    assert expected().trial(BASE) == 0.0


def window(phase: Any, seconds: float, tokens: int = 0) -> Window:
    energy = EnergyReading(PowerSource("rapl", "x", "package", "measured"), seconds, 5.0)
    return Window(phase, 0, 64, seconds, energy, tokens)


def test_another_visit_takes_as_long_without_its_full_context() -> None:
    shallow = (window("prefill", 8.0), window("decode", 5.0))
    deep = (window("prefill", 3.0, 900), window("decode", 2.0, 900))
    whole = Visit(0, 0, (*shallow, *deep), (), None, None, seconds=60.0, fill=Fill(900, 30.0))
    assert again_seconds(whole, prompts=True) == pytest.approx(60.0 - 30.0 - 5.0)
    assert again_seconds(whole, prompts=False) == pytest.approx(60.0 - 30.0 - 5.0 - 8.0)
    short = replace(whole, windows=(shallow[1],), fill=None)
    assert again_seconds(short, prompts=False) == pytest.approx(60.0)
    assert again_seconds(short, prompts=True) is None
    at_its_depth = replace(whole, windows=deep, fill=Fill(900, 30.0))  # which has to be filled again
    assert again_seconds(at_its_depth, prompts=True) == pytest.approx(60.0)


def test_a_trial_fits_if_the_visits_after_it_fit_too() -> None:
    found = expected(trial())
    needs = found.trial(BASE) + 7.0 + 5.0  # and visits to the baseline and to itself
    assert Room(found, lambda _: 5.0, needs, 7.0).fits(BASE)
    assert not Room(found, lambda _: 5.0, needs - 0.1, 7.0).fits(BASE)
    assert not Room(found, lambda _: 5.0, needs, 7.0, pick_seconds=6.0).fits(BASE)
    assert Room(found, lambda _: 5.0, math.inf).fits(BASE)


def test_a_simulated_sweep_ends_in_its_time(sweeper: Callable[..., Any], tmp_path: Path) -> None:
    minutes = 15
    done = sweeper(
        "sweep",
        "experiment=demo",
        "name=s",
        f"minutes={minutes}",
        "search.trials=1000",
        "search.sampler=random",
    )
    assert done.returncode == 0, done.stderr
    study = SweepStudy.load(tmp_path / "mlruns", "s")
    spent = sum(t.seconds for t in study.trials()) + sum(v.seconds for v in study.visits())
    assert spent <= 60 * minutes + max(v.seconds for v in study.visits() if v.visit == 0)
    assert (
        f"to leave time in the {minutes}-minute limit for measuring the best trials again"
        in study.header().stopped_because
    )
    first = [v.trial for v in study.visits() if v.visit == 0]
    assert len(first) >= 2  # the baseline, and at least one other
    assert set(first) == {v.trial for v in study.visits()}
