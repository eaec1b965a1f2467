"""What an earlier sweep on this machine leads to expect, as the mean that a new model starts from.

Another model moves every figure, but much of what a setting does to it stays: the new sweep's model learns the
difference. Where that explains the new figures no better than a model without it, nothing is taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeper.records import Configuration
from sweeper.search.encoding import Encoder
from sweeper.search.gaussian_process import GaussianProcess, fit, starting_hyper

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

Measured = Sequence[tuple[Configuration, tuple[float, ...]]]
"""Configurations of the new space, each with the earlier sweep's objectives as they were measured."""

# Fewer trials taught the earlier sweep too little to hand on.
LEAST_TRIALS = 10
# What the earlier sweep's figures scatter by, relative to their range of logarithms: they are a first guess only.
RELATIVE_NOISE = 0.1


class Prior:
    """The logarithm of each objective, oriented, as an earlier sweep's trials let a model expect it.

    Args:
        encode: of the new space.
        measured: the earlier trials; at least `LEAST_TRIALS`.
        maximized: for each objective whether more is better.
    """

    def __init__(self, encode: Encoder, measured: Measured, maximized: Sequence[bool]) -> None:
        import numpy as np

        features = encode([configuration for configuration, _ in measured])
        self._models: list[GaussianProcess | None] = []
        for k, more in enumerate(maximized):
            values = np.array([objectives[k] for _, objectives in measured])
            if not (values > 0).all():
                self._models.append(None)
                continue
            logarithms = np.log(values) * (1.0 if more else -1.0)
            hyper = fit(
                features, logarithms, starting_hyper(features.shape[1], RELATIVE_NOISE), RELATIVE_NOISE
            )
            self._models.append(GaussianProcess(features, logarithms, hyper))

    def of(self, objective: int) -> GaussianProcess | None:
        """The model of ``objective``; None where its values have no logarithm."""
        return self._models[objective]
