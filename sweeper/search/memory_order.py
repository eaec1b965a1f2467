"""What ran out of memory says about others: whoever asks for at least as much will run out as well.

An order, not a forecast: it knows no sizes, only that more layers on a device, more bits, a longer context
or larger batches never need less. It serves where no forecast is at hand or where the forecast errs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sweeper.model.ggml_types import CACHE_BITS, FILE_BITS_PER_WEIGHT
from sweeper.parameters import TUNABLES, Configuration, Tunable, clamped

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

# How sure the order is before anything confirms it, as counts: nine in ten.
CONFIRMED, REFUTED = 9.0, 1.0
# A trial that ran although the order said it would not weighs this much more than one that confirmed it,
# since what is taken for impossible is seldom tried.
REFUTATION_WEIGHT = 4.0
UNKNOWN_BITS = 16.0
ALL_LAYERS = 10_000  # more than any model has
_DEMANDING = tuple(tunable for tunable in TUNABLES.values() if tunable.memory)


class MemoryOrder:
    """Probability that configurations fit, from what ran and what ran out of memory.

    Layers on the GPU count upward for the GPU's memory and downward for the host's. Which of the two was
    short is not known, so both orders are kept, each as trustworthy as the trials found it.
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
        self._np = np

    def probability(self, configurations: Sequence[Configuration]) -> Array:
        """That each of ``configurations`` fits (n,), as far as the order says anything; else 1."""
        result: Array = self._np.ones(len(configurations))
        for sign, short, trust in self._orders:
            implied = _reaches(_demands(configurations, sign), short).any(1)
            result = result * self._np.where(implied, 1.0 - trust, 1.0)
        return result


def _demands(configurations: Sequence[Configuration], sign: float) -> Array:
    rows = [[_demand(tunable, c, sign) for tunable in _DEMANDING] for c in configurations]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(_DEMANDING))


def _demand(tunable: Tunable, configuration: Configuration, sign: float) -> float:
    """How much memory the value asks for, in an order of its own: bits of a type, else the number itself."""
    value = clamped(tunable.name, configuration)
    if tunable.kind == "word":
        size = {**FILE_BITS_PER_WEIGHT, **CACHE_BITS}.get(value or "", UNKNOWN_BITS)
    else:
        size = float(value if value >= 0 else ALL_LAYERS)
    return size * {"more": 1.0, "less": -1.0, "device": sign, "host": -sign}[tunable.memory or "more"]


def _reaches(demands: Array, short: Array) -> npt.NDArray[np.bool_]:
    """(n, m): whether demand i is in every respect at least that of the failure j."""
    result: npt.NDArray[np.bool_] = np.all(demands[:, None, :] >= short[None, :, :], axis=2)
    return result
