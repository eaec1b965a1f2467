"""A mixture of experts on a simulated machine: where its layers and experts lie, and how long they take.

Decode reads the weights that a batch of users touches: on each card at its own bandwidth, and on the host at the
host's. Each layer with experts on the host costs two crossings of the bus. For a prompt, the card gets copies of the
weights that lie on the host (``op_offload``), or the CPU computes with them. Cards share the layers by their number, as
in llama.cpp.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from dataclasses import dataclass

from sweeper.lab.simulated_hardware import (
    MIB,
    UNPACK_COST,
    Phase,
    SimulatedGpu,
    SimulatedMachine,
    SimulatedModel,
    bandwidth,
    compute,
)
from sweeper.parameters import Configuration, proportions

OUTPUT_PARAMETERS = 3.1e8  # the output layer's, for a vocabulary of 151,936 and 2048 features
VOCABULARY = 151_936
CROSSING_SECONDS = 30e-6  # one way between host and card, with the wait for it
SLOT_SECONDS = 1.5e-4  # sampling and answering one user's token
# ggml copies weights to the card for batches of at least this many tokens (GGML_OP_OFFLOAD_MIN_BATCH).
LEAST_OFFLOADED_BATCH = 32
EXPERT_EFFICIENCY = 0.5  # small matrices reach this share of the arithmetic of large ones


@dataclass(frozen=True, slots=True)
class Held:
    """The parts of a model in one place, as counts of layers."""

    layers: int = 0  # attention and all that is not experts
    experts: int = 0  # layers whose experts lie here
    output: bool = False


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes and parameters of one layer's parts."""

    layer_bytes: float
    expert_bytes: float
    output_bytes: float
    layer_parameters: float
    expert_parameters: float  # that one token uses

    def bytes_of(self, held: Held, touched: float = 1.0) -> float:
        """The bytes of the weights in one place, with this share of the experts."""
        return (
            held.layers * self.layer_bytes
            + held.experts * self.expert_bytes * touched
            + held.output * self.output_bytes
        )

    def work_of(self, held: Held) -> float:
        """The arithmetic operations of one token in one place."""
        experts = held.experts * self.expert_parameters / EXPERT_EFFICIENCY
        return 2 * (held.layers * self.layer_parameters + experts + held.output * OUTPUT_PARAMETERS)


def sizes(model: SimulatedModel, quant: str | None) -> Sizes:
    """The sizes of one layer's parts."""
    per_parameter = model.weight_bytes(quant) / model.parameters
    experts = model.parameters * model.expert_share / model.n_layer
    others = (model.parameters * (1 - model.expert_share) - OUTPUT_PARAMETERS) / model.n_layer
    return Sizes(
        others * per_parameter,
        experts * per_parameter,
        OUTPUT_PARAMETERS * per_parameter,
        others,
        experts * model.active_experts,
    )


def cards_of(machine: SimulatedMachine) -> tuple[SimulatedGpu, ...]:
    """All cards of a machine, the one with limits first."""
    return () if machine.gpu is None else (machine.gpu, *machine.more_gpus)


def placement(machine: SimulatedMachine, c: Configuration) -> tuple[Held, tuple[Held, ...]]:
    """What lies on the host and on each card."""
    count, cards = machine.model.n_layer, cards_of(machine)
    asked = count + 1 if not 0 <= c.n_gpu_layers <= count else c.n_gpu_layers
    memory = tuple(float(card.memory_mib) for card in cards)
    shares = memory if c.tensor_split is None else proportions(c.tensor_split)
    return _placed(count, asked if cards else 0, c.n_cpu_moe, len(cards), shares)


@functools.lru_cache(maxsize=1 << 16)
def _placed(
    count: int, asked: int, first_experts: int, gpus: int, shares: tuple[float, ...]
) -> tuple[Held, tuple[Held, ...]]:
    """The last ``asked`` of the layers and the output go to the cards, experts from ``first_experts`` on."""
    first = count + 1 - asked
    bounds = [bound / sum(shares) for bound in itertools.accumulate(shares)]
    layers, experts, output = [0] * gpus, [0] * gpus, [False] * gpus
    for layer in range(first, count + 1):
        card = min(bisect.bisect_right(bounds, (layer - first) / asked), gpus - 1)
        if layer == count:
            output[card] = True
        else:
            layers[card] += 1
            experts[card] += layer >= first_experts
    on_cards = tuple(Held(*parts) for parts in zip(layers, experts, output, strict=True))
    host = Held(min(first, count), count - sum(experts), output=first > count)
    return host, on_cards


def memory_mib(machine: SimulatedMachine, c: Configuration) -> tuple[float, tuple[float, ...]]:
    """The memory that a configuration needs on the host and on each card, in MiB."""
    model, (host, cards) = machine.model, placement(machine, c)
    each = sizes(model, c.quant)
    cache = model.cache_bytes_per_token(c.type_k, c.type_v) * c.n_ctx * c.n_parallel / model.n_layer
    ubatch = min(c.n_ubatch, c.n_batch)
    scores = 0.0 if c.flash_attn else 4.0 * ubatch * c.n_ctx * model.n_head
    work = 40.0 * ubatch * model.n_embd + scores
    logits = 4.0 * ubatch * VOCABULARY
    copied = each.expert_bytes if c.op_offload and host.experts else 0.0
    needed = []
    for index, held in enumerate(cards):
        used = held.layers > 0 or held.output
        own = cache * held.layers * c.offload_kqv + used * (work + 350 * MIB) + held.output * logits
        needed.append((each.bytes_of(held) + own + copied * (index == 0)) / MIB)
    on_host = cache * (host.layers if c.offload_kqv else model.n_layer)
    embeddings = each.output_bytes
    return (each.bytes_of(host) + on_host + embeddings + host.output * logits) / MIB + 250, tuple(needed)


