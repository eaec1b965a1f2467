"""From what servers say of themselves to sweeper's names of parameters. What is not said is left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sweeper.apply.targets.llama_cpp_python import SPLIT_MODES
from sweeper.model.ggml_types import CACHE_TYPE_NUMBERS

_TYPE_NAMES = {number: name for name, number in CACHE_TYPE_NUMBERS.items()}
_SPLIT_NAMES = {number: name for name, number in SPLIT_MODES.items()}
_TRUE = ("on", "true", "1", "enabled")


def _layers(word: str) -> int | str:
    if word == "auto":
        return word
    return -1 if word == "all" else int(word)


def _flash(word: str) -> bool | str:
    return "auto" if word == "auto" else word in _TRUE


# llama-server's flags, every spelling of common/arg.cpp -> sweeper's name and how its word is read.
_WORD: Callable[[str], Any] = str
_SERVER: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    flag: (name, read)
    for flags, name, read in (
        (("-m", "--model"), "model", _WORD),
        (("-ngl", "--gpu-layers", "--n-gpu-layers"), "n_gpu_layers", _layers),
        (("-c", "--ctx-size"), "n_ctx", int),
        (("-b", "--batch-size"), "n_batch", int),
        (("-ub", "--ubatch-size"), "n_ubatch", int),
        (("-t", "--threads"), "n_threads", int),
        (("-tb", "--threads-batch"), "n_threads_batch", int),
        (("-fa", "--flash-attn"), "flash_attn", _flash),
        (("-ctk", "--cache-type-k"), "type_k", _WORD),
        (("-ctv", "--cache-type-v"), "type_v", _WORD),
        (("-sm", "--split-mode"), "split_mode", _WORD),
        (("-mg", "--main-gpu"), "main_gpu", int),
        (("-lm", "--load-mode"), "load_mode", _WORD),
    )
    for flag in flags
}
_SWITCHES = {
    "-kvo": ("offload_kqv", True),
    "--kv-offload": ("offload_kqv", True),
    "-nkvo": ("offload_kqv", False),
    "--no-kv-offload": ("offload_kqv", False),
}


def from_llama_server_argv(argv: list[str]) -> dict[str, Any]:
    """What a llama-server's command line sets; the last of two wins, as in llama-server."""
    found: dict[str, Any] = {}
    for i, word in enumerate(argv):
        if word in _SWITCHES:
            name, value = _SWITCHES[word]
            found[name] = value
        elif word in _SERVER and i + 1 < len(argv):
            name, read = _SERVER[word]
            try:
                found[name] = read(argv[i + 1])
            except ValueError:
                found[name] = argv[i + 1]
    mode = found.pop("load_mode", None)
    if mode in ("none", "mmap", "mlock", "mmap+mlock"):
        found |= {"use_mmap": "mmap" in mode, "use_mlock": "mlock" in mode}
    return found


def from_llama_cpp_python(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's entry in the configuration of llama_cpp.server sets."""
    found: dict[str, Any] = {}
    for key in ("n_gpu_layers", "n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "main_gpu"):
        if key in settings:
            found[key] = int(settings[key])
    for key in ("flash_attn", "offload_kqv", "use_mmap", "use_mlock"):
        if key in settings:
            found[key] = str(settings[key]).lower() in _TRUE
    for key, names in (("type_k", _TYPE_NAMES), ("type_v", _TYPE_NAMES), ("split_mode", _SPLIT_NAMES)):
        if settings.get(key) is not None:
            found[key] = names.get(int(settings[key]), str(settings[key]))
    if "model" in settings:
        found["model"] = settings["model"]
    return found


_LOG: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("n_ctx", r"^llama_context: n_ctx +?= (\d+)", int),
    ("n_batch", r"^llama_context: n_batch +?= (\d+)", int),
    ("n_ubatch", r"^llama_context: n_ubatch +?= (\d+)", int),
    ("flash_attn", r"^llama_context: flash_attn +?= (\w+)", _flash),
    ("type_k", r"^llama_kv_cache: size = .*\bK \((\w+)\)", _WORD),
    ("type_v", r"^llama_kv_cache: size = .*\bV \((\w+)\)", _WORD),
    ("n_gpu_layers", r"^load_tensors: offloaded (\d+)/\d+ layers to GPU", int),
)


def from_log(text: str) -> dict[str, Any]:
    """What llama.cpp printed of the last context that it made."""
    found = {}
    for key, pattern, read in _LOG:
        values = re.findall(pattern, text, re.MULTILINE)
        if values:
            found[key] = read(values[-1])
    return found


_OLLAMA = {
    "num_ctx": "n_ctx",
    "num_batch": "n_batch",
    "num_gpu": "n_gpu_layers",
    "num_thread": "n_threads",
    "main_gpu": "main_gpu",
    "use_mmap": "use_mmap",
}


def from_ollama_parameters(text: str) -> dict[str, Any]:
    """What the ``parameters`` of Ollama's ``/api/show`` set: one ``name value`` a line."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name in _OLLAMA:
            word = value.strip()
            found[_OLLAMA[name]] = word in _TRUE if name == "use_mmap" else int(word)
    return found
