"""A few random moments of each way of dying; the whole table is benchmarks/limits_survive_kill.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from limits_survive_kill import PROMISE_SECONDS, WAYS, Way, one_moment, start_server


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    start_server()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("seed", [1, 2])
def test_limits_come_back(way: Way, seed: int) -> None:
    outcome = one_moment(way, seed)
    assert outcome.good, outcome.problem
    # The promise is for a machine that runs; a test machine may be busy with anything.
    assert outcome.seconds <= 5 * PROMISE_SECONDS
