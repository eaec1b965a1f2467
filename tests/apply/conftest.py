"""A sweep on disk, small and made up, that every test of apply starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
from apply_sweep import make_sweep

from sweeper.records import SweepRecord


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF not loaded by these tests")
    return path


@pytest.fixture
def sweep(model_path: Path) -> SweepRecord:
    return make_sweep(model_path)
