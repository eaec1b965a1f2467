"""Encodes configurations as vectors for a model: ordinal parameters by rank or logarithm, choices one by one.

Settings that llama.cpp makes equal have the same vector, because they are one configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeper.metrics import describe
from sweeper.model.ggml_types import FILE_BITS_PER_WEIGHT
from sweeper.parameters import TUNABLES, Configuration, layers_on_cpu, proportions
from sweeper.search.gaussian_process import Array
from sweeper.space.space import Parameter, SearchSpace

# If the end of a range is this many times its start, the values are sizes: doubling matters, not adding.
LOG_FROM_RATIO = 8
# The distance between two choices: slightly less than between the ends of a range.
CHOICE_DISTANCE = 0.7
# Quantisations are ordered by their bits; this distance separates them in addition.
OWN_DISTANCE = 0.5
# The share of its range that a parameter keeps in models of a phase in which llama.cpp ignores it. Trials can still
# show an effect, but the search spends no trial on finding out. In the recorded CPU table, ignored parameters change
# decode by 0.1 to 0.6 % and prefill by 0.5 %; quantisation and threads change it by 15 to 60 %.
IDLE_WEIGHT = 0.2
# Parameters that keep the weights of the first layers on the CPU, beside the layers that `n_gpu_layers` leaves there.
_FIRST_ON_CPU = ("n_cpu_moe", "n_cpu_ffn")


class Encoder:
    """Turns configurations of one space into rows of features between 0 and 1."""

    def __init__(self, space: SearchSpace) -> None:
        self._n_layer = space.traits.n_layer
        self._fills_context = space.traits.fills_context
        self._columns = [_column(parameter, space) for parameter in space.parameters.values()]
        self.dimensions = sum(len(next(iter(column.values()))) for _, column in self._columns)

    def weights(self, metric: str | None) -> Array:
        """The weight of each feature (d,) in models of ``metric``: 1, or `IDLE_WEIGHT`."""
        idle = idle_for(metric, self._fills_context)
        each = [
            IDLE_WEIGHT if name in idle else 1.0
            for name, column in self._columns
            for _ in next(iter(column.values()))
        ]
        return np.array(each)

    def __call__(self, configurations: Sequence[Configuration]) -> Array:
        """Features (n, d) of ``configurations``, in their order."""
        rows = [
            [x for name, column in self._columns for x in _looked_up(column, self._value(name, c))]
            for c in configurations
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), self.dimensions)

    def _value(self, name: str, configuration: Configuration) -> Any:
        """The value whose features count: for layers moved to the CPU, all that are there."""
        value = getattr(configuration, name)
        if name in _FIRST_ON_CPU and self._n_layer:
            return min(self._n_layer, max(value, layers_on_cpu(configuration, self._n_layer)))
        return value


def idle_for(metric: str | None, fills_context: bool = False) -> tuple[str, ...]:
    """Parameters that llama.cpp ignores in the phase of ``metric``; none for metrics of both phases.

    The context length counts in every phase if windows run as deep as it allows.
    """
    phase = describe(metric).phase if metric is not None else None
    idle = (t.name for t in TUNABLES.values() if phase is not None and t.idle_in == phase)
    return tuple(name for name in idle if not (fills_context and name == "n_ctx"))


def weighted(features: Array, weights: Array) -> Array:
    """The features (n, d), each one's range shrunk around its middle by its weight (d,)."""
    return 0.5 + (features - 0.5) * weights


def _looked_up(column: dict[Any, tuple[float, ...]], value: Any) -> tuple[float, ...]:
    found = column.get(value)
    if found is not None:
        return found
    # A value outside the space, such as the baseline's, is encoded as its nearest neighbour.
    numbers = [v for v in column if isinstance(v, (int, float))]
    if isinstance(value, (int, float)) and numbers:
        return column[min(numbers, key=lambda v: abs(v - value))]
    return next(iter(column.values()))


