"""Energy from samples of power, and how far it may be off: pure functions.

Between two refreshes, power is not known. The error bar rests on how much the shown values differ. Steps that are far
apart move within one refresh each, and their errors partly cancel. A load that changes at each refresh looks like
noise, whose mean is as uncertain as that of any sample. A load that repeats in step with the refreshes errs alike each
time, so its errors add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sweeper.meter.counter_edges import Energy

# A pattern repeats if the values one repetition apart differ, in the mean square, by less than this share of the
# mean square difference of neighbours. Of 50 values of pure noise, few come below a half.
IN_STEP_SHARE = 0.25
# The moments of the refreshes are not known, so sweeper tries these, as shares of the time between two of them.
PHASES = (0.0, 0.25, 0.5, 0.75)
# Where sweeper sees fewer of the refreshes, it cannot tell whether the load repeats in step with them. Power that jumps
# by this share of its mean from one value to the next is more than the noise of a steady load. The errors of so many
# repetitions may then add up (benchmarks/error_bars.py).
LEAST_SEEN = 0.95
PATTERN_SHARE = 0.04
UNSEEN_REPEATS = 6.0
# Longer patterns are not searched: the search takes time, and the errors of few repetitions add up little.
LONGEST_PATTERN = 200
# A value that jumps only now and then may have jumped anywhere between two refreshes: the variance of the energy in
# between is 1/12 of (jump × seconds)². Twice that leaves room for a fast load that drifts slowly against the refreshes
# and so seems to jump rarely. For values without any relation, it is 1/2 of their mean square difference.
OF_STEPS, OF_NOISE = 1 / 6, 1 / 2


def energy_of_power(
    times: Sequence[float], watts: Sequence[float], started: float, ended: float, period: float
) -> Energy:
    """Integrate power by trapezoids; the ends of the window take the power of the nearest samples.

    Args:
        times: when the values were true, in order; two or more.
        watts: the values.
        started: the beginning of the window.
        ended: the end of the window.
        period: the time between two refreshes in s.
    """
    known, values = np.array(times), np.array(watts)
    inner = known[(started < known) & (known < ended)]
    points = np.concatenate(([started], inner, [ended]))
    power = np.interp(points, known, values)
    joules = float(np.sum(np.diff(points) * (power[1:] + power[:-1]) / 2))
    gaps = np.diff(known)
    refresh = max(float(np.median(gaps)), float(np.mean(gaps)) / 10)  # samples may come in bursts
    if refresh < 1.5 * period:  # sampled about once a refresh, or more often
        refresh = period
    shown = _at_refreshes(known, values, refresh, 0.5)
    if len(shown) < 3:  # too few to show how power changes: one refresh may be missed
        missed = float(np.ptp(values)) * (ended - started) / 2 + joules * refresh / (ended - started) / 2
        return Energy(joules, missed, in_step=False)
    jumps = np.diff(shown)
    jump = _mean_square(jumps)
    if jump == 0:
        return Energy(joules, 0.0, in_step=False)
    # For steps, values two refreshes apart differ twice as much as neighbours; for noise, they differ as much.
    steps_share = min(1.0, max(0.0, _mean_square(shown[2:] - shown[:-2]) / jump - 1))
    share = steps_share * OF_STEPS + (1 - steps_share) * OF_NOISE
    long = gaps[gaps > 1.5 * refresh]
    seconds_squared = refresh * (ended - started) + float(np.sum(long * (long - refresh)))
    repeats = max(_repeats_in_step(_at_refreshes(known, values, refresh, phase), jump) for phase in PHASES)
    in_step = repeats > 1
    is_pattern = math.sqrt(jump) > PATTERN_SHARE * joules / (ended - started)
    if is_pattern and len(known) * period < LEAST_SEEN * (known[-1] - known[0]):
        repeats, in_step = max(repeats, UNSEEN_REPEATS), True
    ends = (known[0] - started) ** 2 + (ended - known[-1]) ** 2
    variance = jump * share * seconds_squared * repeats
    # A single jump may fall into an end of the window, where no value shows it.
    rare = math.sqrt(jump) * float(np.abs(jumps).max())
    variance += (steps_share * rare + (1 - steps_share) * jump / 2) * ends
    # A value is half a refresh old on average, but all values may be older or newer.
    variance += ((shown[-1] - shown[0]) * refresh) ** 2 / 12
    # The spread of few values is uncertain itself, as in Student's t.
    return Energy(joules, math.sqrt(variance) * (1 + 1.5 / (len(shown) - 1)), in_step)


def _at_refreshes(
    known: NDArray[np.float64], values: NDArray[np.float64], refresh: float, phase: float
) -> NDArray[np.float64]:
    """The value of each refresh; a refresh that was not seen has the value before it."""
    place = np.floor((known - known[0]) / refresh + phase).astype(int)
    return values[np.searchsorted(place, np.arange(place[0], place[-1] + 1), side="right") - 1]


def _repeats_in_step(shown: NDArray[np.float64], jump: float) -> float:
    """How many repetitions of a pattern the values show in step with the refreshes; 1 if they show none.

    The pattern may drift slowly against the refreshes. Its errors then add up only until it has drifted by one refresh.
    """
    found = 1.0
    for length in range(2, min(len(shown) // 2, LONGEST_PATTERN) + 1):
        unlike = _mean_square(shown[length:] - shown[:-length]) / jump
        if unlike < IN_STEP_SHARE:
            found = max(found, min(len(shown) / length, 1 / max(unlike, 1e-9)))
    return found


def _mean_square(values: NDArray[np.float64]) -> float:
    return float(np.mean(values**2))


def deviation_of_mean_power(
    times: Sequence[float], watts: Sequence[float], averaged_seconds: float, settling_seconds: float
) -> float:
    """The standard deviation, in J, of the energy of a window from values that are means over ``averaged_seconds``.

    The values miss the power of the first ``settling_seconds`` and of the last ones in part. The missed power differs
    from the rest as much as the values do from each other; a mean hides a part of that, which the differences between
    neighbours give back.
    """
    values = np.array(watts)
    if len(values) < 3 or times[-1] - times[0] < averaged_seconds:  # too few to show how power changes
        return float(values.mean()) * settling_seconds / 2
    apart = min(averaged_seconds, float(np.median(np.diff(times))))
    hidden = _mean_square(np.diff(values)) * (averaged_seconds / apart) ** 2 / 2
    missed = math.hypot(settling_seconds - averaged_seconds / 2, averaged_seconds / 2)
    return missed * math.sqrt(float(values.var()) + hidden)
