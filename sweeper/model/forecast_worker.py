"""llama.cpp's own forecast of its buffers: `python -m sweeper.model.forecast_worker`.

With ``no_alloc``, llama.cpp reads a model's header and plans its buffers without allocating them, like its own
``--fit``. The plan is only in its log. :data:`PATTERNS` is the one place that reads the log.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sweeper.model.kernel_speed import kernel_speeds
from sweeper.model.llama_library import Library, gpus
from sweeper.model.llama_params import context_params, model_params
from sweeper.parameters import MODEL_KEYS
from sweeper.serving import serve

PATTERNS = {
    "layer": re.compile(r"load_tensors: layer\s+(?P<layer>\d+) assigned to device (?P<device>[^,]+),"),
    "kv_layer": re.compile(r"layer\s+(?P<layer>\d+): dev = (?P<device>\S+)"),
    "kv_size": re.compile(r"(?:llama_kv_cache|llama_memory_recurrent)\w*: size =\s*(?P<mib>[\d.]+) MiB"),
    "compute": re.compile(r"\s(?P<device>\S+)\s+(?:compute|output) buffer size =\s*(?P<mib>[\d.]+) MiB"),
}


class ForecastWorker:
    """Keeps the last model's plan, because only model parameters change it."""

    def __init__(self) -> None:
        self._llama = Library()
        self._layers: dict[int, str] = {}

    def examine(self, path: str) -> dict[str, Any]:
        """Whether the model can generate text, by llama.cpp's own account."""
        api = self._llama.api
        params = api.llama_model_default_params()
        params.no_alloc, params.load_mode = True, 0
        self._llama.load(path, params, None)
        model = self._llama.model
        vocabulary = api.llama_model_get_vocab(model)
        context = self._llama.new_context(api.llama_context_default_params())
        keeps = bool(api.llama_get_memory(context))
        api.llama_free(context)
        return {
            "keeps_context": keeps,
            "encodes": bool(api.llama_model_has_encoder(model)) or not api.llama_model_has_decoder(model),
            "tokenises": api.llama_vocab_type(vocabulary) != api.LLAMA_VOCAB_TYPE_NONE,
        }

    def devices(self) -> dict[str, Any]:
        """Whether this build can offload layers here, and the devices that would hold them."""
        found = [gpu.name for gpu in gpus()]
        return {
            "gpu_offload": bool(self._llama.api.llama_supports_gpu_offload()) and bool(found),
            "gpus": found,
        }

    def forecast(self, path: str, stamp: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Plan the buffers for a configuration's parameters, in MiB. ``stamp`` changes with the file."""
        api = self._llama.api
        planned = model_params(api, wanted)
        planned.no_alloc = True
        planned.load_mode = 0  # there is no need to map the file
        if self._llama.load(path, planned, (path, stamp, *(wanted[name] for name in MODEL_KEYS))):
            self._layers = layer_devices(self._llama.log.lines())
        params = context_params(api, wanted)
        params.n_threads = params.n_threads_batch = 1  # nothing is computed
        api.llama_free(self._llama.new_context(params))
        lines = self._llama.log.lines()
        return {
            "layers": self._layers,
            "kv": kv_by_device(lines),
            "compute": compute_by_device(lines),
            "free": {gpu.name: gpu.free_mib for gpu in gpus()},
        }


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
        if match := PATTERNS["compute"].search(line):
            result[match["device"]] = result.get(match["device"], 0.0) + float(match["mib"])
    return result


if __name__ == "__main__":
    worker = ForecastWorker()
    serve(
        {
            "examine": worker.examine,
            "forecast": worker.forecast,
            "devices": worker.devices,
            "kernels": kernel_speeds,
        }
    )
