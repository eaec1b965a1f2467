"""The part of a load test in which every user was busy. Pure arithmetic on the moments at which tokens arrived.

At its start and end, a load test has fewer users than asked for, so the server is faster for each of them. Figures of
the whole test would therefore describe no number of users. Only the steady part counts: from the moment at which the
last user received its first token, to the moment at which the first user stopped.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from sweeper.records import Drafts, Served


@dataclass(frozen=True, slots=True)
class Answer:
    """One request and its answer, as the client saw them. Moments are ``time.monotonic()`` seconds.

    ``arrivals`` has a pair for each piece that arrived: the moment, and the number of tokens so far. Both ascend.
    """

    user: int
    sent: float
    arrivals: Sequence[tuple[float, float]]
    ended: float
    complete: bool  # False: the client cut it off at the end of the test
    prompt_tokens: int | None = None  # evaluated for this request, if the server reports it
    drafts: Drafts | None = None  # if the server drafted tokens, and reports it at the end of the answer

    def tokens_until(self, moment: float) -> float:
        """The tokens that had arrived at ``moment``."""
        index = bisect.bisect_right(self.arrivals, moment, key=itemgetter(0))
        return self.arrivals[index - 1][1] if index else 0.0


@dataclass(frozen=True, slots=True)
class UsersRun:
    """The steady part of a load test. ``started`` and ``ended`` are ``time.monotonic()`` seconds.

    ``tokens`` are the generated tokens of all users that arrived after ``started`` and until ``ended``.
    """

    tokens: int
    started: float
    ended: float
    served: Served
    drafts: Drafts | None = None  # of the answers that were complete inside the steady part

    @property
    def seconds(self) -> float:
        """The length of the steady part."""
        return self.ended - self.started

    @property
    def tokens_per_second(self) -> float:
        """The speed of all users together, in tok/s."""
        return self.tokens / self.seconds


def steady_from(answers: Iterable[Answer], users: int) -> float | None:
    """The moment at which the last of ``users`` received its first token; None if one still waits."""
    first: dict[int, float] = {}
    for answer in answers:
        if answer.arrivals:
            moment = answer.arrivals[0][0]
            first[answer.user] = min(first.get(answer.user, moment), moment)
    return max(first.values()) if first and len(first) == users else None


def steady_part(answers: Sequence[Answer], users: int) -> UsersRun | str:
    """The steady part of a test with ``users`` users, or the reason why there is none."""
    started = steady_from(answers, users)
    if started is None:
        waiting = users - len({answer.user for answer in answers if answer.arrivals})
        return f"{waiting} of {users} users received no token"
    stopped: dict[int, float] = {}
    for answer in answers:
        stopped[answer.user] = max(stopped.get(answer.user, answer.ended), answer.ended)
    ended = min(stopped.values())
    if ended <= started:
        return f"the {users} users were never busy at the same time"
    tokens = round(sum(answer.tokens_until(ended) - answer.tokens_until(started) for answer in answers))
    if tokens <= 0:
        return f"no token arrived while all {users} users were busy"
    inside = [answer for answer in answers if answer.sent >= started]
    whole = [answer for answer in answers if answer.complete and started < answer.ended <= ended]
    return UsersRun(
        tokens=tokens,
        started=started,
        ended=ended,
        served=Served(
            users=users,
            requests=len(whole),
            first_token_seconds=tuple(
                answer.arrivals[0][0] - answer.sent
                for answer in inside
                if answer.arrivals and answer.arrivals[0][0] <= ended
            ),
            request_seconds=tuple(
                answer.ended - answer.sent for answer in inside if answer.complete and answer.ended <= ended
            ),
        ),
        drafts=drafts_of(whole),
    )


def drafts_of(answers: Iterable[Answer]) -> Drafts | None:
    """The drafts of all answers together; None if no answer reports any."""
    told = [answer.drafts for answer in answers if answer.drafts is not None]
    return Drafts(sum(d.drafted for d in told), sum(d.accepted for d in told)) if told else None
