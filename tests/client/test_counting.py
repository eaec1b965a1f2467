"""Streamed answers are counted however the network cuts them."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.client.counting import BrokenAnswer, Counter, counter_for
from sweeper.client.requests import Api
from sweeper.records import Drafts

TRICKY = 'he said "tokens_predicted":99, "stop":true and "error":{'


def _llama(tokens: int) -> bytes:
    events = [
        {"content": TRICKY, "tokens": [1], "stop": False, "tokens_predicted": n, "tokens_evaluated": 777}
        for n in range(1, tokens + 1)
    ]
    timings = {"prompt_n": 12, "predicted_n": tokens, "draft_n": 98765, "draft_n_accepted": 43210}
    last = {"content": "", "tokens": [], "stop": True, "tokens_predicted": tokens, "prompt": TRICKY}
    events.append({**last, "timings": timings})
    return b"".join(f"data: {json.dumps(e, separators=(',', ':'))}\n\n".encode() for e in events)


def _openai(tokens: int) -> bytes:
    events: list[dict] = [{"choices": [{"text": TRICKY, "finish_reason": None}]} for _ in range(tokens)]
    events.append({"choices": [{"text": "", "finish_reason": "length"}]})
    events.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}})
    return b"".join(f"data: {json.dumps(e)}\n\n".encode() for e in events) + b"data: [DONE]\n\n"


def _chat(tokens: int) -> bytes:
    events: list[dict] = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    events += [{"choices": [{"delta": {"content": TRICKY}, "finish_reason": None}]} for _ in range(tokens)]
    events.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
    return b"".join(f"data: {json.dumps(e)}\n\n".encode() for e in events) + b"data: [DONE]\n\n"


def _ollama(tokens: int) -> bytes:
    events: list[dict] = [{"response": TRICKY, "done": False} for _ in range(tokens)]
    events.append({"response": "", "done": True, "eval_count": tokens})
    return b"".join(json.dumps(e).encode() + b"\n" for e in events)


STREAMS = {
    "llama-server": ("llama-server", _llama),
    "openai": ("openai", _openai),
    "chat": ("openai", _chat),
    "ollama": ("ollama", _ollama),
}


def _fed(api: Api, stream: bytes, cuts: list[int]) -> Counter:
    counter = counter_for(api)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    before = 0.0
    for begin, end in itertools.pairwise(edges):
        counter.feed(stream[begin:end])
        assert counter.pieces >= before
        before = counter.pieces
    return counter


@pytest.mark.parametrize("kind", STREAMS)
@given(tokens=st.integers(1, 120), cuts=st.lists(st.integers(0, 10**6), max_size=40))
def test_tokens_are_counted_exactly(kind: str, tokens: int, cuts: list[int]) -> None:
    api, make = STREAMS[kind]
    counter = _fed(api, make(tokens), cuts)
    assert counter.pieces == tokens
    assert counter.finished
    assert counter.total in (tokens, None)
    assert counter.drafts == (Drafts(98765, 43210) if api == "llama-server" else None)


@pytest.mark.parametrize("kind", STREAMS)
def test_an_answer_that_is_cut_off_is_not_finished(kind: str) -> None:
    api, make = STREAMS[kind]
    stream = make(10)
    counter = _fed(api, stream[: len(stream) // 2], [])
    assert not counter.finished
    assert 0 < counter.pieces < 10


@pytest.mark.parametrize(
    ("api", "stream"),
    [
        ("llama-server", b'error: {"code":500,"message":"no room","type":"x"}\n\n'),
        ("llama-server", b'data: {"error":{"code":500,"message":"no room"}}\n\n'),
        ("openai", b'data: {"error":{"message":"no room"}}\n\n'),
        ("ollama", b'{"error":"no room"}\n'),
    ],
)
def test_an_error_inside_an_answer_has_the_servers_words(api: Api, stream: bytes) -> None:
    with pytest.raises(BrokenAnswer, match=r"^no room$"):
        counter_for(api).feed(stream)


def test_an_answer_that_only_ends_has_one_token() -> None:
    counter = counter_for("openai")
    counter.feed(b'data: {"choices":[{"text":"","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    assert counter.pieces == 1
    assert counter.finished


def test_a_page_that_is_no_stream_is_named() -> None:
    with pytest.raises(BrokenAnswer, match="not JSON"):
        counter_for("ollama").feed(b"<html>\n")
