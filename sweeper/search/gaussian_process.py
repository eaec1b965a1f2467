"""A small exact Gaussian process: a straight line plus Matérn 5/2, one length scale for each feature, learned noise.

The logarithm of a speed is nearly the sum of the effects of single parameters. The line learns this sum from few and
noisy trials, wherever they lie. The Matérn part models the rest, near the measured points.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SQRT5 = math.sqrt(5.0)
JITTER = 1e-8
# Hyperparameters are fitted on at most this many points; more would take seconds and change little.
MOST_FITTED = 120
FIT_STEPS = 30
# A much shorter length makes every unmeasured combination look promising. A much longer one hides the effect of a
# parameter that matters only elsewhere (threads, if all layers are on the GPU). Searches on simulated machines showed
# both.
EXPECTED_LOG_LENGTH = math.log(1.0)
LOG_LENGTH_WIDTH = 1.2
# Prior deviation of a slope over a whole range, in standard deviations of the values.
EXPECTED_LOG_LINEAR = math.log(0.3)
LOG_LINEAR_WIDTH = 0.7
EXPECTED_LOG_SIGNAL = math.log(0.9)  # of the part that the line does not explain


@dataclass(frozen=True, slots=True)
class Hyper:
    """Logarithms of the length scales and of the deviations of slopes, signal and noise (standardised)."""

    log_lengths: Array
    log_signal: float
    log_noise: float
    log_linear: float = EXPECTED_LOG_LINEAR

    def packed(self) -> Array:
        """All hyperparameters as one vector, for the optimiser."""
        return np.concatenate([self.log_lengths, [self.log_linear, self.log_signal, self.log_noise]])

    @classmethod
    def unpacked(cls, vector: Array) -> Hyper:
        """The inverse of `packed`."""
        return cls(vector[:-3].copy(), float(vector[-2]), float(vector[-1]), float(vector[-3]))


def starting_hyper(dimensions: int, relative_noise: float) -> Hyper:
    """The start of a fit: effects wider than a parameter's range."""
    return Hyper(np.full(dimensions, EXPECTED_LOG_LENGTH), 0.0, math.log(relative_noise))


def correlation(a: Array, b: Array, log_lengths: Array) -> Array:
    """Matérn 5/2 correlation of each row of ``a`` (n, d) with each row of ``b`` (m, d): (n, m)."""
    inverse = np.exp(-log_lengths)
    x, y = a * inverse, b * inverse
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2.0 * (x @ y.T)
    scaled = SQRT5 * np.sqrt(np.maximum(squared, 0.0))
    result: Array = (1.0 + scaled + scaled * scaled / 3.0) * np.exp(-scaled)
    return result


def line(a: Array, b: Array) -> Array:
    """Covariance of straight lines with unit slopes, between the rows of ``a`` and of ``b``, about the middle."""
    return (a - 0.5) @ (b - 0.5).T


class GaussianProcess:
    """Posterior of one objective over encoded configurations.

    Args:
        features: (n, d), each between about 0 and 1.
        values: (n,), in the objective's own (transformed) unit.
        hyper: hyperparameters, for standardised values.
    """

    def __init__(self, features: Array, values: Array, hyper: Hyper) -> None:
        from scipy.linalg import cho_factor, cho_solve

        self.features, self.hyper = features, hyper
        self.mean, self.scale = standard(values)
        self._signal = math.exp(2 * hyper.log_signal)
        self._linear = math.exp(2 * hyper.log_linear)
        covariance = self._covariance(features)
        covariance[np.diag_indices_from(covariance)] += math.exp(2 * hyper.log_noise) + JITTER
        self._factor: Any = cho_factor(covariance, lower=True, check_finite=False)
        self._weights: Array = cho_solve(self._factor, (values - self.mean) / self.scale, check_finite=False)

    def _covariance(self, features: Array) -> Array:
        local = self._signal * correlation(self.features, features, self.hyper.log_lengths)
        return local + self._linear * line(self.features, features)

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (m,) of the noise-free objective at each row of ``features`` (m, d)."""
        from scipy.linalg import solve_triangular

        cross = self._covariance(features)
        mean = cross.T @ self._weights
        solved = solve_triangular(self._factor[0], cross, lower=True, check_finite=False)
        own = self._signal + self._linear * ((features - 0.5) ** 2).sum(1)
        variance = np.maximum(own - (solved * solved).sum(0), 1e-10)
        return self.mean + self.scale * mean, self.scale * np.sqrt(variance)

    @property
    def noise(self) -> float:
        """Standard deviation of one measurement, in the values' unit."""
        return self.scale * math.exp(self.hyper.log_noise)


