"""Measures a server's speed as its client sees it, by differences in which overheads cancel out.

Decode: two answers to one prompt, one of them longer by a known number of tokens. The difference in time is
the time for those tokens, since connection, JSON, tokenising and the prompt are in both. Prefill: a prompt that
is new to the server, and the same prompt with one more word, which the server's prefix cache holds.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sweeper.client.servers import Generation, Server
from sweeper.errors import VerifyError
from sweeper.meter.base import PowerMeter
from sweeper.records import Reading, Workload
from sweeper.stats import median, reading

_STEADY_FRACTION = 0.05  # two answers in a row that differ by less end the warm-up
_WARMUP_PAIRS = 4  # ... and this many pairs end it anyway: loading and page faults are over by then
REPEAT_SECONDS = 1.0  # a repeat lasts about this, so that a scheduler's tick of 4 ms is under 1 % of it
_MOST_PAIRS = 20  # of answers in a repeat
_MORE_PAIRS = 3  # if noise made the longer answers the faster ones
_LONGEST_ANSWER_SECONDS = 20.0  # a slow model's answers are cut to this, which is enough to measure speed
_LEAST_TOKENS = 16  # ... but not below this many tokens
_PROBE_WORDS = (12, 36)
_SMALL_PROBE_WORDS = (2, 8)  # in a context below _SMALL_CONTEXT tokens
_SMALL_CONTEXT = 512
_PROMPT_FILL = 0.97  # of the workload's prompt length: a salt of other digits may be a few tokens longer
_SAMPLE_CHARACTERS = 200
_TEXT_FILL = 0.8  # of the context, because some texts have shorter tokens than the sample
_POWER_PERIODS = 20  # a power window lasts this many of the sensor's periods, for an edge error of 5 %
_POWER_SECONDS = 2.0  # ... and at least this
_POWER_REPEATS = 3
_WORDS = ("time", "water", "light", "stone", "river", "music", "paper", "green", "seven", "north", "cloud")


@dataclass(frozen=True, slots=True)
class ClientSpeed:
    """What clients measured, in tok/s, W and s. None if they could not, with the reason in ``missing``, by metric."""

    decode: Reading
    prefill: Reading | None
    watts: Reading | None
    own_decode: Reading | None  # as the server reports it for the same answers
    own_prefill: Reading | None
    decode_tokens: int
    prompt_tokens: int
    missing: dict[str, str]
    each_user: Reading | None = None  # of several users, of whom ``decode`` and ``watts`` then are
    first_token: Reading | None = None  # the 95th percentile of their time to the first token


def measure_speed(
    server: Server,
    name: str,
    workload: Workload,
    n_ctx: int,
    *,
    repeats: int = 5,
    repeat_seconds: float = REPEAT_SECONDS,
    meter: PowerMeter | None = None,
    progress: Callable[[str], None] = lambda _line: None,
    clock: Callable[[], float] = time.monotonic,
    texts: Sequence[str] = (),
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
        texts: Real texts that generation goes on with, if the promise was measured with some.

    Raises:
        VerifyError: the server refuses, or is too fast for this method.
        EngineMissingError: the server went away.
    """
    client = Client(server, name, n_ctx, repeats, repeat_seconds, progress)
    depth = min(workload.depth_at(n_ctx), max(0, n_ctx - workload.generated_tokens - 32))
    prompt = "a" if depth <= 8 else _text(client.words_for(min(depth, n_ctx - 16)), "depth")
    short = max(1, min(16, workload.generated_tokens // 4))
    long = min(short + workload.generated_tokens, max(short + 1, n_ctx - depth - 16))
    prompts = [prompt]
    if texts:
        room = client.characters_for(max(1, n_ctx - depth - long - 16), texts[0])
        prompts = [f"{prompt} {text[-room:]}" for text in texts[:: max(1, len(texts) // repeats)]]
    progress("warming up …")
    seconds = client.warm_up(prompts[0], short, long)
    if seconds > _LONGEST_ANSWER_SECONDS:
        cut = int((long - short) * _LONGEST_ANSWER_SECONDS / seconds)
        long = min(long, short + max(_LEAST_TOKENS, cut))
    decode, own_decode = client.decode(prompts, short, long)
    prefill, own_prefill, prompt_tokens = client.prefill(
        min(workload.prompt_tokens, n_ctx - 16), decode.median
    )
    watts = None if meter is None else client.watts(prompts, long, meter, clock)
    return ClientSpeed(
        decode, prefill, watts, own_decode, own_prefill, long - short, prompt_tokens, client.missing
    )


@dataclass(slots=True)
class Client:
    """One client of a server, which sends one request at a time."""

    server: Server
    name: str
    n_ctx: int
    repeats: int
    repeat_seconds: float
    progress: Callable[[str], None]
    missing: dict[str, str] = field(default_factory=dict)

    def ask(self, prompt: str, tokens: int) -> Generation:
        """One answer."""
        return self.server.generate(self.name, prompt, tokens)

    def warm_up(self, prompt: str, short: int, long: int) -> float:
        """Generate until two pairs in a row agree; returns the seconds of the longer answer."""
        before = None
        for _ in range(_WARMUP_PAIRS):
            self.ask(prompt, short)
            seconds = self.ask(prompt, long).seconds
            steady = before is not None and abs(seconds - before) <= _STEADY_FRACTION * before
            if steady or seconds > _LONGEST_ANSWER_SECONDS:
                break
            before = seconds
        return max(seconds, 1e-3)

    def decode(self, prompts: Sequence[str], short: int, long: int) -> tuple[Reading, Reading | None]:
        """The speed as measured and as the server reports it; each repeat has the next prompt.

        The first answer after a pause is a little slower, and machines drift, so the order of a pair alternates.
        """
        speeds: list[float] = []
        own: list[float] = []
        long_first = itertools.cycle((True, False))

        def pair(prompt: str) -> tuple[Generation, Generation]:
            lengths = (long, short) if next(long_first) else (short, long)
            answers = {length: self.ask(prompt, length) for length in lengths}
            return answers[long], answers[short]

        for repeat in range(self.repeats):
            self.progress(f"decode {repeat + 1}/{self.repeats}")
            prompt = prompts[repeat % len(prompts)]
            if len(prompts) > 1:
                self.ask(prompt, 1)  # the server's cache then holds it for both answers
            seconds, longs, shorts = self._paired(functools.partial(pair, prompt))
            own += [a.own_tokens_per_second for a in longs if a.own_tokens_per_second]
            tokens = median([a.generated_tokens for a in longs]) - median(
                [a.generated_tokens for a in shorts]
            )
            if (
                tokens < (long - short) / 2
            ):  # the model ends its answers early: only the server knows its speed
                reported = [a.own_tokens_per_second for a in longs if a.generated_tokens > 1]
                known = [speed for speed in reported if speed]
                if not known:
                    raise VerifyError(
                        f"the model ends its answers at {self.server.url} too early to measure its speed"
                    )
                speeds.append(median(known))
            elif seconds > 0:
                speeds.append(tokens / seconds)
            else:
                raise VerifyError(
                    f"{self.server.url} generates {long} tokens no slower than {short}: the server is too fast, "
                    "or the machine too busy, to measure it; raise workload.generated_tokens"
                )
        return reading(speeds), reading(own) if own else None

    def prefill(self, tokens: int, decode: float) -> tuple[Reading | None, Reading | None, int]:
        """The speed as measured and as the server reports it, and the most tokens of a prompt."""
        words = self.words_for(tokens)
        speeds: list[float] = []
        answers: list[Generation] = []

        def pair() -> tuple[Generation, Generation]:
            prompt = _text(words, _salt())
            new = self.ask(prompt, 1)
            # One word more: some servers keep the last token's logits and some evaluate it again, but all must
            # evaluate a new one, which costs as much as a decoded token.
            return new, self.ask(f"{prompt} {_WORDS[0]}", 1)

        for repeat in range(self.repeats):
            self.progress(f"prefill {repeat + 1}/{self.repeats}")
            seconds, news, _ = self._paired(pair, 1.0 / decode)
            answers += news
            if seconds > 0:
                speeds.append(median([a.prompt_tokens for a in news]) / seconds)
        own = [a.own_prompt_tokens_per_second for a in answers if a.own_prompt_tokens_per_second]
        if len(speeds) < self.repeats:
            reason = "a new prompt took no longer than one in the server's cache"
            self.missing["prompt_tokens_per_second"] = reason
        found = reading(speeds) if len(speeds) == self.repeats else None
        return found, reading(own) if own else None, max(a.prompt_tokens for a in answers)

    def watts(
        self, prompts: Sequence[str], tokens: int, meter: PowerMeter, clock: Callable[[], float]
    ) -> Reading | None:
        """Power while the server generates one answer after another, over windows that the sensor can resolve."""
        least = max(_POWER_SECONDS, _POWER_PERIODS * meter.update_period_seconds)
        found = []
        for repeat in range(_POWER_REPEATS):
            self.progress(f"power {repeat + 1}/{_POWER_REPEATS}")
            with meter.window() as window:
                started = ended = clock()
                while ended - started < least:
                    self.ask(prompts[repeat % len(prompts)], tokens)
                    ended = clock()
            energy = window.reading(started, ended)
            if energy.watts is None:
                self.missing["watts"] = energy.reason or "the sensor gave no reading"
                return None
            found.append(energy.watts)
        return reading(found)

    def words_for(self, tokens: int) -> int:
        """How many words make a prompt of just under ``tokens``.

        Two short prompts tell: the words repeat, so the number of tokens grows linearly with theirs.
        """
        probes = _PROBE_WORDS if self.n_ctx >= _SMALL_CONTEXT else _SMALL_PROBE_WORDS
        few, more = (self.ask(_text(words, _salt()), 1).prompt_tokens for words in probes)
        slope = (more - few) / (probes[1] - probes[0])
        if slope <= 0:
            return max(1, tokens // 8)  # the server does not count: assume a byte tokeniser's 6 tokens a word
        base = few - slope * probes[0]
        return max(1, math.floor((_PROMPT_FILL * tokens - base) / slope))

    def characters_for(self, tokens: int, text: str) -> int:
        """How many characters of texts like ``text`` are surely less than ``tokens``."""
        sample = text[:_SAMPLE_CHARACTERS]
        counted = self.ask(sample, 1).prompt_tokens or len(sample)
        return max(1, math.floor(_TEXT_FILL * tokens * len(sample) / counted))

    def _paired(
        self, pair: Callable[[], tuple[Generation, Generation]], offset: float = 0.0
    ) -> tuple[float, list[Generation], list[Generation]]:
        """By how many seconds the first answers of some pairs are slower, plus ``offset``; and all answers.

        The medians count, so that one delayed answer does not.
        """
        slow: list[Generation] = []
        fast: list[Generation] = []
        seconds, pairs = 0.0, 1
        while len(slow) < pairs or (seconds <= 0 and len(slow) < pairs + _MORE_PAIRS):
            one, other = pair()
            slow.append(one)
            fast.append(other)
            seconds = median([a.seconds for a in slow]) - median([a.seconds for a in fast]) + offset
            pairs = max(1, min(_MOST_PAIRS, math.ceil(self.repeat_seconds / max(slow[0].seconds, 1e-3))))
        return seconds, slow, fast


def _salt() -> str:
    return f"{time.monotonic_ns() % 10**9:09d}"


def _text(words: int, salt: str) -> str:
    """A text of ``words`` words. The salt comes first, so that the server's prefix cache holds none of it."""
    return " ".join([salt, *(_WORDS[i % len(_WORDS)] for i in range(words))])
