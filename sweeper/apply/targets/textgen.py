"""text-generation-webui: one entry of ``user_data/models/config-user.yaml``.

Its key is a regular expression that text-generation-webui matches against the model's file name, both in lower
case; later entries override earlier ones. ``extra_flags`` are llama-server's own, in the form that old and new
versions read: ``flag=value,flag=value``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper.apply.base import Draft, Request, read_text
from sweeper.apply.kept import kept_note
from sweeper.apply.llama_command import model_options
from sweeper.apply.names import refuse_characters
from sweeper.apply.yaml_text import as_read, entry_change, mapping_of
from sweeper.client.llama_options import DRAFT
from sweeper.errors import MissingError, UsageError
from sweeper.parameters import DEFAULTS, SERVER_TUNABLES, TUNABLES, Configuration, server_context

# Parameters that `settings` writes by name; all others go into `extra_flags`.
_OWN_KEYS = {
    *("n_gpu_layers", "n_ctx", "type_k", "type_v", "n_threads", "n_threads_batch", "n_batch", "n_ubatch"),
    *("offload_kqv", "use_mmap", "use_mlock", "split_mode", "flash_attn", "main_gpu"),
}
_FLAGS = "text-generation-webui splits its extra_flags there: rename the file, or link it under another name"
_OWN_CACHE_TYPES = {"f16": "fp16", "q8_0": "q8_0", "q4_0": "q4_0"}  # which every version takes


def draft(request: Request) -> Draft:
    """Set the model's entry; every other byte of the file stays."""
    path = request.target_file("user_data/models/config-user.yaml")
    if request.file is None and not path.parent.is_dir():
        raise MissingError(
            f"{path.parent} is not there: run this in text-generation-webui's folder, "
            "or name the file with --file"
        )
    file_name = Path(request.model_path).name
    entries = mapping_of(read_text(path) or "", str(path))
    key = _key(entries, file_name)
    ours = settings(request.configuration, request.draft_path)
    before = _in_force(entries, key, file_name, ours, str(path))
    flags = {name for option in model_options(request) for name in option.all_spellings()}
    ours["extra_flags"], kept = _with_flags(
        ours["extra_flags"], before.pop("extra_flags", ""), flags, str(path)
    )
    notes = [f"text-generation-webui finds models in {path.parent}: put {file_name} there, or a link to it"]
    if request.environment:
        words = " ".join(f"{k}={v}" for k, v in request.environment.items())
        notes.append(f"the trial ran with {words}: start text-generation-webui with the same")
    notes.append(f"its API listens with --api --api-port {request.port} on 127.0.0.1")
    notes += kept_note(f"{path.name}", (*(key for key in before if key not in ours), *kept))
    return Draft(files=(entry_change(path, None, key, ours),), notes=tuple(notes))


def pattern_of(file_name: str) -> str:
    """The regular expression that matches this file name alone.

    It is in lower case already: text-generation-webui lowers the pattern and the name separately, and a letter
    such as Σ becomes another one before a backslash than before a dot.
    """
    return re.escape(file_name.lower()) + "$"


def settings(configuration: Configuration, draft_path: str | None = None) -> dict[str, Any]:
    """Every key of text-generation-webui's llama.cpp loader that the configuration decides.

    Raises UsageError for a draft model's path that the flags cannot hold.
    """
    c = configuration
    refuse_characters("the draft model's path", draft_path or "", ", '\"\\", _FLAGS)
    flags = {
        "flash-attn": TUNABLES["flash_attn"].to_word(c.flash_attn),
        "main-gpu": str(c.main_gpu),
        "parallel": "1",
    }
    cache = _OWN_CACHE_TYPES.get(c.type_k) if c.type_k == c.type_v else None
    if cache is None:
        flags |= {"cache-type-k": c.type_k, "cache-type-v": c.type_v}
    if c.split_mode not in ("layer", "row"):
        flags["split-mode"] = c.split_mode
    changed = [
        t
        for t in SERVER_TUNABLES
        if t.option and t.name not in _OWN_KEYS and getattr(c, t.name) != DEFAULTS[t.name]
    ]
    flags |= {t.option: t.to_word(getattr(c, t.name)) for t in changed if t.option and not t.is_switch}
    flags |= {} if draft_path is None else {DRAFT: draft_path}
    switches = [f"{'' if getattr(c, t.name) else 'no-'}{t.option}" for t in changed if t.is_switch]
    switches += ["kv-unified"] if c.n_parallel > 1 else []
    return {
        "loader": "llama.cpp",
        "gpu_layers": c.n_gpu_layers,
        "ctx_size": server_context(c),
        "cache_type": cache or "fp16",
        "threads": c.n_threads,
        "threads_batch": c.n_threads_batch,
        "batch_size": c.n_batch,
        "ubatch_size": c.n_ubatch,
        "no_kv_offload": not c.offload_kqv,
        "no_mmap": not c.use_mmap,
        "mlock": c.use_mlock,
        "row_split": c.split_mode == "row",
        "extra_flags": ",".join([*(f"{flag}={value}" for flag, value in flags.items()), *switches]),
    }


def _matches(pattern: str, file_name: str) -> bool:
    try:
        return re.match(pattern.lower(), file_name.lower()) is not None
    except re.error:  # no expression, so not for this file
        return False


def _key(entries: Mapping[str, Any], file_name: str) -> str:
    """The key that text-generation-webui itself wrote for this file, if it matches; else `pattern_of`."""
    own = f"{file_name}$"
    return own if own in entries and _matches(own, file_name) else pattern_of(file_name)


def _in_force(
    entries: Mapping[str, Any], key: str, file_name: str, ours: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """What the file holds for this model now, of its own entry and of those that match more files.

    Raises UsageError for a later entry that would override ours.
    """
    found: dict[str, Any] = {}
    wanted = as_read(ours)
    is_later = False
    for pattern, held in entries.items():
        if isinstance(held, dict) and isinstance(pattern, str) and _matches(pattern, file_name):
            lost = [name for name in held if name in wanted and held[name] != wanted[name]]
            if is_later and lost:
                raise UsageError(
                    f"{where}: the entry {pattern!r} matches {file_name} too, comes later and sets "
                    f"{', '.join(lost)}: move it above {key!r}"
                )
            found |= held
        is_later = is_later or pattern == key
    return found


def _with_flags(ours: str, held: Any, replaced: set[str], where: str) -> tuple[str, list[str]]:
    """``extra_flags`` with the flags of the user that sweeper does not set, and the names of those.

    Newer versions also read ``--flag value --flag``; where the user has that form, ours take it too.
    """
    text = held.strip() if isinstance(held, str) else ""
    if text[:1] in ("'", '"') and text.endswith(text[0]):
        text = text[1:-1].strip()
    if not text.startswith("-"):
        words = [word.strip() for word in text.split(",")]
        kept = [word for word in words if word and word.partition("=")[0] not in replaced]
        return ",".join([ours, *kept]), [word.partition("=")[0] for word in kept]
    try:
        literal = shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"{where}: extra_flags {text!r} cannot be split into words ({error}): mend it"
        ) from error
    kept, names = [], []
    for word in literal:
        if re.match("-+[A-Za-z]", word):
            names.append(word.lstrip("-").partition("=")[0])
        if names and names[-1] not in replaced:
            kept.append(word)
    parts = (flag.partition("=") for flag in ours.split(","))
    pairs = [f"--{flag} {shlex.quote(value)}" if equals else f"--{flag}" for flag, equals, value in parts]
    return " ".join([*pairs, shlex.join(kept)]).strip(), [name for name in names if name not in replaced]
