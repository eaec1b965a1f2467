"""Ctrl-C once finishes the trial in flight, visits the pick and concludes; twice stops now. A full disk is one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fast_sweep import FAST
from hurry import HURRIED, run_here
from optuna.trial import TrialState

from sweeper.cli import main
from sweeper.search.study import SweepStudy

# Trials that last long enough to be met in flight, each measured to its end, and nothing after them that is
# tested elsewhere: no second quantisation, whose quality is computed first, and few final measurements.
SLOW = (
    *("workload.screening_seconds=2", "search.trials=3", "search.early_stop=false"),
    *("space.quant=F16", "space.n_ubatch=[16,32,64]", "search.finalists=1"),
)


def _words(model: Path, *more: str) -> tuple[str, ...]:
    return ("sweep", *FAST, *more, f"model.path='{model}'", "name=stopped")


def _start(folder: Path, model: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [*HURRIED, "sweeper", *_words(model, *more)]
    with _log_of(folder).open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def _log_of(folder: Path) -> Path:
    """Beside the folder, since a log on a full disk cannot say that the disk is full."""
    return folder.with_name(folder.name + ".log")


def _wait_until(folder: Path, process: subprocess.Popen[bytes], true: Callable[[str], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true(_log_of(folder).read_text(errors="replace")):
        assert process.poll() is None, _log_of(folder).read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _first_trial_ended(log: str) -> bool:
    return re.search(r"1 of \d+ trials: #", log) is not None


def _study(folder: Path) -> SweepStudy:
    return SweepStudy.load(folder / "mlruns", "stopped")


def _states(folder: Path) -> list[str]:
    return [t.state for t in _study(folder).trials()]


def _in_flight(folder: Path) -> set[int]:
    """The trials that run, and that were killed while they ran."""
    running = _study(folder).optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return {trial.number for trial in running}


@pytest.fixture
def folder(tmp_path: Path, mlflow_tables: Callable[[Path], None]) -> Path:
    (tmp_path / "in").mkdir()
    mlflow_tables(tmp_path / "in" / "mlruns")
    return tmp_path / "in"


def test_twice_stops_now_and_once_concludes_with_a_pick_that_was_measured_again(
    folder: Path, smallest_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = _start(folder, smallest_model, *SLOW)
    _wait_until(folder, sweep, lambda log: _first_trial_ended(log) and bool(_in_flight(folder)))
    killed = _in_flight(folder)
    sweep.send_signal(signal.SIGINT)
    _wait_until(folder, sweep, lambda log: "Ctrl-C again" in log)
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait(timeout=120) == 130
    assert "Traceback" not in _log_of(folder).read_text()
    assert _states(folder) == ["complete"]  # the one in flight was not finished

    sweep = _start(folder, smallest_model, *SLOW)
    _wait_until(folder, sweep, lambda _: bool(_in_flight(folder) - killed))
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait(timeout=120) == 130
    log = _log_of(folder).read_text()
    assert "Traceback" not in log
    assert "stopped by hand" in log
    assert "current pick: #" in log
    assert "of the baseline, the pick and its near-ties" in log
    assert _states(folder) == ["complete"] * 2  # the one in flight was finished
    assert (folder / "mlruns/reports/stopped/report.html").exists()
    assert main(["report", "stopped", "--json", "--root", str(folder / "mlruns")]) == 0
    best = json.loads(capsys.readouterr().out)["current_pick"]
    assert (best["recommended"], best["visits"], best["provisional"]) == (
        True,
        1,
        "provisional: 1 of 3 visits",
    )

    assert run_here(*_words(smallest_model, *SLOW), cwd=folder, hurry=True).returncode == 0
    assert _states(folder) == ["complete"] * 3


def test_the_second_ctrl_c_ends_the_visits_and_the_report_names_the_pick(
    folder: Path, smallest_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = _start(
        folder, smallest_model, *SLOW, "workload.final_seconds=60"
    )  # no visit ends before the signal
    _wait_until(folder, sweep, _first_trial_ended)
    sweep.send_signal(signal.SIGINT)
    _wait_until(folder, sweep, lambda log: "of the baseline, the pick and its near-ties" in log)
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait(timeout=120) == 130
    log = _log_of(folder).read_text()
    assert "stopped at once" in log
    assert "Traceback" not in log
    assert main(["report", "stopped", "--root", str(folder / "mlruns")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "No recommendation" in said
    assert "Current pick (within:5%): #" in said
    assert "Provisional: screened only" in said


@pytest.fixture
def small_disk(tmp_path: Path, mlflow_tables: Callable[[Path], None]) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a disk can be made full only where a small one may be mounted")
    mlflow_tables(folder / "mlruns")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_is_one_line_and_nothing_is_lost(small_disk: Path, smallest_model: Path) -> None:
    words = (*SLOW, "search.trials=2")
    sweep = _start(small_disk, smallest_model, *words)
    _wait_until(small_disk, sweep, _first_trial_ended)
    log = _log_of(small_disk).read_text()
    with (small_disk / "filler").open("wb") as filler:
        try:
            while True:
                os.write(filler.fileno(), b"\0" * 4096)
        except OSError:
            pass
    code = sweep.wait(timeout=120)
    (small_disk / "filler").unlink()
    log = _log_of(small_disk).read_text()
    assert code == 3, log
    assert "Traceback" not in log
    assert "complete" in _states(small_disk)
    again = run_here(*_words(smallest_model, *words), cwd=small_disk, hurry=True)
    assert again.returncode == 0, again.stderr
