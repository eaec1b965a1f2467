"""Which trials need not be measured to their end: those that another beats in every objective, beyond noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sweeper.records import Constraint, Objective, Reading, TrialRecord
from sweeper.stats import deviation_of

# Noise is known from the trials before; fewer say too little of it.
LEAST_TRIALS = 4
# So many standard deviations apart, two measurements are no near-tie: fewer than 2 in 1,000 are by chance, in one
# objective, and it must be so in each.
APART = 3.0
# Repeats within one trial agree better than the same configuration an hour later does.
LEAST_NOISE = 0.02


class EarlyStop:
    """Learns from finished trials, and says of one that is being measured whether it can still matter.

    Args:
        objectives: what counts.
        constraints: who breaks one beats nobody.
    """

    def __init__(self, objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> None:
        self._objectives, self._constraints = tuple(objectives), tuple(constraints)
        self._beaters: list[Mapping[str, Reading]] = []
        self._squares = {objective.metric: 0.0 for objective in objectives}
        self._freedom = {objective.metric: 0 for objective in objectives}
        self._trials = 0

    def learn(self, trial: TrialRecord) -> None:
        """Take in a finished trial."""
        if trial.state != "complete" or any(o.metric not in trial.metrics for o in self._objectives):
            return
        self._trials += 1
        for objective in self._objectives:
            reading = trial.metrics[objective.metric]
            deviation = deviation_of(reading)
            if deviation is not None and reading.median:
                weight = reading.n - 1
                self._squares[objective.metric] += weight * (deviation / reading.median) ** 2
                self._freedom[objective.metric] += weight
        if trial.feasible:
            self._beaters.append(trial.metrics)

    def hopeless(self, metrics: Mapping[str, Reading]) -> bool:
        """Whether some trial is better in every objective by more than noise; False while little is known."""
        if self._trials < LEAST_TRIALS or any(o.metric not in metrics for o in self._objectives):
            return False
        noise = {o.metric: self._noise(o.metric) for o in self._objectives}
        return any(self._beats(other, metrics, noise) for other in self._beaters)

    def _noise(self, metric: str) -> float:
        """Relative deviation of one repeat; 0 of a metric that has none, such as a context's length."""
        if not self._freedom[metric]:
            return 0.0
        return max(LEAST_NOISE, math.sqrt(self._squares[metric] / self._freedom[metric]))

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
