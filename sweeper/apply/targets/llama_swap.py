"""llama-swap: one model in its ``config.yaml``, with the command that it starts for it.

llama-swap replaces ``${…}`` in the command and then splits it as a POSIX shell does
(``internal/config/commands.go`` of llama-swap).
"""

from __future__ import annotations

import re
import shlex

from sweeper.apply.base import Command, Draft, Request
from sweeper.apply.llama_options import server_argv
from sweeper.apply.yaml_text import entry_change
from sweeper.errors import UsageError

_MACRO = re.compile(r"\$\{[A-Za-z0-9_.-]+\}")


def draft(request: Request) -> Draft:
    """Set one model; every other byte of the file stays."""
    path = request.target_file("config.yaml")
    for what, value in (("the model's path", request.model_path), ("the name", request.name)):
        if found := _MACRO.search(value):
            raise UsageError(
                f"{what} {value!r} holds {found.group()!r}, which llama-swap would replace: rename it"
            )
    words = [w if w == "${PORT}" else shlex.quote(w) for w in server_argv(request, port="${PORT}")]
    entry: dict[str, object] = {"cmd": " ".join(words)}
    if request.environment:
        entry["env"] = [f"{name}={value}" for name, value in request.environment.items()]
    listen = ("llama-swap", "--config", str(path), "--listen", f"127.0.0.1:{request.port}")
    return Draft(
        files=(entry_change(path, "models", request.name, entry),),
        commands=(Command("start llama-swap (it reads a changed file only with --watch-config)", listen),),
    )
