"""Runs sweeper for tests: in this process, and without the waits and repeats that only make figures exact.

A sweep of a tiny model spends most of its time on those. What ``SHORT`` leaves out has tests of its own, and
tests/sweep/test_end_to_end.py leaves out nothing. ``[*HURRIED, "sweeper", …]`` hurries in another process, and
``[*HURRIED, "program.py", …]`` runs another program so.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from sweeper.cli import main

HURRIED = (sys.executable, str(Path(__file__).resolve()))

SHORT = {
    "sweeper.machine._BANDWIDTH_BYTES": 2**24,
    "sweeper.measure.disturbance.LOOK_SECONDS": 0.05,
    "sweeper.measure.trial.SCREENING_UPDATE_PERIODS": 20,
    "sweeper.measure.trial.FINAL_UPDATE_PERIODS": 40,
    "sweeper.results.assemble.FINAL_UPDATE_PERIODS": 40,
    "sweeper.measure.trial.RESIDENT_SECONDS": 0.1,
    "sweeper.rig.open.IDLE_SECONDS": 0.1,
    "sweeper.search.finals.DECIDING_VISITS": 0,  # figures of short windows are ties nearly always
    "sweeper.prepare.first_answer": lambda *_: None,
    # Other tests run at the same time, so nearly every window would be measured twice, and its figures doubted.
    "sweeper.prepare._watch": lambda *_: None,
}


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Inside the block, sweeper leaves out what ``SHORT`` names."""
    with contextlib.ExitStack() as held:
        for name, value in SHORT.items():
            held.enter_context(mock.patch(name, value))
        yield


def run_here(
    *words: str, cwd: Path, hurry: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `sweeper WORDS` in ``cwd`` and in this process, which has imported MLflow, Hydra and Optuna already."""
    out, err = io.StringIO(), io.StringIO()
    variables = {"NO_COLOR": "1", "COLUMNS": "100"} | environment
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, variables),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        hurried() if hurry else contextlib.nullcontext(),
    ):
        try:
            code = main(words)
        except SystemExit as end:  # of argparse
            code = int(end.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


if __name__ == "__main__":
    program, sys.argv = sys.argv[1], sys.argv[1:]
    with hurried():
        if program.endswith(".py"):
            sys.path[0] = str(Path(program).parent)  # as Python does
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
