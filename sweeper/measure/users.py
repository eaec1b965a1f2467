"""Decode windows with several users, and their metrics. One window is the steady part of one load test."""

from __future__ import annotations

from collections.abc import Sequence

from sweeper import stats
from sweeper.client.steady import UsersRun
from sweeper.engine.base import Engine, ServesUsers
from sweeper.errors import ConfigError
from sweeper.records import Reading, Window, Workload

# A window holds at least one request of each user, so that it has its share of prompts. It may therefore run this many
# times as long as requested, before sweeper cuts it.
MOST_USERS_OVERRUN = 20.0
P95 = 0.95
NO_REQUEST = "no request began and received its first token while all users were busy: raise workload.screening_seconds"
NO_WHOLE_REQUEST = "no request began and ended while all users were busy: raise workload.screening_seconds"
NEEDS_SERVER = "workload.users above 1 needs engine=llama_server or engine=endpoint"


def serve_window(engine: Engine, workload: Workload, depth: int, seconds: float) -> UsersRun:
    """The steady part of a test with ``workload.users`` users, of at least ``seconds``.

    Raises:
        ConfigError: the engine serves only one user.
        TrialFailed: the engine failed.
    """
    if not isinstance(engine, ServesUsers):
        raise ConfigError(f"{NEEDS_SERVER}: {engine.record.name} serves one user")
    return engine.serve(
        workload.users,
        workload.prompt_tokens,
        workload.generated_tokens,
        depth,
        seconds,
        seconds * MOST_USERS_OVERRUN,
    )


def served_metrics(windows: Sequence[Window | UsersRun]) -> tuple[dict[str, Reading], dict[str, str]]:
    """The metrics of windows with several users, and a reason for each that is missing.

    The 95th percentile is that of all requests of all windows, because one window has too few. The other metrics are
    medians of windows, as without users.
    """
    of_users = [(w, w.served) for w in windows if w.served is not None]
    if not of_users:
        return {}, {}
    speeds = [w.tokens / w.seconds / served.users for w, served in of_users]
    metrics = {"tokens_per_second_per_user": stats.reading(speeds)}
    missing: dict[str, str] = {}
    firsts = [served.first_token_seconds for _, served in of_users if served.first_token_seconds]
    if firsts:
        metrics["time_to_first_token_seconds"] = stats.reading([stats.median(each) for each in firsts])
        every = [seconds for each in firsts for seconds in each]
        metrics["time_to_first_token_p95_seconds"] = stats.percentile(every, P95)
    else:
        missing = dict.fromkeys(
            ("time_to_first_token_seconds", "time_to_first_token_p95_seconds"), NO_REQUEST
        )
    whole = [served.request_seconds for _, served in of_users if served.request_seconds]
    if whole:
        metrics["request_seconds"] = stats.reading([stats.median(each) for each in whole])
    else:
        missing["request_seconds"] = NO_WHOLE_REQUEST
    return metrics, missing
