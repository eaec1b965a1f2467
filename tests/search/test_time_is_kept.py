"""A whole-job limit is kept, and a short job ends with a trial that was measured twice. On simulated machines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest

from sweeper.config import compose
from sweeper.errors import NoResultError
from sweeper.lab.simulator import MACHINES
from sweeper.measure.disturbance import Watch
from sweeper.prepare import prepared
from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.progress import Progress
from sweeper.results.assemble import assemble
from sweeper.search.gp_front import GpFrontSampler
from sweeper.search.study import SweepStudy
from sweeper.sweep import Sweep

LONG = "experiment=longest_context"


@dataclass
class Told(Progress):
    """Keeps the notes, and the trials and visits that ended."""

    notes: list[str] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def trial_finished(self, trial: TrialRecord) -> None:
        self.ended.append(trial.number)


@contextmanager
def job(root: Path, machine: str, minutes: float, *words: str) -> Iterator[tuple[Sweep, Told]]:
    """A simulated job that keeps its study and nothing else."""
    told = Told()
    given = ["engine=simulated", f"engine.machine={machine}", f"minutes={minutes}", "search.seed=1"]
    composed = compose([*given, f"root='{root}'", "name=s", *words])
    with (
        mock.patch("sweeper.prepare.Tracker"),
        prepared(composed, lambda *_: told, lambda _: None) as sweep,
    ):
        sweep.write_report = lambda record, folder: {}
        yield sweep, told


def seconds_of(sweep: Sweep) -> float:
    assert sweep.budget is not None
    return sweep.budget.used()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("minutes", [1, 3])
def test_a_short_job_is_over_in_time_and_recommends_what_was_measured_twice(
    minutes: int, machine: str, tmp_path: Path
) -> None:
    with job(tmp_path, machine, minutes) as (sweep, _):
        record = sweep.run()
        assert seconds_of(sweep) <= 1.1 * 60 * minutes
    assert record.recommended is not None
    assert record.trial(record.recommended).remeasured
    assert record.trial(record.baseline or 0).remeasured
    assert record.state == "complete"


@pytest.mark.parametrize(
    ("machine", "minutes"), [("minipc", 2), ("minipc", 5), ("minipc", 10), ("moe_pc", 1)]
)
def test_long_contexts_break_no_limit(machine: str, minutes: int, tmp_path: Path) -> None:
    with job(tmp_path, machine, minutes, LONG) as (sweep, told):
        record = sweep.run()
        assert seconds_of(sweep) <= 1.1 * 60 * minutes
    assert record.recommended is not None
    later = [note for note in told.notes if "are not tried with the default settings" in note]
    assert len(later) <= 1
    assert all("(computed), and" in note for note in later)


def test_a_trial_that_does_not_fit_is_told_of_once_and_counts_nowhere(tmp_path: Path) -> None:
    with job(tmp_path, "minipc", 2) as (sweep, told):
        record = sweep.run()
        study = sweep.study.optuna_study
        set_aside = [trial for trial in study.get_trials() if "set_aside_by" in trial.user_attrs]
        assert set_aside
        assert {trial.state.name for trial in set_aside} == {"FAIL"}
        assert not {trial.number for trial in set_aside} & {trial.number for trial in record.trials}
        assert all(trial.state == "complete" for trial in record.trials)
    (said,) = [note for note in told.notes if note.startswith("trials that would take longer")]
    assert " s (computed), and " in said


def test_a_sampler_forgets_what_an_earlier_process_had_no_time_for(tmp_path: Path) -> None:
    with job(tmp_path, "minipc", 5, LONG, "search.trials=3") as (sweep, _):
        sweep.run()
        sampler = GpFrontSampler(sweep.space, 1)
        proposal = sweep.study.ask(sweep.space.distributions())
        configuration = sweep.space.configuration(proposal.params)
        sweep.study.set_aside(proposal)
        study = sweep.study.optuna_study
        here = sampler._read(study, -1)
        assert configuration in here.known
        assert configuration not in (*here.measured, *here.broken)
        with mock.patch("sweeper.search.gp_front.PROCESS", "a later one"):
            assert configuration not in sampler._read(study, -1).known


def test_a_resumed_job_with_more_time_tries_the_longer_contexts(tmp_path: Path) -> None:
    with job(tmp_path, "minipc", 3, LONG, "search.trials=4") as (sweep, _):
        assert {t.configuration.n_ctx for t in sweep.run().trials} == {1024}
    with job(tmp_path, "minipc", 60, LONG, "search.trials=4") as (sweep, _):
        found = {t.configuration.n_ctx for t in sweep.run().trials}
    assert {1024, 2048, 4096, 8192} <= found


def test_a_job_too_short_for_a_second_measurement_says_how_long_it_would_take(tmp_path: Path) -> None:
    with job(tmp_path, "minipc", 1, LONG) as (sweep, _):
        record = sweep.run()
        assert seconds_of(sweep) == pytest.approx(record.trials[0].seconds)  # nothing was begun after it
    assert len(record.trials) == 1
    assert record.recommended is None
    assert record.state == "stopped"  # so the same command goes on
    (said,) = [note for note in record.notes if note.startswith("minutes=1 is too short")]
    assert "to measure a trial twice, so nothing is recommended" in said
    enough = int(said.partition("; minutes=")[2].partition(" would do (computed)")[0])
    with job(tmp_path / "again", "minipc", enough, LONG) as (sweep, _):
        assert sweep.run().recommended is not None
        assert seconds_of(sweep) <= 1.1 * 60 * enough
    with job(tmp_path, "minipc", 1, LONG) as (sweep, _):
        resumed = sweep.run()
        assert seconds_of(sweep) <= 1.1 * 60
    assert resumed.recommended == 0
    assert resumed.state == "complete"
    assert not any("is too short" in note for note in resumed.notes)


def test_a_fill_that_cannot_end_is_given_up_and_the_job_says_how_long_it_would_take(tmp_path: Path) -> None:
    words = ("workload=long_context", "space.n_ctx=8192")
    with job(tmp_path, "minipc", 2, *words) as (sweep, told):
        with pytest.raises(
            NoResultError, match="minutes=2 is too short to fill the context of one trial"
        ) as no:
            sweep.run()
        assert seconds_of(sweep) < 30  # that it cannot end is clear soon
        assert sweep.study.trials() == ()
        assert sweep.study.header().state == "stopped"
    assert any(note.startswith("the trial was given up and does not count: ") for note in told.notes)
    enough = int(str(no.value).partition("; minutes=")[2].partition(" would do (computed)")[0])
    with job(tmp_path, "minipc", enough, *words) as (sweep, _):
        assert sweep.run().recommended is not None
        assert seconds_of(sweep) <= 1.1 * 60 * enough


def test_a_job_that_was_over_before_its_first_trial_runs_none(tmp_path: Path) -> None:
    with job(tmp_path, "minipc", 1) as (sweep, told):
        sweep.sleep(61.0)  # of preparing
        with pytest.raises(NoResultError, match="over before the first trial; what was made is kept"):
            sweep.run()
        assert sweep.study.header().state == "stopped"
    assert told.ended == []
    with job(tmp_path, "minipc", 1) as (sweep, _):
        assert sweep.run().recommended == 0


def test_the_first_visits_are_those_that_a_recommendation_needs(tmp_path: Path) -> None:
    with job(tmp_path, "server", 5) as (sweep, told):
        record = sweep.run()
        trials = len(record.trials)
    visited = told.ended[trials:]
    assert visited[0] == record.baseline
    assert len(visited) > 2


def test_a_visit_without_time_for_its_prompt_is_made_without_it(tmp_path: Path) -> None:
    with job(tmp_path, "minipc", 1) as (sweep, _):
        sweep.run()
        phases = [{window.phase for window in visit.windows} for visit in sweep.study.visits()]
    assert phases
    assert all(found == {"decode"} for found in phases)  # a prompt takes 24 s there
    with job(tmp_path / "prompts", "minipc", 1, "objectives=speed_prompt_watts") as (sweep, _):
        sweep.run()
        phases = [{window.phase for window in visit.windows} for visit in sweep.study.visits()]
    assert all(
        "prefill" in found for found in phases
    )  # without a figure of an objective, a visit is worth nothing


@pytest.mark.parametrize(("minutes", "deep"), [(1, False), (60, True)])
def test_full_contexts_are_measured_where_there_is_time(minutes: int, deep: bool, tmp_path: Path) -> None:
    with job(tmp_path, "server", minutes, "search.trials=4") as (sweep, _):
        sweep.run()
        found = [any(window.depth for window in visit.windows) for visit in sweep.study.visits()]
    assert any(found) is deep


def test_without_a_limit_everything_fits(tmp_path: Path) -> None:
    with job(tmp_path, "minipc", math.inf, "search.trials=3") as (sweep, told):
        sweep.budget = None
        record = sweep.run()
    assert record.state == "complete"
    assert told.notes == []


def test_waits_end_with_the_time(tmp_path: Path) -> None:
    class Busy:
        elsewhere, cores = "others", 2

    with job(tmp_path, "minipc", 1) as (sweep, _):
        from sweeper.prepare import _watch
        from sweeper.sweep import StopFlag

        rig = mock.Mock(load=Busy(), clock=sweep.clock, sleep=sweep.sleep)
        rig.machine.cpu_quota, rig.machine.physical_cores = None, 2
        settings = compose(["minutes=1"]).settings
        watch: Watch | None = _watch(rig, settings, StopFlag(), sweep.budget)
        assert watch is not None
        assert not watch.stopped()
        sweep.sleep(60.0)
        assert watch.stopped()


def kept(root: Path) -> SweepRecord:
    return assemble(SweepStudy.load(root, "s"))


def test_a_whole_job_limit_reads_the_same_in_the_terminal(
    sweeper: Callable[..., object], tmp_path: Path
) -> None:
    done = sweeper("sweep", LONG, "engine=simulated", "engine.machine=minipc", "minutes=1", "name=s")
    assert done.returncode == 0, done.stderr
    flat = " ".join(done.stdout.split())
    assert "No recommendation: no trial that counts was measured twice." in flat
    assert "minutes=1 is too short to measure a trial twice" in flat
    assert "would do (computed), and the same command goes on from here" in flat
    assert "# resumes the sweep" in flat
    assert kept(tmp_path / "mlruns").state == "stopped"
