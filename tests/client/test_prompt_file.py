"""Files of the user's own prompts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.client.prompt_file import MOST_PROMPTS, read_prompts
from sweeper.client.tokenise import tokenised
from sweeper.config import compose
from sweeper.errors import ConfigError, EngineRefused, MissingError
from sweeper.records import Workload, from_plain, to_plain

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why is the sky blue?"}]


def written(folder: Path, *entries: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    return path


@pytest.mark.parametrize(
    ("entry", "prompt"),
    [
        ({"prompt": "Once upon a time"}, "Once upon a time"),
        ({"messages": CHAT}, CHAT),
        (
            {"custom_id": "7", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": CHAT}},
            CHAT,
        ),
        ({"request": {"body": {"prompt": "x", "model": "m"}}, "response": {"text": "y"}}, "x"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image_url"}]}
                ]
            },
            [{"role": "user", "content": "See"}],
        ),
    ],
)
def test_the_usual_forms_are_read(tmp_path: Path, entry: Any, prompt: Any) -> None:
    own = read_prompts(written(tmp_path, entry))
    assert own.prompts == (prompt,)
    assert (own.record.prompts, own.record.chats) == (1, int(not isinstance(prompt, str)))


def test_the_record_has_name_digest_and_counts_and_no_text(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "a secret"}, {"prompt": "  "}, {"messages": CHAT})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n\n")
    own = read_prompts(path)
    assert own.record.name == "prompts.jsonl"
    assert own.record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (own.record.prompts, own.record.chats, own.record.skipped) == (2, 1, 1)
    workload = Workload(prompts=own.record)
    assert "secret" not in json.dumps(to_plain(workload))
    assert from_plain(to_plain(workload), Workload) == workload


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{oops", "is not JSON"),
        (b'{"text": "x"}', "has neither a prompt nor messages"),
        (b'["x"]', "has neither a prompt nor messages"),
        (b'{"prompt": 3}', "has neither a prompt nor messages"),
        (b'{"messages": []}', "has neither a prompt nor messages"),
        (b'{"messages": ["hi"]}', "has a message without a role"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "has a message whose content is no text"),
        (b'{"prompt": "\xff"}', "is not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_broken_line_is_named_with_what_is_expected(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n\n' + line + b"\n")
    with pytest.raises(
        ConfigError, match=rf'^workload\.prompts: p\.jsonl line 3 {said}; expected \{{"prompt"'
    ) as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"", "it is empty"), (b"\n \n", "it is empty"), (b'{"prompt": ""}\n', "no line has a prompt")],
)
def test_a_file_without_a_prompt_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(data)
    with pytest.raises(ConfigError, match=f"no usable line, because {why}"):
        read_prompts(tmp_path / "p.jsonl")


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(MissingError, match=r"workload\.prompts: cannot read") as caught:
            read_prompts(path)
        assert caught.value.exit_code == 3


def test_a_long_file_is_used_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    count = 3 * MOST_PROMPTS + 1
    own = read_prompts(written(tmp_path, *({"prompt": str(n)} for n in range(count))))
    assert own.record.prompts == count
    assert len(own.prompts) == MOST_PROMPTS
    assert own.prompts[0] == "0"
    assert int(str(own.prompts[-1])) > count - 5


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=20))
def test_every_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    own = read_prompts(written(tmp_path_factory.mktemp("p"), *({"prompt": text} for text in texts)))
    assert list(own.prompts) == texts


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "one"})
    assert read_prompts(path).prompts == ("one",)
    written(tmp_path, {"prompt": "another"})
    assert read_prompts(path).prompts == ("another",)


def test_prompts_need_an_engine_that_sends_them(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "x"})
    with pytest.raises(ConfigError, match=r"workload\.prompts: your own prompts need engine=llama_server"):
        compose([f"workload.prompts='{path}'"])
    for users in (1, 2):
        assert compose([f"workload.prompts='{path}'", "engine=llama_server", f"workload.users={users}"])


def test_prompts_are_tokenised_by_the_server(server_url: str) -> None:
    found = tokenised(server_url, ["some text", CHAT, "long " * 500], 200)
    assert len(found.prompts) == 2
    assert found.too_long == 1
    assert all(isinstance(token, int) for ids in found.prompts for token in ids)
    assert len(found.prompts[1]) > len(found.prompts[0])
    with pytest.raises(EngineRefused, match="none of the 1 prompts has at most 1 tokens"):
        tokenised(server_url, ["some text"], 1)
