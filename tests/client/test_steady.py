"""The steady part of a load test, on made-up events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.client.steady import Answer, UsersRun, steady_from, steady_part


def answer(user: int, sent: float, times: list[float], complete: bool = True, wait: float = 0.0) -> Answer:
    """An answer with one token at each time."""
    arrivals = [(at, float(count)) for count, at in enumerate(times, 1)]
    return Answer(user, sent, arrivals, (times[-1] if times else sent) + wait, complete)


def test_two_users_that_overlap_are_counted_only_where_they_do() -> None:
    one = answer(0, 0.0, [1, 2, 3, 4, 5, 6])
    two = answer(1, 0.0, [3, 4, 5, 6, 7, 8])
    run = steady_part([one, two], 2)
    assert isinstance(run, UsersRun)
    # From 3, where the second user got its first token, to 6, where the first one stopped: 4, 5 and 6 of each.
    assert (run.started, run.ended, run.tokens) == (3, 6, 6)
    assert run.tokens_per_second == 2.0
    assert run.served.requests == 1  # the other answer ends later
    assert run.served.first_token_seconds == ()  # both requests were sent before


def test_requests_sent_inside_the_part_are_timed() -> None:
    answers = [
        answer(0, 0.0, [1.0, 2.0]),
        answer(0, 2.0, [2.5, 3.0]),
        answer(1, 0.0, [1.0, 2.0]),
        answer(1, 2.0, [4.0, 5.0], complete=False),
        answer(0, 3.0, [4.5, 5.0], complete=False),
    ]
    run = steady_part(answers, 2)
    assert isinstance(run, UsersRun)
    assert (run.started, run.ended) == (1.0, 5.0)
    assert run.served.first_token_seconds == (0.5, 2.0, 1.5)
    assert run.served.request_seconds == (1.0,)
    assert run.served.requests == 3


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], "2 of 2 users received no token"),
        ([answer(0, 0.0, [1.0, 2.0])], "1 of 2 users received no token"),
        ([answer(0, 0.0, [1.0]), answer(1, 0.0, [])], "1 of 2 users received no token"),
        ([answer(0, 0.0, [1.0, 2.0]), answer(1, 3.0, [4.0, 5.0])], "never busy at the same time"),
        (
            [answer(0, 0.0, [1.0], wait=5.0), answer(1, 0.0, [2.0], wait=5.0)],
            "no token arrived while all 2 users were busy",
        ),
    ],
)
def test_no_steady_part_gives_a_reason_and_no_number(answers: list[Answer], reason: str) -> None:
    found = steady_part(answers, 2)
    assert isinstance(found, str)
    assert reason in found


gaps = st.floats(0.001, 3.0)


@st.composite
def load_tests(draw: st.DrawFn) -> tuple[list[Answer], int]:
    """Users who send requests back to back, each with its own pace, until they stop."""
    users = draw(st.integers(1, 5))
    answers = []
    for user in range(users):
        now = draw(st.floats(0, 2))
        for _ in range(draw(st.integers(1, 4))):
            times, sent = [], now
            for gap in draw(st.lists(gaps, min_size=1, max_size=8)):
                now += gap
                times.append(now)
            answers.append(answer(user, sent, times, draw(st.booleans())))
    return answers, users


@given(load_tests())
def test_the_part_lies_inside_the_test_and_counts_each_token_once(made: tuple[list[Answer], int]) -> None:
    answers, users = made
    run = steady_part(answers, users)
    if isinstance(run, str):
        return
    moments = [at for a in answers for at, _ in a.arrivals]
    assert min(moments) <= run.started < run.ended <= max(a.ended for a in answers)
    assert run.started == steady_from(answers, users)
    assert run.tokens == sum(run.started < at <= run.ended for at in moments)
    for user in range(users):  # every user is busy through the whole part
        own = [a for a in answers if a.user == user]
        assert min(a.arrivals[0][0] for a in own) <= run.started
        assert max(a.ended for a in own) >= run.ended
    assert len(run.served.request_seconds) <= run.served.requests <= len(answers)
    assert len(run.served.first_token_seconds) <= len(answers)
    assert all(seconds > 0 for seconds in run.served.first_token_seconds)


@given(load_tests(), st.floats(-100, 100))
def test_only_differences_of_moments_count(made: tuple[list[Answer], int], shift: float) -> None:
    answers, users = made
    moved = [
        Answer(a.user, a.sent + shift, [(at + shift, n) for at, n in a.arrivals], a.ended + shift, a.complete)
        for a in answers
    ]
    one, other = steady_part(answers, users), steady_part(moved, users)
    assert isinstance(one, str) == isinstance(other, str) or _is_an_instant(one) or _is_an_instant(other)


def _is_an_instant(run: UsersRun | str) -> bool:
    """A part so short that rounding decides whether it is there."""
    return isinstance(run, UsersRun) and run.seconds < 1e-9


@given(st.integers(1, 6), st.integers(2, 30), st.floats(0.01, 1.0))
def test_the_speed_of_steady_users_is_the_sum_of_their_speeds(users: int, tokens: int, pace: float) -> None:
    answers = [answer(user, 0.0, [pace * count for count in range(1, tokens + 1)]) for user in range(users)]
    run = steady_part(answers, users)
    assert isinstance(run, UsersRun)
    assert run.tokens_per_second == pytest.approx(users / pace)
