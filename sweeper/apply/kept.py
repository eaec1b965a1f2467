"""The settings that stay in another person's file although the sweep did not measure them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

# Options of llama-server that decide where weights lie or which cores compute, and that sweeper does not write; then
# keys of text-generation-webui, llama-cpp-python and Compose.
_WORDS = """
cpu-moe cmoe n-cpu-moe ncmoe override-tensor ot device dev tensor-split ts rpc numa no-host repack no-repack nr
op-offload no-op-offload nopo cpu-mask C cpu-range Cr cpu-strict prio poll cpu-mask-batch Cb cpu-range-batch Crb
cpu-strict-batch prio-batch poll-batch swa-full kv-unified no-kv-unified kvu no-kvu lora lora-scaled model-draft md
spec-draft-model hf-repo-draft hfd hfrd mmproj mm mmproj-url mmu embedding embeddings reranking rerank mmap no-mmap
mlock direct-io no-direct-io dio ndio
streaming-llm rpc-servers draft-model lora-path lora-base clip-model-path vocab-only
cpus cpuset cpu-count cpu-percent cpu-period cpu-quota cpu-shares mem-limit mem-reservation memswap-limit deploy gpus
runtime devices platform env-file
"""
_OPTIONS = frozenset(_WORDS.split())
_VARIABLES = ("CUDA_", "HIP_", "ROCR_", "GGML_", "OMP_", "GOMP_", "KMP_")


def decides(name: str) -> bool:
    """Whether an option, a key or an environment variable can change speed, watts or memory."""
    if name.startswith("LLAMA_ARG_"):
        name = name.removeprefix("LLAMA_ARG_").lower()
    return name.startswith(_VARIABLES) or name.replace("_", "-") in _OPTIONS


def kept_note(where: str, names: Iterable[str]) -> tuple[str, ...]:
    """A note that lists those of ``names`` that can change what the sweep measured; empty if none can."""
    found = ", ".join(dict.fromkeys(name for name in names if decides(name)))
    return (f"{where} keeps {found}: the sweep measured without this, so speed may differ",) if found else ()


def with_variables(held: Any, ours: Mapping[str, str]) -> tuple[Any, Collection[str]]:
    """An environment (a mapping, or a list of ``NAME=value``) with ``ours`` in it, and the names that it keeps."""
    if isinstance(held, dict):
        return {**held, **ours}, [name for name in held if name not in ours]
    words = {str(word).partition("=")[0]: word for word in held} if isinstance(held, list) else {}
    kept = {name: word for name, word in words.items() if name not in ours}
    return [*kept.values(), *(f"{name}={value}" for name, value in ours.items())], kept
