"""llama.cpp's own forecast of its buffers: `python -m sweeper.model.forecast_worker`.

With ``no_alloc``, llama.cpp reads a model's header and plans its buffers without allocating them, like its own
``--fit``. The plan is only in its log. :data:`PATTERNS` is the one place that reads the log.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sweeper.model.llama_log import capture_log
from sweeper.model.llama_params import context_params, model_params
from sweeper.parameters import MODEL_KEYS
from sweeper.serving import Refused, serve

PATTERNS = {
    "layer": re.compile(r"load_tensors: layer\s+(?P<layer>\d+) assigned to device (?P<device>[^,]+),"),
    "kv_layer": re.compile(r"layer\s+(?P<layer>\d+): dev = (?P<device>\S+)"),
    "kv_size": re.compile(r"(?:llama_kv_cache|llama_memory_recurrent)\w*: size =\s*(?P<mib>[\d.]+) MiB"),
    "compute": re.compile(r"\s(?P<device>\S+)\s+(?:compute|output) buffer size =\s*(?P<mib>[\d.]+) MiB"),
}
_GPU_TYPES = (1, 2)  # enum ggml_backend_dev_type: discrete and integrated


class ForecastWorker:
    """Keeps the last model's plan, because only model parameters change it."""

    def __init__(self) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._log = capture_log()
        llama_cpp.llama_backend_init()
        self._loaded: tuple[Any, ...] | None = None
        self._model: Any = None
        self._layers: dict[int, str] = {}

    def forecast(self, path: str, stamp: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Plan the buffers for a configuration's parameters, in MiB. ``stamp`` changes with the file."""
        self._load(path, stamp, wanted)
        self._log.clear()
        params = context_params(self._api, wanted)
        params.n_threads = params.n_threads_batch = 1  # nothing is computed
        context = self._api.llama_init_from_model(self._model, params)
        if not context:
            raise Refused(self._reason("llama.cpp could not plan a context"))
        try:
            in_force = {
                "n_ctx": self._api.llama_n_ctx(context),
                "n_batch": self._api.llama_n_batch(context),
                "n_ubatch": self._api.llama_n_ubatch(context),
            }
        finally:
            self._api.llama_free(context)
        lines = [line.text for line in self._log.lines]
        return {
            "layers": self._layers,
            "kv": kv_by_device(lines),
            "compute": compute_by_device(lines),
            "in_force": in_force,
            "free": self._free_mib(),
        }

    def _load(self, path: str, stamp: int, wanted: Mapping[str, Any]) -> None:
        key = (path, stamp, *(wanted[name] for name in MODEL_KEYS))
        if self._loaded == key:
            return
        if self._model:
            self._api.llama_model_free(self._model)
            self._loaded, self._model = None, None
        params = model_params(self._api, wanted)
        params.no_alloc = True
        params.load_mode = 0  # there is no need to map the file
        self._log.clear()
        self._model = self._api.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise Refused(self._reason("llama.cpp could not read the model"))
        self._layers = layer_devices(line.text for line in self._log.lines)
        self._loaded = key

    def _reason(self, message: str) -> str:
        errors = self._log.of_level("error")
        return f"{message}: {errors[-1]}" if errors else message

    def _free_mib(self) -> dict[str, float]:
        """Free memory of each GPU, under ggml's name."""
        ggml = _ggml()
        free: dict[str, float] = {}
        for index in range(ggml.ggml_backend_dev_count()):
            device = ggml.ggml_backend_dev_get(index)
            if ggml.ggml_backend_dev_type(device) in _GPU_TYPES:
                left, total = ctypes.c_size_t(), ctypes.c_size_t()
                ggml.ggml_backend_dev_memory(device, ctypes.byref(left), ctypes.byref(total))
                free[ggml.ggml_backend_dev_name(device).decode()] = left.value / 2**20
        return free


def layer_devices(lines: Iterable[str]) -> dict[int, str]:
    """The device of each layer. The layer after the last one is the output."""
    found = (PATTERNS["layer"].search(line) for line in lines)
    return {int(match["layer"]): match["device"] for match in found if match}


def kv_by_device(lines: Iterable[str]) -> dict[str, float]:
    """MiB of KV cache by device. The log states the total of a cache; its layers share it evenly."""
    result: dict[str, float] = {}
    layers: Counter[str] = Counter()
    for line in lines:
        layer, size = PATTERNS["kv_layer"].search(line), PATTERNS["kv_size"].search(line)
        if layer:
            layers[layer["device"]] += 1
        elif size:
            for device, count in layers.items():
                share = float(size["mib"]) * count / layers.total()
                result[device] = result.get(device, 0.0) + share
            layers.clear()
    return result


def compute_by_device(lines: Iterable[str]) -> dict[str, float]:
    """MiB of compute and output buffers by buffer type, for example ``CPU``, ``CUDA0``, ``CUDA_Host``."""
    result: dict[str, float] = {}
    for line in lines:
        match = PATTERNS["compute"].search(line)
        if match:
            result[match["device"]] = result.get(match["device"], 0.0) + float(match["mib"])
    return result


def _ggml() -> Any:
    """The ggml library with the argument types of its device interface."""
    from llama_cpp import _ggml as binding

    ggml = binding.libggml
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_name.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
    size = ctypes.POINTER(ctypes.c_size_t)
    ggml.ggml_backend_dev_memory.restype = None
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size, size]
    return ggml


def main() -> None:
    """Serve requests until standard input ends."""
    serve({"forecast": ForecastWorker().forecast})


if __name__ == "__main__":
    main()
