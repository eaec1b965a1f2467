"""llama-swap: one model in its ``config.yaml``, with the command that it starts for it.

llama-swap replaces ``${…}`` in the command and then splits it as a POSIX shell does
(``internal/config/commands.go`` of llama-swap).
"""

from __future__ import annotations

import re
import shlex

from sweeper.apply.base import Command, Draft, Request, change, read_text
from sweeper.apply.llama_options import server_argv
from sweeper.apply.yaml_text import with_entry
from sweeper.errors import UsageError

_MACRO = re.compile(r"\$\{[A-Za-z0-9_.-]+\}")


def draft(request: Request) -> Draft:
    """The configuration with our model in it; every other byte stays."""
    path = request.target_file("config.yaml")
    for what, value in (("the model's path", request.model_path), ("the name", request.name)):
        if found := _MACRO.search(value):
            raise UsageError(
                f"{what} {value!r} holds {found.group()!r}, which llama-swap would replace: rename it"
            )
    words = [w if w == "${PORT}" else _quote(w) for w in server_argv(request, port="${PORT}")]
    entry: dict[str, object] = {"cmd": " ".join(words)}
    if request.environment:
        entry["env"] = [f"{name}={value}" for name, value in request.environment.items()]
    existing = read_text(path)
    text = with_entry(existing or "", "models", request.name, entry, str(path))
    says = (
        "a new file" if existing is None else f"sets models.{request.name} and keeps the rest byte for byte"
    )
    listen = ("llama-swap", "--config", str(path), "--listen", f"127.0.0.1:{request.port}")
    return Draft(
        files=(change(path, text, says),),
        commands=(Command("start llama-swap (it reads a changed file only with --watch-config)", listen),),
    )


def _quote(word: str) -> str:
    """For llama-swap's POSIX splitting; a word that begins with ``#`` would be a comment's line."""
    return shlex.quote(word)
