"""Translates picks: from the command that a contestant prints, and to the options of llama.cpp's programs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.client.in_force import from_llama_server_argv
from sweeper.parameters import DEFAULTS, TUNABLES

# The judge sets these alike for all, or they do not change speed. docs/race.md gives the reasons.
_NOT_JUDGED = ("model", "n_ctx", "n_parallel", "quant", "main_gpu", "power_limit_watts", "clock_limit_mhz")
_OVERRIDE = ("-ot", "--override-tensor")
_FLASH = ("-fa", "--flash-attn")
_LOADING = ("use_mmap", "use_mlock")  # they change the load, and not the speed afterwards
_OF_GPUS = tuple(name for name, tunable in TUNABLES.items() if tunable.gpu_only)
# llama-bench's own names. It has one option for threads, and the judge measures each phase by itself.
_BENCH = {
    "n_batch": "-b",
    "n_ubatch": "-ub",
    "type_k": "-ctk",
    "type_v": "-ctv",
    "flash_attn": "-fa",
    "n_gpu_layers": "-ngl",
    "n_cpu_moe": "-ncmoe",
    "split_mode": "-sm",
    "override_tensor": "-ot",
}
_BENCH_FLAGS = {
    "repack": ("--repack", "1", "0"),
    "op_offload": ("-nopo", "0", "1"),
    "offload_kqv": ("-nkvo", "0", "1"),
}


def options_of_words(words: Sequence[str]) -> dict[str, Any]:
    """The judged options of a llama-server's command line."""
    found = from_llama_server_argv(list(words))
    for word, following in itertools.zip_longest(words, words[1:], fillvalue="-"):
        if word in _OVERRIDE:
            found["override_tensor"] = following
        elif word in _FLASH and following.startswith("-"):  # the switch of older builds
            found["flash_attn"] = True
    return judged(found)


def judged(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the judge takes over; ``auto`` is llama.cpp's default, as is an option that is left out."""
    return {k: v for k, v in options.items() if k not in _NOT_JUDGED and v is not None and v != "auto"}


def options_of_configuration(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The judged options of a sweeper configuration as plain data, without those that change nothing."""
    always = {"n_threads", "n_threads_batch", "n_batch", "n_ubatch", "flash_attn", "type_k", "type_v"}
    return judged({k: v for k, v in configuration.items() if k in always or v != DEFAULTS.get(k)})


def server_words(options: Mapping[str, Any]) -> list[str]:
    """The options as llama-server takes them."""
    words: list[str] = []
    for name, value in options.items():
        if name in _LOADING:
            continue
        if name == "override_tensor":
            words += ["--override-tensor", value]
        elif TUNABLES[name].is_switch:
            words.append(f"--{'' if value else 'no-'}{TUNABLES[name].option}")
        else:
            words += [f"--{TUNABLES[name].option}", TUNABLES[name].to_word(value)]
    return words + _load_mode("--load-mode", options)


def bench_words(options: Mapping[str, Any], phase: str) -> list[str]:
    """The options as llama-bench takes them, for one phase: ``prefill`` or ``decode``."""
    words: list[str] = []
    threads = options.get("n_threads")
    if phase == "prefill":
        threads = options.get("n_threads_batch", threads)
    if threads is not None:
        words += ["-t", str(threads)]
    for name, value in options.items():
        if name in _BENCH_FLAGS:
            option, on, off = _BENCH_FLAGS[name]
            words += [option, on if value else off]
        elif name in _BENCH:
            flag = isinstance(value, bool)
            words += [_BENCH[name], ("on" if value else "off") if flag else str(value)]
    return words + _load_mode("-lm", options)


def perplexity_words(options: Mapping[str, Any]) -> list[str]:
    """The options of a pick that change quality, as llama-perplexity takes them."""
    names = ("type_k", "type_v", "flash_attn")
    return server_words({name: options[name] for name in names if name in options})


def changes_quality(options: Mapping[str, Any]) -> bool:
    """Whether the pick's KV cache is smaller than f16."""
    return any(options.get(name, "f16") not in ("f16", "bf16", "f32") for name in ("type_k", "type_v"))


def _load_mode(option: str, options: Mapping[str, Any]) -> list[str]:
    if "use_mmap" not in options and "use_mlock" not in options:
        return []
    on = [word for word in ("mmap", "mlock") if options.get(f"use_{word}", word == "mmap")]
    return [option, "+".join(on) or "none"]


def in_effect(
    options: Mapping[str, Any], cores: int, has_gpu: bool, prompt_tokens: int | None = None
) -> dict[str, Any]:
    """The options as they take effect, so that equal picks look equal.

    A batch is never larger than the prompt, if ``prompt_tokens`` is given. Without a GPU, the options of GPUs go.
    """
    threads = options.get("n_threads", cores)
    batch = options.get("n_batch", 2048)
    if prompt_tokens is not None:
        batch = min(batch, prompt_tokens)
    found = {
        "n_threads": threads,
        "n_threads_batch": options.get("n_threads_batch", threads),
        "n_batch": batch,
        "n_ubatch": min(options.get("n_ubatch", 512), batch),
        "flash_attn": options.get("flash_attn", "auto"),
        "type_k": options.get("type_k", "f16"),
        "type_v": options.get("type_v", "f16"),
    }
    ignored = {*found, *_LOADING, *(() if has_gpu else ("fit", *_OF_GPUS))}
    rest = {k: v for k, v in options.items() if k not in ignored and v != DEFAULTS.get(k)}
    return found | rest


def in_short(options: Mapping[str, Any]) -> str:
    """The options for a table."""
    short = server_words({k: v for k, v in options.items() if k not in ("fit", "split_mode", *_LOADING)})
    return " ".join(word.removeprefix("--") for word in short) or "defaults"
