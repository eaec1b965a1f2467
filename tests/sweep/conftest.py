"""A small real sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from fast_sweep import FAST


@pytest.fixture
def fast(smallest_model: Path) -> tuple[str, ...]:
    """A space of four configurations of the smallest model, with short windows."""
    return (*FAST, f"model.path='{smallest_model}'")
