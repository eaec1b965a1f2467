"""The ratio of two series of repeats, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sweeper import stats
from sweeper.records import Reading


def ratio_of(numerator: Sequence[float], denominator: Sequence[float]) -> Reading:
    """The ratio of two medians with its 95 % bootstrap interval. ``n`` is the smaller number of repeats."""
    rng = np.random.default_rng(stats.SEED)
    above, below = (rng.choice(series, (stats.RESAMPLES, len(series))) for series in (numerator, denominator))
    return _ratio(numerator, denominator, above, below)


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Reading:
    """The same ratio for series of equal length whose values were measured side by side, repeat by repeat.

    Each resample draws the same repeats for both series, so a machine that drifts from repeat to repeat does not widen
    the interval.
    """
    count = len(numerator)
    if count != len(denominator):
        raise ValueError(f"{count} repeats and {len(denominator)}: pairs need as many of both")
    drawn = np.random.default_rng(stats.SEED).integers(0, count, (stats.RESAMPLES, count))
    above, below = (np.asarray(series)[drawn] for series in (numerator, denominator))
    return _ratio(numerator, denominator, above, below)


def ratio_of_readings(numerator: Reading, denominator: Reading) -> Reading:
    """The ratio of two medians whose repeats are not known any more: their intervals add up as independent errors."""
    centre = numerator.median / denominator.median
    down = math.hypot(1 - numerator.low / numerator.median, denominator.high / denominator.median - 1)
    up = math.hypot(numerator.high / numerator.median - 1, 1 - denominator.low / denominator.median)
    count = min(numerator.n, denominator.n)
    return Reading(centre, centre * (1 - down), centre * (1 + up), count)


def shown(ratio: Reading) -> str:
    """The ratio and its interval in a table."""
    return f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _ratio(numerator: Sequence[float], denominator: Sequence[float], above: object, below: object) -> Reading:
    """The ratio with the interval of the resamples ``above`` and ``below``, each of shape (resamples, repeats)."""
    ratios = np.median(above, axis=1) / np.median(below, axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    centre = stats.median(numerator) / stats.median(denominator)
    return Reading(centre, min(low, centre), max(high, centre), min(len(numerator), len(denominator)))
