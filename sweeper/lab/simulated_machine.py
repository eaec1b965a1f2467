"""Analytic machines: formulas give the results of a configuration of llama.cpp on simulated hardware.

Memory bandwidth limits decode, because each token reads the weights and the KV cache. Arithmetic limits prefill.
Power rises with both, and a power limit slows the device until its power fits. The step to the last layer on the
GPU is large. A configuration that does not fit in memory fails. These formulas describe no real machine: they
exist to test a search against a known Pareto front.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sweeper.errors import OutOfMemory
from sweeper.model.ggml_types import CACHE_BITS, FILE_BITS_PER_WEIGHT
from sweeper.records import Configuration, Workload

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
class _Phase:
    """One token of a phase: the seconds and the load on each device at a given clock."""

    cpu_seconds: float
    gpu_seconds: float
    cpu_threads: int
    ram_load: float  # the share of the memory bandwidth in use while the CPU works
    gpu_load: float  # 0 to 1 while the GPU works


_PhaseAt = Callable[[tuple[float, float]], _Phase]
"""Returns the phase at (CPU clock, GPU clock), each a share of the full clock."""


def memory_mib(machine: SimulatedMachine, c: Configuration) -> tuple[float, float]:
    """The host and device memory that a configuration needs, in MiB."""
    model, share = machine.model, gpu_share(machine, c)
    cache = model.cache_bytes_per_token(c.type_k, c.type_v) * c.n_ctx
    on_gpu = share if c.offload_kqv else 0.0
    scores = 0.0 if c.flash_attn else 4.0 * min(c.n_ubatch, c.n_batch) * c.n_ctx * model.n_head
    compute = 10.0 * min(c.n_ubatch, c.n_batch) * model.n_embd * 4 + scores
    weights = model.weight_bytes(c.quant)
    host = weights * (1 - share) + cache * (1 - on_gpu) + compute * (share < 1) + 250 * MIB
    device = weights * share + cache * on_gpu + compute * (share > 0) + 350 * MIB * (share > 0)
    return host / MIB, device / MIB


def gpu_share(machine: SimulatedMachine, c: Configuration) -> float:
    """The share of the weights on the GPU. The output layer counts as one more layer and comes last."""
    if machine.gpu is None or c.n_gpu_layers == 0:
        return 0.0
    layers = machine.model.n_layer
    if not 0 <= c.n_gpu_layers <= layers:
        return 1.0
    return (1 - OUTPUT_SHARE) * c.n_gpu_layers / layers


def outcome(machine: SimulatedMachine, c: Configuration, workload: Workload) -> Outcome:
    """The true figures of a configuration under a workload. Raises OutOfMemory if it does not fit."""
    host, device = memory_mib(machine, c)
    if host > machine.memory_mib:
        raise OutOfMemory(f"needs {host:.0f} MiB of host memory, but there are {machine.memory_mib} MiB")
    if machine.gpu is not None and device > machine.gpu.memory_mib:
        raise OutOfMemory(f"needs {device:.0f} MiB of GPU memory, but there are {machine.gpu.memory_mib} MiB")
    depth = workload.depth_at(c.n_ctx)
    decode = _Clocked(machine, c, lambda s: _decode(machine, c, depth + workload.generated_tokens / 2, s))
    prefill = _Clocked(machine, c, lambda s: _prefill(machine, c, depth, workload.prompt_tokens, s))
    return Outcome(
        *decode.speed_and_watts(),
        *prefill.speed_and_watts(),
        memory_mib=host,
        vram_mib=device,
    )


def _decode(machine: SimulatedMachine, c: Configuration, depth: float, clock: tuple[float, float]) -> _Phase:
    model, gpu, share = machine.model, machine.gpu, gpu_share(machine, c)
    cpu_clock, gpu_clock = clock
    weights = model.weight_bytes(c.quant)
    cache = model.cache_bytes_per_token(c.type_k, c.type_v) * depth * (1.0 if c.flash_attn else 1.2)
    cache_on_gpu = share if c.offload_kqv else 0.0
    cpu_bytes = weights * (1 - share) + cache * (1 - cache_on_gpu)
    one, full = machine.core_gb_per_second, machine.gb_per_second
    reached = full * (1 - math.exp(-one * c.n_threads / full * 1.3))
    bandwidth = reached / _contention(machine, c.n_threads) * 1e9
    unpack = UNPACK_COST[c.quant or model.base_quant]
    quantised_cache = 1.15 if CACHE_BITS[c.type_k] < 16 else 1.0
    arithmetic = 2 * model.parameters * (1 - share) * unpack * quantised_cache * 0.45
    by_memory = cpu_bytes / bandwidth
    by_core = arithmetic / (_compute(machine, c.n_threads) * 1e9 * cpu_clock)
    both = math.pow(by_memory**4 + by_core**4, 0.25)  # slightly above the larger one, because the two overlap
    cpu = both + 1.5e-6 * c.n_threads * model.n_layer * (1 - share)
    if gpu is None or share == 0:
        return _Phase(cpu, 0.0, c.n_threads, min(1.0, by_memory / cpu), 0.0)
    # A slower core clock costs little memory bandwidth.
    reach = (1 - math.exp(-4 * gpu_clock)) / (1 - math.exp(-4.0))
    reading = (weights * share + cache * cache_on_gpu) / (gpu.gb_per_second * 1e9 * reach)
    launches = gpu.launch_microseconds * 1e-6 * model.n_layer * share / gpu_clock
    # The large step before the last layer.
    crossing = 0.0 if share == 1 else 4e-4 + 2.5e-3 * (1 - OUTPUT_SHARE)
    away = 0.0 if c.offload_kqv else 2e-5 * model.n_layer
    return _Phase(
        cpu * (share < 1) + crossing + away,
        reading + launches,
        c.n_threads,
        min(1.0, by_memory / cpu) if share < 1 else 0.1,
        gpu.decode_load * (0.15 + 0.85 * reading / (reading + launches)),
    )


def _prefill(
    machine: SimulatedMachine, c: Configuration, depth: float, prompt: int, clock: tuple[float, float]
) -> _Phase:
    model, gpu, share = machine.model, machine.gpu, gpu_share(machine, c)
    cpu_clock, gpu_clock = clock
    ubatch = max(1, min(c.n_ubatch, c.n_batch, prompt))
    batches = math.ceil(prompt / max(1, min(c.n_batch, prompt)))
    arithmetic = 2 * model.parameters * (1.0 if c.flash_attn else 1.06 + (depth + prompt) / 30000)
    cpu_fill = ubatch / (ubatch + 20) / (1 + (ubatch / 3000) ** 2)
    unpack = 0.5 + 0.5 * UNPACK_COST[c.quant or model.base_quant]
    flops = _compute(machine, c.n_threads_batch) * 1e9 * cpu_clock * cpu_fill
    cpu = arithmetic * (1 - share) * unpack / flops
    cpu += 1.5e-6 * c.n_threads_batch * model.n_layer * (1 - share) / ubatch + 1e-3 * batches / prompt
    if gpu is None or share == 0:
        return _Phase(cpu, 0.0, c.n_threads_batch, 0.4, 0.0)
    gpu_fill = ubatch / (ubatch + 160)
    seconds = arithmetic * share / (gpu.teraflops * 1e12 * gpu_clock * gpu_fill)
    crossing = 0.0 if share == 1 else 3e-3 / ubatch
    return _Phase(cpu * (share < 1) + crossing, seconds, c.n_threads_batch, 0.4, 0.45 + 0.55 * gpu_fill)


def _compute(machine: SimulatedMachine, threads: int) -> float:
    physical = min(threads, machine.physical_cores)
    siblings = min(max(0, threads - machine.physical_cores), machine.logical_cores - machine.physical_cores)
    cores = math.pow(physical, 0.94) + 0.08 * siblings
    return machine.core_gigaflops * cores / _contention(machine, threads)


def _contention(machine: SimulatedMachine, threads: int) -> float:
    over_physical = max(0.0, threads / machine.physical_cores - 1)
    over_logical = max(0.0, threads / machine.logical_cores - 1)
    return 1 + 0.12 * over_physical + 2.5 * over_logical


class _Clocked:
    """A phase at the highest clock at which the limited device, the GPU if there is one, stays within its limits."""

    def __init__(self, machine: SimulatedMachine, c: Configuration, phase: _PhaseAt) -> None:
        self._machine = machine
        self._phase = phase
        self._cap = c.power_limit_watts or (machine.package_cap_watts or (0, None))[1]
        self._most = 1.0
        if machine.gpu is not None and c.clock_limit_mhz is not None:
            self._most = min(1.0, max(LEAST_CLOCK, c.clock_limit_mhz / machine.gpu.clock_mhz))

    def speed_and_watts(self) -> tuple[float, float]:
        """The tokens per second and the mean power in W."""
        cpu_clock, gpu_clock = self._both(self._clock())
        phase = self._phase((cpu_clock, gpu_clock))
        seconds = phase.cpu_seconds + phase.gpu_seconds
        cpu = self._cpu_watts(phase, cpu_clock) * phase.cpu_seconds / seconds
        gpu = self._gpu_watts(phase, gpu_clock) * phase.gpu_seconds / seconds
        idle_gpu = self._machine.gpu.idle_watts if self._machine.gpu else 0.0
        return 1 / seconds, self._machine.idle_watts + idle_gpu + cpu + gpu

    def _both(self, clock: float) -> tuple[float, float]:
        return (clock, 1.0) if self._machine.gpu is None else (1.0, clock)

    def _clock(self) -> float:
        if self._cap is None or self._drawn(self._most) <= self._cap:
            return self._most
        low, high = LEAST_CLOCK, self._most
        for _ in range(30):  # each step halves the gap, down to a billionth of the clock
            middle = (low + high) / 2
            low, high = (middle, high) if self._drawn(middle) <= self._cap else (low, middle)
        return low

    def _drawn(self, clock: float) -> float:
        """The power that the limited device draws while it works, in W."""
        phase, gpu = self._phase(self._both(clock)), self._machine.gpu
        if gpu is not None:
            return gpu.idle_watts + self._gpu_watts(phase, clock)
        return 0.5 * self._machine.idle_watts + self._cpu_watts(phase, clock)

    def _cpu_watts(self, phase: _Phase, clock: float) -> float:
        machine = self._machine
        cores = min(phase.cpu_threads, machine.physical_cores)
        siblings = max(0, min(phase.cpu_threads, machine.logical_cores) - machine.physical_cores)
        # A core that waits for memory draws less power than one that computes, but it still spins.
        work = 1.0 - 0.35 * phase.ram_load
        busy = (cores + 0.2 * siblings) * machine.core_watts * work * (0.15 + 0.85 * math.pow(clock, 2.4))
        return busy + machine.ram_watts * phase.ram_load

    def _gpu_watts(self, phase: _Phase, clock: float) -> float:
        gpu = self._machine.gpu
        if gpu is None:
            return 0.0
        return (gpu.peak_watts - gpu.idle_watts) * phase.gpu_load * (0.22 + 0.78 * math.pow(clock, 2.6))
