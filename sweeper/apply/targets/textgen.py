"""text-generation-webui: one entry of ``user_data/models/config-user.yaml``.

Its key is a regular expression that text-generation-webui matches against the model's file name, both in lower
case; later entries override earlier ones. ``extra_flags`` are llama-server's own, in the form that old and new
versions read: ``flag=value,flag=value``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sweeper.apply.base import Draft, Request, read_text
from sweeper.apply.yaml_text import entry_change
from sweeper.errors import MissingError
from sweeper.parameters import DEFAULTS, SERVER_TUNABLES, TUNABLES, Configuration

# Parameters that `settings` writes by name; all others go into `extra_flags`.
_OWN_KEYS = {
    *("n_gpu_layers", "n_ctx", "type_k", "type_v", "n_threads", "n_threads_batch", "n_batch", "n_ubatch"),
    *("offload_kqv", "use_mmap", "use_mlock", "split_mode", "flash_attn", "main_gpu"),
}
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
    key = _key(read_text(path) or "", file_name)
    notes = [f"text-generation-webui finds models in {path.parent}: put {file_name} there, or a link to it"]
    if request.environment:
        words = " ".join(f"{k}={v}" for k, v in request.environment.items())
        notes.append(f"the trial ran with {words}: start text-generation-webui with the same")
    notes.append(f"its API listens with --api --api-port {request.port} on 127.0.0.1")
    return Draft(files=(entry_change(path, None, key, settings(request.configuration)),), notes=tuple(notes))


def pattern_of(file_name: str) -> str:
    """The regular expression that matches this file name alone.

    It is in lower case already: text-generation-webui lowers the pattern and the name separately, and a letter
    such as Σ becomes another one before a backslash than before a dot.
    """
    return re.escape(file_name.lower()) + "$"


def settings(configuration: Configuration) -> dict[str, Any]:
    """Every key of text-generation-webui's llama.cpp loader that the configuration decides."""
    c = configuration
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
    flags |= {
        t.option: t.to_word(getattr(c, t.name))
        for t in SERVER_TUNABLES
        if t.option and t.name not in _OWN_KEYS and getattr(c, t.name) != DEFAULTS[t.name]
    }
    return {
        "loader": "llama.cpp",
        "gpu_layers": c.n_gpu_layers,
        "ctx_size": c.n_ctx,
        "cache_type": cache or "fp16",
        "threads": c.n_threads,
        "threads_batch": c.n_threads_batch,
        "batch_size": c.n_batch,
        "ubatch_size": c.n_ubatch,
        "no_kv_offload": not c.offload_kqv,
        "no_mmap": not c.use_mmap,
        "mlock": c.use_mlock,
        "row_split": c.split_mode == "row",
        "extra_flags": ",".join(f"{flag}={value}" for flag, value in flags.items()),
    }


def _key(text: str, file_name: str) -> str:
    """The key that text-generation-webui itself wrote for this file, if it matches; else `pattern_of`."""
    own = f"{file_name}$"
    try:
        keys = yaml.safe_load(text) or {}
        if isinstance(keys, dict) and own in keys and re.match(own.lower(), file_name.lower()):
            return own
    except (yaml.YAMLError, re.error):
        pass  # `with_entry` reports a file that is not YAML; a key that is no expression is not for this file
    return pattern_of(file_name)
