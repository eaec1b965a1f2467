"""Plain statistics of repeats: median, spread, interval, outliers. Pure: values in, values out.

Repeats of a benchmark are few and skewed (something else ran, the first one was cold), so the median and
its interval describe them, never a mean alone.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sweeper.records import Reading

CONFIDENCE = 0.95
RESAMPLES = 2000  # the ends of a 95 % interval then rest on about 50 resamples each
SEED = 20261123  # one seed for all, so that the same repeats give the same interval in every report

# A modified z-score (distance from the median over the MAD) beyond which a repeat is an outlier: ten
# standard deviations of a normal distribution, as in hyperfine (1.4826 turns a MAD into a deviation).
OUTLIER_THRESHOLD = 1.4826 * 10
# With three repeats the MAD can be 0 by chance; a distance below 2 % of the median is ordinary noise of
# inference whatever the MAD says.
LEAST_OUTLIER_FRACTION = 0.02
# Of so few, those that agree by chance make an outlier of another that noise explains: with a noise of 1.5 % in 6 of
# 100 sets of three, with three times the distance in 1 of 1,000.
FEW, FEW_FACTOR = 4, 3.0

NOISY_CV = 0.05  # from here on repeats are called noisy
STEADY_CV = 0.03  # below this a warm-up is over

# Student's t at 97.5 % for 2, 3, 4 and 5 repeats. A bootstrap of so few gives the range at most, which
# holds the true median in only 50, 75, 88 and 94 of 100 cases.
_STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def median(values: Sequence[float]) -> float:
    """The median. Raises ValueError where there is no value."""
    _demand_numbers(values)
    return float(statistics.median(values))


def mad(values: Sequence[float]) -> float:
    """The median absolute distance from the median, unscaled, in the unit of ``values``."""
    centre = median(values)
    return float(statistics.median(abs(value - centre) for value in values))


def coefficient_of_variation(values: Sequence[float]) -> float | None:
    """Standard deviation (n - 1) over mean, as a fraction; None below two values or at a mean of 0."""
    _demand_numbers(values)
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    if mean == 0:
        return None
    return statistics.stdev(values) / abs(mean)


# What all finalists say of one's scatter counts as so many degrees of freedom beside its own visits: three visits know
# little, and one noisy finalist must not make the others look so.
PRIOR_FREEDOM = 4


@dataclass(frozen=True, slots=True)
class VisitNoise:
    """What visits to one configuration usually scatter by: the relative variance of one visit's median."""

    variance: float
    freedom: int  # degrees of freedom that it counts as, beside a configuration's own

    @classmethod
    def of(cls, groups: Iterable[Sequence[float]]) -> VisitNoise | None:
        """From the visits' medians, a group a configuration; None where none was visited twice.

        The median of the groups' variances, so that a few noisy ones do not rule it, set right for its bias (a
        variance of few repeats is most often too small; Wilson and Hilferty's approximation).
        """
        found = [v for group in groups if (v := _relative_variance(group)) is not None]
        if not found:
            return None
        usual = statistics.median(variance / (1 - 2 / (9 * freedom)) ** 3 for variance, freedom in found)
        return cls(usual, min(PRIOR_FREEDOM, sum(freedom for _, freedom in found)))

    def widened(self, reading: Reading, visits: Sequence[float]) -> Reading:
        """``reading``, its interval no narrower than its visits' medians allow (a moderated Student's t).

        The windows of one visit share its layout in memory, its heat and its minute, so that they agree better
        with each other than with those of the next visit, and their own interval is too narrow.
        """
        from scipy.special import stdtrit

        own, freedom = _relative_variance(visits) or (0.0, 0)
        together = self.freedom + freedom
        variance = (self.freedom * self.variance + freedom * own) / together
        half = float(stdtrit(together, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / len(visits))
        low = min(reading.low, reading.median * (1 - half))
        return Reading(
            reading.median,
            max(low, 0.0) if reading.low >= 0 else low,
            max(reading.high, reading.median * (1 + half)),
            reading.n,
        )


def _relative_variance(values: Sequence[float]) -> tuple[float, int] | None:
    """Of one value, as a share of their mean squared, and its degrees of freedom."""
    cv = coefficient_of_variation(values) if len(values) > 1 else None
    return None if cv is None else (cv * cv, len(values) - 1)


def modified_z_scores(values: Sequence[float]) -> tuple[float, ...]:
    """Distance of each value from the median over the MAD, signed; infinite where the MAD is 0."""
    centre, spread = median(values), mad(values)
    return tuple(_over(value - centre, spread) for value in values)


def deviation_of(reading: Reading) -> float | None:
    """The standard deviation of one repeat that a reading's interval speaks of, in its unit.

    The inverse of `interval`: exact for two to five repeats unless the range was wider, about right for more.
    None of one repeat, of which nothing is known.
    """
    if reading.n < 2:
        return None
    half = (reading.high - reading.low) / 2
    # A median of normal repeats varies 1.25 times as much as their mean does.
    factor = _STUDENT_T.get(reading.n, 1.96 * math.sqrt(math.pi / 2))
    return half * math.sqrt(reading.n) / factor


def relative_noise(readings: Iterable[Reading]) -> float | None:
    """The relative deviation of one reading's median, pooled over the readings that rest on repeats.

    None where none of them does.
    """
    squares, freedom = 0.0, 0
    for reading in readings:
        deviation = deviation_of(reading)
        if deviation is not None and reading.median:
            squares += (reading.n - 1) * (deviation / reading.median) ** 2 / reading.n
            freedom += reading.n - 1
    # A median of normal repeats varies 1.25 times as much as their mean does.
    return math.sqrt(math.pi / 2 * squares / freedom) if freedom else None


def _least_outlier(count: int) -> float:
    """How far off one of ``count`` values must be, as a fraction of the median."""
    return LEAST_OUTLIER_FRACTION * (FEW_FACTOR if count <= FEW else 1.0)


def outliers(values: Sequence[float]) -> tuple[int, ...]:
    """Indices of the values that lie too far from the median to be noise."""
    centre = median(values)
    least = _least_outlier(len(values)) * abs(centre)
    return tuple(
        index
        for index, (value, score) in enumerate(zip(values, modified_z_scores(values), strict=True))
        if abs(score) > OUTLIER_THRESHOLD and abs(value - centre) > least
    )


def slow_first_run(speeds: Sequence[float]) -> bool:
    """Whether the first repeat was slow against the others; ``speeds`` in any unit where more is faster.

    The first is compared with the others alone, since among three it would widen their MAD.
    """
    _demand_numbers(speeds)
    if len(speeds) < 3:
        return False
    first, others = speeds[0], speeds[1:]
    centre = median(others)
    lost = centre - first
    return lost > _least_outlier(len(speeds)) * abs(centre) and _over(lost, mad(others)) > OUTLIER_THRESHOLD


def interval(
    values: Sequence[float], confidence: float = CONFIDENCE, seed: int = SEED
) -> tuple[float, float]:
    """The interval of the median, in the unit of ``values``; it always holds the median.

    Six values and more: percentile bootstrap of the median. Two to five: Student's t around the mean,
    widened to the range where that is larger, since a bootstrap of so few is too narrow to be honest.
    One value: (value, value), with nothing known of its spread. No low end below 0 where no value is.

    Raises:
        ValueError: no value, one that is not finite, or ``confidence`` other than 0.95 below six values.
    """
    _demand_numbers(values)
    count = len(values)
    if count == 1:
        return float(values[0]), float(values[0])
    low, high = (
        _student_interval(values, confidence)
        if count in _STUDENT_T
        else _bootstrap_interval(values, confidence, seed)
    )
    return (max(low, 0.0) if min(values) >= 0 else low), high


def reading(values: Sequence[float]) -> Reading:
    """Median, 95 % interval and number of repeats. Raises ValueError where there is no value."""
    low, high = interval(values)
    return Reading(median=median(values), low=low, high=high, n=len(values))


def pool(groups: Iterable[Sequence[float]]) -> Reading:
    """One reading over several series of one configuration, such as its screening and its final repeats."""
    return reading([value for group in groups for value in group])


def ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = SEED) -> Reading:
    """The ratio of two medians with its bootstrap interval; ``n`` is the smaller number of repeats.

    Raises:
        ValueError: a series is empty, or a value of the denominator is not positive.
    """
    _demand_numbers(numerator)
    _demand_numbers(denominator)
    if min(denominator) <= 0:
        raise ValueError("a ratio needs a denominator of positive values")
    rng = random.Random(seed)
    ratios = sorted(
        _quick_median(rng.choices(numerator, k=len(numerator)))
        / _quick_median(rng.choices(denominator, k=len(denominator)))
        for _ in range(RESAMPLES)
    )
    low, high = _percentiles(ratios, CONFIDENCE)
    centre = median(numerator) / median(denominator)
    return Reading(centre, min(low, centre), max(high, centre), min(len(numerator), len(denominator)))


