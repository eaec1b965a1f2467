"""What an earlier sweep on this machine measured, as further data of a new sweep's model.

Another model moves every figure, but much of what a setting does to it stays. So the earlier trials join the new
ones in one Gaussian process with a feature that tells the two sweeps apart: where they go together the earlier ones
count nearly in full, where they do not the feature's length scale takes them away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sweeper.records import Configuration
from sweeper.search.encoding import Encoder
from sweeper.search.gaussian_process import GaussianProcess, fit, starting_hyper

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

# What the earlier sweep leads to expect of the new trials must go with them at least so well.
LEAST_CORRELATION = 0.9
EARLIER, NOW = 0.25, 0.75

Measured = Sequence[tuple[Configuration, tuple[float, ...]]]
"""Configurations of the new space, each with the earlier sweep's objectives as they were measured."""

# Fewer trials taught the earlier sweep too little to hand on.
LEAST_TRIALS = 10
# What the earlier sweep's figures scatter by, relative to their range of logarithms: they are a first guess only.
RELATIVE_NOISE = 0.1


class Prior:
    """The earlier trials of each objective, as logarithms that grow with what is better.

    Args:
        encode: of the new space.
        measured: the earlier trials; at least `LEAST_TRIALS`.
        maximized: for each objective whether more is better.
    """

    def __init__(self, encode: Encoder, measured: Measured, maximized: Sequence[bool]) -> None:
        self.features = encode([configuration for configuration, _ in measured])
        self._models: list[GaussianProcess | None] = []
        self._logarithms: list[Array] = []
        for k, more in enumerate(maximized):
            values = np.array([objectives[k] for _, objectives in measured])
            if not (values > 0).all():
                self._models.append(None)
                self._logarithms.append(values)
                continue
            logarithms = np.log(values) * (1.0 if more else -1.0)
            start = starting_hyper(self.features.shape[1], RELATIVE_NOISE)
            hyper = fit(self.features, logarithms, start, RELATIVE_NOISE)
            self._models.append(GaussianProcess(self.features, logarithms, hyper))
            self._logarithms.append(logarithms)

    def joined(self, objective: int, features: Array, logarithms: Array) -> tuple[Array, Array] | None:
        """Features (k + n, d + 1) and values of both sweeps, the new one's last; None where they do not go together.

        The earlier values are moved by the median difference between the sweeps, where both speak.
        """
        model = self._models[objective]
        if model is None:
            return None
        expected, _ = model.predict(features)
        if not _go_together(expected, logarithms):
            return None
        offset = float(np.median(logarithms - expected))
        both = np.vstack([of_sweep(self.features, EARLIER), of_sweep(features, NOW)])
        return both, np.concatenate([self._logarithms[objective] + offset, logarithms])


def _go_together(expected: Array, found: Array) -> bool:
    if len(found) < 3 or expected.std() == 0 or found.std() == 0:
        return False
    return float(np.corrcoef(expected, found)[0, 1]) >= LEAST_CORRELATION


def of_sweep(features: Array, which: float) -> Array:
    """The features with one more, which says of which sweep they are: `EARLIER` or `NOW`."""
    return np.hstack([features, np.full((len(features), 1), which)])