def decode(machine: SimulatedMachine, c: Configuration, depth: float, clock: tuple[float, float]) -> Phase:
    """One step of all slots, each of which gets one token."""
    model, (host, held) = machine.model, placement(machine, c)
    each, users = sizes(model, c.quant), c.n_parallel
    touched = 1 - (1 - model.active_experts) ** users
    cache = model.cache_bytes_per_token(c.type_k, c.type_v) / model.n_layer * depth * users
    cache *= 1.0 if c.flash_attn else 1.2
    at_host = cache * (host.layers if c.offload_kqv else model.n_layer)
    by_memory = (each.bytes_of(host, touched) + at_host) / bandwidth(machine, c.n_threads)
    work = each.work_of(host) * users * UNPACK_COST[c.quant or model.base_quant] * 0.45
    by_core = work / (compute(machine, c.n_threads) * 1e9 * clock[0])
    cpu = math.pow(by_memory**4 + by_core**4, 0.25) + 1.5e-6 * c.n_threads * host.experts
    load = min(1.0, by_memory / cpu) if cpu > 0 else 0.1
    cpu += SLOT_SECONDS * users + 2 * CROSSING_SECONDS * max(0, host.experts - host.layers)
    cpu += 2 * CROSSING_SECONDS * (any(card.layers for card in held) and host.layers > 0)
    seconds, loads = [], []
    for card, parts, speed in zip(cards_of(machine), held, (clock[1], *[1.0] * len(held)), strict=False):
        reach = (1 - math.exp(-4 * speed)) / (1 - math.exp(-4.0))
        bytes_read = each.bytes_of(parts, touched) + cache * parts.layers * c.offload_kqv
        reading = bytes_read / (card.gb_per_second * 1e9 * reach)
        other = card.launch_microseconds * 1e-6 * parts.layers / speed
        other += each.work_of(parts) * users / (card.teraflops * 1e12 * speed)
        seconds.append(reading + other)
        loads.append(card.decode_load * (0.15 + 0.85 * reading / max(1e-9, reading + other)))
    return _phase(machine, c.n_threads, cpu, load, seconds, loads, users)


def prefill(
    machine: SimulatedMachine, c: Configuration, depth: float, prompt: int, clock: tuple[float, float]
) -> Phase:
    """One batch of a prompt."""
    model, (host, held) = machine.model, placement(machine, c)
    each = sizes(model, c.quant)
    batch = max(1, min(c.n_ubatch, c.n_batch, prompt))
    touched = 1 - (1 - model.active_experts) ** batch
    attention = 1.0 if c.flash_attn else 1.06 + (depth + prompt) / 30000
    copies = c.op_offload and batch >= LEAST_OFFLOADED_BATCH and len(held) > 0
    unpack = 0.5 + 0.5 * UNPACK_COST[c.quant or model.base_quant]
    flops = compute(machine, c.n_threads_batch) * 1e9 * clock[0] * batch / (batch + 20)
    cpu = 1e-3 if copies else 1e-3 + each.work_of(host) * attention * batch * unpack / flops
    seconds, loads = [], []
    for index, (card, parts) in enumerate(zip(cards_of(machine), held, strict=True)):
        fill = batch / (batch + 160)
        rate = card.teraflops * 1e12 * fill * (clock[1] if index == 0 else 1.0)
        busy = each.work_of(parts) * attention * batch / rate
        busy += each.bytes_of(parts, touched) / (card.gb_per_second * 1e9)
        if index == 0 and copies:
            busy += each.work_of(host) * attention * batch / rate
            busy += each.bytes_of(host, touched) / (card.bus_gb_per_second * 1e9)
        seconds.append(busy)
        loads.append(0.45 + 0.55 * fill)
    return _phase(machine, c.n_threads_batch, cpu, 0.4, seconds, loads, batch)


def _phase(
    machine: SimulatedMachine,
    threads: int,
    cpu_seconds: float,
    ram_load: float,
    seconds: list[float],
    loads: list[float],
    tokens: int,
) -> Phase:
    """A phase with the first card's time and load, and the mean power of the others."""
    if not seconds:
        return Phase(cpu_seconds, 0.0, threads, ram_load, 0.0, tokens=tokens)
    others = list(zip(machine.more_gpus, seconds[1:], loads[1:], strict=True))
    busy = sum(time for _, time, _ in others)
    joules = sum((card.peak_watts - card.idle_watts) * load * time for card, time, load in others)
    return Phase(
        cpu_seconds,
        seconds[0],
        threads,
        ram_load,
        loads[0],
        busy,
        joules / busy if busy else 0.0,
        tokens,
    )
