"""The child side of the load generator: one process of its own, so that neither sweeper nor its meter shares its time.

It answers the requests ``users`` and ``rounds`` (see `sweeper.serving`).
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from sweeper.client.load import LoadFailed, LoadTest
from sweeper.client.requests import Target, from_json
from sweeper.client.steady import steady_part
from sweeper.serving import Refused, serve

_own: dict[str, list[Any]] = {}


def _users(test: dict[str, Any], **limits: float) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        answers = await _test(test).steady(**limits)
        steady = steady_part(answers, test["users"])
        if isinstance(steady, str):
            raise Refused(steady)
        return asdict(steady)

    return _done(run())


def _rounds(test: dict[str, Any], **limits: float) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        return {"answers": [asdict(answer) for answer in await _test(test).rounds(**limits)]}

    return _done(run())


def _test(test: dict[str, Any]) -> LoadTest:
    plain = test["prompts"]
    if "prompts" in plain:  # the user's own, which the parent sends once
        plain["prompts"] = _own["prompts"] = plain["prompts"] or _own["prompts"]
    return LoadTest(Target(**test["target"]), from_json(plain), test["users"], test["tokens"])


def _done(run: Any) -> dict[str, Any]:
    try:
        return dict(asyncio.run(run))
    except LoadFailed as failure:
        raise Refused(str(failure)) from failure


if __name__ == "__main__":
    serve({"users": _users, "rounds": _rounds})
