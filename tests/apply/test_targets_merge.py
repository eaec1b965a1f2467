"""A file that others wrote keeps every byte but ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from apply_sweep import make_sweep
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sweeper.apply import run as apply
from sweeper.apply.yaml_text import with_entry
from sweeper.errors import UsageError


def planned(target: str, file: Path, name: str = "mine") -> str:
    sweep = make_sweep(Path("/models/x.gguf"))
    plan = apply.plan(sweep, 3, target, apply.Options(name=name, file=file))
    return plan.draft.files[0].after.decode()


PRESET = """; models of this house
version = 1
[*]
c = 8192

[big]\tthe big one
model = /m/big ;) .gguf
# of mine
[ mine ] ; tuned last year
model = /old.gguf
chat-template = chatml
ngl = 99
LLAMA_ARG_THREADS = 1
no-kv-offload = true
# my notes

; the small one
[small]
model = /m/s.gguf"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_preset_keeps_other_sections_and_keys_of_ours_that_it_does_not_set(end: str, tmp_path: Path) -> None:
    file = tmp_path / "m.ini"
    old = PRESET.replace("\n", end)
    file.write_bytes(old.encode())
    new = planned("llama-server", file)
    head, tail = old.split("model = /old.gguf")
    assert new.startswith(head)
    assert new.endswith(tail[tail.index("# my notes") :])
    middle = new[len(head) : new.index("# my notes")].split(end)
    assert "chat-template = chatml" in middle
    for gone in ("ngl = 99", "LLAMA_ARG_THREADS = 1", "no-kv-offload = true", "model = /old.gguf"):
        assert gone not in middle
    assert "threads = 3" in middle
    assert "\n" not in new.replace("\r\n", "") or end == "\n"


@pytest.mark.parametrize("tail", ["", "\n", "\n\n"])
def test_preset_gets_a_new_section_at_its_end(tail: str, tmp_path: Path) -> None:
    file = tmp_path / "m.ini"
    file.write_text("[small]\nmodel = /m/s.gguf" + tail)
    new = planned("llama-server", file)
    assert new.startswith("[small]\nmodel = /m/s.gguf" + (tail or "\n"))
    assert "\n\n[mine]\nmodel = /models/x.gguf\n" in new


def test_preset_applied_to_itself_is_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "m.ini"
    file.write_text(PRESET)
    file.write_text(planned("llama-server", file))
    assert planned("llama-server", file) == file.read_text()


def test_preset_with_two_sections_of_our_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.ini"
    file.write_text("[mine]\n[mine]\n")
    with pytest.raises(UsageError, match="2 times"):
        planned("llama-server", file)


@pytest.mark.parametrize("name", ["default", "*", "a]b", "a,b", "a:b", " a"])
def test_preset_names_that_llama_server_would_change_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--name"):
        planned("llama-server", tmp_path / "m.ini", name)


