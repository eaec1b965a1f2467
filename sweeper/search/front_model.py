"""A model of the front, learned from trials: the objectives, where nothing runs, and the remaining gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeper.records import Configuration
from sweeper.results.front import hypervolume, reference_point, undominated
from sweeper.results.picks import Line
from sweeper.search.encoding import weighted
from sweeper.search.expected_improvement import expected_improvement, free_boxes
from sweeper.search.gaussian_process import Array, GaussianProcess, correlation
from sweeper.search.memory_order import MemoryOrder
from sweeper.search.prior import NOW, of_sweep

# A candidate counts only if it is better than the front by this many standard deviations of one measurement. Without
# this margin, the search re-measures known trials with ignored parameters changed.
LEAST_GAIN_IN_NOISE = 0.5
# The model learns where configurations run from at most this many trials, the latest ones.
MOST_LABELS = 600


@dataclass(frozen=True, slots=True)
class Outlook:
    """The model's expectation at its last proposal, for stopping rules.

    ``gain`` is the expected gain of ``trials`` more trials, as a share of the present hypervolume. ``noise`` is the
    noise of one measurement as a share, in the objective with the most noise.
    """

    trials: int
    gain: float
    noise: float
    finished: int  # number of trials behind it


@dataclass(frozen=True, slots=True)
class ObjectiveModel:
    """A Gaussian process of an oriented objective. ``sign`` is the sign of its logarithm; 0 means no logarithm.

    ``joined`` means that the process contains an earlier sweep's trials, which a last feature separates. ``weights``
    (d,) are the weights of the features, see `Encoder.weights`.
    """

    process: GaussianProcess
    sign: float
    weights: Array
    joined: bool = False

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and deviation of the objective itself (moments of the log-normal)."""
        seen = weighted(features, self.weights)
        mean, deviation = self.process.predict(of_sweep(seen, NOW) if self.joined else seen)
        if self.sign == 0:
            return mean, deviation
        deviation = np.minimum(deviation, 1.0)  # beyond a factor of e, the moments become meaningless
        size = np.exp(self.sign * mean + 0.5 * deviation**2)
        return self.sign * size, size * np.sqrt(np.expm1(deviation**2))


class Breakage:
    """Probability that a configuration runs, learned from configurations that ran and that did not.

    A Gaussian process on labels, linear plus Matérn. Memory grows with nearly every parameter, so configurations
    beyond a failure in the same direction are expected to fail as well, however far away.
    """

    LENGTH, LINEAR, LOCAL, NOISE = 0.6, 1.0, 0.7, 0.1

    def __init__(self, ran: Array, broke: Array) -> None:
        from scipy.linalg import cho_factor, cho_solve

        self._features = np.vstack([ran, broke])[-MOST_LABELS:]
        labels = np.concatenate([np.ones(len(ran)), -np.ones(len(broke))])[-MOST_LABELS:]
        self._lengths = np.full(ran.shape[1], math.log(self.LENGTH))
        covariance = self._kernel(self._features, self._features)
        covariance[np.diag_indices_from(covariance)] += self.NOISE
        self._factor: Any = cho_factor(covariance, lower=True, check_finite=False)
        self._weights: Array = cho_solve(self._factor, labels - 0.5, check_finite=False)

    def _kernel(self, a: Array, b: Array) -> Array:
        local = self.LOCAL * correlation(a, b, self._lengths)
        return local + self.LINEAR * ((a - 0.5) @ (b - 0.5).T)

    def probability(self, features: Array) -> Array:
        """The probability that each row of ``features`` runs, 0 to 1."""
        from scipy.linalg import solve_triangular
        from scipy.special import ndtr

        cross = self._kernel(self._features, features)
        mean = 0.5 + cross.T @ self._weights
        solved = solve_triangular(self._factor[0], cross, lower=True, check_finite=False)
        own = self.LOCAL + self.LINEAR * ((features - 0.5) ** 2).sum(1)
        variance = np.maximum(own - (solved * solved).sum(0), 0.0)
        return np.asarray(ndtr(mean / np.sqrt(0.1 + variance)))


