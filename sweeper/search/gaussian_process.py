"""A small exact Gaussian process: Matérn 5/2, a length scale for each feature, noise learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

SQRT5 = math.sqrt(5.0)
JITTER = 1e-8
# Hyperparameters are fitted on at most this many points; more would cost seconds and change little.
MOST_FITTED = 120
FIT_STEPS = 30
# Much shorter makes every unseen combination look like a chance, much longer takes a parameter for idle that
# only matters elsewhere (threads, where all layers are on the GPU): seen in searches on simulated machines.
EXPECTED_LOG_LENGTH = math.log(1.0)
LOG_LENGTH_WIDTH = 1.2


@dataclass(frozen=True, slots=True)
class Hyper:
    """Logarithms of the length scales and of the standard deviations of signal and noise (standardised)."""

    log_lengths: Array
    log_signal: float
    log_noise: float

    def packed(self) -> Array:
        """As one vector, for the optimiser."""
        import numpy as np

        return np.concatenate([self.log_lengths, [self.log_signal, self.log_noise]])

    @classmethod
    def unpacked(cls, vector: Array) -> Hyper:
        """The inverse of `packed`."""
        return cls(vector[:-2].copy(), float(vector[-2]), float(vector[-1]))


def starting_hyper(dimensions: int, relative_noise: float) -> Hyper:
    """Where a fit begins: effects wider than a parameter's range."""
    import numpy as np

    return Hyper(np.full(dimensions, EXPECTED_LOG_LENGTH), 0.0, math.log(relative_noise))


def correlation(a: Array, b: Array, log_lengths: Array) -> Array:
    """Matérn 5/2 correlation of each row of ``a`` (n, d) with each row of ``b`` (m, d): (n, m)."""
    import numpy as np

    inverse = np.exp(-log_lengths)
    x, y = a * inverse, b * inverse
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2.0 * (x @ y.T)
    scaled = SQRT5 * np.sqrt(np.maximum(squared, 0.0))
    result: Array = (1.0 + scaled + scaled * scaled / 3.0) * np.exp(-scaled)
    return result


class GaussianProcess:
    """Posterior of one objective over encoded configurations.

    Args:
        features: (n, d), each about 0 to 1.
        values: (n,), in the objective's own (transformed) unit.
        hyper: hyperparameters, for standardised values.
    """

    def __init__(self, features: Array, values: Array, hyper: Hyper) -> None:
        import numpy as np
        from scipy.linalg import cho_factor, cho_solve

        self.features, self.hyper = features, hyper
        self.mean, self.scale = standard(values)
        self._signal = math.exp(2 * hyper.log_signal)
        covariance = self._signal * correlation(features, features, hyper.log_lengths)
        covariance[np.diag_indices_from(covariance)] += math.exp(2 * hyper.log_noise) + JITTER
        self._factor: Any = cho_factor(covariance, lower=True, check_finite=False)
        self._weights: Array = cho_solve(self._factor, (values - self.mean) / self.scale, check_finite=False)

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (m,) of the noise-free objective at each row of ``features`` (m, d)."""
        import numpy as np
        from scipy.linalg import solve_triangular

        cross = self._signal * correlation(self.features, features, self.hyper.log_lengths)
        mean = cross.T @ self._weights
        solved = solve_triangular(self._factor[0], cross, lower=True, check_finite=False)
        variance = np.maximum(self._signal - (solved * solved).sum(0), 1e-10)
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
    """Hyperparameters of the greatest posterior density, from ``start``.

    Weak priors keep them sensible with few points: length scales around a whole range, signal around the
    values' own spread, noise around ``relative_noise`` (standard deviation over the values' spread).
    """
    import numpy as np
    from scipy.optimize import minimize

    features, values = features[-MOST_FITTED:], values[-MOST_FITTED:]
    mean, scale = standard(values)
    problem = _Problem(features, (values - mean) / scale, math.log(relative_noise))
    count = features.shape[1]
    bounds = [(math.log(0.05), math.log(20.0))] * count + [(math.log(0.2), math.log(5.0))]
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
        self._expected_noise = log_noise_expected

    def __call__(self, vector: Array) -> tuple[float, Array]:
        import numpy as np
        from scipy.linalg import cho_factor, cho_solve

        hyper = Hyper.unpacked(vector)
        count, inverse = len(self._values), np.exp(-2 * hyper.log_lengths)
        scaled = SQRT5 * np.sqrt(self._squares @ inverse)
        decay = np.exp(-scaled)
        signal, noise = math.exp(2 * hyper.log_signal), math.exp(2 * hyper.log_noise)
        kernel = signal * (1 + scaled + scaled * scaled / 3) * decay
        covariance = kernel + (noise + JITTER) * np.eye(count)
        try:
            factor = cho_factor(covariance, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(vector)
        weights = cho_solve(factor, self._values, check_finite=False)
        pull = cho_solve(factor, np.eye(count), check_finite=False) - np.outer(weights, weights)
        slope = signal * (5.0 / 3.0) * (1 + scaled) * decay  # d kernel / d log length, over square / length²
        by_length = 0.5 * np.tensordot(pull * slope, self._squares, axes=2) * inverse
        gradient = np.concatenate([by_length, [(pull * kernel).sum(), noise * np.trace(pull)]])
        value = 0.5 * float(self._values @ weights) + float(np.log(np.diag(factor[0])).sum())
        centre = np.concatenate([np.full(len(by_length), EXPECTED_LOG_LENGTH), [0.0, self._expected_noise]])
        width = np.concatenate([np.full(len(by_length), LOG_LENGTH_WIDTH), [0.7, 0.5]])
        off = (vector - centre) / width
        return value + 0.5 * float(off @ off), gradient + off / width
