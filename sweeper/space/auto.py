"""The meaning of ``auto`` in a space on this machine, and the engine's own defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeper.limits.base import LimitRange
from sweeper.parameters import DEFAULTS, LIMIT_KEYS, TUNABLES, Configuration, padded, why_it_changes_nothing
from sweeper.records import MachineRecord, ModelRecord, Workload
from sweeper.space.speculation import fill_speculation
from sweeper.space.splits import USABLE_SHARE, default_expert_layers, splits_to_try

# llama.cpp's own defaults (common_params).
DEFAULT_BATCH = 2048
DEFAULT_UBATCH = 512
MOST_CONTEXT = 32_768  # to try, if the model does not say how long its training was
# Up to this number of CPUs, every thread count is tried; above it, powers of two and the corners of the CPU.
MOST_THREADS_ONE_BY_ONE = 8
# Common levels, from the best to the smallest one that keeps the default quality bound on real models.
AUTO_QUANTS = ("Q8_0", "Q6_K", "Q4_K_M")
_BYTES_PER_MIB = 1 << 20
SERVER_KEEPS = (
    "a running server keeps its own settings, so only power and clock limits are searched, and no other parameter of "
    "the space has an effect"
)
NO_QUALITY = (
    "the quality loss of a smaller KV cache cannot be measured without llama-cpp-python or a llama-perplexity beside "
    "the server, so it stays f16; "
    "space.type_k=[f16,q8_0] searches it anyway"
)
ONE_CONTEXT = (
    "the longest context is wanted, but {} tokens are the only context of this space: set space.n_ctx, for example "
    "space.n_ctx=[4096,8192]"
)
HIGH_PRECISION = ("F32", "F16", "BF16")
# If the whole model fits on the GPUs, `auto` leaves these at their defaults.
_ONLY_WITH_WEIGHTS_ON_CPU = ("n_cpu_ffn", "op_offload")


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that decide the meaning of ``auto``."""

    machine: MachineRecord
    model: ModelRecord
    workload: Workload
    gpu_offload: bool
    limits: Mapping[str, LimitRange] = field(default_factory=dict)
    limit_reasons: Mapping[str, str] = field(default_factory=dict)
    quants: tuple[str, ...] = ()  # the only ones that the engine knows; empty: any
    engine: str = "llama_cpp"
    options: frozenset[str] | None = None  # that this llama-server knows, without dashes; None: all
    measures_quality: bool = True  # whether the loss of a smaller KV cache can be measured
    running: Configuration | None = None  # the settings of a running server, which sweeper cannot change
    longest_context: bool = False  # the context length is an objective
    speculation: frozenset[str] | None = None  # the kinds that this llama-server lists; None: all

    @property
    def gpu_memory_mib(self) -> tuple[int | None, ...]:
        """The memory of each GPU that llama.cpp uses; None if it is not reported."""
        return tuple(gpu.memory_mib for gpu in self.machine.gpus if gpu.visible) if self.gpu_offload else ()

    @property
    def may_exceed_gpus(self) -> bool:
        """Whether the original file may need weights on the CPU; true if a size is unknown."""
        sizes = [memory for memory in self.gpu_memory_mib if memory is not None]
        file = self.model.files.get(self.model.base_quant)
        if file is None or not file.size_bytes or len(sizes) < max(1, len(self.gpu_memory_mib)):
            return True
        return file.size_bytes / _BYTES_PER_MIB > USABLE_SHARE * sum(sizes)

    @property
    def gpus(self) -> int:
        """The number of GPUs that llama.cpp uses."""
        return sum(gpu.visible for gpu in self.machine.gpus) if self.gpu_offload else 0

    def words(self) -> dict[str, dict[str, Any]]:
        """The values of ``${model:…}``, ``${machine:…}``, ``${device:…}`` and ``${workload:…}`` in a space."""
        power = self.limits.get("power_limit_watts")
        clock = self.limits.get("clock_limit_mhz")
        return {
            "model": {
                "n_layer": self.model.n_layer,
                "offloadable_layers": self.model.n_layer + 1,  # the output layer is one more
                "n_ctx_train": self.model.n_ctx_train or None,
            },
            "machine": {
                "physical_cores": self.machine.physical_cores,
                "logical_cores": self.machine.logical_cores,
                "performance_cores": self.machine.performance_cores or self.machine.physical_cores,
            },
            "device": {
                "power_min": power.low if power else None,
                "power_max": power.high if power else None,
                "power_default": power.high if power else None,
                "clock_min": clock.low if clock else None,
                "clock_max": clock.high if clock else None,
            },
            "workload": {
                "n_ctx_needed": padded(self.workload.n_ctx_needed),
                "prompt_tokens": self.workload.prompt_tokens,
            },
        }


def default_configuration(facts: Facts) -> Configuration:
    """llama.cpp's own defaults: all layers on the GPU, one thread for each physical core, f16 cache.

    Experts that do not fit on the GPUs stay on the CPU, as with llama-server's ``--fit``. A running server keeps its
    own settings instead.
    """
    if facts.running is not None:
        return facts.running
    threads = facts.machine.performance_cores or facts.machine.physical_cores
    return Configuration(
        n_gpu_layers=facts.model.n_layer + 1 if facts.gpu_offload else 0,
        n_cpu_moe=default_expert_layers(*_sizes(facts))
        if facts.gpu_offload and _sizes_are_known(facts)
        else 0,
        n_ctx=padded(facts.workload.n_ctx_needed),
        n_batch=DEFAULT_BATCH,
        n_ubatch=DEFAULT_UBATCH,
        n_threads=threads,
        n_threads_batch=threads,
        quant=facts.model.base_quant,
    )


