"""What llama-server's log tells of a load: sizes of buffers, the placement of layers, and settings in force.

llama-server reports neither layers nor threads nor batches anywhere else. Source: the log of llama.cpp at verbosity 4.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from sweeper.client.in_force import from_log

# `0.00.043.089 I ` before each line, and the part of the program that wrote it.
_PREFIX = re.compile(r"^\d+(?:\.\d+)+ [A-Z] (?:(?:srv|cmn|slot|spec|que|res) +)?", re.MULTILINE)
_BUFFER = re.compile(
    r"^\w+: +(\S+) +(model|KV|RS|compute|output)(?: \w+)? buffer size *= *([\d.]+) MiB", re.MULTILINE
)
_FLASH = re.compile(
    r"Flash Attention (?:was )?(?:set to )?(enabled|disabled)|Flash Attention was auto, set to (\w+)"
)
_THREADS = re.compile(r"n_threads = (\d+) \(n_threads_batch = (\d+)\)")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_MOVED = re.compile(r"tensor blk\.(\d+)\.\S*exps\S* .*buffer type overridden to CPU")
_FITTED = re.compile(r"  - (\w+) \(.*\): +\d+ layers(?: \( *(\d+) overflowing\))?, ")
_LOAD_MODE = re.compile(r"load_mode = ([\w+]+)\)")
# `prompt processing, n_tokens = 1536, progress = 0.10`; before 2026 `prompt processing progress, n_past = …`.
_PROGRESS = re.compile(r"prompt processing(?: progress)?, .*?\bprogress = ([\d.]+)")
_HOST = ("CPU", "BLAS", "AMX")


_SPECULATES = re.compile(r"adding speculative implementation '([\w-]+)'")
_NO_SPECULATION = re.compile(
    r"failed to initialize speculative decoding context: ([^\n]+)|(speculative decoding not supported[^\n]*)"
)
_LOAD = "llama_model_loader: loaded meta data"


def plain(log: str) -> str:
    """The log of the last load, without the time, level and part of the program before each line.

    With ``--fit on``, llama-server plans loads before it does one, and logs the buffers of each plan.
    """
    return loads(log, 1)[0]


def loads(log: str, count: int) -> list[str]:
    """The last ``count`` loads of a log, each as `plain` has it: a draft model is loaded after the model itself."""
    text = _PREFIX.sub("", log)
    starts = [found.start() for found in re.finditer(re.escape(_LOAD), text)][-count:] or [0]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def buffers(log: str) -> dict[str, dict[str, float]]:
    """MiB by kind (``model``, ``KV``, ``RS``, ``compute``, ``output``) and device, of a `plain` log.

    Pinned memory of the host, such as ``CUDA_Host``, counts as ``CPU``, and so do the CPU's other buffers.
    """
    found: dict[str, Counter[str]] = {}
    for device, kind, mib in _BUFFER.findall(log):
        name = "CPU" if device.startswith(_HOST) or device.endswith("_Host") else device
        found.setdefault(kind, Counter())[name] += float(mib)  # type: ignore[assignment] # counters of floats
    return {kind: dict(sizes) for kind, sizes in found.items()}


def on_devices(log: str) -> dict[str, float]:
    """MiB of all buffers by device, without the host."""
    total: Counter[str] = Counter()
    for sizes in buffers(log).values():
        for device, mib in sizes.items():
            if device != "CPU":
                total[device] += mib  # type: ignore[assignment]
    return dict(total)


def in_force(log: str) -> dict[str, Any]:
    """The settings in force by sweeper's names, of a `plain` log. One that the log does not tell is left out.

    llama.cpp logs "offloaded 5/5 layers to GPU" even on a machine without one, so layers count only if a device holds
    weights.
    """
    found = from_log(log)
    found.pop("n_gpu_layers", None)
    weights = buffers(log).get("model", {})
    if weights:
        offloaded = _OFFLOADED.findall(log)
        on_gpu = any(mib > 0 for device, mib in weights.items() if device != "CPU")
        found["n_gpu_layers"] = int(offloaded[-1][0]) if on_gpu and offloaded else 0
        if moved := set(_MOVED.findall(log)):  # only builds that log more than others tell
            found["n_cpu_moe"] = len(moved)
    if found.get("flash_attn") == "auto":
        found.pop("flash_attn")
    if said := _FLASH.findall(log):
        found["flash_attn"] = (said[-1][0] or said[-1][1]) == "enabled"
    if mode := _LOAD_MODE.search(log):
        found |= {"use_mmap": "mmap" in mode[1], "use_mlock": "mlock" in mode[1]}
    if re.search(r"failed to (mlock|VirtualLock)", log):
        found["use_mlock"] = False
    return found


def threads(whole_log: str) -> dict[str, int]:
    """The threads of decode and prefill, which llama-server logs before any load."""
    if found := _THREADS.search(whole_log):
        return {"n_threads": int(found[1]), "n_threads_batch": int(found[2])}
    return {}


def prompt_share(log: str) -> float | None:
    """The share of the latest prompt that is processed, 0 to 1; None if the log does not tell."""
    found = _PROGRESS.findall(log)
    return min(1.0, float(found[-1])) if found else None


def fitted_experts(whole_log: str) -> int | None:
    """The layers whose experts ``--fit on`` left to the CPU; None if the log does not tell.

    The plan is refined in steps, and the last line of each device counts.
    """
    devices = dict(_FITTED.findall(whole_log))
    return sum(int(overflow or 0) for overflow in devices.values()) if devices else None


def speculation(whole_log: str) -> tuple[str | None, str | None]:
    """The kind of speculation in force, and the reason why there is none; None for what the log does not tell.

    A server that cannot speculate only logs it, and answers without.
    """
    refused = _NO_SPECULATION.search(whole_log)
    if refused is not None:
        return None, (refused[1] or refused[2]).strip()
    kinds = _SPECULATES.findall(whole_log)
    return (kinds[-1] if kinds else None), None


def reason(log: str) -> str:
    """The last line of a `plain` log that gives a reason, in llama.cpp's own words."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    speaks = (  # the first words of an error, or of a refusal
        "error",
        "failed",
        "invalid",
        "unable",
        "unknown",
        "not supported",
        "requires",
        "cannot",
        "couldn't",
    )
    hollow = (
        "failed to load model",
        "exiting due to",
        "cleaning up",
        "error loading model:",
        "failed to create",
    )
    telling = [line for line in lines if any(word in line.lower() for word in speaks)]
    best = [line for line in telling if not any(word in line.lower() for word in hollow)]
    return (best or telling or lines or ["it printed nothing"])[-1]
