"""Analytic machines: formulas give the results of a configuration of llama.cpp on simulated hardware.

Memory bandwidth limits decode, because each token reads the weights and the KV cache. Arithmetic limits prefill.
Power rises with both, and a power limit slows the device until its power fits. The step to the last layer on the
GPU is large. A configuration that does not fit in memory fails. These formulas describe no real machine: they
exist to test a search against a known Pareto front.
"""

from __future__ import annotations

import math

from sweeper.errors import OutOfMemory
from sweeper.lab import simulated_experts as experts
from sweeper.lab.simulated_hardware import (
    LEAST_CLOCK,
    MIB,
    OUTPUT_SHARE,
    UNPACK_COST,
    Outcome,
    Phase,
    PhaseAt,
    SimulatedMachine,
    bandwidth,
    compute,
)
from sweeper.model.ggml_types import CACHE_BITS
from sweeper.records import Configuration, Workload


def memory_mib(machine: SimulatedMachine, c: Configuration) -> tuple[float, tuple[float, ...]]:
    """The memory that a configuration needs on the host and on each GPU, in MiB."""
    if machine.model.expert_share:
        return experts.memory_mib(machine, c)
    model, share = machine.model, gpu_share(machine, c)
    cache = model.cache_bytes_per_token(c.type_k, c.type_v) * c.n_ctx
    on_gpu = share if c.offload_kqv else 0.0
    scores = 0.0 if c.flash_attn else 4.0 * min(c.n_ubatch, c.n_batch) * c.n_ctx * model.n_head
    compute = 10.0 * min(c.n_ubatch, c.n_batch) * model.n_embd * 4 + scores
    weights = model.weight_bytes(c.quant)
    host = weights * (1 - share) + cache * (1 - on_gpu) + compute * (share < 1) + 250 * MIB
    device = weights * share + cache * on_gpu + compute * (share > 0) + 350 * MIB * (share > 0)
    return host / MIB, () if machine.gpu is None else (device / MIB,)


def shortage(machine: SimulatedMachine, c: Configuration, factor: float = 1.0) -> str | None:
    """Why a configuration does not fit, in words; None if it fits. ``factor`` scales what it needs."""
    host, devices = memory_mib(machine, c)
    if factor * host > machine.memory_mib:
        return f"needs {host:.0f} MiB of host memory, but there are {machine.memory_mib} MiB"
    for card, needed in zip(experts.cards_of(machine), devices, strict=True):
        if factor * needed > card.memory_mib:
            return f"needs {needed:.0f} MiB of GPU memory, but there are {card.memory_mib} MiB"
    return None


def gpu_share(machine: SimulatedMachine, c: Configuration) -> float:
    """The share of the weights on the GPU. The output layer counts as one more layer and comes last."""
    if machine.gpu is None or c.n_gpu_layers == 0:
        return 0.0
    layers = machine.model.n_layer
    if not 0 <= c.n_gpu_layers <= layers:
        return 1.0
    return (1 - OUTPUT_SHARE) * c.n_gpu_layers / layers


def idle_watts(machine: SimulatedMachine) -> float:
    """The power that the machine draws at rest, in W."""
    return machine.idle_watts + sum(card.idle_watts for card in experts.cards_of(machine))


def outcome(machine: SimulatedMachine, c: Configuration, workload: Workload) -> Outcome:
    """The true figures of a configuration under a workload. Raises OutOfMemory if it does not fit."""
    why = shortage(machine, c)
    if why is not None:
        raise OutOfMemory(why)
    host, devices = memory_mib(machine, c)
    depth = workload.depth_at(c.n_ctx)
    mixture = machine.model.expert_share > 0
    one_token, one_batch = (experts.decode, experts.prefill) if mixture else (_decode, _prefill)
    decode = _Clocked(machine, c, lambda s: one_token(machine, c, depth + workload.generated_tokens / 2, s))
    prefill = _Clocked(machine, c, lambda s: one_batch(machine, c, depth, workload.prompt_tokens, s))
    return Outcome(
        *decode.speed_and_watts(),
        *prefill.speed_and_watts(),
        memory_mib=host,
        vram_mib=sum(devices),
    )


