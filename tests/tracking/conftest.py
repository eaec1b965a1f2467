"""A store of MLflow with tables and nothing in it, a server on one, and what both need."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process_groups import group_ends
from tracked_sweep import record

from sweeper.servers import free_port
from sweeper.tracking import Tracker


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Callable[[Path], None]) -> Path:
    root = tmp_path_factory.mktemp("made") / "once"
    mlflow_tables(root)
    Tracker.open(None, root)
    return root


@pytest.fixture
def root(empty_store: Path, tmp_path: Path) -> Path:
    """A store with its schema and nothing in it, in a folder whose name is hard to write in an address."""
    return shutil.copytree(empty_store, tmp_path / "mlruns ünï #1 100%41 what?x=1 a${x}b, (it's) ;&")


REPORT = "<h1>The whole report</h1>"

SERVE = """
import sys
from pathlib import Path
from sweeper.tracking.ui import MlflowUi
with MlflowUi(None, Path(sys.argv[1]), int(sys.argv[2])) as ui:
    print(ui.pages().home.partition("/#")[0], ui._process.pid, flush=True)
    ui.wait()
"""


@pytest.fixture(scope="session")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server on a store with the sweep "evening".

    It is started once, by ``MlflowUi`` in a process that is killed at the end, and must end with it.
    """
    root = tmp_path_factory.mktemp("served") / "mlruns ü #1 what?x=1 a${x}b"
    shutil.copytree(empty_store, root)
    (root / "report.html").write_text(REPORT)
    Tracker.open(None, root).sweep_finished(record(sweep="evening"), {"report.html": root / "report.html"})
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(root), str(free_port(0))], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        address, group = process.stdout.readline().split()
        try:
            yield address
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert group_ends(int(group)), "MLflow's server outlived the process that started it"