def unsettable(facts: Facts) -> dict[str, str]:
    """The parameters that cannot vary on this machine, each with the reason."""
    found: dict[str, str] = {}
    has_experts = facts.model.expert_count > 0
    for name in TUNABLES:
        why = why_it_changes_nothing(name, facts.gpu_offload, has_experts, facts.gpus, facts.engine)
        option = TUNABLES[name].option
        if facts.running is not None and name not in LIMIT_KEYS:
            why = SERVER_KEEPS
        elif why is None and option and facts.options is not None and option not in facts.options:
            why = f"this llama-server has no option --{option}"
        if why is not None:
            found[name] = why
    for name in LIMIT_KEYS:
        if name not in facts.limits:
            found[name] = facts.limit_reasons.get(name, "this machine has no such limit")
    return found


def fill_auto(spec: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Replace every ``auto`` in the spec, and leave out parameters that cannot vary.

    Returns:
        The spec for `sweeper.space.space.build_space`, and one note for each requested dimension that is not possible.
    """
    blocked = unsettable(facts)
    speculation: dict[str, Any] = {}
    notes: list[str] = []
    if "spec_type" not in blocked:
        speculation, told = fill_speculation(spec, facts)
        notes += told
    elif facts.model.draft is not None:
        notes.append(f"model.draft is not used: {blocked['spec_type']}")
    filled = {}
    for name, value in spec.items():
        if blocked.get(name) == SERVER_KEEPS:
            notes.append(SERVER_KEEPS)
            continue
        if name in blocked:
            if isinstance(value, (list, Mapping)) or (name in LIMIT_KEYS and value == "auto"):
                notes.append(f"{name} is not searched: {blocked[name]}")
            continue
        if value is None and name in LIMIT_KEYS:
            continue
        if value == "auto" and name in ("type_k", "type_v") and not facts.measures_quality:
            filled[name] = "f16"
            notes.append(NO_QUALITY)
            continue
        filled[name] = speculation.get(name, _auto(name, facts) if value == "auto" else value)
    return filled, tuple(dict.fromkeys(notes))


def _auto(name: str, facts: Facts) -> Any:
    machine = facts.machine
    prompt = facts.workload.prompt_tokens
    ranges: dict[str, Any] = {
        "n_ctx": _contexts(facts),
        "n_batch": {"low": min(256, prompt), "high": DEFAULT_BATCH, "log": True},
        "n_ubatch": {"low": min(64, prompt), "high": 2048 if facts.gpu_offload else 1024, "log": True},
        "n_threads": _threads(machine, machine.physical_cores),
        "n_threads_batch": _threads(machine, machine.logical_cores),
        "quant": _quants(facts.model),
    }
    if name in facts.limits:
        limit = facts.limits[name]
        return {"low": limit.low, "high": limit.high, "step": _step(limit)}
    tunable = TUNABLES[name]
    if name == "tensor_split":
        return _splits(facts)
    if name in _ONLY_WITH_WEIGHTS_ON_CPU and not facts.may_exceed_gpus:
        return DEFAULTS[name]
    if name == "repack" and facts.gpu_offload:
        return DEFAULTS[
            name
        ]  # weights beside a GPU lie in the GPU's own host buffers, which are not repacked
    if tunable.up_to:
        return {"low": 0, "high": facts.words()["model"][tunable.up_to]}
    if tunable.tried:
        return list(tunable.tried)
    return ranges.get(name, getattr(default_configuration(facts), name))


def _contexts(facts: Facts) -> int | list[int]:
    """The context of the workload; if the longest one is wanted, powers of two from it to the length of training.

    A forecast of memory rules out those that do not fit, one by one.
    """
    least = padded(facts.workload.n_ctx_needed)
    if not facts.longest_context:
        return least
    most = max(least, facts.model.n_ctx_train or MOST_CONTEXT)
    return [*(2**e for e in range(most.bit_length()) if least <= 2**e < most), most]


def _threads(machine: MachineRecord, most: int) -> list[int]:
    if most <= MOST_THREADS_ONE_BY_ONE:
        return list(range(1, most + 1))
    powers = [2**e for e in range(most.bit_length()) if 2**e < most]
    corners = [machine.performance_cores or most, machine.physical_cores, most * 3 // 4, most]
    return sorted({n for n in (*powers, *corners) if 1 <= n <= most})


def _splits(facts: Facts) -> list[str | None]:
    """The splits to try; only llama.cpp's own and the even one if the size of a GPU or of the model is unknown."""
    if not _sizes_are_known(facts):
        return [None, ",".join(["1"] * facts.gpus)]
    return splits_to_try(*_sizes(facts))


def _sizes_are_known(facts: Facts) -> bool:
    memory = facts.gpu_memory_mib
    return facts.model.base_quant in facts.model.files and bool(memory) and None not in memory


def _sizes(facts: Facts) -> tuple[list[float], int, float, float]:
    """The memory of each GPU, the layers, the size of the model and that of its experts; sizes in MiB."""
    return (
        [float(size) for size in facts.gpu_memory_mib if size is not None],
        facts.model.n_layer,
        facts.model.files[facts.model.base_quant].size_bytes / _BYTES_PER_MIB,
        facts.model.expert_size_bytes / _BYTES_PER_MIB,
    )


def _quants(model: ModelRecord) -> list[str]:
    """The levels to try: levels made from a high-precision file, then the user's own files."""
    made = [q for q in AUTO_QUANTS if q not in model.files] if model.base_quant in HIGH_PRECISION else []
    return [model.base_quant, *made, *(q for q in model.files if q != model.base_quant)]


def _step(limit: LimitRange) -> int:
    """A round step that gives at most about 20 steps."""
    span = limit.high - limit.low
    wished = max(limit.step, span // 20)
    return next((step for step in (1, 2, 5, 10, 15, 20, 25, 50, 100) if step >= wished), wished)