def _decode(machine: SimulatedMachine, c: Configuration, depth: float, clock: tuple[float, float]) -> Phase:
    model, gpu, share = machine.model, machine.gpu, gpu_share(machine, c)
    cpu_clock, gpu_clock = clock
    weights = model.weight_bytes(c.quant)
    cache = model.cache_bytes_per_token(c.type_k, c.type_v) * depth * (1.0 if c.flash_attn else 1.2)
    cache_on_gpu = share if c.offload_kqv else 0.0
    cpu_bytes = weights * (1 - share) + cache * (1 - cache_on_gpu)
    unpack = UNPACK_COST[c.quant or model.base_quant]
    quantised_cache = 1.15 if CACHE_BITS[c.type_k] < 16 else 1.0
    arithmetic = 2 * model.parameters * (1 - share) * unpack * quantised_cache * 0.45
    by_memory = cpu_bytes / bandwidth(machine, c.n_threads)
    by_core = arithmetic / (compute(machine, c.n_threads) * 1e9 * cpu_clock)
    both = math.pow(by_memory**4 + by_core**4, 0.25)  # slightly above the larger one, because the two overlap
    cpu = both + 1.5e-6 * c.n_threads * model.n_layer * (1 - share)
    if gpu is None or share == 0:
        return Phase(cpu, 0.0, c.n_threads, min(1.0, by_memory / cpu), 0.0)
    # A slower core clock costs little memory bandwidth.
    reach = (1 - math.exp(-4 * gpu_clock)) / (1 - math.exp(-4.0))
    reading = (weights * share + cache * cache_on_gpu) / (gpu.gb_per_second * 1e9 * reach)
    launches = gpu.launch_microseconds * 1e-6 * model.n_layer * share / gpu_clock
    # The large step before the last layer.
    crossing = 0.0 if share == 1 else 4e-4 + 2.5e-3 * (1 - OUTPUT_SHARE)
    away = 0.0 if c.offload_kqv else 2e-5 * model.n_layer
    return Phase(
        cpu * (share < 1) + crossing + away,
        reading + launches,
        c.n_threads,
        min(1.0, by_memory / cpu) if share < 1 else 0.1,
        gpu.decode_load * (0.15 + 0.85 * reading / (reading + launches)),
    )


def _prefill(
    machine: SimulatedMachine, c: Configuration, depth: float, prompt: int, clock: tuple[float, float]
) -> Phase:
    model, gpu, share = machine.model, machine.gpu, gpu_share(machine, c)
    cpu_clock, gpu_clock = clock
    ubatch = max(1, min(c.n_ubatch, c.n_batch, prompt))
    batches = math.ceil(prompt / max(1, min(c.n_batch, prompt)))
    arithmetic = 2 * model.parameters * (1.0 if c.flash_attn else 1.06 + (depth + prompt) / 30000)
    cpu_fill = ubatch / (ubatch + 20) / (1 + (ubatch / 3000) ** 2)
    unpack = 0.5 + 0.5 * UNPACK_COST[c.quant or model.base_quant]
    flops = compute(machine, c.n_threads_batch) * 1e9 * cpu_clock * cpu_fill
    cpu = arithmetic * (1 - share) * unpack / flops
    cpu += 1.5e-6 * c.n_threads_batch * model.n_layer * (1 - share) / ubatch + 1e-3 * batches / prompt
    if gpu is None or share == 0:
        return Phase(cpu, 0.0, c.n_threads_batch, 0.4, 0.0)
    gpu_fill = ubatch / (ubatch + 160)
    seconds = arithmetic * share / (gpu.teraflops * 1e12 * gpu_clock * gpu_fill)
    crossing = 0.0 if share == 1 else 3e-3 / ubatch
    return Phase(cpu * (share < 1) + crossing, seconds, c.n_threads_batch, 0.4, 0.45 + 0.55 * gpu_fill)


class _Clocked:
    """A phase at the highest clock at which the limited device, the GPU if there is one, stays within its limits."""

    def __init__(self, machine: SimulatedMachine, c: Configuration, phase: PhaseAt) -> None:
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
        seconds = phase.cpu_seconds + phase.gpu_seconds + phase.other_seconds
        cpu = self._cpu_watts(phase, cpu_clock) * phase.cpu_seconds / seconds
        gpu = self._gpu_watts(phase, gpu_clock) * phase.gpu_seconds / seconds
        other = phase.other_watts * phase.other_seconds / seconds
        return phase.tokens / seconds, idle_watts(self._machine) + cpu + gpu + other

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

    def _cpu_watts(self, phase: Phase, clock: float) -> float:
        machine = self._machine
        cores = min(phase.cpu_threads, machine.physical_cores)
        siblings = max(0, min(phase.cpu_threads, machine.logical_cores) - machine.physical_cores)
        # A core that waits for memory draws less power than one that computes, but it still spins.
        work = 1.0 - 0.35 * phase.ram_load
        busy = (cores + 0.2 * siblings) * machine.core_watts * work * (0.15 + 0.85 * math.pow(clock, 2.4))
        return busy + machine.ram_watts * phase.ram_load

    def _gpu_watts(self, phase: Phase, clock: float) -> float:
        gpu = self._machine.gpu
        if gpu is None:
            return 0.0
        return (gpu.peak_watts - gpu.idle_watts) * phase.gpu_load * (0.22 + 0.78 * math.pow(clock, 2.6))
