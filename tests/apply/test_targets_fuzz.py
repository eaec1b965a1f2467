"""Files that someone else's editor broke: refused in one line, or merged without a loss and rolled back to the byte.

``SWEEPER_FUZZ=500`` runs that many mutated files for each target.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from apply_sweep import make_sweep
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeper.apply import run as apply
from sweeper.apply.journal import rollback, write_plan
from sweeper.errors import SweeperError

EXAMPLES = int(os.environ.get("SWEEPER_FUZZ", "20"))
SEEDS = {
    "compose": """# home
name: ai
x-base: &base
  restart: always
services:
  webui:
    <<: *base
    image: ghcr.io/open-webui/open-webui:main
    ports: !override
      - "127.0.0.1:8080:8080"   # keep
      - {target: 80, published: "${P:-8081}", host_ip: 0.0.0.0}
    environment: !reset null
  nano:   # mine
    image: old
    entrypoint: [old]
    environment:
      - HF_TOKEN=a
    command: >
      --port 1
      # no comment

  last: {image: b}
volumes:
  data: {}
""",
    "llama-swap": """healthCheckTimeout: 120
macros: {m: /m}
defaults: &defaults
  ttl: 7200
models:
    # the first
    "nano":
        <<: [*defaults]
        aliases: [gpt-4o-mini]
        cmd: >
            llama-server --port 8999
            -m /old/nano.gguf
        proxy: "http://127.0.0.1:8999"

    "other": &other
        <<: *defaults
        cmd: |
            llama-server --port ${PORT}
            # said
    third: *other
groups: {a: {members: [nano, other]}}
""",
    "textgen": """.*llama.*:
  loader: llama.cpp
  tensor_split: 1,2
x.gguf$:
  ctx_size: 99
  extra_flags: "override-tensor=exps=CPU,fa=off"
  mode: chat   # mine

'.*\\.gguf$':
  truncation_length: 2048
""",
    "llama-cpp-python": """{
  "api_key": "k",
  "models": [
    {"model": "/m/o.gguf", "model_alias": "o", "n_ctx": 7, "x": [1, {"y": null}]},
    {"model": "/old.gguf", "model_alias": "nano", "chat_format": "chatml", "n_ctx": 9}
  ]
}
""",
    "llama-server": """version = 1

[*]
jinja = on
; mine
[nano] ; of last year
model = /old.gguf
c = 65536
no-mmap = on
temp = 1.0
cpu-moe = on

[other]
hf-repo = a/b
""",
}
NEW_PRESET = "version = 1\n"  # what an empty preset file becomes
_PIECES = st.sampled_from(
    [
        *(
            "\t",
            " ",
            "    ",
            ":",
            "- ",
            "#",
            "[",
            "]",
            "{",
            "}",
            "&a ",
            "*a",
            "*base",
            "!x ",
            "!!int ",
            "|",
            ">",
            "'",
            '"',
        ),
        *(
            "---\n",
            "...\n",
            "\r\n",
            "\n",
            "\ufeff",
            "\x85",
            "\u2028",
            "\x00",
            "é",
            "<<: *defaults\n",
            "? ",
            "nano:",
        ),
        *(
            "%YAML 1.1\n",
            "[nano]\n",
            "2001-99-99",
            "0x",
            "1:2:3",
            "null",
            "~",
            "=",
            ".inf",
            "$",
            "${A",
            "(",
            "*",
        ),
        *("~: 1\n", "services:\n", "models:\n"),
    ]
)


@st.composite
def mutated(draw: st.DrawFn, target: str) -> str:
    """The seed after one to four edits."""
    text = SEEDS[target]
    for _ in range(draw(st.integers(1, 4))):
        lines = text.splitlines(keepends=True) or [""]
        line = draw(st.integers(0, len(lines) - 1))
        at = draw(st.integers(0, len(text)))
        edit = draw(st.sampled_from(("put", "cut", "drop", "twice", "move", "shift", "end", "crlf")))
        if edit == "put":
            text = text[:at] + draw(_PIECES) + text[at:]
        elif edit == "cut":
            text = text[:at] + text[at + draw(st.integers(1, 12)) :]
        elif edit == "drop":
            text = "".join(lines[:line] + lines[line + 1 :])
        elif edit == "twice":
            text = "".join(lines[: line + 1] + lines[line:])
        elif edit == "move":
            text = "".join([*lines[:line], *lines[line + 1 :], lines[line]])
        elif edit == "shift":
            text = "".join(
                [*lines[:line], draw(st.sampled_from(("  ", "\t"))) + lines[line], *lines[line + 1 :]]
            )
        elif edit == "end":
            text = text[:at]
        else:
            text = text.replace("\n", "\r\n")
    return text


def sections(text: str) -> dict[str, list[str]]:
    """A preset's lines by section, as llama-server cuts them."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in re.split(r"\r\n|\n|\r", text):
        header = re.match(r"[ \t]*\[[ \t]*([^\]\r\n]*?)[ \t]*\]", line)
        name = header.group(1) if header else name
        found.setdefault(name, []).append(line)
    return {name: [line for line in lines if line.strip()] for name, lines in found.items()}


