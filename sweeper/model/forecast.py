"""The memory that a configuration will take, from llama.cpp's own plan, before a trial costs time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import EngineRefused, ModelFileError, TrialFailed
from sweeper.model.available_memory import host_available_mib
from sweeper.model.ggml_types import CACHE_TYPES
from sweeper.model.header import GgufHeader, read_header
from sweeper.model.llama_params import stays_on_host
from sweeper.parameters import SPLIT_MODES, Configuration
from sweeper.processes import WorkerProcess

HOST = "host"
# Memory of the worker beside llama.cpp's buffers: Python and the libraries (48 MiB measured on a CPU).
HOST_OVERHEAD_MIB = 100.0
# A CUDA context and its libraries take 300 to 600 MiB of a device, beside the buffers.
DEVICE_OVERHEAD_MIB = 600.0
# No model supports a larger context, and planning one takes 20 bytes and 0.2 µs for each token.
MAX_CONTEXT = 1 << 24
_START_SECONDS = 120.0  # the first forecast starts the worker; a GPU's driver may be slow to start
_BYTES_PER_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """Buffers in MiB by device: ``host``, and each GPU under ggml's name, for example ``CUDA0``."""

    weights_mib: Mapping[str, float]
    kv_mib: Mapping[str, float]
    compute_mib: Mapping[str, float]
    free_mib: Mapping[str, float]  # at present; devices that do not report it are left out

    def needed_mib(self, device: str = HOST) -> float:
        """The total of all buffers on one device."""
        return sum(part.get(device, 0.0) for part in (self.weights_mib, self.kv_mib, self.compute_mib))

    def beside(self, other: MemoryForecast) -> MemoryForecast:
        """The forecast of both loads together."""

        def together(mine: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
            return {device: mine.get(device, 0.0) + theirs.get(device, 0.0) for device in {*mine, *theirs}}

        return MemoryForecast(
            together(self.weights_mib, other.weights_mib),
            together(self.kv_mib, other.kv_mib),
            together(self.compute_mib, other.compute_mib),
            self.free_mib,
        )

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices with buffers, the host first."""
        names = {*self.weights_mib, *self.kv_mib, *self.compute_mib} - {HOST}
        return (HOST, *sorted(names))

    def fits(self, reclaimed_mib: Mapping[str, float] | None = None) -> str | None:
        """None if the plan fits into the free memory, else the reason in one line.

        Args:
            reclaimed_mib: memory that will be free by then, by device, for example that of the loaded model.
        """
        for device in self.devices:
            needed = self.needed_mib(device)
            if needed == 0 or device not in self.free_mib:
                continue
            free = self.free_mib[device] + (reclaimed_mib or {}).get(device, 0.0)
            needed += HOST_OVERHEAD_MIB if device == HOST else DEVICE_OVERHEAD_MIB
            if needed > free:
                parts = (self.weights_mib, self.kv_mib, self.compute_mib)
                weights, cache, compute = (part.get(device, 0.0) for part in parts)
                return (
                    f"weights {weights:.0f}, KV cache {cache:.0f} and compute {compute:.0f} MiB "
                    f"need {needed:.0f} MiB on {device}, where {free:.0f} MiB are free"
                )
        return None


@dataclass(frozen=True, slots=True)
class KernelSpeeds:
    """How fast llama.cpp's kernels run on the processor: a benchmark without a model, and no measured inference."""

    weight_bytes_per_second: tuple[float, ...]  # in the order of the request
    step_seconds: float  # of one small step of a graph
    attention_per_second: float  # elements of K and V, for each head of the query

    def at_least(self, other: KernelSpeeds) -> KernelSpeeds:
        """The better figure of both, for each kernel."""
        weights = zip(self.weight_bytes_per_second, other.weight_bytes_per_second, strict=True)
        return KernelSpeeds(
            tuple(map(max, weights)),
            min(self.step_seconds, other.step_seconds),
            max(self.attention_per_second, other.attention_per_second),
        )


class Forecaster(WorkerProcess):
    """Asks llama.cpp for its plan, in a worker process that runs from the first forecast until `close`."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        super().__init__("sweeper.model.forecast_worker", environment)
        self._headers: dict[tuple[Path, int], GgufHeader] = {}

    def can_offload(self) -> bool:
        """Whether this build of llama.cpp can move layers to a GPU of this machine."""
        return bool(self.ask("devices", _START_SECONDS)["gpu_offload"])

    def kernel_speeds(
        self, wanted: Sequence[tuple[str, int, int]], threads: int, cache_type: str
    ) -> KernelSpeeds:
        """The speeds of llama.cpp's kernels on the processor. Takes about 0.2 s for each of ``wanted``.

        Args:
            wanted: type, length of a row and total bytes of the weights of a model.
            threads: the number of threads that work.
            cache_type: the type of the KV cache, as in a configuration.

        Raises:
            EngineRefused, EngineCrashed, EngineTimeout: the benchmark failed.
        """
        check(Configuration(type_k=cache_type))
        answer = self.ask(
            "kernels", _START_SECONDS, wanted=list(wanted), threads=threads, cache_type=cache_type.upper()
        )
        speeds = (answer["step_seconds"], answer["attention_per_second"])
        return KernelSpeeds(tuple(answer["weights"]), *speeds)

    def demand_generator(self, path: Path) -> None:
        """Raise ModelFileError unless llama.cpp can read the model at ``path`` and generate text with it."""
        try:
            found = self.ask("examine", _START_SECONDS, path=str(path))
        except TrialFailed as failure:  # a bad header can also make llama.cpp hang, or ask for all memory
            raise ModelFileError(
                f"{path} cannot be tuned: {failure}; give another file, or a newer llama-cpp-python"
            ) from None
        if found["encodes"]:
            raise ModelFileError(
                f"{path} has an encoder, which sweeper cannot tune: give a decoder-only model"
            )
        if not found["keeps_context"]:
            raise ModelFileError(
                f"{path} is an embedding or diffusion model, which has no decode to tune: "
                "give a model that generates text token by token"
            )
        if not found["tokenises"]:
            raise ModelFileError(f"{path} has no vocabulary: give a model that generates text")

    def forecast(self, path: Path, configuration: Configuration) -> MemoryForecast:
        """The plan for ``configuration`` on the model at ``path``: 0.1 s for a model, and 10 ms for a context on it.

        Raises:
            ModelMissingError, ModelFileError: the model cannot be read.
            EngineRefused: llama.cpp would refuse the configuration; the message contains its reason.
            OutOfMemory: planning alone took too much memory.
            EngineCrashed, EngineTimeout: the process failed; the next forecast starts another one.
        """
        check(configuration)
        stamp = path.stat().st_mtime_ns if path.exists() else 0  # read_header reports a missing file
        if (path, stamp) not in self._headers:
            self._headers[path, stamp] = read_header(path)
        answer = self.ask(
            "forecast", _START_SECONDS, path=str(path), stamp=stamp, wanted=configuration.to_dict()
        )
        layers = {int(layer): device for layer, device in answer["layers"].items()}
        host_free = host_available_mib()
        free = answer["free"] | ({} if host_free is None else {HOST: host_free})
        return MemoryForecast(
            weights_mib=weights_by_device(self._headers[path, stamp], layers, configuration),
            kv_mib=_on_devices(answer["kv"]),
            compute_mib=_on_devices(answer["compute"]),
            free_mib=free,
        )


def of_draft(configuration: Configuration) -> Configuration:
    """The settings with which llama-server loads a draft model beside the model.

    It has a context as long as the model's, an f16 cache, and all of its layers on the devices.
    """
    return configuration.with_(n_gpu_layers=-1, n_cpu_moe=0, n_cpu_ffn=0, type_k="f16", type_v="f16")


def check(configuration: Configuration) -> None:
    """Raise EngineRefused for settings that would end llama.cpp instead of being refused by it."""
    for key in ("n_ctx", "n_batch", "n_ubatch"):
        if getattr(configuration, key) < 1:
            raise EngineRefused(f"{key}={getattr(configuration, key)}: must be at least 1")
    if configuration.n_ctx > MAX_CONTEXT:
        raise EngineRefused(f"n_ctx={configuration.n_ctx}: more than {MAX_CONTEXT}, which no model supports")
    for key, known in (("type_k", CACHE_TYPES), ("type_v", CACHE_TYPES), ("split_mode", SPLIT_MODES)):
        if getattr(configuration, key) not in known:
            raise EngineRefused(f"{key}={getattr(configuration, key)}: choose from {', '.join(known)}")


def weights_by_device(
    header: GgufHeader, layers: Mapping[int, str], configuration: Configuration | None = None
) -> dict[str, float]:
    """MiB of weights by device. Layer ``n_layer`` stands for the output.

    The token embeddings stay on the host. If they also serve as the output, a GPU has a copy.
    """
    result: Counter[str] = Counter()
    wanted = (configuration or Configuration()).to_dict()
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    output = _device(layers.get(header.n_layer, "CPU"))
    for tensor in header.tensors:
        if tensor.name.startswith("token_embd."):
            result[HOST] += tensor.bytes
            if tied and output != HOST:
                result[output] += tensor.bytes
        elif stays_on_host(tensor.name, wanted):
            result[HOST] += tensor.bytes
        elif tensor.name.startswith("blk."):
            number = tensor.name.split(".", 2)[1]
            layer = int(number) if number.isdecimal() else header.n_layer
            result[_device(layers.get(layer, "CPU"))] += tensor.bytes
        else:
            result[output] += tensor.bytes
    return {device: size / _BYTES_PER_MIB for device, size in result.items()}


def _on_devices(by_buffer: Mapping[str, float]) -> dict[str, float]:
    result: Counter[str] = Counter()
    for name, mib in by_buffer.items():
        result[_device(name)] += mib  # type: ignore[assignment] # typeshed's counters are whole
    return dict(result)


def _device(name: str) -> str:
    """Translate a ggml device or buffer type to our names: CPU, CPU_REPACK, CUDA_Host, … belong to the host."""
    return HOST if name.startswith(("CPU", "BLAS", "AMX")) or name.endswith("_Host") else name
