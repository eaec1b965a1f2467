"""One MLflow store is made a session and copied for each test: its schema takes seconds to make."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FIRST_OPEN = """
import sys
from pathlib import Path
from sweeper.tracking import Tracker
Tracker.open(None, Path(sys.argv[1]))
"""


@pytest.fixture(scope="session")
def first_opens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str]]]:
    """A store that two processes opened for the first time at once; exit code and output of each."""
    root = tmp_path_factory.mktemp("made") / "once"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_OPEN, str(root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    return root, [(process.returncode, words) for process, words in zip(both, said, strict=True)]


@pytest.fixture(scope="session")
def empty_store(first_opens: tuple[Path, list[tuple[int, str]]]) -> Path:
    return first_opens[0]


@pytest.fixture
def root(empty_store: Path, tmp_path: Path) -> Path:
    """A store with its schema and nothing in it, in a folder whose name is hard to write in an address."""
    return shutil.copytree(empty_store, tmp_path / "mlruns ünï #1 100%")
