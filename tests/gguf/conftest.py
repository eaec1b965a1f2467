"""Tiny synthetic models, written once a session."""

import sys
from pathlib import Path

import pytest
from nano_models import NANO, NANO_MOE

from sweeper.model.synthetic import write_synthetic

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder for models; the name has a space and letters beyond ASCII."""
    return tmp_path_factory.mktemp("modèles à moi")


@pytest.fixture(scope="session")
def nano(models):
    return write_synthetic(NANO, models / "nano.gguf", "F16", seed=1)


@pytest.fixture(scope="session")
def nano_moe(models):
    return write_synthetic(NANO_MOE, models / "nano moe.gguf", "F16", seed=1)


@pytest.fixture(scope="session")
def nano_q4(models):
    return write_synthetic(NANO, models / "nano-q4.gguf", "Q4_K_M", seed=1)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A folder of runs that the whole session shares, so that levels are made once."""
    return tmp_path_factory.mktemp("mlruns")
