"""Measures a server's speed as its client sees it, by differences in which overheads cancel out.

Decode: two answers to one prompt, one of them longer by a known number of tokens. The difference in time is
the time for those tokens, since connection, JSON, tokenising and the prompt are in both. Prefill: a prompt that
is new to the server, and the same prompt with one more word, which the server's prefix cache holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from sweeper.apply.verify.servers import Generation, Server
from sweeper.errors import VerifyError
from sweeper.records import EnergyReading, PowerSource, Reading, Workload
from sweeper.stats import interval, median

_STEADY_FRACTION = 0.05  # two answers in a row that differ by less end the warm-up
_WARMUP_PAIRS = 4  # ... and this many pairs end it anyway: loading and page faults are over by then
REPEAT_SECONDS = 1.0  # a repeat lasts about this, so that a scheduler's tick of 4 ms is under 1 % of it
_MOST_PAIRS = 20  # of answers in a repeat
_LONGEST_ANSWER_SECONDS = 20.0  # a slow model's answers are cut to this, which is enough to measure speed
_LEAST_TOKENS = 16  # ... but not below this many tokens
_PROBE_WORDS = (12, 36)
_SMALL_PROBE_WORDS = (2, 8)  # in a context below _SMALL_CONTEXT tokens
_SMALL_CONTEXT = 512
_MORE_PAIRS = 3  # if noise made the longer answers the faster ones
_PROMPT_FILL = 0.97  # of the workload's prompt length: a salt of other digits may be a few tokens longer
_POWER_PERIODS = 20  # a power window lasts this many of the sensor's periods, for an edge error of 5 %
_POWER_SECONDS = 2.0  # ... and at least this
_POWER_REPEATS = 3
_WORDS = ("time", "water", "light", "stone", "river", "music", "paper", "green", "seven", "north", "cloud")


class PowerWindow(Protocol):
    """A meter's window after it has ended."""

    def reading(self, started: float, ended: float) -> EnergyReading:
        """Energy between two ``time.monotonic()`` moments inside the window."""
        ...


class Meter(Protocol):
    """The part of `sweeper.meter.base.PowerMeter` that verify uses."""

    @property
    def source(self) -> PowerSource:
        """The source that ranks."""
        ...

    @property
    def update_period_seconds(self) -> float:
        """The sensor's update period."""
        ...

    def window(self) -> AbstractContextManager[PowerWindow]:
        """Sample while the block runs."""
        ...


@dataclass(frozen=True, slots=True)
class ClientSpeed:
    """What a client measured, in tok/s and W. None if it could not, with the reason in ``missing``."""

    decode: Reading
    prefill: Reading | None
    watts: Reading | None
    own_decode: Reading | None  # as the server reports it for the same answers
    own_prefill: Reading | None
    decode_tokens: int
    prompt_tokens: int
    missing: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Plan:
    """The prompt before decoding, and the lengths of the short and the long answer in tokens."""

    prompt: str
    short: int
    long: int


