"""A few random moments of each way of dying; the whole table is benchmarks/limits_survive_kill.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from limits_survive_kill import WAYS, Way, one_moment, start_server


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    start_server()


MOMENTS = [(way, 1) for way in WAYS] + [(WAYS[0], 2), (WAYS[0], 3), (WAYS[2], 2), (WAYS[2], 3)]


@pytest.mark.parametrize(("way", "seed"), MOMENTS, ids=[f"{way.name}-{seed}" for way, seed in MOMENTS])
def test_limits_come_back(way: Way, seed: int) -> None:
    outcome = one_moment(way, seed)
    assert outcome.good, outcome.problem
    # The promise is for a machine that runs; a test machine may be busy with anything.
    assert outcome.seconds <= 5 * way.promise_seconds
