"""`kill -9` at random moments: the same command goes on, and no finished trial is lost or doubled.

``SWEEPER_KILLS`` says how often it is killed (docs/decisions has the figures of 20).
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from fast_sweep import FAST
from hurry import HURRIED

from sweeper.records import TrialRecord

KILLS = int(os.environ.get("SWEEPER_KILLS", "3"))
SEED = int(os.environ.get("SWEEPER_SEED", "7"))
LONGEST_SECONDS = 12.0  # the moments lie between the start and about the end of a whole run
TRIALS = 8


def _start(folder: Path, model: Path) -> subprocess.Popen[bytes]:
    more = [
        "space.n_ubatch=[16,32,64]",
        "space.n_batch=[16,32,64]",
        f"search.trials={TRIALS}",
        "search.finalists=1",
        "search.patience=null",
    ]
    command = [*HURRIED, "sweeper", "sweep", *FAST, *more, f"model.path='{model}'", "name=killed"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def _finished(root: Path) -> dict[int, TrialRecord]:
    from sweeper.errors import SweepMissingError
    from sweeper.search.study import SweepStudy

    try:
        return {t.number: t for t in SweepStudy.load(root, "killed").trials()}
    except (SweepMissingError, KeyError):
        return {}  # killed before the sweep was there


def _in_mlflow(root: Path) -> Counter[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{(root / 'mlflow.db').resolve()}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`sweeper.sweep` = 'killed'", max_results=1000)
    return Counter(r.data.tags.get("sweeper.trial", r.data.tags["sweeper.kind"]) for r in runs)


@pytest.mark.slow
@pytest.mark.timeout(300 + 40 * KILLS)
def test_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path: Path, smallest_model: Path) -> None:
    moments = random.Random(SEED)
    root = tmp_path / "mlruns"
    kept: dict[int, TrialRecord] = {}
    # The earliest first, while the databases are made, and the last one not before there is a trial to lose.
    for kill, moment in enumerate(sorted(moments.uniform(1.5, LONGEST_SECONDS) for _ in range(KILLS))):
        sweep = _start(tmp_path, smallest_model)
        time.sleep(moment)
        while kill == KILLS - 1 and not _finished(root):
            assert sweep.poll() is None, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.2)
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
        _databases_are_whole_or_not_there(root)
        now = _finished(root)
        assert {n: now.get(n) for n in kept} == kept, f"kill {kill}: a finished trial was lost or changed"
        kept = now
    last = _start(tmp_path, smallest_model)
    assert last.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-2000:]
    trials = _finished(root)
    assert {n: trials[n] for n in kept} == kept
    digests = Counter(t.configuration.digest for t in trials.values())
    assert max(digests.values()) == 1, "a configuration was measured twice in the search"
    assert len(trials) == TRIALS
    assert _in_mlflow(root) == Counter([*(str(n) for n in trials), "sweep"])
    assert not _workers_left(), "a worker outlived its sweep"


def _databases_are_whole_or_not_there(root: Path) -> None:
    for name in ("mlflow.db", "optuna.db"):
        path = root / name
        if path.exists() and path.stat().st_size > 0:
            with closing(sqlite3.connect(path)) as database:
                tables = {row[0] for row in database.execute("select name from sqlite_master")}
            assert "alembic_version" in tables
            assert not any(table.startswith("_alembic_tmp") for table in tables)


def _workers_left() -> list[int]:
    """Engine workers whose parent is gone: they must have died with it."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        words = process.info["cmdline"] or []
        if "sweeper.engine.worker" in words and process.info["ppid"] == 1:
            found.append(process.pid)
    return found


def test_the_baseline_is_found_again_when_its_own_trial_was_in_flight(
    tmp_path: Path, smallest_model: Path, mlflow_tables: Callable[[Path], None]
) -> None:
    import optuna

    from sweeper.results.assemble import assemble
    from sweeper.search.study import SweepStudy

    mlflow_tables(tmp_path / "mlruns")
    slow = ["workload.screening_seconds=60", "search.trials=2", "space.quant=F16"]
    command = [*HURRIED, "sweeper", "sweep", *FAST, *slow, f"model.path='{smallest_model}'", "name=killed"]
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not _running(tmp_path / "mlruns"):
            assert first.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        first.kill()
        first.wait()
    study = SweepStudy.load(tmp_path / "mlruns", "killed")
    assert study.recover(study.header().objectives) == (0,)
    assert assemble(study).baseline is None  # nothing measured it yet
    wanted = study.header().baseline_configuration.to_dict()
    asked_again = [
        trial.system_attrs["fixed_params"]
        for trial in study.optuna_study.get_trials(states=(optuna.trial.TrialState.WAITING,))
    ]
    assert {name: wanted[name] for name in study.header().space} in asked_again


def _running(root: Path) -> bool:
    import optuna

    from sweeper.errors import SweepMissingError
    from sweeper.search.study import SweepStudy

    try:
        study = SweepStudy.load(root, "killed").optuna_study
    except (SweepMissingError, KeyError):
        return False
    return bool(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)))
