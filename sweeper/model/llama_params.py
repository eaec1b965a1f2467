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
from sweeper.parameters import SPLIT_MODES

# llama.cpp's own pattern for tensors of experts (common/common.h, LLM_FFN_EXPS_REGEX).
_EXPERT_TENSORS = r"ffn_(?:up|down|gate|gate_up)_(?:ch|)exps"
_EXPERTS = re.compile(rf"blk\.(\d+)\.{_EXPERT_TENSORS}")


def model_params(api: Any, wanted: Mapping[str, Any]) -> Any:
    """``llama_model_params`` of llama-cpp-python's low-level ``api``."""
    params = api.llama_model_default_params()
    params.n_gpu_layers, params.main_gpu = wanted["n_gpu_layers"], wanted["main_gpu"]
    params.split_mode = SPLIT_MODES[wanted["split_mode"]]
    params.load_mode = (1 if wanted["use_mmap"] else 0) + (2 if wanted["use_mlock"] else 0)
    if wanted["n_cpu_moe"]:
        params.tensor_buft_overrides = ctypes.addressof(_experts_on_host(wanted["n_cpu_moe"]))
    return params


def context_params(api: Any, wanted: Mapping[str, Any]) -> Any:
    """``llama_context_params`` of llama-cpp-python's low-level ``api``."""
    params = api.llama_context_default_params()
    for name in ("n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "offload_kqv"):
        setattr(params, name, wanted[name])
    params.flash_attn_type = 1 if wanted["flash_attn"] else 0
    params.type_k, params.type_v = (CACHE_TYPES[wanted[name]].number for name in ("type_k", "type_v"))
    params.no_perf = True
    return params


def stays_on_host(tensor: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a tensor stays on the host even if its layer is on a GPU."""
    found = _EXPERTS.match(tensor)
    return found is not None and int(found[1]) < wanted["n_cpu_moe"]


class _Override(ctypes.Structure):
    """``llama_model_tensor_buft_override``: a regular expression for tensor names, and their buffer type."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


@functools.cache  # llama.cpp keeps the address, so the list must stay alive
def _experts_on_host(layers: int) -> Any:
    """The list that llama-server makes for ``--n-cpu-moe``: a rule for the first layers' experts, and an end mark."""
    from llama_cpp import _ggml

    cpu = _ggml.libggml.ggml_backend_cpu_buffer_type
    cpu.restype = ctypes.c_void_p
    pattern = rf"^blk\.({'|'.join(map(str, range(layers)))})\.{_EXPERT_TENSORS}"
    return (_Override * 2)(_Override(pattern.encode(), cpu()), _Override(None, None))
