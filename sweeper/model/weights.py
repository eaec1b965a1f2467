"""Random weights from a seed, in pieces: Gaussian for float types, else random quantised blocks.

A quantised tensor is not quantised from floats. Its blocks are drawn directly, every field uniformly at random,
except the scale. The scale is the same for the whole tensor, and gives the decoded weights the standard deviation
1/√fan-in and a mean near 0. Speed, memory and watts do not depend on the weights' values. The quality of such a model
has no meaning in either case.
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

_PIECE_ELEMENTS = 1 << 22  # weights generated at a time: 16 MiB of float32
# For each block type: the position of its half-precision scale; the position of the scale of its offsets; and the
# factor between the two that makes the mean vanish (mean quant × mean scale / mean offset).
_BLOCKS: dict[str, tuple[int, int | None, float]] = {
    "Q4_0": (0, None, 0.0),
    "Q5_0": (0, None, 0.0),
    "Q5_1": (0, 2, -15.5),  # in this type, the offset is added
    "Q8_0": (0, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
}
_CALIBRATION_BLOCKS = 2_048


def pieces(tensor: TensorShape, kind: GgmlType, seed: int) -> Iterator[Bytes]:
    """The bytes of one tensor, some MiB at a time. The same seed and name give the same bytes."""
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
    """The standard deviation of the decoded weights of random blocks with scale 1."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rng = np.random.Generator(np.random.SFC64(0))
    # A power of two far from the limits of half precision, so that calibration rounds nothing.
    scale = 2.0**-6
    sample: NDArray[Any] = _blocks(rng, kind, _CALIBRATION_BLOCKS, scale)
    return float(dequantize(sample, GGMLQuantizationType(kind.number)).std()) / scale
