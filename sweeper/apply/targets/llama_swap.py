"""llama-swap: one model in its ``config.yaml``, with the command that it starts for it.

llama-swap replaces ``${…}`` in the command and then splits it as a POSIX shell does
(``internal/config/commands.go`` of llama-swap).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from sweeper.apply.base import Command, Draft, Request, read_text
from sweeper.apply.kept import kept_note, with_variables
from sweeper.apply.llama_command import server_argv
from sweeper.apply.yaml_text import entry_change, mapping_of
from sweeper.errors import UsageError

_MACRO = re.compile(r"\$\{[A-Za-z0-9_.-]+\}")
# Keys that belong to a model's command, with the values that fit the command that sweeper writes.
_WITH_COMMAND = {"proxy": "http://127.0.0.1:${PORT}", "checkEndpoint": "/health", "cmdStop": ""}


def draft(request: Request) -> Draft:
    """Set one model; every other byte of the file stays."""
    path = request.target_file("config.yaml")
    named = {
        "the model's path": request.model_path,
        "the draft model's path": request.draft_path or "",
        "the name": request.name,
    }
    for what, value in named.items():
        if found := _MACRO.search(value):
            raise UsageError(
                f"{what} {value!r} holds {found.group()!r}, which llama-swap would replace: rename it"
            )
    models = mapping_of(read_text(path) or "", str(path), "models")
    _check_aliases(models, request.name, str(path))
    held = models.get(request.name)
    before = held if isinstance(held, dict) else {}
    words = [w if w == "${PORT}" else shlex.quote(w) for w in server_argv(request, port="${PORT}")]
    old = {name: before[name] for name, fit in _WITH_COMMAND.items() if before.get(name, fit) != fit}
    entry: dict[str, object] = {"cmd": " ".join(words), **{name: _WITH_COMMAND[name] for name in old}}
    variables, names = with_variables(before.get("env", []), request.environment)
    if request.environment:
        entry["env"] = variables
    listen = ("llama-swap", "--config", str(path), "--listen", f"127.0.0.1:{request.port}")
    return Draft(
        files=(entry_change(path, "models", request.name, entry),),
        commands=(Command("start llama-swap (it reads a changed file only with --watch-config)", listen),),
        notes=(
            *(
                f"{name} was {value!r} for the command before; sweeper set it to {_WITH_COMMAND[name]!r}"
                for name, value in old.items()
            ),
            *kept_note(f"models.{request.name}", names),
        ),
    )


def _check_aliases(models: Mapping[str, Any], name: str, where: str) -> None:
    """Refuse a name that is another model's alias: the new entry would take that model's place."""
    for model, held in models.items():
        if model == name or not isinstance(held, dict):
            continue
        filters = held.get("filters")
        by_id = filters.get("setParamsByID") if isinstance(filters, dict) else None
        aliases = held.get("aliases")
        if name in (*(aliases if isinstance(aliases, list) else ()), *(by_id or ())):
            raise UsageError(f"{where}: {name!r} is an alias of {model!r} already: choose another --name")
