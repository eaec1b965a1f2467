"""A few random moments of each way of dying; the whole table is benchmarks/limits_survive_kill.py."""

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from limits_survive_kill import WAYS, Outcome, Way, one_moment, start_server

MOMENTS = [(way, 1) for way in WAYS] + [(WAYS[0], 2), (WAYS[0], 3), (WAYS[2], 2), (WAYS[2], 3)]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[tuple[Way, int], Future[Outcome]]]:
    """The moments side by side, because most of each is waiting."""
    start_server()
    with ThreadPoolExecutor(4) as pool:
        yield {moment: pool.submit(one_moment, *moment) for moment in MOMENTS}


@pytest.mark.parametrize("moment", MOMENTS, ids=[f"{way.name}-{seed}" for way, seed in MOMENTS])
def test_limits_come_back(moment: tuple[Way, int], outcomes: dict[tuple[Way, int], Future[Outcome]]) -> None:
    outcome = outcomes[moment].result()
    assert outcome.good, outcome.problem
    # The promise is for a machine that runs; a test machine may be busy with anything.
    assert outcome.seconds <= 5 * moment[0].promise_seconds