def _column(parameter: Parameter, space: SearchSpace) -> tuple[str, dict[Any, tuple[float, ...]]]:
    values = parameter.values
    if parameter.name == "n_gpu_layers":
        return parameter.name, _layer_features(values, space.traits.n_layer)
    if parameter.name in _FIRST_ON_CPU and space.traits.n_layer:
        return parameter.name, _host_features(space.traits.n_layer)
    if parameter.name == "tensor_split":
        return parameter.name, _split_features(values)
    if parameter.ordinal or all(v is None or type(v) is int for v in values):
        return parameter.name, {v: (x,) for v, x in zip(values, _positions(values), strict=True)}
    if len(values) == 2:
        return parameter.name, {values[0]: (0.0,), values[1]: (CHOICE_DISTANCE,)}
    if parameter.name == "quant" and all(v in FILE_BITS_PER_WEIGHT for v in values):
        return parameter.name, _quant_features(values)
    half = CHOICE_DISTANCE / math.sqrt(2)
    return parameter.name, {v: tuple(half * (v == w) for w in values) for v in values}


def _layer_features(values: Sequence[int], n_layer: int) -> dict[Any, tuple[float, ...]]:
    """Features of layers on the GPU: their share, how few stay on the CPU, and whether all are on the GPU.

    The layers on the CPU determine the time, so each of the last few counts for more; the very last one is a cliff.
    """
    most = max(n_layer + 1, *values) if n_layer else max(values)

    def features(value: int) -> tuple[float, ...]:
        layers = most if value < 0 or value > most else value
        left = math.log2(1 + most - layers) / math.log2(1 + most) if most > 0 else 0.0
        return (layers / max(1, most), 1.0 - left, CHOICE_DISTANCE * (layers == most))

    return {value: features(value) for value in values}


def _host_features(n_layer: int) -> dict[Any, tuple[float, ...]]:
    """Features of the layers whose weights stay on the CPU: their share, and the share of its logarithm.

    Each of the first few costs the most speed, relative to the rest.
    """
    return {
        count: (count / n_layer, math.log2(1 + count) / math.log2(1 + n_layer))
        for count in range(n_layer + 1)
    }


def _split_features(values: Sequence[Any]) -> dict[Any, tuple[float, ...]]:
    """Features of a split: the share of each GPU but the last, and whether llama.cpp chooses (then even shares)."""
    shares = {v: proportions(v) for v in values if v is not None}
    most = max((len(s) for s in shares.values()), default=1)
    found: dict[Any, tuple[float, ...]] = {}
    for value in values:
        each = shares.get(value, (1.0,) * most)
        filled = [share / sum(each) for share in (*each, *[0.0] * (most - len(each)))]
        found[value] = (*filled[:-1], OWN_DISTANCE * (value is None))
    return found


def _quant_features(values: Sequence[Any]) -> dict[Any, tuple[float, ...]]:
    """Features of a quantisation: bits per weight, for the bandwidth, and the level, for the cost of unpacking."""
    bits = [math.log2(FILE_BITS_PER_WEIGHT[v]) for v in values]
    low, high = min(bits), max(bits)
    own = OWN_DISTANCE / math.sqrt(2)
    return {
        v: ((b - low) / (high - low) if high > low else 0.0, *(own * (v == w) for w in values))
        for v, b in zip(values, bits, strict=True)
    }


def _positions(values: Sequence[Any]) -> list[float]:
    """The position of each value of an ordinal parameter between 0 and 1."""
    if not all(isinstance(v, (int, float)) or v is None for v in values):
        return [i / max(1, len(values) - 1) for i in range(len(values))]
    numbers = [v for v in values if v is not None]
    most = max(numbers)
    # None means "as found", which is the highest limit.
    filled = [float(most if v is None else v) for v in values]
    if min(filled) > 0 and max(filled) / min(filled) >= LOG_FROM_RATIO:
        filled = [math.log2(v) for v in filled]
    low, high = min(filled), max(filled)
    return [(v - low) / (high - low) if high > low else 0.0 for v in filled]
