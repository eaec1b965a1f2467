"""Translates what servers report into sweeper's parameters. A setting that is not reported is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sweeper.model.ggml_types import CACHE_TYPE_NUMBERS
from sweeper.parameters import SERVER_TUNABLES, SPLIT_MODES, TUNABLES, Tunable

_TYPE_NAMES = {number: name for name, number in CACHE_TYPE_NUMBERS.items()}
_SPLIT_NAMES = {number: name for name, number in SPLIT_MODES.items()}
_FLAGS = {
    f"{'--' if len(key) > 3 else '-'}{key}": tunable
    for tunable in SERVER_TUNABLES
    if tunable.option and not tunable.is_switch
    for key in (tunable.option, *tunable.spellings)
}
_SWITCHES = {
    "-kvo": ("offload_kqv", True),
    "--kv-offload": ("offload_kqv", True),
    "-nkvo": ("offload_kqv", False),
    "--no-kv-offload": ("offload_kqv", False),
}


def _read(tunable: Tunable, word: str) -> Any:
    try:
        return tunable.from_word(word)
    except ValueError:
        return word


def from_llama_server_argv(argv: list[str]) -> dict[str, Any]:
    """What a llama-server's command line sets; the last of two options wins, as in llama-server."""
    found: dict[str, Any] = {}
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word in _SWITCHES:
            name, on = _SWITCHES[word]
            found[name] = on
        elif following is None:
            continue
        elif word in ("-m", "--model"):
            found["model"] = following
        elif word in ("-lm", "--load-mode"):
            found["load_mode"] = following
        elif word in _FLAGS:
            found[_FLAGS[word].name] = _read(_FLAGS[word], following)
    mode = found.pop("load_mode", None)
    if mode in ("none", "mmap", "mlock", "mmap+mlock"):
        found |= {"use_mmap": "mmap" in mode, "use_mlock": "mlock" in mode}
    return found


def from_llama_cpp_python(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's entry in the configuration of llama_cpp.server sets."""
    found: dict[str, Any] = {}
    for tunable in (t for t in SERVER_TUNABLES if settings.get(t.name) is not None):
        value = settings[tunable.name]
        if tunable.kind == "word":
            names = _SPLIT_NAMES if tunable.name == "split_mode" else _TYPE_NAMES
            found[tunable.name] = names.get(int(value), str(value))
        else:
            found[tunable.name] = tunable.from_word(str(value))
    if "model" in settings:
        found["model"] = settings["model"]
    return found


_LOG = {
    "n_ctx": r"^llama_context: n_ctx +?= (\d+)",
    "n_batch": r"^llama_context: n_batch +?= (\d+)",
    "n_ubatch": r"^llama_context: n_ubatch +?= (\d+)",
    "flash_attn": r"^llama_context: flash_attn +?= (\w+)",
    "type_k": r"^llama_kv_cache: size = .*\bK \((\w+)\)",
    "type_v": r"^llama_kv_cache: size = .*\bV \((\w+)\)",
    "n_gpu_layers": r"^load_tensors: offloaded (\d+)/\d+ layers to GPU",
}


def from_log(text: str) -> dict[str, Any]:
    """What llama.cpp logged about the last context that it made."""
    found = {}
    for name, pattern in _LOG.items():
        values = re.findall(pattern, text, re.MULTILINE)
        if values:
            found[name] = TUNABLES[name].from_word(values[-1])
    return found


_OLLAMA = {t.ollama: t for t in SERVER_TUNABLES if t.ollama}


def from_ollama_parameters(text: str) -> dict[str, Any]:
    """What the ``parameters`` of Ollama's ``/api/show`` set: one ``name value`` a line."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name in _OLLAMA:
            found[_OLLAMA[name].name] = _OLLAMA[name].from_word(value.strip())
    return found
