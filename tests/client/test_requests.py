"""Prompts: fresh in every request, and unchanged by their way to the worker."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.client.requests import Given, Ids, Prompts, Target, Words, from_json, request_of, to_json

EVERY = (
    Ids(8, 3, 500),
    Ids(8, 3, 500, depth=4, seed=7),
    Ids(8, 3, 500, depth=4, ends=([5, 6], [7] * 20)),
    Words(5, depth=3),
    Given(("one", [1, 2], [{"role": "user", "content": "hi"}])),
)


@pytest.mark.parametrize("prompts", EVERY)
def test_prompts_cross_to_the_worker_unchanged(prompts: Prompts) -> None:
    back = from_json(json.loads(json.dumps(to_json(prompts))))
    assert type(back) is type(prompts)
    assert [back.prompt(u, n) for u in range(3) for n in range(3)] == [
        prompts.prompt(u, n) for u in range(3) for n in range(3)
    ]


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 20))
def test_ids_are_new_after_the_users_own_depth(user: int, number: int, depth: int) -> None:
    prompts = Ids(24, 3, 500, depth=depth)
    one, next_one, other = (
        prompts.prompt(user, number),
        prompts.prompt(user, number + 1),
        prompts.prompt(user + 1, number),
    )
    assert len(one) == depth + 24
    assert all(3 <= token <= 500 for token in one)  # type: ignore[operator]
    assert one[:depth] == next_one[:depth]
    assert one[depth:] != next_one[depth:]
    assert one[depth:] != other[depth:]


def test_prompts_end_with_real_text_in_turn() -> None:
    prompts = Ids(8, 100, 500, depth=4, ends=([1, 2, 3], [*range(20)]))
    found = [prompts.prompt(0, number) for number in range(3)]
    assert {len(prompt) for prompt in found} == {12}
    assert found[0][-3:] == found[2][-3:] == [1, 2, 3]
    assert found[1][4:] == [*range(12, 20)]  # cut to the new tokens, so that each request has as many
    assert found[0][4:-3] != found[2][4:-3]


def test_given_texts_begin_with_a_salt_and_users_begin_at_other_places() -> None:
    prompts = Given(("alpha", "beta", "gamma"))
    first, again = prompts.prompt(0, 0), prompts.prompt(0, 3)
    assert isinstance(first, str)
    assert isinstance(again, str)
    assert first.endswith(" alpha")
    assert again.endswith(" alpha")
    assert first != again
    assert {str(prompts.prompt(user, 0)).split()[-1] for user in range(3)} == {"alpha", "beta", "gamma"}


def test_each_interface_gets_its_own_words() -> None:
    chat = [{"role": "user", "content": "hi"}]
    expected = {
        ("llama-server", "x"): ("/completion", "n_predict"),
        ("openai", "x"): ("/v1/completions", "max_tokens"),
        ("openai", "chat"): ("/v1/chat/completions", "max_tokens"),
        ("ollama", "x"): ("/api/generate", "options"),
        ("ollama", "chat"): ("/api/chat", "options"),
    }
    for (api, kind), (path, key) in expected.items():
        target = Target("http://h", api, "m", extra={"top_k": 1})  # type: ignore[arg-type]
        url, body = request_of(target, chat if kind == "chat" else "x", 9, False)
        assert url == f"http://h{path}"
        assert key in body
        assert body["stream"] is True
        assert body["model"] == "m"
        assert body["top_k"] == 1
        # The server samples as for a client that asks for nothing.
        assert not {"temperature", "top_p", "min_p", "samplers"} & {*body, *body.get("options", {})}


def test_two_tests_have_different_prompts() -> None:
    assert Ids(8, 3, 500).prompt(0, 0) != Ids(8, 3, 500).prompt(0, 0)
    assert Words(8).prompt(0, 0) != Words(8).prompt(0, 0)