def standard(values: Array) -> tuple[float, float]:
    """Mean and standard deviation of ``values``, the latter never 0."""
    spread = float(values.std())
    return float(values.mean()), spread if spread > 1e-9 else 1.0


def fit(features: Array, values: Array, start: Hyper, relative_noise: float) -> Hyper:
    """Find the hyperparameters with the greatest posterior density, beginning at ``start``.

    With few points, weak priors keep them sensible: length scales around a whole range, signal around the values' own
    spread, noise around ``relative_noise`` (standard deviation over the values' spread).
    """
    from scipy.optimize import minimize

    features, values = features[-MOST_FITTED:], values[-MOST_FITTED:]
    mean, scale = standard(values)
    problem = _Problem(features, (values - mean) / scale, math.log(relative_noise))
    count = features.shape[1]
    bounds = [(math.log(0.05), math.log(20.0))] * count
    bounds += [(math.log(0.01), math.log(5.0)), (math.log(0.05), math.log(5.0))]
    bounds.append((math.log(relative_noise) - 1.5, max(math.log(relative_noise) + 1.5, math.log(0.3))))
    low, high = np.array(bounds).T
    found = minimize(
        problem,
        np.clip(start.packed(), low, high),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": FIT_STEPS},
    )
    return Hyper.unpacked(np.asarray(found.x))


class _Problem:
    """Negative log posterior of the hyperparameters and its gradient."""

    def __init__(self, features: Array, values: Array, log_noise_expected: float) -> None:
        self._values = values
        self._squares = (features[:, None, :] - features[None, :, :]) ** 2  # (n, n, d)
        self._line = line(features, features)
        self._expected_noise = log_noise_expected

    def __call__(self, vector: Array) -> tuple[float, Array]:
        from scipy.linalg import cho_factor, cho_solve

        hyper = Hyper.unpacked(vector)
        count, inverse = len(self._values), np.exp(-2 * hyper.log_lengths)
        scaled = SQRT5 * np.sqrt(self._squares @ inverse)
        decay = np.exp(-scaled)
        signal, noise = math.exp(2 * hyper.log_signal), math.exp(2 * hyper.log_noise)
        kernel = signal * (1 + scaled + scaled * scaled / 3) * decay
        straight = math.exp(2 * hyper.log_linear) * self._line
        covariance = kernel + straight + (noise + JITTER) * np.eye(count)
        try:
            factor = cho_factor(covariance, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(vector)
        weights = cho_solve(factor, self._values, check_finite=False)
        pull = cho_solve(factor, np.eye(count), check_finite=False) - np.outer(weights, weights)
        slope = signal * (5.0 / 3.0) * (1 + scaled) * decay  # d kernel / d log length, over square / length²
        by_length = 0.5 * np.tensordot(pull * slope, self._squares, axes=2) * inverse
        of_sizes = [(pull * straight).sum(), (pull * kernel).sum(), noise * np.trace(pull)]
        gradient = np.concatenate([by_length, of_sizes])
        value = 0.5 * float(self._values @ weights) + float(np.log(np.diag(factor[0])).sum())
        lengths = np.full(len(by_length), EXPECTED_LOG_LENGTH)
        centre = np.concatenate([lengths, [EXPECTED_LOG_LINEAR, EXPECTED_LOG_SIGNAL, self._expected_noise]])
        widths = np.full(len(by_length), LOG_LENGTH_WIDTH)
        width = np.concatenate([widths, [LOG_LINEAR_WIDTH, 0.7, 0.5]])
        off = (vector - centre) / width
        return value + 0.5 * float(off @ off), gradient + off / width


def one_thread() -> AbstractContextManager[object]:
    """In this block, BLAS uses one thread. For small matrices, starting a second one costs more than it saves."""
    limited: AbstractContextManager[object] = _threadpools().limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _threadpools() -> Any:
    import scipy.linalg  # noqa: F401 - only loaded libraries can be limited
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
