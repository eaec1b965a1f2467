"""The Pareto front: dominance that allows for noise, and hypervolume.

All functions are pure. Points of plain numbers are *oriented*: more is better in each coordinate, so minimised metrics
have the opposite sign.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sweeper.records import Objective, Reading, TrialRecord

Point = Sequence[float]
# The distance of the reference from the worst point of a front, as a share of the front's range. Without this distance,
# the ends of the front would add nothing to the hypervolume.
REFERENCE_MARGIN = 0.1
# If half an interval is more than this share of the median, another program ran, and comparisons are meaningless.
TOO_NOISY = 0.5


def oriented(trial: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The trial's medians, oriented so that more is better. Raises KeyError if a metric is missing."""
    return tuple(orient(trial.metrics[o.metric], o).value for o in objectives)


def tied(a: TrialRecord, b: TrialRecord, objectives: Sequence[Objective]) -> bool:
    """Whether noise hides every difference between the two."""
    return all(within_noise(a.metrics[o.metric], b.metrics[o.metric]) for o in objectives)


def front(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, remeasured_only: bool = False
) -> tuple[int, ...]:
    """Numbers of the trials on the front, best in the first objective first.

    A trial leaves the front only if another trial dominates it beyond noise. A trial that is worse by less than noise
    stays, and is :func:`tied` with it. The front excludes trials that are infeasible or lack
    an objective's metric, and with ``remeasured_only`` those that were measured once.
    """
    candidates = [
        (trial.number, sides_of(trial, objectives))
        for trial in trials
        if trial.feasible
        and (trial.remeasured or not remeasured_only)
        and all(o.metric in trial.metrics for o in objectives)
    ]
    kept = [
        (number, sides)
        for number, sides in candidates
        if not any(dominates(other, sides, beyond_noise=True) for _, other in candidates)
    ]
    kept.sort(key=lambda item: (tuple(-side.value for side in item[1]), item[0]))
    return tuple(number for number, _ in kept)


@dataclass(frozen=True, slots=True)
class Side:
    """An oriented reading: its value, and how much worse or better the true value may be."""

    value: float
    down: float
    up: float


def orient(reading: Reading, objective: Objective) -> Side:
    """Orient a reading and its interval so that more is better."""
    below, above = reading.median - reading.low, reading.high - reading.median
    if objective.direction == "maximize":
        return Side(reading.median, below, above)
    return Side(-reading.median, above, below)


def sides_of(trial: TrialRecord, objectives: Sequence[Objective]) -> tuple[Side, ...]:
    """The trial's readings in every objective, oriented."""
    return tuple(orient(trial.metrics[o.metric], o) for o in objectives)


def clearly_better(a: Side, b: Side) -> bool:
    """Whether ``a`` is better than ``b`` by more than the noise of both.

    That is the root of the summed squares of the two half-widths that face each other. A reading with one repeat has
    no width and counts as exact.
    """
    return a.value - b.value > math.hypot(a.down, b.up)


def dominates(a: Sequence[Side], b: Sequence[Side], *, beyond_noise: bool = False) -> bool:
    """Whether ``a`` is at least as good in every objective, by the medians, and better in one."""
    pairs = list(zip(a, b, strict=True))
    if any(x.value < y.value for x, y in pairs):
        return False
    return any(clearly_better(x, y) if beyond_noise else x.value > y.value for x, y in pairs)


def too_noisy(reading: Reading) -> bool:
    """Whether noise hides everything but the order of magnitude, so that a percentage would be meaningless."""
    return wider_half(reading) > TOO_NOISY * abs(reading.median)


def overlap(a: Reading, b: Reading) -> bool:
    """Whether the two intervals overlap, as a report shows them: with the wider half on both sides.

    A report never shows such a difference as a gain or a loss.
    """
    return abs(a.median - b.median) <= wider_half(a) + wider_half(b)


def wider_half(reading: Reading) -> float:
    """The wider half of a reading's interval, in the metric's unit."""
    return max(reading.high - reading.median, reading.median - reading.low)


def within_noise(a: Reading, b: Reading) -> bool:
    """Whether noise hides the difference between two readings."""
    more = Objective("", "maximize")
    x, y = orient(a, more), orient(b, more)
    return not (clearly_better(x, y) or clearly_better(y, x))


def undominated(points: Sequence[Point]) -> tuple[int, ...]:
    """Indices of the oriented points that no other point dominates. Of equal points, only the first counts."""
    kept: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: tuple(-x for x in points[i])):
        # In this order, no later point can dominate a point that was kept before.
        if not any(all(k >= x for k, x in zip(points[i], points[index], strict=True)) for i in kept):
            kept.append(index)
    return tuple(sorted(kept))


def reference_point(points: Sequence[Point], margin: float = REFERENCE_MARGIN) -> tuple[float, ...]:
    """A reference behind all oriented ``points``: their worst values, minus ``margin`` of their range.

    Pass the points of a front. With all measured points, points that nobody wants would dominate the hypervolume. A
    coordinate without range moves back by ``margin`` of its size.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError("a reference needs at least one point")
    reference = []
    for column in zip(*points, strict=True):
        worst, spread = min(column), max(column) - min(column)
        reference.append(worst - margin * (spread or abs(worst) or 1.0))
    return tuple(reference)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The exact volume that oriented ``points`` dominate above ``reference``, in 1, 2 or 3 dimensions.

    Points that are not above the reference in every coordinate add nothing. Adding a point never lowers the volume. Its
    unit is the product of the coordinates' units.

    Raises:
        ValueError: the number of dimensions is different, or a coordinate is not a finite number.
    """
    if not 1 <= len(reference) <= 3:
        raise ValueError("a hypervolume is computed for one, two or three objectives")
    above = [tuple(x - r for x, r in zip(point, reference, strict=True)) for point in points]
    if not all(math.isfinite(x) for point in above for x in point):
        raise ValueError("a coordinate is not a finite number")
    # A dimension that is missing has size 1. Slices from the top: between two heights, the dominated area is the area
    # of all points above.
    whole = [(*point, 1.0, 1.0)[:3] for point in above if min(point) > 0]
    whole.sort(key=lambda point: -point[2])
    floors = [*(z for _, _, z in whole[1:]), 0.0]
    stairs, slices = _Stairs(), []
    for (x, y, z), floor in zip(whole, floors, strict=False):  # without points, one floor remains
        stairs.add(x, y)
        if z > floor:
            slices.append(stairs.area() * (z - floor))
    return math.fsum(slices)


class _Stairs:
    """The undominated points of a plane, sorted by rising x and falling y."""

    def __init__(self) -> None:
        self.xs: list[float] = []
        self.ys: list[float] = []

    def add(self, x: float, y: float) -> None:
        at = bisect.bisect_left(self.xs, x)
        if at < len(self.xs) and self.ys[at] >= y:
            return  # another point dominates it
        end = at + 1 if at < len(self.xs) and self.xs[at] == x else at
        start = at
        while start > 0 and self.ys[start - 1] <= y:
            start -= 1
        self.xs[start:end] = [x]
        self.ys[start:end] = [y]

    def area(self) -> float:
        steps = zip([0.0, *self.xs], self.xs, self.ys, strict=False)  # one left edge more than stairs
        return math.fsum((x - left) * y for left, x, y in steps)
