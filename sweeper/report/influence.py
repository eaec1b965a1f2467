"""How much each parameter, by itself, has to do with each objective. Pure.

The measure is epsilon squared: the share of an objective's spread (of its logarithm, so that ratios count)
that lies between the groups of trials with different values of the parameter, less what groups of that
number would show by chance. It needs no model, is 0 for a parameter that does nothing, and takes what was
tried as it was tried: it knows nothing of combinations, and a search that tried few values of a parameter,
or only together with others, limits what can be seen. Shares need not add up to 1.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median, pvariance, quantiles, variance
from typing import Any

from sweeper.records import SweepRecord
from sweeper.report.words import searched

LEAST_TRIALS = 12  # with fewer, chance alone gives shares that look like something
MOST_GROUPS = 5  # numeric parameters with more values are cut into groups of about equal size
MATTERS = 1.05  # a smaller ratio than this matters to nobody
NORMAL_95 = 1.96
MOST_HIDDEN = 10.0  # in logarithms; anything near it is hopeless, and more would overflow
LEAST_SPREAD = 1e-9  # in squared logarithms; below this nothing moved the objective at all
VISIBLE_SHARE = 0.05  # report.html folds away a parameter with smaller shares
NO_EFFECT = "no visible effect"
TOO_NOISY_TO_SAY = "too noisy to say"


@dataclass(frozen=True, slots=True)
class Range:
    """A range of neighbouring numbers, by its place."""

    place: int


@dataclass(frozen=True, slots=True)
class Influence:
    """One parameter's influence on one metric: its share (0 to 1) and the group medians' largest ratio.

    ``hidden`` is the ratio up to which a difference between two groups of usual size may be chance alone.
    """

    parameter: str
    metric: str
    share: float
    ratio: float
    points: tuple[tuple[Any, float], ...]  # (value, metric's median) of each trial that counts
    hidden: float = 1.0

    @property
    def says_nothing(self) -> bool:
        """Whether even an effect that matters could hide in the spread of trials with the same value."""
        return self.hidden > MATTERS


def influences(record: SweepRecord) -> tuple[tuple[Influence, ...], ...]:
    """For each searched parameter its influence on each objective; the most telling parameter first.

    Empty where fewer than ``LEAST_TRIALS`` trials gave figures.
    """
    metrics = [objective.metric for objective in record.objectives]
    rows = []
    for parameter in searched(record):
        found = [one for metric in metrics if (one := influence(record, parameter, metric)) is not None]
        if len(found) == len(metrics):
            rows.append(tuple(found))
    return tuple(sorted(rows, key=lambda row: -max(one.share for one in row)))


def influence(record: SweepRecord, parameter: str, metric: str) -> Influence | None:
    """One parameter's influence on one metric, or None where too little was tried to say."""
    points = tuple(
        (t.configuration.to_dict()[parameter], t.metrics[metric].median)
        for t in record.trials
        if metric in t.metrics and t.metrics[metric].median > 0
    )
    groups = _groups(points)
    if len(points) < LEAST_TRIALS or len(groups) < 2 or len(points) <= len(groups):
        return None
    medians = [math.exp(median(group)) for group in groups]
    size = len(points) / len(groups)
    hidden = math.exp(min(NORMAL_95 * math.sqrt(2 * _within(groups) / size), MOST_HIDDEN))
    return Influence(parameter, metric, _epsilon_squared(groups), max(medians) / min(medians), points, hidden)


def is_number(value: Any) -> bool:
    """Whether a parameter's value lies on an axis."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _epsilon_squared(groups: Sequence[Sequence[float]]) -> float:
    everything = [value for group in groups for value in group]
    total = variance(everything)
    if total < LEAST_SPREAD:
        return 0.0
    return max(0.0, 1 - _within(groups) / total)


def _within(groups: Sequence[Sequence[float]]) -> float:
    """The variance of logarithms within groups."""
    return sum(pvariance(group) * len(group) for group in groups) / (sum(map(len, groups)) - len(groups))


def _groups(points: Sequence[tuple[Any, float]]) -> list[list[float]]:
    """Logarithms of the metric by the parameter's value, or by groups of neighbouring values."""
    found: dict[Any, list[float]] = {}
    for group, (_, figure) in zip(grouped([value for value, _ in points]), points, strict=True):
        found.setdefault(group, []).append(math.log(figure))
    return list(found.values())


def grouped(values: Sequence[Any], most: int = MOST_GROUPS, apart: Collection[Any] = ()) -> list[Any]:
    """The group of each value: the value itself, or of more than ``most`` numbers a range of neighbours.

    Values of ``apart`` are groups of their own.
    """
    distinct = set(values)
    if len(distinct) <= most or not all(map(is_number, distinct)):
        return list(values)
    edges = quantiles(values, n=most)
    return [value if value in apart else Range(bisect(edges, value)) for value in values]
