"""What one Ctrl-C leaves at each point of a sweep: a recommendation that was measured twice. On a simulated machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from sweeper.config import compose
from sweeper.prepare import prepared
from sweeper.records import Configuration, SweepRecord, TrialRecord
from sweeper.report.picks import current
from sweeper.report.progress import Progress
from sweeper.results.assemble import MOST_NEAR_TIES, assemble, so_far
from sweeper.results.provisional import provisional
from sweeper.search.study import SweepStudy
from sweeper.sweep import Sweep

NAME = "s"
QUICK = ("experiment=demo", "search.trials=12", "search.sampler=random", f"name={NAME}")


class Stopping(Progress):
    """Presses Ctrl-C when the ``at``-th trial or visit is over. It keeps what the sweep told."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.press: Callable[[], None] = lambda: None
        self.finished_trials: list[int] = []
        self.announced: list[int] = []
        self.picks: list[SweepRecord] = []

    def trial_started(self, number: int, total: int, configuration: Configuration) -> None:
        assert 1 <= number <= total

    def trial_finished(self, trial: TrialRecord) -> None:
        self.finished_trials.append(trial.number)
        if len(self.finished_trials) == self.at:
            self.press()

    def so_far(self, record: Callable[[], SweepRecord]) -> None:
        self.picks.append(record())

    def confirming(self, measurements: int) -> None:
        self.announced.append(measurements)


def swept(root: Path, at: int) -> tuple[SweepRecord, Stopping]:
    progress = Stopping(at)
    with sweeping([*QUICK, "search.finalists=3", f"root='{root}'"], progress) as sweep:
        return sweep.run(), progress


@contextmanager
def sweeping(words: list[str], progress: Stopping) -> Iterator[Sweep]:
    """A sweep that keeps its study and nothing else: other tests look at MLflow and at the reports."""
    with (
        mock.patch("sweeper.prepare.Tracker"),
        prepared(compose(words), lambda *_: progress, lambda _: None) as sweep,
    ):
        progress.press = lambda: setattr(sweep.stop, "set_by_hand", True)
        sweep.write_report = lambda record, folder: {}
        yield sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepRecord, Stopping]:
    """The same sweep to its end, which shows what a stopped one would have done."""
    return swept(tmp_path_factory.mktemp("whole"), -1)


@pytest.mark.parametrize("at", [1, 6])
def test_a_stopped_search_visits_the_pick_and_the_baseline_once(tmp_path: Path, at: int) -> None:
    record, progress = swept(tmp_path, at)
    assert record.state == "stopped"
    assert record.stopped_because == "stopped by hand"
    assert len(record.trials) == at
    visited = {t.number for t in record.trials if t.remeasured}
    screened = progress.picks[at - 1]
    named = current(screened)
    assert named is not None
    assert {record.baseline, named.trial.number} <= visited
    assert progress.announced == [len(visited)]
    assert progress.finished_trials[at:] == [n for n in progress.finished_trials[at:] if n in visited]
    assert (
        1 <= len(visited) <= min(at, 3 + MOST_NEAR_TIES)
    )  # the baseline, the pick, the fastest and near-ties
    assert all(t.visits == 1 for t in record.trials if t.remeasured)
    assert record.recommended in visited
    assert provisional(record, record.trial(record.recommended)) == "provisional: 1 of 3 visits"


def test_ctrl_c_in_the_first_round_completes_what_the_answer_needs(tmp_path: Path) -> None:
    record, progress = swept(tmp_path, 13)  # the first visit
    assert record.state == "stopped"
    assert record.stopped_because == "stopped by hand"
    named = current(progress.picks[11])
    assert named is not None
    assert {record.baseline, named.trial.number} <= {t.number for t in record.trials if t.remeasured}
    assert all(t.visits in (None, 1) for t in record.trials)


def test_ctrl_c_after_the_first_round_needs_nothing_more(
    tmp_path: Path, whole: tuple[SweepRecord, Stopping]
) -> None:
    finalists = sum(t.remeasured for t in whole[0].trials)
    record, progress = swept(tmp_path, 12 + finalists + 1)  # the first visit of the second round
    assert progress.announced == []
    assert len(progress.finished_trials) == 12 + finalists + 1
    assert record.recommended is not None


def test_while_the_first_round_runs_the_screening_decides(whole: tuple[SweepRecord, Stopping]) -> None:
    finished, progress = whole
    finalists = sum(t.remeasured for t in finished.trials)
    assert finalists > 1
    searched, first_round = progress.picks[11], progress.picks[12 : 12 + finalists]
    for record in first_round:
        assert record.front == searched.front
        assert record.recommended is None
    later = progress.picks[12 + finalists]
    assert later.recommended is not None
    assert {t.number for t in later.trials if t.remeasured} >= set(later.front)


def test_the_same_command_goes_on_and_counts_the_visits(tmp_path: Path) -> None:
    stopped, _ = swept(tmp_path, 6)
    again, progress = swept(tmp_path, -1)
    assert again.state == "complete"
    assert len(again.trials) == 12
    assert len(progress.picks[0].trials) == 6  # the display knows them from the start
    for trial in stopped.trials:
        if trial.remeasured:
            visits = again.trial(trial.number).visits
            assert visits is not None
            assert visits >= 3


def test_a_killed_sweep_is_looked_at_as_its_screen_was(tmp_path: Path) -> None:
    class Killed(Stopping):
        def confirming(self, measurements: int) -> None:
            self.press = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
            self.at = len(self.finished_trials) + 1

    progress = Killed(6)
    with sweeping([*QUICK, f"root='{tmp_path}'"], progress) as sweep, pytest.raises(KeyboardInterrupt):
        sweep.run()
    study = SweepStudy.load(tmp_path, NAME)
    assert len(study.visits()) == 1
    assert assemble(study).front == (study.visits()[0].trial,)
    seen = so_far(study)
    assert seen.front == progress.picks[5].front
    best = current(seen)
    assert best is not None
    assert best.provisional.startswith("provisional: screened only")
