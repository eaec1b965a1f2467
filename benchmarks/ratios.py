"""The ratio of two series of repeats, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sweeper import stats
from sweeper.records import Reading


def ratio_of(numerator: Sequence[float], denominator: Sequence[float]) -> Reading:
    """The ratio of two medians with its 95 % bootstrap interval. ``n`` is the smaller number of repeats."""
    rng = np.random.default_rng(stats.SEED)
    above, below = (
        np.median(rng.choice(series, (stats.RESAMPLES, len(series))), axis=1)
        for series in (numerator, denominator)
    )
    low, high = np.percentile(above / below, [2.5, 97.5])
    centre = stats.median(numerator) / stats.median(denominator)
    return Reading(centre, min(low, centre), max(high, centre), min(len(numerator), len(denominator)))