class FrontModel:
    """Everything learned from the trials so far."""

    def __init__(
        self,
        objectives: Sequence[ObjectiveModel],
        constraints: Sequence[GaussianProcess],
        broken: Breakage | None,
        memory: MemoryOrder | None,
        configurations: Sequence[Configuration],
        features: Array,
        feasible: Any,
    ) -> None:
        self._objectives, self._constraints, self._broken = objectives, constraints, broken
        self._memory = memory
        means, _ = self._predict(features)
        usable = [i for i in range(len(configurations)) if feasible[i]] or list(range(len(configurations)))
        points = [tuple(float(x) for x in means[i]) for i in usable]
        best = undominated(points)
        # The front uses the model's means, so a lucky repeat alone does not put a trial on it.
        self.front = [configurations[usable[i]] for i in best]
        self._points = [points[i] for i in best]
        self._usable = np.array(points)
        # The reference is behind the front, but no further than measured, so that its ends count without dominating.
        self._reference = reference_point(self._points if len(best) > 1 else points)
        # Raised by part of one measurement's noise, so that smaller gains do not count.
        raised = [
            tuple(
                x + LEAST_GAIN_IN_NOISE * (o.process.noise if o.sign == 0 else abs(x) * o.process.noise)
                for x, o in zip(point, objectives, strict=True)
            )
            for point in self._points
        ]
        self._boxes = free_boxes(raised, self._reference)

    def _predict(self, features: Array) -> tuple[Array, Array]:
        pairs = [o.predict(features) for o in self._objectives]
        return np.stack([m for m, _ in pairs], axis=1), np.stack([d for _, d in pairs], axis=1)

    def gains(self, features: Array, configurations: Sequence[Configuration]) -> Array:
        """Expected improvement times the probability that the configuration is valid, in the objectives' units."""
        means, deviations = self._predict(features)
        return expected_improvement(means, deviations, self._boxes) * self._feasibility(
            features, configurations
        )

    def gains_of_pick(self, line: Line, features: Array, configurations: Sequence[Configuration]) -> Array:
        """The expected improvement of a pick with this threshold, as a share of the pick's present value.

        This is the expected improvement of the pick's metric, times the probabilities that the configuration reaches
        the threshold and that it is valid. If no trial reaches the threshold yet, it is these probabilities alone.
        """
        from scipy.special import ndtr

        means, deviations = self._predict(features)
        bounded, improved = self._usable[:, line.bounded], self._usable[:, line.improved]
        level = line.level if line.level is not None else (line.share or 0.0) * float(bounded.max())
        reaches = ndtr((means[:, line.bounded] - level) / np.maximum(deviations[:, line.bounded], 1e-12))
        counts: Array = reaches * self._feasibility(features, configurations)
        there = improved[bounded >= level]
        if not len(there):
            return counts
        best = float(there.max())
        mean, deviation = means[:, line.improved], np.maximum(deviations[:, line.improved], 1e-12)
        z = (mean - best) / deviation
        better = (mean - best) * ndtr(z) + deviation * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        result: Array = counts * better / abs(best)
        return result

    def _feasibility(self, features: Array, configurations: Sequence[Configuration]) -> Array:
        from scipy.special import ndtr

        result = np.ones(len(features))
        for constraint in self._constraints:
            mean, deviation = constraint.predict(features)
            result = result * ndtr(-mean / np.hypot(deviation, 1e-9))
        if self._broken is not None:
            result = result * self._broken.probability(features)
        if self._memory is not None:
            result = result * self._memory.probability(configurations)
        return result

    def outlook(self, features: Array, gains: Array, finished: int, trials: int = 20) -> Outlook:
        """The expected gain of ``trials`` more proposals, each of which learns from the ones before it.

        Each proposal reduces the gains of its neighbours, by the correlation in the first objective's model.
        """
        volume = hypervolume(self._points, self._reference)
        left, total = gains.copy(), 0.0
        first = self._objectives[0]
        lengths = first.process.hyper.log_lengths[: features.shape[1]]
        seen = weighted(features, first.weights)
        for _ in range(trials):
            best = int(left.argmax())
            total += float(left[best])
            near = correlation(seen, seen[best : best + 1], lengths)[:, 0]
            left = left * (1.0 - near**2)
        noise = max(o.process.noise if o.sign else 0.0 for o in self._objectives)
        return Outlook(trials, total / volume if volume > 0 else math.inf, float(np.expm1(noise)), finished)