def test_json_puts_ours_first_and_keeps_the_others(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    other = {"model": "/m/o.gguf", "model_alias": "o", "n_ctx": 7, "x": [1, {"y": None}]}
    mine = {"model": "/old.gguf", "model_alias": "mine", "chat_format": "chatml", "n_ctx": 9}
    file.write_text(json.dumps({"api_key": "k", "host": "::1", "models": [other, mine]}))
    data = json.loads(planned("llama-cpp-python", file))
    assert data["api_key"] == "k"
    assert data["host"] == "127.0.0.1"
    first, second = data["models"]
    assert second == other
    assert first["model_alias"] == "mine"
    assert first["chat_format"] == "chatml"
    assert first["n_ctx"] == 1536


@pytest.mark.parametrize(
    ("target", "content", "words"),
    [
        ("llama-cpp-python", "{", "not JSON"),
        ("llama-cpp-python", "[]", "no list `models`"),
        ("llama-cpp-python", '{"models": 1}', "no list `models`"),
        ("llama-swap", "models: [", "not YAML"),
        ("llama-swap", "- a", "no mapping"),
        ("llama-swap", "models: [a]", "no mapping"),
        ("compose", "services: {a: {image: b}}", "in one line"),
        ("textgen", "{a: {b: 1}}", "in one line"),
    ],
)
def test_a_file_that_cannot_be_merged_into_is_refused_by_name(
    target: str, content: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "theirs"
    file.write_text(content)
    with pytest.raises(UsageError, match=words) as caught:
        planned(target, file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "theirs"
    file.write_bytes(b"[caf\xe9]\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        planned("llama-server", file)


SWAP = """# my models
healthCheckTimeout: 60   # seconds

models:
    # the big one
    "big": &big
        cmd: |
            llama-server
            # not a comment
            --port ${PORT}
        ttl: 300

    # mine, tuned last year
    mine:
        ttl: 60
        cmd: old

    # the small one
    small: *big

# groups
groups: {a: {members: [big, small]}}
"""


def test_yaml_entry_is_replaced_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(SWAP)
    new = planned("llama-swap", file)
    head, tail = SWAP.split("    mine:\n        ttl: 60\n        cmd: old\n")
    assert new.startswith(head + "    mine:\n      ")
    assert new.endswith(tail)
    mine = yaml.safe_load(new)["models"]["mine"]
    assert mine["ttl"] == 60
    assert mine["cmd"].startswith("llama-server --model /models/x.gguf")


def test_yaml_entry_is_added_after_the_last(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(SWAP)
    new = planned("llama-swap", file, "newone")
    head, tail = SWAP.split("    small: *big\n")
    assert new.startswith(head + "    small: *big\n    newone:\n")
    assert new.endswith(tail)


def test_yaml_entry_that_holds_everything_already_keeps_its_layout(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    cmd = yaml.safe_load(planned("llama-swap", file))["models"]["mine"]["cmd"]
    file.write_text(
        f"models:\n    'mine':   # of mine\n        cmd: >-\n            {cmd}\n        ttl: 60\n"
    )
    assert planned("llama-swap", file) == file.read_text()


@pytest.mark.parametrize(
    "empty", ["models:\n", "models: {}\n", "models: null # none\n", "a: 1\n", "", "# x\n", "---\n"]
)
def test_yaml_mapping_that_is_missing_or_empty_is_made(empty: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(empty)
    data = yaml.safe_load(planned("llama-swap", file))
    assert list(data["models"]) == ["mine"]
    assert data.get("a") == (1 if "a:" in empty else None)


# PyYAML's own writer loses U+0085 and its like, so they are left to the tests of what we write.
_TEXT = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
_KEYS = st.text(_TEXT, min_size=1, max_size=6)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(_TEXT, max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    others=st.dictionaries(
        _KEYS, st.dictionaries(_KEYS, _VALUES, min_size=1, max_size=3), min_size=1, max_size=4
    ),
    rest=st.dictionaries(_KEYS, _VALUES, max_size=2),
    key=_KEYS,
    entry=st.dictionaries(_KEYS, _VALUES, min_size=1, max_size=3),
    indent=st.sampled_from([2, 4]),
)
def test_yaml_gets_one_entry_and_loses_no_byte(others, rest, key, entry, indent) -> None:
    rest.pop("models", None)
    text = yaml.safe_dump(
        {**rest, "models": others},
        default_flow_style=False,
        indent=indent,
        allow_unicode=True,
        sort_keys=False,
    )
    new = with_entry(text, "models", key, entry, "f")
    data = yaml.safe_load(new)
    assert data["models"].pop(key) == {**others.pop(key, {}), **entry}
    assert data == yaml.safe_load(text) | {"models": data["models"]}
    assert data["models"] == others
    if key not in yaml.safe_load(text)["models"]:
        same = next((i for i, (a, b) in enumerate(zip(text, new, strict=False)) if a != b), len(text))
        assert new.endswith(text[same:])  # what was put in is one stretch, and nothing is gone
