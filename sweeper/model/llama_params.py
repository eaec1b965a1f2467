"""Turns a configuration into llama.cpp's own parameters, for trials and for the memory forecast.

``wanted`` is a configuration, or a part of one, by parameter name.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Mapping
from typing import Any

from sweeper.model.ggml_types import CACHE_TYPES
from sweeper.parameters import SPLIT_MODES, proportions

# llama.cpp's own patterns for tensors of experts and of dense layers (common/common.h, LLM_FFN_…_REGEX).
_EXPERT_TENSORS = r"ffn_(?:up|down|gate|gate_up)_(?:ch|)exps"
_DENSE_TENSORS = r"ffn_(?:up|down|gate)\."
_EXPERTS = re.compile(rf"blk\.(\d+)\.{_EXPERT_TENSORS}")
_DENSE = re.compile(rf"blk\.(\d+)\.{_DENSE_TENSORS}")


def model_params(api: Any, wanted: Mapping[str, Any]) -> Any:
    """``llama_model_params`` of llama-cpp-python's low-level ``api``."""
    params = api.llama_model_default_params()
    params.n_gpu_layers, params.main_gpu = wanted["n_gpu_layers"], wanted["main_gpu"]
    params.split_mode = SPLIT_MODES[wanted["split_mode"]]
    params.load_mode = (1 if wanted["use_mmap"] else 0) + (2 if wanted["use_mlock"] else 0)
    params.use_extra_bufts = wanted["repack"]
    if wanted["n_cpu_moe"] or wanted["n_cpu_ffn"]:
        rules = _on_host(wanted["n_cpu_moe"], wanted["n_cpu_ffn"])
        params.tensor_buft_overrides = ctypes.addressof(rules)
    if wanted["tensor_split"] is not None:
        shares = _shares(wanted["tensor_split"], api.llama_max_devices())
        params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
    return params


def context_params(api: Any, wanted: Mapping[str, Any]) -> Any:
    """``llama_context_params`` of llama-cpp-python's low-level ``api``."""
    params = api.llama_context_default_params()
    for name in ("n_batch", "n_ubatch", "n_threads", "n_threads_batch", "offload_kqv", "op_offload"):
        setattr(params, name, wanted[name])
    slots = wanted["n_parallel"]
    params.n_ctx = wanted["n_ctx"] * slots
    if slots > 1:  # as llama-server does with --kv-unified
        params.n_seq_max, params.kv_unified = slots, True
    params.flash_attn_type = 1 if wanted["flash_attn"] else 0
    params.type_k, params.type_v = (CACHE_TYPES[wanted[name]].number for name in ("type_k", "type_v"))
    params.no_perf = True
    return params


def stays_on_host(tensor: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a tensor stays on the host even if its layer is on a GPU."""
    for pattern, first in ((_EXPERTS, wanted["n_cpu_moe"]), (_DENSE, wanted["n_cpu_ffn"])):
        found = pattern.match(tensor)
        if found is not None and int(found[1]) < first:
            return True
    return False


def is_expert(tensor: str) -> bool:
    """Whether a tensor holds experts."""
    return _EXPERTS.match(tensor) is not None


class _Override(ctypes.Structure):
    """``llama_model_tensor_buft_override``: a regular expression for tensor names, and their buffer type."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


@functools.cache  # llama.cpp keeps the address, so the list must stay alive
def _on_host(experts: int, dense: int) -> Any:
    """The list that llama-server makes for ``--n-cpu-moe`` and ``--n-cpu-ffn``: a rule for each, and an end mark."""
    from llama_cpp import _ggml

    cpu = _ggml.libggml.ggml_backend_cpu_buffer_type
    cpu.restype = ctypes.c_void_p
    rules = [
        _Override(rf"^blk\.({'|'.join(map(str, range(layers)))})\.{tensors}".encode(), cpu())
        for layers, tensors in ((experts, _EXPERT_TENSORS), (dense, _DENSE_TENSORS))
        if layers
    ]
    return (_Override * (len(rules) + 1))(*rules, _Override(None, None))


@functools.cache  # llama.cpp keeps the address, so the array must stay alive
def _shares(split: str, devices: int) -> Any:
    """The array of ``devices`` proportions that llama.cpp reads; those that ``split`` does not name are 0."""
    return (ctypes.c_float * devices)(*proportions(split))
