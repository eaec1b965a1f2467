"""Early stop: a trial ends early if another trial beats it in every objective beyond noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sweeper.records import Constraint, Objective, Reading, TrialRecord
from sweeper.stats import deviation_of

# Earlier trials show how large the noise is; fewer trials show too little.
LEAST_TRIALS = 4
# Two measurements that are this many standard deviations apart are no near-tie. By chance, fewer than 2 in 1,000 are
# so far apart in one objective, and early stop requires the distance in every objective.
APART = 3.0
# Repeats within one trial agree better than measurements of the same configuration an hour apart.
LEAST_NOISE = 0.02


class EarlyStop:
    """Learns from finished trials, and decides whether the current trial can still win.

    Args:
        objectives: the objectives of the sweep.
        constraints: a trial that breaks one of these beats no other trial.
    """

    def __init__(self, objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> None:
        self._objectives, self._constraints = tuple(objectives), tuple(constraints)
        self._finished: list[Mapping[str, Reading]] = []
        self._beaters: list[Mapping[str, Reading]] = []

    def learn(self, trial: TrialRecord) -> None:
        """Learn from a finished trial."""
        if trial.state != "complete" or any(o.metric not in trial.metrics for o in self._objectives):
            return
        self._finished.append(trial.metrics)
        if trial.feasible:
            self._beaters.append(trial.metrics)

    def hopeless(self, metrics: Mapping[str, Reading]) -> bool:
        """Whether some trial is better in every objective beyond noise; False after too few trials."""
        if len(self._finished) < LEAST_TRIALS or any(o.metric not in metrics for o in self._objectives):
            return False
        noise = {o.metric: self._noise(o.metric) for o in self._objectives}
        return any(self._beats(other, metrics, noise) for other in self._beaters)

    def _noise(self, metric: str) -> float:
        """Relative deviation of one repeat; 0 for a metric without noise, such as the context length."""
        squares, freedom = 0.0, 0
        for metrics in self._finished:
            reading = metrics[metric]
            deviation = deviation_of(reading)
            if deviation is not None and reading.median:
                squares += (reading.n - 1) * (deviation / reading.median) ** 2
                freedom += reading.n - 1
        return max(LEAST_NOISE, math.sqrt(squares / freedom)) if freedom else 0.0

    def _beats(
        self, other: Mapping[str, Reading], metrics: Mapping[str, Reading], noise: Mapping[str, float]
    ) -> bool:
        strictly = False
        for objective in self._objectives:
            sign = 1.0 if objective.direction == "maximize" else -1.0
            theirs, ours = other[objective.metric], metrics[objective.metric]
            ahead = sign * (theirs.median - ours.median)
            size = max(abs(theirs.median), abs(ours.median))
            margin = APART * noise[objective.metric] * size * math.sqrt(1 / theirs.n + 1 / ours.n)
            if ahead < margin:
                return False
            strictly = strictly or ahead > 0
        return strictly
