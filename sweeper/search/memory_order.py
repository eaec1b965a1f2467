"""Learns from failures: a configuration that asks for at least as much memory as a failed one also fails.

This is an order, not a forecast. It knows no sizes. It knows only that more layers on a device, more bits, a longer
context or larger batches never need less memory. It helps if there is no forecast, or if the forecast is wrong.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sweeper.model.ggml_types import CACHE_BITS, FILE_BITS_PER_WEIGHT
from sweeper.parameters import TUNABLES, Configuration, Tunable, clamped
from sweeper.search.gaussian_process import Array

# The order's initial confidence, as counts: nine in ten.
CONFIRMED, REFUTED = 9.0, 1.0
# A trial that ran against the order's prediction counts this many times as much as one that confirmed it, because
# the search seldom tries configurations that it considers impossible.
REFUTATION_WEIGHT = 4.0
UNKNOWN_BITS = 16.0
ALL_LAYERS = 10_000  # more than any model has
NO_DRAFT = {"none": 0.0}  # every kind of speculative decoding but this one needs memory of its own
_DEMANDING = tuple(t for t in TUNABLES.values() if t.memory and t.memory != "elsewhere")
_ELSEWHERE = tuple(t for t in TUNABLES.values() if t.memory == "elsewhere")


class MemoryOrder:
    """Probability that configurations fit, learned from configurations that ran and that ran out of memory.

    It compares only configurations that place their layers on the same devices: a split that failed says nothing about
    another split.

    More layers on the GPU need more of the GPU's memory and less of the host's. It is unknown which of the two ran out,
    so the class keeps both orders, and trusts each as far as the trials confirm it.
    """

    def __init__(self, ran: Sequence[Configuration], broke: Sequence[Configuration]) -> None:
        self._orders: list[tuple[float, Array, float]] = []
        layers = {c.n_gpu_layers for c in (*ran, *broke)}
        for sign in (1.0, -1.0) if len(layers) > 1 else (1.0,):
            short = _demands(broke, sign)
            confirmed = float((_reaches(short, short).sum(1) > 1).sum())
            refuted = float(_reaches(_demands(ran, sign), short).any(1).sum()) if ran else 0.0
            total = confirmed + CONFIRMED + REFUTED + REFUTATION_WEIGHT * refuted
            self._orders.append((sign, short, (confirmed + CONFIRMED) / total))

    def probability(self, configurations: Sequence[Configuration]) -> Array:
        """The probability (n,) that each of ``configurations`` fits; 1 if the order says nothing about it."""
        result = np.ones(len(configurations))
        for sign, short, trust in self._orders:
            implied = _reaches(_demands(configurations, sign), short).any(1)
            result = result * np.where(implied, 1.0 - trust, 1.0)
        return result


def _demands(configurations: Sequence[Configuration], sign: float) -> Array:
    rows = [[*(_demand(tunable, c, sign) for tunable in _DEMANDING), *_devices(c)] for c in configurations]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(_DEMANDING) + 2 * len(_ELSEWHERE))


def _devices(configuration: Configuration) -> list[float]:
    """Numbers that are at least those of another configuration only if both place their layers on the same devices."""
    numbers = [zlib.crc32(repr(getattr(configuration, t.name)).encode()) for t in _ELSEWHERE]
    return [sign * float(number) for number in numbers for sign in (1.0, -1.0)]


def _demand(tunable: Tunable, configuration: Configuration, sign: float) -> float:
    """The memory demand of a value, for comparisons only: the bits of a type, else the number itself."""
    value = clamped(tunable.name, configuration)
    if tunable.kind == "word":
        size = {**FILE_BITS_PER_WEIGHT, **CACHE_BITS, **NO_DRAFT}.get(value or "", UNKNOWN_BITS)
    else:
        size = float(value if value >= 0 else ALL_LAYERS)
    directions = {"more": 1.0, "less": -1.0, "device": sign, "host": -sign}
    return size * directions[tunable.memory or "more"]


def _reaches(demands: Array, short: Array) -> npt.NDArray[np.bool_]:
    """(n, m): whether demand i is at least that of failure j in every respect."""
    result: npt.NDArray[np.bool_] = np.all(demands[:, None, :] >= short[None, :, :], axis=2)
    return result
