"""Predicts how many seconds a trial takes. Of trials that promise the same gain, the fastest one runs first.

A model that is already loaded saves its load, and a slow configuration takes longer for the same tokens. The prediction
learns both from the trials so far.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweeper.parameters import MODEL_KEYS
from sweeper.records import Configuration
from sweeper.search.gaussian_process import Array

# Fewer trials do not show which parameters make a trial long.
LEAST_TRIALS = 4
# Pulls the slopes towards 0 like this many trials would, because a dozen features are fitted to few trials.
RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class Cost:
    """The time of one finished trial."""

    configuration: Configuration
    seconds: float  # the whole trial
    load_seconds: float | None  # of these, loading the model; None if it was still loaded


class TrialCost:
    """Expected seconds of trials.

    Args:
        costs: the costs of the finished trials, in order; the model of the last one is loaded.
        features: (n, d), of their configurations.
    """

    def __init__(self, costs: Sequence[Cost], features: Array) -> None:
        self._loaded = _model(costs[-1].configuration) if costs else None
        loads = [(c.configuration.quant, c.load_seconds) for c in costs if c.load_seconds is not None]
        self._loads = {
            quant: statistics.median(seconds for q, seconds in loads if q == quant) for quant, _ in loads
        }
        self._any_load = statistics.median(seconds for _, seconds in loads) if loads else 0.0
        self._slopes: Array | None = None
        if len(costs) >= LEAST_TRIALS:
            run = np.array([math.log(max(1e-3, c.seconds - (c.load_seconds or 0.0))) for c in costs])
            self._centre, self._mean = features.mean(0), float(run.mean())
            x = features - self._centre
            self._slopes = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (run - self._mean))
            self._range = float(run.min()), float(run.max())

    def __call__(self, configurations: Sequence[Configuration], features: Array) -> Array:
        """Expected seconds (m,) of ``configurations`` with ``features`` (m, d); all 1 after too few trials."""
        if self._slopes is None:
            return np.ones(len(configurations))
        # Never beyond the observed range, because a straight line through logarithms diverges.
        run = np.exp(np.clip(self._mean + (features - self._centre) @ self._slopes, *self._range))
        loads = [
            0.0 if _model(c) == self._loaded else self._loads.get(c.quant, self._any_load)
            for c in configurations
        ]
        result: Array = run + np.array(loads)
        return result


def _model(configuration: Configuration) -> tuple[object, ...]:
    return tuple(getattr(configuration, key) for key in MODEL_KEYS)
