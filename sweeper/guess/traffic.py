"""The work of one decoded token, from a model's header, and the time that it takes. Pure arithmetic.

A token reads every weight that takes part in it once, reads the KV cache, and runs a graph of many small steps::

    seconds = Σ bytes of a type / speed of its kernel  +  cache elements / speed of attention
              + steps × cost of a step  +  a fixed cost, and sampling from the vocabulary

The speeds come from a short benchmark of llama.cpp's kernels (`sweeper.model.kernel_speed`), so the result is computed
and was never measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sweeper.model.forecast import KernelSpeeds
from sweeper.model.ggml_types import CACHE_BITS
from sweeper.model.header import GgufHeader
from sweeper.model.metadata import Tensor
from sweeper.parameters import Configuration

# Graph steps for each tensor of a layer: its product and, beside it, rotations, copies, sums and activations. A layer
# of llama has 9 tensors and about 20 steps.
STEPS_PER_TENSOR = 2.2
# Building the batch, checking the graph and copying the logits, for each token (0.04 to 0.1 ms measured on 2 cores).
TOKEN_SECONDS = 70e-6
# Sampling lists the whole vocabulary: 0.3 ms were measured for 262,144 tokens.
SAMPLE_SECONDS = 1.2e-9
# The benchmark runs for less than a second, and the speed of memory changes with time and with other programs.
LOW_FACTOR, HIGH_FACTOR = 0.75, 1.25
# Without the kernels' speeds, only memory bounds the speed. Kernels of few bits on few cores reach a quarter of it.
BARE_LOW, BARE_EXPECTED, BARE_HIGH = 0.2, 0.5, 1.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """The work of one token.

    ``weight_bytes`` maps type and length of a row to the bytes that a token reads. ``kv_elements`` are the elements
    of K and V that one token adds to the cache, and ``attention_elements`` those that all heads of the query read
    for each token in the cache.
    """

    weight_bytes: Mapping[tuple[str, int], float]
    kv_elements: int
    attention_elements: int
    steps: float
    vocabulary: int = 0

    @property
    def total_bytes(self) -> float:
        """All weights that one token reads."""
        return sum(self.weight_bytes.values())

    def kv_bytes(self, depth: int, configuration: Configuration) -> float:
        """The bytes of KV cache that a token reads with ``depth`` tokens in the context."""
        bits = (CACHE_BITS[configuration.type_k] + CACHE_BITS[configuration.type_v]) / 2
        return self.kv_elements * depth * bits / 8


def traffic(header: GgufHeader) -> Traffic:
    """The work of one token of a model. Of a mixture of experts, only the experts that a token uses count."""
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    share = header.expert_used_count / header.expert_count if header.expert_count else 1.0
    read: Counter[tuple[str, int]] = Counter()
    kv = attention = 0
    for tensor in header.tensors:
        if tensor.name.startswith("token_embd.") and not tied:
            continue  # one row of it
        used = tensor.bytes * (share if "_exps" in tensor.name else 1.0)
        read[tensor.type, tensor.shape[0]] += used  # type: ignore[assignment] # typeshed's counters are whole
        more_kv, more_attention = _attention(tensor, header.embedding_length)
        kv, attention = kv + more_kv, attention + more_attention
    return Traffic(read, kv, attention, STEPS_PER_TENSOR * len(header.tensors), header.vocab_size)


def _attention(tensor: Tensor, width: int) -> tuple[int, int]:
    """The elements that a tensor of a layer adds to the cache, and those that its queries read per cached token."""
    if len(tensor.shape) < 2 or not tensor.name.endswith(".weight"):
        return 0, 0
    part, rows = tensor.name.split(".")[-2], tensor.shape[1]
    if part in ("attn_k", "attn_v", "attn_kv_a_mqa"):
        return rows, 0
    if part in ("attn_q", "attn_q_b"):
        return 0, 2 * rows
    if part == "attn_qkv":
        return max(0, rows - width), 2 * width
    return 0, 0


def ceiling_tokens_per_second(
    work: Traffic, depth: int, configuration: Configuration, gb_per_second: float
) -> float:
    """The decode speed in tok/s at which the memory does nothing but deliver weights and KV cache."""
    return gb_per_second * 1e9 / (work.total_bytes + work.kv_bytes(depth, configuration))


def kernels_wanted(work: Traffic) -> list[tuple[str, int, int]]:
    """The kernels whose speed matters to a model: type, length of a row, and the bytes of the whole model.

    Together, they read nine tenths of its weights; the rest is taken to be as fast as they are.
    """
    wanted: list[tuple[str, int, int]] = []
    covered = 0.0
    for (kind, row), read in sorted(work.weight_bytes.items(), key=lambda item: -item[1]):
        if covered < 0.9 * work.total_bytes:
            wanted.append((kind, row, round(work.total_bytes)))
        covered += read
    return wanted


def seconds_per_token(work: Traffic, speeds: KernelSpeeds, depth: int) -> float:
    """The computed seconds of one token. ``speeds`` are those of `kernels_wanted`."""
    names = [(kind, row) for kind, row, _ in kernels_wanted(work)]
    covered = sum(work.weight_bytes[name] for name in names)
    reading = sum(
        work.weight_bytes[name] / speed
        for name, speed in zip(names, speeds.weight_bytes_per_second, strict=True)
    )
    attention = work.attention_elements * depth / speeds.attention_per_second  # it skips the empty cache
    return (
        reading * work.total_bytes / covered
        + attention
        + work.steps * speeds.step_seconds
        + TOKEN_SECONDS
        + SAMPLE_SECONDS * work.vocabulary
    )
