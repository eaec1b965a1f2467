"""The limit of the whole job: the search ends early enough for the final stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeper.measure.trial import Stage
from sweeper.records import Configuration, Reading, TrialRecord, Workload
from sweeper.search.finals import visit_stage
from sweeper.search.study import SweepStudy
from sweeper.search.time_budget import TimeBudget, visit_seconds


@pytest.mark.parametrize(("now", "over"), [(0.0, False), (89.0, False), (91.0, True), (200.0, True)], ids=str)
def test_the_search_leaves_the_time_of_all_visits(now: float, over: bool) -> None:
    budget = TimeBudget(120.0, lambda: now)
    assert budget.search_is_over(finalists=1, visit_seconds=5.0) is over  # 2 * 3 visits take 30 s


def test_the_search_keeps_half_of_the_time() -> None:
    assert not TimeBudget(120.0, lambda: 59.0).search_is_over(finalists=9, visit_seconds=60.0)
    assert TimeBudget(120.0, lambda: 61.0).search_is_over(finalists=9, visit_seconds=60.0)


def test_preparation_counts() -> None:
    assert TimeBudget(120.0, lambda: 1000.0, began=900.0).left() == 20.0


@pytest.mark.parametrize(("left", "count"), [(1000.0, 5), (90.0, 5), (60.0, 3), (30.0, 1), (-5.0, 1)])
def test_finalists_by_the_time_left(left: float, count: int) -> None:
    assert TimeBudget(left, lambda: 0.0).finalists(5, 5.0) == count


def test_a_visit_takes_what_a_trial_takes_beside_its_windows() -> None:
    workload = Workload(screening_seconds=6.0, screening_repeats=3, final_seconds=30.0, final_repeats=9)
    screening, final = Stage.screening(workload), visit_stage(workload)
    windows = 10.0 + 5.0 + 1.0  # of the visit: decode, prefill, at rest
    trial = TrialRecord(
        0, "complete", Configuration(), seconds=6.0 + 4.0
    )  # decode windows, and 4 s beside them
    assert visit_seconds([trial], screening, final, 0.0) == pytest.approx(windows + 4.0)
    assert visit_seconds([], screening, final, 0.0) == pytest.approx(windows)
    slow = Reading(30.0, 30.0, 30.0, 1)  # one prompt takes longer than the decode windows
    prompted = replace(trial, metrics={"time_to_first_token_seconds": slow}, seconds=6.0 + 30.0 + 4.0)
    assert visit_seconds([prompted], screening, final, 0.0) == pytest.approx(10.0 + 30.0 + 1.0 + 4.0)


@pytest.mark.parametrize("minutes", [15, 40])
def test_a_simulated_sweep_ends_in_its_time(
    minutes: int, sweeper: Callable[..., Any], tmp_path: Path
) -> None:
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
