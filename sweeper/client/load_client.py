"""The parent side of the load generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

from sweeper.client.requests import Given, Prompt, Prompts, Target, to_json
from sweeper.client.steady import Answer, UsersRun
from sweeper.processes import WorkerProcess
from sweeper.records import Drafts, Served

# Until the last of many users receives its first token, a slow server may evaluate many long prompts.
RAMP_SECONDS = 1800.0
# Beyond the limits of a test: to start the process, to send the prompts to it, and to receive the result.
_GRACE_SECONDS = 120.0


class LoadClient:
    """Sends requests to one server from a process of its own. The process starts with the first test."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._worker = WorkerProcess("sweeper.client.load_worker", name="the load generator")
        self._given: Sequence[Prompt] = ()
        self._sent: tuple[int | None, int] = (
            None,
            0,
        )  # the process that has the user's prompts, and which ones

    def users(
        self,
        prompts: Prompts,
        users: int,
        tokens: int,
        min_seconds: float,
        max_seconds: float,
        ramp_seconds: float = RAMP_SECONDS,
    ) -> UsersRun:
        """The steady part of a test with ``users`` users, of ``min_seconds`` to ``max_seconds``; see `LoadTest.steady`.

        Raises:
            EngineRefused: the server refuses or breaks off, or there is no steady part; the message says which.
            EngineTimeout, EngineCrashed: the load generator itself failed.
        """
        found = self._ask(
            "users",
            ramp_seconds + max_seconds + _GRACE_SECONDS,
            test=self._test(prompts, users, tokens),
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            ramp_seconds=ramp_seconds,
        )
        served = found["served"]
        return UsersRun(
            found["tokens"],
            found["started"],
            found["ended"],
            Served(
                served["users"],
                served["requests"],
                tuple(served["first_token_seconds"]),
                tuple(served["request_seconds"]),
            ),
            _drafts(found["drafts"]),
        )

    def rounds(
        self, prompts: Prompts, tokens: int, min_seconds: float, max_seconds: float
    ) -> tuple[Answer, ...]:
        """The answers to one user's requests, one after another; see `LoadTest.rounds`. Raises as `users` does."""
        found = self._ask(
            "rounds",
            max_seconds + _GRACE_SECONDS,
            test=self._test(prompts, 1, tokens),
            min_seconds=min_seconds,
            max_seconds=max_seconds,
        )
        return tuple(
            Answer(
                a["user"],
                a["sent"],
                [(moment, count) for moment, count in a["arrivals"]],
                a["ended"],
                a["complete"],
                a["prompt_tokens"],
                _drafts(a["drafts"]),
            )
            for a in found["answers"]
        )

    def close(self) -> None:
        """End the process. May be called twice."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _test(self, prompts: Prompts, users: int, tokens: int) -> dict[str, Any]:
        target = {**asdict(self.target), "extra": dict(self.target.extra)}
        plain = to_json(prompts)
        if isinstance(prompts, Given):  # perhaps megabytes, so each process gets them once
            known = self._worker.pid is not None and self._sent == (self._worker.pid, id(prompts.prompts))
            if known:
                plain["prompts"] = None
            self._given = prompts.prompts  # the identity stays theirs while they are kept
        return {"target": target, "prompts": plain, "users": users, "tokens": tokens}

    def _ask(self, what: str, timeout_seconds: float, **arguments: Any) -> dict[str, Any]:
        found = self._worker.ask(what, timeout_seconds, **arguments)
        self._sent = (self._worker.pid, id(self._given))
        return found


def _drafts(plain: dict[str, int] | None) -> Drafts | None:
    return None if plain is None else Drafts(**plain)
