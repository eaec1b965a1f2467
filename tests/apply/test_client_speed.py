"""A client's figures against a server whose true speed is known: overheads must cancel exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.apply.verify.check import judge
from sweeper.apply.verify.client_speed import measure_speed
from sweeper.client.servers import Generation
from sweeper.errors import VerifyError
from sweeper.records import EnergyReading, PowerSource, Reading, Workload


@dataclass
class KnownServer:
    """Takes `overhead` an answer, 1/prefill a prompt token that it does not hold, 1/decode a token generated.

    The first generated token comes with the prompt's last one, as in llama.cpp.
    """

    decode: float = 50.0
    prefill: float = 800.0
    texts: dict[str, float] = field(default_factory=dict)  # decode speed after other texts
    overhead: float = 0.02
    ends_after: int = 10**9
    own: bool = False
    tokens_per_word: float = 1.3
    now: float = 0.0
    held: str = ""
    kind: str = "known"
    url: str = "http://known"
    longest: int = 0
    asked: list[str] = field(default_factory=list)

    def offered(self):
        return {"m": None}

    def in_force(self, name: str):
        return {}

    def generate(self, name: str, prompt: str, tokens: int) -> Generation:
        length = max(1, round(len(prompt.split()) * self.tokens_per_word))
        made = min(tokens, self.ends_after)
        held = round(len(self.held.split()) * self.tokens_per_word) if prompt.startswith(self.held) else 0
        new = max(1, length - held)
        evaluated = 1 / self.decode if new <= 8 else new / self.prefill  # a small batch costs as one token
        decode = next((speed for text, speed in self.texts.items() if prompt.endswith(text)), self.decode)
        seconds = self.overhead + evaluated + (made - 1) / decode
        self.held = prompt
        self.now += seconds
        self.longest = max(self.longest, length + tokens)
        own = self.decode if self.own else None
        return Generation(length, made, seconds, own, self.prefill if self.own else None)


def test_decode_and_prefill_are_those_of_the_server_whatever_its_overhead() -> None:
    for overhead in (0.0, 0.02, 1.0):
        server = KnownServer(overhead=overhead)
        speed = measure_speed(server, "m", Workload(prompt_tokens=256, generated_tokens=64), 1024, repeats=3)
        assert speed.decode.median == pytest.approx(50.0)
        assert speed.prefill is not None
        assert speed.prefill.median == pytest.approx(800.0)
        assert speed.decode_tokens == 64
        assert 230 <= speed.prompt_tokens <= 256


@pytest.mark.parametrize("n_ctx", [64, 256, 4096])
@pytest.mark.parametrize("depth", [0, 100, None])
@pytest.mark.parametrize("tokens_per_word", [1.0, 6.0])
def test_nothing_asked_for_exceeds_the_context(n_ctx: int, depth: int | None, tokens_per_word: float) -> None:
    server = KnownServer(tokens_per_word=tokens_per_word)
    workload = Workload(prompt_tokens=48, generated_tokens=24, depth=depth)
    measure_speed(server, "m", workload, n_ctx, repeats=2)
    assert server.longest <= n_ctx


def test_depth_is_in_the_context_before_decoding() -> None:
    server = KnownServer()
    measure_speed(server, "m", Workload(prompt_tokens=64, generated_tokens=32, depth=500), 1024, repeats=2)
    assert server.longest >= 450 + 32


def test_a_slow_model_is_asked_for_fewer_tokens() -> None:
    server = KnownServer(decode=1.5, prefill=10.0)
    speed = measure_speed(server, "m", Workload(), 4096, repeats=2)
    assert speed.decode.median == pytest.approx(1.5)
    assert 16 <= speed.decode_tokens <= 32
    assert speed.prefill is not None
    assert speed.prefill.median == pytest.approx(10.0)
    assert server.now < 20 * 60


def test_a_model_that_ends_early_is_measured_by_the_server_itself_or_not_at_all() -> None:
    workload = Workload(prompt_tokens=64, generated_tokens=64)
    speed = measure_speed(KnownServer(ends_after=5, own=True), "m", workload, 1024, repeats=2)
    assert speed.decode.median == pytest.approx(50.0)
    with pytest.raises(VerifyError, match="too early"):
        measure_speed(KnownServer(ends_after=5), "m", workload, 1024, repeats=2)


def test_prefill_that_is_nowhere_is_missing_with_a_reason() -> None:
    server = KnownServer(decode=1e9, prefill=1e12)
    server.generate = lambda name, prompt, tokens: Generation(
        8, tokens, 0.01 if tokens == 1 else tokens / 100
    )  # type: ignore[method-assign]
    speed = measure_speed(server, "m", Workload(prompt_tokens=8, generated_tokens=32), 1024, repeats=2)
    assert speed.decode.median == pytest.approx(100.0)
    assert speed.prefill is None or speed.prefill.median > 0


class KnownMeter:
    source = PowerSource("nvml", "x", "gpu", "measured")
    update_period_seconds = 0.1

    def __init__(self, watts: float | None) -> None:
        self.watts = watts

    @contextmanager
    def window(self) -> Iterator[KnownMeter]:
        yield self

    def reading(self, started: float, ended: float) -> EnergyReading:
        seconds = ended - started
        assert seconds >= 2.0
        joules = None if self.watts is None else self.watts * seconds
        return EnergyReading(self.source, seconds, joules, reason="no counter")


def test_watts_over_windows_that_the_sensor_resolves() -> None:
    server = KnownServer()
    workload = Workload(prompt_tokens=64, generated_tokens=32)
    speed = measure_speed(
        server, "m", workload, 1024, repeats=2, meter=KnownMeter(42.0), clock=lambda: server.now
    )
    assert speed.watts is not None
    assert speed.watts.median == pytest.approx(42.0)
    assert speed.watts.n == 3
    speed = measure_speed(
        server, "m", workload, 1024, repeats=2, meter=KnownMeter(None), clock=lambda: server.now
    )
    assert speed.watts is None
    assert speed.missing["watts"] == "no counter"


positive = st.floats(0.1, 1e4)


@given(positive, positive, st.floats(0, 0.2), st.floats(0, 0.2), st.booleans())
def test_judge_is_a_matter_of_ratio_and_of_overlap(
    a: float, b: float, wide_a: float, wide_b: float, more: bool
) -> None:
    promised = Reading(a, a * (1 - wide_a), a * (1 + wide_a), 5)
    found = Reading(b, b * (1 - wide_b), b * (1 + wide_b), 5)
    verdict = judge(promised, found, more_is_better=more)
    worse = (b < a * 0.95) if more else (b > a * 1.05)
    apart = found.high < promised.low if more else found.low > promised.high
    assert verdict == ("kept" if not worse else "missed" if apart else "unclear")


@pytest.mark.parametrize(
    ("promised", "found", "more", "verdict"),
    [
        ((20, 19, 21), (19.2, 19, 19.5), True, "kept"),  # 4 % less
        ((20, 19, 21), (18, 17.5, 18.5), True, "missed"),
        ((20, 17, 23), (18, 17, 19), True, "unclear"),
        ((20, 19, 21), (40, 39, 41), True, "kept"),
        ((50, 49, 51), (52, 51, 53), False, "kept"),
        ((50, 49, 51), (60, 59, 61), False, "missed"),
        ((50, 49, 51), (40, 39, 41), False, "kept"),
    ],
)
def test_judge_by_example(promised: tuple, found: tuple, more: bool, verdict: str) -> None:
    assert judge(Reading(*promised, 5), Reading(*found, 5), more_is_better=more) == verdict


def test_one_answer_that_was_held_up_does_not_end_the_measurement() -> None:
    server = KnownServer()
    calm, count = server.generate, 0

    def disturbed(name: str, prompt: str, tokens: int) -> Generation:
        nonlocal count
        count += 1
        answer = calm(name, prompt, tokens)
        late = 60.0 if count == 6 else 0.0  # a short answer, after the warm-up's four
        return replace(answer, seconds=answer.seconds + late)

    server.generate = disturbed  # type: ignore[method-assign]
    speed = measure_speed(server, "m", Workload(generated_tokens=64), 1024, repeats=3)
    assert speed.decode.median == pytest.approx(50.0)


def test_each_repeat_goes_on_with_another_real_text() -> None:
    """A server that drafts is fast after a text that it guesses, and slow after another one."""
    texts = {f"text number {number} of many": 40.0 + 10 * number for number in range(3)}
    server = KnownServer(texts=texts)
    workload = Workload(prompt_tokens=64, generated_tokens=32)
    speed = measure_speed(server, "m", workload, 1024, repeats=3, texts=list(texts))
    assert speed.decode.median == pytest.approx(50.0)
    assert (speed.decode.low, speed.decode.high) != (50.0, 50.0)
    assert server.longest <= 1024


def test_long_texts_are_cut_to_the_context() -> None:
    server = KnownServer()
    long_text = "word " * 5000
    measure_speed(
        server, "m", Workload(prompt_tokens=64, generated_tokens=32), 512, repeats=2, texts=[long_text]
    )
    assert 256 < server.longest <= 512