def _demand_numbers(values: Sequence[float]) -> None:
    if not values:
        raise ValueError("no value to describe")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a value is not a finite number")


def _over(distance: float, spread: float) -> float:
    if distance == 0:
        return 0.0
    return distance / spread if spread > 0 else math.copysign(math.inf, distance)


def _student_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    if confidence != CONFIDENCE:
        raise ValueError(f"below six values only an interval of {CONFIDENCE:.0%} is known")
    mean = statistics.fmean(values)
    half = _STUDENT_T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return min(mean - half, *values), max(mean + half, *values)


def _bootstrap_interval(values: Sequence[float], confidence: float, seed: int) -> tuple[float, float]:
    rng, count = random.Random(seed), len(values)
    drawn = rng.choices(values, k=RESAMPLES * count)
    medians = sorted(
        _quick_median(drawn[start : start + count]) for start in range(0, RESAMPLES * count, count)
    )
    low, high = _percentiles(medians, confidence)
    centre = statistics.median(values)
    return min(low, centre), max(high, centre)


def _quick_median(values: Sequence[float]) -> float:
    # statistics.median costs five times as much, and an interval takes thousands.
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _percentiles(ordered: Sequence[float], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    last = len(ordered) - 1
    return float(ordered[math.floor(tail * last)]), float(ordered[math.ceil((1 - tail) * last)])
