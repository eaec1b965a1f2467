"""One MLflow store is made a session and copied for each test: its schema takes seconds to make."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sweeper.tracking import Tracker


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made once")
    Tracker.open(None, root)
    return root


@pytest.fixture
def root(empty_store: Path, tmp_path: Path) -> Path:
    """A store with its schema and nothing in it, in a folder whose name is hard to write in an address."""
    return shutil.copytree(empty_store, tmp_path / "mlruns ünï #1 100%")