def without_ours(target: str, text: str) -> tuple[Any, Any]:
    """Everything but sweeper's entry, and the entry, by a reader that knows neither tags nor merge keys."""
    if target == "llama-server":
        found: Any = sections(text)
        return found, found.pop("nano", None)
    if target == "llama-cpp-python":
        data = json.loads(text.strip() or "{}")
        models = data.pop("models", [])
        rest = {key: value for key, value in data.items() if key not in ("host", "port")}
        return (rest, [m for m in models if m.get("model_alias") != "nano"]), [
            m for m in models if m.get("model_alias") == "nano"
        ]
    data = yaml.load(text, Loader=yaml.BaseLoader) or {}
    if target == "textgen":
        ours = data.pop("x.gguf$", None)
        return data, ours or data.pop("x\\.gguf$", None)
    parent = {"compose": "services", "llama-swap": "models"}[target]
    ours = (data.get(parent) or {}).pop("nano", None) if isinstance(data.get(parent), dict) else None
    if not data.get(parent) or data.get(parent) in ("null", "~"):
        data.pop(parent, None)
    return data, ours


def check(target: str, text: str, folder: Path) -> str:
    """Apply to this file and roll back; whether it was "refused" or "merged"."""
    file = folder / "file"
    data = text.encode()
    file.write_bytes(data)
    sweep = make_sweep(Path("/models/x.gguf"))
    try:
        plan = apply.plan(sweep, 3, target, apply.Options(name="nano", file=file))
    except SweeperError as error:
        words = str(error)
    else:
        words = ""
    if words:
        assert "\n" not in words
        assert str(file) in words
        return "refused"
    (change,) = plan.draft.files
    rest, ours = without_ours(target, change.after.decode())
    assert rest == without_ours(target, text or (NEW_PRESET if target == "llama-server" else ""))[0]
    assert "/models/x.gguf" in str(ours) or target == "textgen"
    assert ours
    for note in plan.draft.notes:
        assert "\n" not in note
    write_plan(plan, root=folder)
    assert file.read_bytes() == change.after
    again = apply.plan(sweep, 3, target, apply.Options(name="nano", file=file))
    assert again.draft.files[0].after == change.after
    rollback(folder)
    assert file.read_bytes() == data
    return "merged"


@pytest.mark.parametrize("target", SEEDS)
def test_a_file_that_someone_broke_is_refused_or_merged(
    target: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    counts = {"merged": 0, "refused": 0}

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(target))
    def run(text: str) -> None:
        counts[check(target, text, tmp_path_factory.mktemp("fuzz"))] += 1

    run()
    print(target, counts)
    assert check(target, SEEDS[target], tmp_path_factory.mktemp("seed")) == "merged"
