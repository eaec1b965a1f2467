"""Translates what servers report into sweeper's parameters. A setting that is not reported is left out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from sweeper.model.ggml_types import CACHE_TYPE_NUMBERS
from sweeper.parameters import SERVER_TUNABLES, SPLIT_MODES, TUNABLES

_TYPE_NAMES = {number: name for name, number in CACHE_TYPE_NUMBERS.items()}
_SPLIT_NAMES = {number: name for name, number in SPLIT_MODES.items()}
# llama-server's options that take a value. It has some short names with one dash, and some with two.
_PATHS = {"model": ("m", "model"), "draft": ("spec-draft-model", "md", "model-draft")}
_OPTIONS = {"-lm": "load_mode", "--load-mode": "load_mode"} | {
    f"{dashes}{key}": name for name, keys in _PATHS.items() for key in keys for dashes in ("-", "--")
}
_OPTIONS |= {
    f"{dashes}{key}": tunable.name
    for tunable in SERVER_TUNABLES
    if tunable.option and not tunable.is_switch
    for key in (tunable.option, *tunable.spellings)
    for dashes in ("-", "--")
}
_SWITCHES = {"-kvo": ("offload_kqv", True), "-nkvo": ("offload_kqv", False), "-nr": ("repack", False)} | {
    f"--{prefix}{tunable.option}": (tunable.name, not prefix)
    for tunable in SERVER_TUNABLES
    if tunable.is_switch
    for prefix in ("", "no-")
}
_LOG = {
    "n_ctx": r"^llama_context: n_ctx +?= (\d+)",
    "n_batch": r"^llama_context: n_batch +?= (\d+)",
    "n_ubatch": r"^llama_context: n_ubatch +?= (\d+)",
    "flash_attn": r"^llama_context: flash_attn +?= (\w+)",
    "type_k": r"^llama_kv_cache: size = .*\bK \((\w+)\)",
    "type_v": r"^llama_kv_cache: size = .*\bV \((\w+)\)",
    "n_gpu_layers": r"^load_tensors: offloaded (\d+)/\d+ layers to GPU",
}
_OLLAMA = {tunable.ollama: tunable.name for tunable in SERVER_TUNABLES if tunable.ollama}


def _value(name: str, word: str) -> Any:
    try:
        return TUNABLES[name].from_word(word) if name in TUNABLES else word
    except ValueError:
        return word


def from_llama_server_argv(argv: list[str]) -> dict[str, Any]:
    """What a llama-server's command line sets; the last of two options wins, as in llama-server."""
    found: dict[str, Any] = {}
    for word, following in itertools.zip_longest(argv, argv[1:]):
        if word in _SWITCHES:
            name, on = _SWITCHES[word]
            found[name] = on
        elif word in _OPTIONS and following is not None:
            found[_OPTIONS[word]] = _value(_OPTIONS[word], following)
    if (
        isinstance(found.get("n_ctx"), int)
        and isinstance(slots := found.get("n_parallel"), int)
        and slots > 1
    ):
        found["n_ctx"] //= slots  # the slots share it
    mode = found.pop("load_mode", None)
    if mode in ("none", "mmap", "mlock", "mmap+mlock"):
        found |= {"use_mmap": "mmap" in mode, "use_mlock": "mlock" in mode}
    return found


def slots_that_share(argv: list[str]) -> int:
    """The number of slots that share the context that ``/props`` reports: all with one cache, else 1."""
    slots = from_llama_server_argv(argv).get("n_parallel", 1)
    unified = [word for word in argv if word in ("-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified")]
    shared = bool(unified) and "no" not in unified[-1]
    return slots if shared and isinstance(slots, int) and slots > 1 else 1


def from_llama_cpp_python(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's entry in the configuration of llama_cpp.server sets."""
    found: dict[str, Any] = {"model": settings["model"]}
    for name, tunable in ((t.name, t) for t in SERVER_TUNABLES if settings.get(t.name) is not None):
        if name == "tensor_split":
            found[name] = ",".join(f"{share:g}" for share in settings[name])
        elif tunable.kind == "word":
            names = _SPLIT_NAMES if name == "split_mode" else _TYPE_NAMES
            found[name] = names.get(int(settings[name]), str(settings[name]))
        else:
            found[name] = _value(name, str(settings[name]))
    return found


def from_log(text: str) -> dict[str, Any]:
    """What llama.cpp logged about the last context that it made."""
    values = {name: re.findall(pattern, text, re.MULTILINE) for name, pattern in _LOG.items()}
    return {name: _value(name, words[-1]) for name, words in values.items() if words}


def from_ollama_parameters(text: str) -> dict[str, Any]:
    """What the ``parameters`` of Ollama's ``/api/show`` set: one ``name value`` a line."""
    lines = (line.strip().partition(" ") for line in text.splitlines())
    return {_OLLAMA[name]: _value(_OLLAMA[name], word.strip()) for name, _, word in lines if name in _OLLAMA}
