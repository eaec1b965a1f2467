"""llama-server: a preset file for its router, and the plain command line of the one model.

The preset's grammar is llama.cpp's own (``common/preset.cpp``): it knows no quoting, ``;`` and ``#`` begin a
comment anywhere in a value, and a section's name ends at the first ``]``.
"""

from __future__ import annotations

import re

from sweeper.apply.base import LOOPBACK, Command, Draft, Request, change, lines_of, read_text
from sweeper.apply.kept import kept_note
from sweeper.apply.llama_command import check_alias, model_options, server_argv
from sweeper.apply.names import refuse_characters, refuse_outer_spaces
from sweeper.client.llama_options import Option
from sweeper.errors import UsageError

_HEADER = re.compile(r"^[ \t]*\[[ \t]*([^\]\r\n]*?)[ \t]*\]")
_KEY = re.compile(r"^[ \t]*([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=")
_RESERVED = ("*", "default")  # the sections for all models, and for lines before any header


def draft(request: Request) -> Draft:
    """Set the model's section in the preset file; the rest of the file stays byte for byte."""
    path = request.target_file("llama-server.ini")
    options = model_options(request)
    _check(request)
    existing = read_text(path)
    says = f"sets [{request.name}] and keeps the rest byte for byte" if existing else "a new preset file"
    text = _merge(existing or "version = 1\n", request.name, options, str(path))
    router = ("llama-server", "--models-preset", str(path), "--host", LOOPBACK, "--port", str(request.port))
    return Draft(
        files=(change(path, text, says),),
        commands=(
            Command("start llama-server with every model of the preset file", router, request.environment),
            Command("or with this model alone", server_argv(request), request.environment),
        ),
        notes=(
            "command-line options and LLAMA_ARG_… variables override the preset; add none",
            *kept_note(f"[{request.name}]", _keys(text, request.name)),
            *kept_note("[*], which applies to every model,", _keys(text, "*")),
        ),
    )


def _check(request: Request) -> None:
    why = (
        "llama-server's presets cannot hold it: rename the file, link it under another name, or use --to env"
    )
    for what, path in (
        ("the model's path", request.model_path),
        ("the draft model's path", request.draft_path),
    ):
        refuse_characters(what, path or "", ";#", why)
        refuse_outer_spaces(what, path or "", why)
    refuse_characters("the name", request.name, "[];#:", "choose another with --name")
    check_alias(request.name)
    if request.name in _RESERVED:
        raise UsageError(
            f"llama-server's presets cannot be named {request.name!r}: choose another with --name"
        )


def _lines(options: tuple[Option, ...], end: str) -> str:
    return "".join(f"{option.key} = {option.value}{end}" for option in options if option.value is not None)


def _keys(text: str, section: str) -> list[str]:
    """The keys of a section, in their order."""
    keys, name = [], ""
    for line in lines_of(text):
        if header := _HEADER.match(line):
            name = header.group(1)
        elif (key := _KEY.match(line)) and name == section:
            keys.append(key.group(1))
    return keys


def _merge(text: str, name: str, options: tuple[Option, ...], where: str) -> str:
    """``text`` with ``options`` in the section ``name``; the section keeps keys that sweeper does not set."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = lines_of(text)
    starts = [i for i, line in enumerate(lines) if (found := _HEADER.match(line)) and found.group(1) == name]
    if not starts:
        last_end = "" if text.endswith(end) else end
        gap = "" if text.endswith(end * 2) else end
        return f"{text}{last_end}{gap}[{name}]{end}{_lines(options, end)}"
    if len(starts) > 1:
        raise UsageError(
            f"{where} holds [{name}] {len(starts)} times: keep one of them, or choose another --name"
        )
    start = starts[0]
    stop = next((i for i in range(start + 1, len(lines)) if _HEADER.match(lines[i])), len(lines))
    ours = {key for option in options for key in option.all_spellings()}
    kept = [
        line for line in lines[start + 1 : stop] if not ((key := _KEY.match(line)) and key.group(1) in ours)
    ]
    if kept and not kept[-1].endswith(("\n", "\r")):
        kept[-1] += end
    header = lines[start] if lines[start].endswith(("\n", "\r")) else lines[start] + end
    return "".join([*lines[:start], header, _lines(options, end), *kept, *lines[stop:]])
