"""Expected hypervolume improvement, exact for independent normal predictions of up to three objectives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from sweeper.results.front import undominated
from sweeper.search.gaussian_process import Array

# A front of three objectives is thinned to this many points, because the number of boxes grows with its square.
MOST_POINTS_3D = 24


def expected_improvement(means: Array, deviations: Array, boxes: tuple[Array, Array]) -> Array:
    """Expected hypervolume improvement (n,) of predictions ``means`` ± ``deviations`` (n, m), oriented.

    A point adds the part of the free region below it. The expected volume is a sum over the boxes of that region.
    Each box contributes the product, over the objectives, of E[(y - low)+] - E[(y - high)+] (Emmerich, Yang et al.
    2016). The objectives are independent given the model.
    """
    lows, highs = boxes
    total = np.ones((len(means), len(lows)))
    for k in range(means.shape[1]):
        mean, deviation = means[:, k, None], deviations[:, k, None]
        total *= _excess(mean, deviation, lows[None, :, k]) - _excess(mean, deviation, highs[None, :, k])
    result: Array = np.maximum(total, 0.0).sum(1)
    return result


def _excess(mean: Array, deviation: Array, threshold: Array) -> Array:
    """E[(y - threshold)+] of a normal y; 0 at an infinite threshold."""
    from scipy.special import ndtr

    z = (mean - threshold) / deviation
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    with np.errstate(invalid="ignore"):
        excess = (mean - threshold) * ndtr(z) + deviation * density
    return np.where(np.isfinite(threshold), excess, 0.0)


def free_boxes(front: Sequence[Sequence[float]], reference: Sequence[float]) -> tuple[Array, Array]:
    """Disjoint boxes, lows and highs (k, m), of the region above ``reference`` that no point dominates."""
    above = [tuple(p) for p in front if all(x > r for x, r in zip(p, reference, strict=True))]
    points = [above[i] for i in undominated(above)]
    boxes: list[tuple[tuple[float, ...], tuple[float, ...]]]
    if len(reference) == 1:
        best = max((p[0] for p in points), default=reference[0])
        boxes = [((best,), (math.inf,))]
    elif len(reference) == 2:
        boxes = [((a, b), (c, math.inf)) for a, b, c in _strips(points, reference)]
    else:
        boxes = _slices(points, reference)
    return np.array([low for low, _ in boxes]), np.array([high for _, high in boxes])


def _strips(
    points: Sequence[Sequence[float]], reference: Sequence[float]
) -> list[tuple[float, float, float]]:
    """(left, floor, right) of each strip above the staircase, in the first two coordinates."""
    strips, left = [], reference[0]
    for x, y in sorted((p[0], p[1]) for p in points):
        if x > left:
            strips.append((left, y, x))
            left = x
    strips.append((left, reference[1], math.inf))
    return strips


def _slices(
    points: Sequence[tuple[float, ...]], reference: Sequence[float]
) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    if len(points) > MOST_POINTS_3D:
        step = len(points) / MOST_POINTS_3D
        points = [sorted(points)[int(i * step)] for i in range(MOST_POINTS_3D)]
    levels = [reference[2], *sorted({p[2] for p in points}), math.inf]
    boxes: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    for low, high in itertools.pairwise(levels):
        # Between two levels, the points that reach the upper level block the region, as in a plane.
        blocking = [p for p in points if p[2] > low]
        stairs = [blocking[i] for i in undominated([p[:2] for p in blocking])]
        boxes += [((a, b, low), (c, math.inf, high)) for a, b, c in _strips(stairs, reference)]
    return boxes
