"""How a configuration becomes llama.cpp's own parameters: for trials, and for the forecast of their memory.

``wanted`` is a configuration, or the part of one, by parameter name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeper.model.ggml_types import CACHE_TYPES
from sweeper.parameters import SPLIT_MODES


def model_params(api: Any, wanted: Mapping[str, Any]) -> Any:
    """``llama_model_params`` of llama-cpp-python's low-level ``api``."""
    params = api.llama_model_default_params()
    params.n_gpu_layers, params.main_gpu = wanted["n_gpu_layers"], wanted["main_gpu"]
    params.split_mode = SPLIT_MODES[wanted["split_mode"]]
    params.load_mode = (1 if wanted["use_mmap"] else 0) + (2 if wanted["use_mlock"] else 0)
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
    """Whether a tensor stays on the host although its layer is on a GPU."""
    return False