def measure_speed(
    server: Server,
    name: str,
    workload: Workload,
    n_ctx: int,
    *,
    repeats: int = 5,
    repeat_seconds: float = REPEAT_SECONDS,
    meter: Meter | None = None,
    progress: Callable[[str], None] = lambda _line: None,
    clock: Callable[[], float] = time.monotonic,
) -> ClientSpeed:
    """Measure a loaded model over HTTP.

    Args:
        server: The server.
        name: The model's name there.
        workload: Prompt, answer and depth that the promise was measured with.
        n_ctx: The server's context, which no prompt with its answer may exceed.
        repeats: How many times, for the spread; at least 2.
        repeat_seconds: The least duration of a repeat; it takes as many pairs of answers as that needs.
        meter: An open meter, to measure power too.
        progress: Gets one line for each step.
        clock: The meter's clock.

    Raises:
        VerifyError: the server refuses, or is too fast for this method.
        EngineMissingError: the server went away.
    """
    depth = min(workload.depth_at(n_ctx), max(0, n_ctx - workload.generated_tokens - 32))
    short = max(1, min(16, workload.generated_tokens // 4))
    most = max(short + 1, n_ctx - depth - 16)
    plan = _Plan(_prompt_of(server, name, depth, n_ctx), short, min(short + workload.generated_tokens, most))
    progress("warming up")
    seconds = _warm_up(server, name, plan)
    if seconds > _LONGEST_ANSWER_SECONDS:
        cut = int((plan.long - plan.short) * _LONGEST_ANSWER_SECONDS / seconds)
        plan = replace(plan, long=min(plan.long, plan.short + max(_LEAST_TOKENS, cut)))
    pairs = max(1, min(_MOST_PAIRS, math.ceil(repeat_seconds / seconds)))
    speeds, own = [], []
    for number in range(repeats):
        progress(f"decode {number + 1}/{repeats}")
        speed, answers = _decode(server, name, plan, pairs, long_first=number % 2 == 0)
        speeds.append(speed)
        own += [a.own_tokens_per_second for a in answers if a.own_tokens_per_second]
    decode = _reading(speeds)
    missing: list[tuple[str, str]] = []
    prefill, own_prefill, prompt_tokens = _prefill(
        server, name, workload, n_ctx, decode.median, repeats, repeat_seconds, missing, progress
    )
    watts = _watts(server, name, plan, meter, missing, progress, clock)
    return ClientSpeed(
        decode,
        prefill,
        watts,
        _reading(own) if own else None,
        own_prefill,
        plan.long - plan.short,
        prompt_tokens,
        tuple(missing),
    )


def _warm_up(server: Server, name: str, plan: _Plan) -> float:
    """Generate until two pairs in a row agree; returns the seconds of the longer answer."""
    before = None
    for _ in range(_WARMUP_PAIRS):
        server.generate(name, plan.prompt, plan.short)
        seconds = server.generate(name, plan.prompt, plan.long).seconds
        steady = before is not None and abs(seconds - before) <= _STEADY_FRACTION * before
        if steady or seconds > _LONGEST_ANSWER_SECONDS:
            break
        before = seconds
    return max(seconds, 1e-3)


def _decode(
    server: Server, name: str, plan: _Plan, pairs: int, *, long_first: bool
) -> tuple[float, list[Generation]]:
    """The speed over some pairs of answers, short and long in turn so that drift affects both alike.

    The first answer after a pause is a little slower, so the first length alternates between repeats. The medians
    of both lengths count, so that one delayed answer does not.
    """
    shorts: list[Generation] = []
    longs: list[Generation] = []
    seconds = 0.0
    for number in range(pairs + _MORE_PAIRS):
        if number >= pairs and seconds > 0:
            break
        order = (plan.long, plan.short) if (number % 2 == 0) is long_first else (plan.short, plan.long)
        for length in order:
            (shorts if length == plan.short else longs).append(server.generate(name, plan.prompt, length))
        seconds = median([a.seconds for a in longs]) - median([a.seconds for a in shorts])
    tokens = median([a.generated_tokens for a in longs]) - median([a.generated_tokens for a in shorts])
    if tokens < (plan.long - plan.short) / 2:
        return _by_itself(longs, server), longs
    if seconds <= 0:
        raise VerifyError(
            f"{server.url} generates {plan.long} tokens no slower than {plan.short}: the server is too fast, or the "
            "machine too busy, to measure it; raise workload.generated_tokens"
        )
    return tokens / seconds, longs


def _by_itself(answers: list[Generation], server: Server) -> float:
    """The server's own figure, for a model that ends its answers early."""
    own = [a.own_tokens_per_second for a in answers if a.own_tokens_per_second and a.generated_tokens > 1]
    if not own:
        raise VerifyError(f"the model ends its answers at {server.url} too early to measure its speed")
    return median(own)


def _prefill(
    server: Server,
    name: str,
    workload: Workload,
    n_ctx: int,
    decode: float,
    repeats: int,
    repeat_seconds: float,
    missing: list[tuple[str, str]],
    progress: Callable[[str], None],
) -> tuple[Reading | None, Reading | None, int]:
    wanted = min(workload.prompt_tokens, n_ctx - 16)
    words = _calibrate(server, name, wanted, n_ctx)
    speeds: list[float] = []
    answers: list[Generation] = []
    for number in range(repeats):
        progress(f"prefill {number + 1}/{repeats}")
        speed, found = _prefill_once(server, name, words, decode, repeat_seconds)
        speeds += [speed] if speed is not None else []
        answers += found
    own = [a.own_prompt_tokens_per_second for a in answers if a.own_prompt_tokens_per_second]
    own_reading = _reading(own) if own else None
    most = max(a.prompt_tokens for a in answers)
    if len(speeds) < repeats:
        missing.append(
            ("prompt_tokens_per_second", "a new prompt took no longer than one in the server's cache")
        )
        return None, own_reading, most
    return _reading(speeds), own_reading, most


def _prefill_once(
    server: Server, name: str, words: int, decode: float, repeat_seconds: float
) -> tuple[float | None, list[Generation]]:
    """The speed over pairs of a new prompt and the same prompt cached; None if the new one is no slower.

    The medians count, as for decode: a short prompt takes a few milliseconds, and one pair may be off.
    """
    news: list[Generation] = []
    kept: list[float] = []
    seconds, pairs = 0.0, 1
    while len(news) < pairs or (seconds <= 0 and len(news) < pairs + _MORE_PAIRS):
        prompt = _text(words, _salt())
        news.append(server.generate(name, prompt, 1))
        # One word more: some servers keep the last token's logits and some evaluate it again, but all must
        # evaluate a new one, which costs as much as a decoded token.
        kept.append(server.generate(name, f"{prompt} {_WORDS[0]}", 1).seconds)
        seconds = median([a.seconds for a in news]) - median(kept) + 1.0 / decode
        pairs = max(1, min(_MOST_PAIRS, math.ceil(repeat_seconds / max(news[0].seconds, 1e-3))))
    return (median([a.prompt_tokens for a in news]) / seconds if seconds > 0 else None), news


def _watts(
    server: Server,
    name: str,
    plan: _Plan,
    meter: Meter | None,
    missing: list[tuple[str, str]],
    progress: Callable[[str], None],
    clock: Callable[[], float],
) -> Reading | None:
    """Power while the server generates one answer after another, over windows that the sensor can resolve."""
    if meter is None:
        return None
    least = max(_POWER_SECONDS, _POWER_PERIODS * meter.update_period_seconds)
    readings = []
    for number in range(_POWER_REPEATS):
        progress(f"power {number + 1}/{_POWER_REPEATS}")
        with meter.window() as window:
            started = clock()
            ended = started
            while ended - started < least:
                server.generate(name, plan.prompt, plan.long)
                ended = clock()
        reading = window.reading(started, ended)
        if reading.watts is None:
            missing.append(("watts", reading.reason or "the sensor gave no reading"))
            return None
        readings.append(reading.watts)
    return _reading(readings)


def _prompt_of(server: Server, name: str, depth: int, n_ctx: int) -> str:
    """A prompt of about ``depth`` tokens, which fills the context before the answer begins."""
    if depth <= 8:
        return "a"
    words = _calibrate(server, name, min(depth, n_ctx - 16), n_ctx)
    return _text(words, "depth")


def _calibrate(server: Server, name: str, tokens: int, n_ctx: int) -> int:
    """How many words make a prompt of just under ``tokens``.

    Two short prompts tell: the words repeat, so the number of tokens grows linearly with theirs.
    """
    probes = _PROBE_WORDS if n_ctx >= _SMALL_CONTEXT else _SMALL_PROBE_WORDS
    few, more = (server.generate(name, _text(n, _salt()), 1).prompt_tokens for n in probes)
    slope = (more - few) / (probes[1] - probes[0])
    if slope <= 0:
        return max(1, tokens // 8)  # the server does not count: assume a byte tokeniser's 6 tokens a word
    base = few - slope * probes[0]
    return max(1, math.floor((_PROMPT_FILL * tokens - base) / slope))


def _salt() -> str:
    return f"{time.monotonic_ns() % 10**9:09d}"


def _text(words: int, salt: str) -> str:
    """A text of ``words`` words. The salt comes first, so that the server's prefix cache holds none of it."""
    return " ".join([salt, *(_WORDS[i % len(_WORDS)] for i in range(words))])


def _reading(values: list[float]) -> Reading:
    low, high = interval(values)
    return Reading(median(values), low, high, len(values))
