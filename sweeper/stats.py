"""Statistics of repeats: median, spread, interval, outliers. All functions are pure.

A benchmark has few repeats, and they are skewed: another program ran, or the first repeat was cold. The median and
its interval therefore describe them, never a mean alone.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sweeper.records import Reading

CONFIDENCE = 0.95
RESAMPLES = 2000  # about 50 resamples then lie beyond each end of a 95 % interval
SEED = 20261123  # a fixed seed, so that the same repeats give the same interval in every report

# A repeat whose modified z-score (distance from the median over the MAD) is above this is an outlier. The threshold is
# ten standard deviations of a normal distribution, as in hyperfine (1.4826 turns a MAD into a deviation).
OUTLIER_THRESHOLD = 1.4826 * 10
# With three repeats, the MAD can be 0 by chance. A distance below 2 % of the median is ordinary noise of inference,
# whatever the MAD is.
LEAST_OUTLIER_FRACTION = 0.02
# With three or four repeats, two may agree by chance and make the third look like an outlier. With a noise of 1.5 %,
# this happens in 6 of 100 sets of three; with three times the distance, in 1 of 1,000.
FEW, FEW_FACTOR = 4, 3.0

NOISY_CV = 0.05  # repeats with at least this coefficient of variation are noisy
STEADY_CV = 0.03  # below this, the warm-up ends

# Student's t at 97.5 % for 2, 3, 4 and 5 repeats. A bootstrap of so few repeats is at most as wide as their range,
# which contains the true median in only 50, 75, 88 and 94 of 100 cases.
_STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def median(values: Sequence[float]) -> float:
    """The median. Raises ValueError if there is no value."""
    _demand_numbers(values)
    return float(statistics.median(values))


def mad(values: Sequence[float]) -> float:
    """The median absolute deviation: the median distance from the median, unscaled, in the unit of ``values``."""
    centre = median(values)
    return float(statistics.median(abs(value - centre) for value in values))


def coefficient_of_variation(values: Sequence[float]) -> float | None:
    """Standard deviation (n - 1) over mean, as a fraction; None below two values or at a mean of 0."""
    _demand_numbers(values)
    mean = statistics.fmean(values)
    return statistics.stdev(values) / abs(mean) if len(values) > 1 and mean else None


# Three visits say little about the scatter of a finalist, so the usual scatter of all finalists counts as well, with
# this many degrees of freedom. A larger number would let one noisy finalist make the others look noisy.
PRIOR_FREEDOM = 4


@dataclass(frozen=True, slots=True)
class VisitNoise:
    """The usual scatter of visits to one configuration: the relative variance of one visit's median."""

    variance: float
    freedom: int  # its weight in degrees of freedom, beside a configuration's own scatter

    @classmethod
    def of(cls, groups: Iterable[Sequence[float]]) -> VisitNoise | None:
        """Estimate the scatter from the visits' medians, one group for each configuration; None without a second visit.

        The estimate is the median of the groups' variances, so that a few noisy groups do not dominate it. A variance
        of few repeats is usually too small; Wilson and Hilferty's approximation corrects this bias.
        """
        found = [v for group in groups if (v := _relative_variance(group)) is not None]
        if not found:
            return None
        usual = statistics.median(variance / (1 - 2 / (9 * freedom)) ** 3 for variance, freedom in found)
        return cls(usual, min(PRIOR_FREEDOM, sum(freedom for _, freedom in found)))

    def widened(self, reading: Reading, visits: Sequence[float]) -> Reading:
        """Widen the interval of ``reading`` to at least the scatter of its visits' medians (a moderated Student's t).

        The windows of one visit share a layout in memory, a temperature and a minute. They therefore agree better
        with each other than with the windows of the next visit, and an interval from windows alone is too narrow.
        """
        from scipy.special import stdtrit

        own, freedom = _relative_variance(visits) or (0.0, 0)
        together = self.freedom + freedom
        variance = (self.freedom * self.variance + freedom * own) / together
        half = float(stdtrit(together, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / len(visits))
        low = min(reading.low, reading.median * (1 - half))
        high = max(reading.high, reading.median * (1 + half))
        return replace(reading, low=max(low, 0.0) if reading.low >= 0 else low, high=high)


def _relative_variance(values: Sequence[float]) -> tuple[float, int] | None:
    """The variance of one value as a share of the squared mean, and its degrees of freedom."""
    cv = coefficient_of_variation(values) if values else None
    return None if cv is None else (cv * cv, len(values) - 1)


def deviation_of(reading: Reading) -> float | None:
    """The standard deviation of one repeat, computed back from a reading's interval, in the reading's unit.

    This is the inverse of `interval`. It is exact for two to five repeats, unless the range was wider, and about right
    for more. Returns None for one repeat, because its spread is unknown.
    """
    if reading.n < 2:
        return None
    half = (reading.high - reading.low) / 2
    # The median of normal repeats varies 1.25 times as much as their mean.
    factor = _STUDENT_T.get(reading.n, 1.96 * math.sqrt(math.pi / 2))
    return half * math.sqrt(reading.n) / factor


def relative_noise(readings: Iterable[Reading]) -> float | None:
    """The relative deviation of one reading's median, pooled over all readings that have repeats.

    Returns None if no reading has repeats.
    """
    squares, freedom = 0.0, 0
    for reading in readings:
        deviation = deviation_of(reading)
        if deviation is not None and reading.median:
            squares += (reading.n - 1) * (deviation / reading.median) ** 2 / reading.n
            freedom += reading.n - 1
    # The median of normal repeats varies 1.25 times as much as their mean.
    return math.sqrt(math.pi / 2 * squares / freedom) if freedom else None


def _least_outlier(count: int) -> float:
    """The minimum distance of an outlier among ``count`` values, as a fraction of the median."""
    return LEAST_OUTLIER_FRACTION * (FEW_FACTOR if count <= FEW else 1.0)


def outliers(values: Sequence[float]) -> tuple[int, ...]:
    """Indices of the values that lie too far from the median for noise."""
    centre, spread = median(values), mad(values)
    far = max(OUTLIER_THRESHOLD * spread, _least_outlier(len(values)) * abs(centre))
    return tuple(index for index, value in enumerate(values) if abs(value - centre) > far)


def slow_first_run(speeds: Sequence[float]) -> bool:
    """Whether the first repeat was slower than the others. ``speeds`` may have any unit in which more is faster.

    The first repeat is compared with the others only: among three repeats it would widen their MAD.
    """
    _demand_numbers(speeds)
    if len(speeds) < 3:
        return False
    centre, spread = median(speeds[1:]), mad(speeds[1:])
    far = max(OUTLIER_THRESHOLD * spread, _least_outlier(len(speeds)) * abs(centre))
    return centre - speeds[0] > far


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median, in the unit of ``values``. It always contains the median.

    - Six or more values: percentile bootstrap of the median.
    - Two to five values: Student's t around the mean, or the range if that is wider. A bootstrap would be too narrow.
    - One value: (value, value), because its spread is unknown.

    The low end is not below 0 unless a value is. Raises ValueError if there is no value, or one is not finite.
    """
    _demand_numbers(values)
    count = len(values)
    if count == 1:
        return float(values[0]), float(values[0])
    if count in _STUDENT_T:
        mean = statistics.fmean(values)
        half = _STUDENT_T[count] * statistics.stdev(values) / math.sqrt(count)
        low, high = min(mean - half, *values), max(mean + half, *values)
    else:
        drawn = random.Random(SEED).choices(values, k=RESAMPLES * count)
        resamples = (drawn[start : start + count] for start in range(0, RESAMPLES * count, count))
        medians = sorted(_quick_median(resample) for resample in resamples)
        tail, last, centre = (1 - CONFIDENCE) / 2, RESAMPLES - 1, statistics.median(values)
        low = min(medians[math.floor(tail * last)], centre)
        high = max(medians[math.ceil((1 - tail) * last)], centre)
    return float(max(low, 0.0) if min(values) >= 0 else low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t, in the unit of ``values``; (value, value) of one value.

    The low end is not below 0 unless a value is. Raises ValueError if there is no value, or one is not finite.
    """
    from scipy.special import stdtrit

    _demand_numbers(values)
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return mean, mean
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(count)
    low = mean - half
    return (max(low, 0.0) if min(values) >= 0 else low), mean + half


def reading(values: Sequence[float]) -> Reading:
    """Median, 95 % interval and number of repeats. Raises ValueError if there is no value."""
    low, high = interval(values)
    return Reading(median=median(values), low=low, high=high, n=len(values))


def percentile(values: Sequence[float], share: float) -> Reading:
    """The value below which ``share`` of all values lie (nearest rank), with its 95 % interval, in their unit.

    The interval comes from ranks alone (the binomial distribution), so it needs no shape of the distribution. With few
    values it reaches the largest one, and the true percentile may lie above. ``n`` is the number of values.

    Raises:
        ValueError: there is no value, or ``share`` is not between 0 and 1.
    """
    _demand_numbers(values)
    if not 0 < share < 1:
        raise ValueError(f"a share of {share} is not between 0 and 1")
    ordered, count = sorted(values), len(values)
    tail = (1 - CONFIDENCE) / 2
    below, low, high = 0.0, 1, count
    for rank in range(count + 1):  # the chance that exactly `rank` values lie below the true percentile
        below += _binomial(count, rank, share)
        if below <= tail:
            low = min(rank + 1, count)
        if below >= 1 - tail:
            high = min(rank + 1, count)
            break
    middle = min(max(math.ceil(share * count), 1), count)
    low, high = min(low, middle), max(high, middle)
    return Reading(ordered[middle - 1], ordered[low - 1], ordered[high - 1], count)


def _binomial(count: int, successes: int, share: float) -> float:
    """The chance of so many successes, from logarithms, since the factors overflow beyond 1,000 values."""
    ways = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
    return math.exp(ways + successes * math.log(share) + (count - successes) * math.log1p(-share))


def _demand_numbers(values: Sequence[float]) -> None:
    if not values:
        raise ValueError("no value to describe")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a value is not a finite number")


def _quick_median(values: Sequence[float]) -> float:
    # statistics.median takes five times as long, and an interval computes thousands of medians.
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
