"""The constants and the parts of simulated machines: models, cards, computers, and the load of one phase.

Power is in W, bandwidth in GB/s, and memory in MiB unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sweeper.model.ggml_types import CACHE_BITS, FILE_BITS_PER_WEIGHT

# The cost of unpacking each quantisation on a CPU, relative to F16.
UNPACK_COST = {
    "F16": 1.0,
    "Q8_0": 0.62,
    "Q6_K": 0.95,
    "Q5_K_M": 0.95,
    "Q4_K_M": 0.8,
    "Q4_0": 0.62,
    "IQ4_XS": 1.2,
    "Q3_K_M": 1.1,
    "Q2_K": 1.05,
}
# The mean KL divergence from F16 as published for Llama-3-8B, in nats/token; the simulation uses these values.
KL_DIVERGENCE = {
    "F16": 0.0,
    "Q8_0": 0.0014,
    "Q6_K": 0.0055,
    "Q5_K_M": 0.011,
    "Q4_K_M": 0.031,
    "Q4_0": 0.05,
    "IQ4_XS": 0.036,
    "Q3_K_M": 0.10,
    "Q2_K": 0.45,
}
OUTPUT_SHARE = 0.04  # the share of the weights in the output layer
LEAST_CLOCK = 0.25  # a limit slows a device down to this share of its clock, but no further
MIB = 2**20


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """The parts of a model's shape that affect speed and memory."""

    name: str
    parameters: float
    n_layer: int
    n_embd: int
    n_head: int
    n_embd_kv: int  # the width of K, and of V, per layer and token
    n_ctx_train: int = 8192
    base_quant: str = "Q4_K_M"
    expert_share: float = 0.0  # the share of the parameters that are experts
    active_experts: float = 1.0  # the share of the experts that one token uses

    def weight_bytes(self, quant: str | None) -> float:
        """The size of the weights in bytes."""
        return self.parameters * FILE_BITS_PER_WEIGHT[quant or self.base_quant] / 8

    def cache_bytes_per_token(self, type_k: str, type_v: str) -> float:
        """The size of the KV cache of one token over all layers, in bytes."""
        return self.n_layer * self.n_embd_kv * (CACHE_BITS[type_k] + CACHE_BITS[type_v]) / 8


@dataclass(frozen=True, slots=True)
class SimulatedGpu:
    """A GPU as a set of constants; power in W, bandwidth in GB/s."""

    name: str
    memory_mib: int
    gb_per_second: float
    teraflops: float
    idle_watts: float
    peak_watts: float
    cap_low_watts: int
    clock_mhz: int
    launch_microseconds: float = 9.0  # per layer and token
    decode_load: float = 0.7  # the share of its dynamic power that a memory-bound GPU draws
    bus_gb_per_second: float = 12.0  # from the host's memory, for prompts with weights on the host


@dataclass(frozen=True, slots=True)
class SimulatedMachine:
    """A computer as a set of constants, with the model that it runs."""

    name: str
    cpu: str
    physical_cores: int
    logical_cores: int
    memory_mib: int
    gb_per_second: float
    core_gb_per_second: float
    core_gigaflops: float
    idle_watts: float
    core_watts: float
    ram_watts: float
    model: SimulatedModel
    package_cap_watts: tuple[int, int] | None = None  # lowest and default; None: no power limit
    gpu: SimulatedGpu | None = None
    more_gpus: tuple[SimulatedGpu, ...] = ()  # beside `gpu`; sweeper sets no limits on them
    disk_mb_per_second: float = 1500.0
    start_seconds: float = 0.4
    context_seconds: float = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """The true results of a configuration on a simulated machine, without noise; the fields are names of metrics."""

    tokens_per_second: float
    watts: float
    prompt_tokens_per_second: float
    prompt_watts: float
    memory_mib: float
    vram_mib: float


@dataclass(frozen=True, slots=True)
class Phase:
    """One token of a phase, or one batch of ``tokens``: the seconds and the load on each device at a given clock."""

    cpu_seconds: float
    gpu_seconds: float
    cpu_threads: int
    ram_load: float  # the share of the memory bandwidth in use while the CPU works
    gpu_load: float  # 0 to 1 while the GPU works
    other_seconds: float = 0.0  # of the other GPUs, which work one after the other
    other_watts: float = 0.0  # their mean power above idle while they work
    tokens: float = 1.0  # that these seconds produce


PhaseAt = Callable[[tuple[float, float]], Phase]
"""Returns the phase at (CPU clock, GPU clock), each a share of the full clock."""


def compute(machine: SimulatedMachine, threads: int) -> float:
    """The gigaflops of ``threads``."""
    physical = min(threads, machine.physical_cores)
    siblings = min(max(0, threads - machine.physical_cores), machine.logical_cores - machine.physical_cores)
    cores = math.pow(physical, 0.94) + 0.08 * siblings
    return machine.core_gigaflops * cores / contention(machine, threads)


def bandwidth(machine: SimulatedMachine, threads: int) -> float:
    """The bytes per second that ``threads`` read from the host's memory."""
    one, full = machine.core_gb_per_second, machine.gb_per_second
    reached = full * (1 - math.exp(-one * threads / full * 1.3))
    return reached / contention(machine, threads) * 1e9


def contention(machine: SimulatedMachine, threads: int) -> float:
    """The slowdown if threads share cores, or exceed them; 1 without."""
    over_physical = max(0.0, threads / machine.physical_cores - 1)
    over_logical = max(0.0, threads / machine.logical_cores - 1)
    return 1 + 0.12 * over_physical + 2.5 * over_logical
