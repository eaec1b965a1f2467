"""The load generator against a real llama-server, and against servers that misbehave."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from sweeper.client.load_client import LoadClient
from sweeper.client.requests import Given, Ids, Target, Words
from sweeper.errors import EngineRefused
from sweeper.http import post

LLAMA = "llama-server"


@pytest.mark.parametrize("users", [1, 2, 5])
def test_users_of_a_real_server_are_counted_while_all_are_busy(server_url: str, users: int) -> None:
    before = time.monotonic()
    with LoadClient(Target(server_url, LLAMA)) as client:
        run = client.users(Ids(24, 3, 500), users, 8, 0.3, 60.0)
    assert before < run.started < run.ended < time.monotonic()
    assert run.seconds >= 0.3 - 1e-6
    assert run.tokens > 0
    assert run.served.users == users
    # The test goes on until each user has received a token of a request of the steady part.
    assert len(run.served.first_token_seconds) >= users
    assert all(0 < seconds <= run.seconds for seconds in run.served.first_token_seconds)
    assert run.served.requests >= len(run.served.request_seconds)


def test_answers_to_one_user_have_the_length_asked_for(server_url: str) -> None:
    with LoadClient(Target(server_url, LLAMA)) as client:
        answers = client.rounds(Ids(16, 3, 500, repeat=True), 12, 0.2, 60.0)
    assert answers
    assert all(a.complete and a.arrivals[-1][1] == 12 for a in answers)
    assert all(one.ended <= next_one.sent for one, next_one in itertools.pairwise(answers))


def test_an_answer_is_cut_at_the_limit(server_url: str) -> None:
    with LoadClient(Target(server_url, LLAMA)) as client:
        (answer,) = client.rounds(Ids(16, 3, 500), 900, 0.01, 0.1)
    assert not answer.complete
    assert 0 < answer.arrivals[-1][1] < 900


def test_the_prefix_cache_serves_no_fresh_prompt(server_url: str) -> None:
    """Whatever was sent before, llama-server evaluates every token of the next request's prompt."""
    prompts = Ids(32, 3, 500)
    ask = {"n_predict": 1, "cache_prompt": True, "temperature": 0}
    for number in range(4):
        answer = post(f"{server_url}/completion", ask | {"prompt": prompts.prompt(0, number)})
        assert answer["timings"]["cache_n"] <= 1  # two random prompts may begin with the same token


def test_given_prompts_are_sent_as_they_are(server_url: str) -> None:
    own, others = ([5, 6, 7], [9] * 40, "some text"), ([1] * 9,)
    with LoadClient(Target(server_url, LLAMA)) as client:
        assert client.users(Given(own), 2, 6, 0.2, 60.0).tokens > 0
        # The process already has the prompts; other ones must reach it all the same.
        assert {a.prompt_tokens for a in client.rounds(Given(own), 6, 0.1, 60.0)} >= {3, 40}
        assert {a.prompt_tokens for a in client.rounds(Given(others), 6, 0.0, 60.0)} == {9}
        assert {a.prompt_tokens for a in client.rounds(Given(own), 6, 0.1, 60.0)} >= {3, 40}


def test_the_openai_interface_of_a_real_server_is_counted_too(server_url: str) -> None:
    with LoadClient(Target(server_url, "openai", "m", extra={"ignore_eos": True})) as client:
        answers = client.rounds(Words(8), 12, 0.1, 60.0)
        run = client.users(Words(8), 2, 12, 0.2, 60.0)
    assert all(a.arrivals[-1][1] == pytest.approx(12) for a in answers)
    assert run.tokens > 0


def test_a_prompt_beyond_the_context_is_refused_with_the_servers_words(server_url: str) -> None:
    with LoadClient(Target(server_url, LLAMA)) as client, pytest.raises(EngineRefused, match="context size"):
        client.users(Ids(5000, 3, 500), 2, 8, 0.1, 1.0)


def test_a_server_that_is_not_there_is_named() -> None:
    with (
        LoadClient(Target("http://127.0.0.1:9", LLAMA)) as client,
        pytest.raises(EngineRefused, match=r"127\.0\.0\.1:9.* broke off"),
    ):
        client.users(Ids(8, 3, 500), 2, 8, 0.1, 1.0)


class Misbehaving(BaseHTTPRequestHandler):
    """Answers by its path: ``/key``, ``/none`` (no token), ``/early`` (ends without its last event), ``/ollama``."""

    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        how = self.path.split("/")[1]
        if how == "key":
            self.keys.append(self.headers.get("Authorization"))
            if self.headers.get("Authorization") != "Bearer s3cret":
                self.send_error(401)
                return
        self.send_response(200)
        self.end_headers()
        if how in ("early", "key"):
            event = {"content": "x", "stop": False, "tokens_predicted": 3}
            self.wfile.write(f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode())
        if how in ("none", "key"):
            event = {"content": "", "stop": True, "tokens_predicted": 3 * (how == "key")}
            self.wfile.write(f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none", "gave no token"),
        ("early", r"ended its answer early, after 3 of 8 tokens"),
        ("key", r"needs a key \(401\): set the environment variable SWEEPER_API_KEY"),
    ],
)
def test_a_server_that_misbehaves_is_named(misbehaving: str, path: str, said: str) -> None:
    with (
        LoadClient(Target(f"{misbehaving}/{path}", LLAMA)) as client,
        pytest.raises(EngineRefused, match=said),
    ):
        client.rounds(Ids(8, 3, 500), 8, 0.1, 1.0)


def test_a_key_is_sent_only_where_it_is_meant_to_be(
    misbehaving: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPER_API_KEY", "s3cret")
    Misbehaving.keys.clear()
    with LoadClient(Target(f"{misbehaving}/key", LLAMA, use_key=True)) as client:
        assert client.rounds(Ids(8, 3, 500), 3, 0.0, 1.0)
    with LoadClient(Target(f"{misbehaving}/key", LLAMA)) as client, pytest.raises(EngineRefused):
        client.rounds(Ids(8, 3, 500), 3, 0.0, 1.0)
    assert Misbehaving.keys == ["Bearer s3cret", None]
