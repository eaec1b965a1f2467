"""Adds an earlier sweep's measurements on this machine to a new sweep's model.

Another model changes every figure, but settings keep much of their relative effect. The earlier trials therefore join
the new ones in one Gaussian process, and a feature separates the two sweeps. If the sweeps agree, the earlier trials
count almost fully. If they disagree, the feature's length scale removes their influence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sweeper.records import Configuration
from sweeper.search.encoding import Encoder
from sweeper.search.gaussian_process import Array, GaussianProcess, fit, starting_hyper

# The earlier sweep's predictions of the new trials must correlate with the results at least this well.
LEAST_CORRELATION = 0.9
EARLIER, NOW = 0.25, 0.75

Measured = Sequence[tuple[Configuration, tuple[float, ...]]]
"""Configurations of the new space, each with the objectives that the earlier sweep measured."""

# An earlier sweep with fewer trials has too little to pass on.
LEAST_TRIALS = 10
# The assumed scatter of the earlier figures, relative to the range of their logarithms; they are only a first guess.
RELATIVE_NOISE = 0.1


class Prior:
    """The earlier trials of each objective, as logarithms that grow with better values.

    Args:
        encode: the encoder of the new space.
        measured: the earlier trials; at least `LEAST_TRIALS`.
        maximized: for each objective, whether more is better.
    """

    def __init__(self, encode: Encoder, measured: Measured, maximized: Sequence[bool]) -> None:
        self.features = encode([configuration for configuration, _ in measured])
        # For each objective with positive values: its model and the logarithms behind it.
        self._models: dict[int, tuple[GaussianProcess, Array]] = {}
        for k, more in enumerate(maximized):
            values = np.array([objectives[k] for _, objectives in measured])
            if (values > 0).all():
                logarithms = np.log(values) * (1.0 if more else -1.0)
                start = starting_hyper(self.features.shape[1], RELATIVE_NOISE)
                hyper = fit(self.features, logarithms, start, RELATIVE_NOISE)
                self._models[k] = GaussianProcess(self.features, logarithms, hyper), logarithms

    def joined(self, objective: int, features: Array, logarithms: Array) -> tuple[Array, Array] | None:
        """Features (k + n, d + 1) and values of both sweeps, the new sweep's last; None if the sweeps disagree.

        The earlier values are shifted by the median difference between the sweeps.
        """
        if objective not in self._models:
            return None
        model, earlier = self._models[objective]
        expected, _ = model.predict(features)
        if len(logarithms) < 3 or expected.std() == 0 or logarithms.std() == 0:
            return None
        if float(np.corrcoef(expected, logarithms)[0, 1]) < LEAST_CORRELATION:
            return None
        offset = float(np.median(logarithms - expected))
        both = np.vstack([of_sweep(self.features, EARLIER), of_sweep(features, NOW)])
        return both, np.concatenate([earlier + offset, logarithms])


def of_sweep(features: Array, which: float) -> Array:
    """The features with one more, which names their sweep: `EARLIER` or `NOW`."""
    return np.hstack([features, np.full((len(features), 1), which)])
