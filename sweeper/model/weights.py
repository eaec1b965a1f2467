"""Random weights from a seed, in pieces: Gaussian where the type is a float, else random quantised blocks.

A quantised tensor is not quantised from floats: its blocks are drawn directly, every field of a block
uniformly at random, save the block's scale, which is one number for the tensor, chosen so that the
weights it decodes to have the standard deviation 1/√fan-in and nearly no mean. Speed, memory and watts do not
depend on the weights' values; the quality of such a model means nothing either way.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper.model.ggml_types import GgmlType
from sweeper.model.shapes import TensorShape

Bytes = NDArray[np.uint8]

_PIECE_ELEMENTS = 1 << 22  # weights made at a time: 16 MiB of float32
# For each block type: where its half-precision scale lies; where the scale of its offsets lies, and how much
# larger that one must be for the mean to vanish (mean quant × mean scale / mean offset).
_BLOCKS: dict[str, tuple[int, int | None, float]] = {
    "Q4_0": (0, None, 0.0),
    "Q5_0": (0, None, 0.0),
    "Q5_1": (0, 2, -15.5),  # here the offset is added
    "Q8_0": (0, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
}
_CALIBRATION_BLOCKS = 2_048


def pieces(tensor: TensorShape, kind: GgmlType, seed: int) -> Iterator[Bytes]:
    """The bytes of one tensor, some MiB at a time; the same for the same seed and name."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(tensor.name.encode())]))
    elements = math.prod(tensor.shape)
    if len(tensor.shape) == 1:
        yield np.ones(elements, dtype=np.float32).view(np.uint8)  # a norm
        return
    deviation = 1.0 / math.sqrt(tensor.shape[-1])
    for start in range(0, elements, _PIECE_ELEMENTS):
        count = min(_PIECE_ELEMENTS, elements - start)
        if kind.name in ("F32", "F16"):
            drawn = rng.standard_normal(count, dtype=np.float32) * np.float32(deviation)
            yield drawn.astype(np.float16 if kind.name == "F16" else np.float32).view(np.uint8)
        else:
            yield _blocks(rng, kind, count // kind.block_elements, deviation / _unit_deviation(kind)).reshape(
                -1
            )


def _blocks(rng: np.random.Generator, kind: GgmlType, count: int, scale: float) -> Bytes:
    """``count`` random blocks, shape (count, bytes of a block)."""
    scale_at, offset_at, ratio = _BLOCKS[kind.name]
    blocks = np.frombuffer(rng.bytes(count * kind.block_bytes), dtype=np.uint8)
    blocks = blocks.reshape(count, kind.block_bytes).copy()
    blocks[:, scale_at : scale_at + 2] = _half(scale)
    if offset_at is not None:
        blocks[:, offset_at : offset_at + 2] = _half(scale * ratio)
    return blocks


def _half(value: float) -> Bytes:
    return np.array([value], dtype="<f2").view(np.uint8)


@cache
def _unit_deviation(kind: GgmlType) -> float:
    """Standard deviation of the weights that random blocks of scale 1 decode to."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rng = np.random.Generator(np.random.SFC64(0))
    # A power of two far from half precision's ends, so that calibrating rounds nothing.
    scale = 2.0**-6
    sample: NDArray[Any] = _blocks(rng, kind, _CALIBRATION_BLOCKS, scale)
    return float(dequantize(sample, GGMLQuantizationType(kind.number)).std()) / scale
