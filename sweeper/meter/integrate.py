"""From samples to joules: pure functions that return an error bar, or a reason if there is no answer.

A sensor refreshes its value once in each update period u, and holds it. A counter is read at its edges (see
`sweeper.meter.counter_edges`). A power sample taken at t shows the power at t − u/2 on average, so sweeper moves it
back by u/2 (see `sweeper.meter.power_samples`). No function returns 0 for a missing value: if the energy of a window
cannot be known, ``joules`` is None and there is a reason.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sweeper.meter.base import Sample
from sweeper.meter.counter_edges import Energy, energy_between
from sweeper.meter.power_samples import deviation_of_mean_power, energy_of_power

# A counter stands still if it does not move for this long and for this many of its update periods. Even a sleeping CPU
# package or GPU draws enough to move a counter of mJ within milliseconds.
STILL_SECONDS = 2.0
STILL_PERIODS = 20.0
# A window's end may lie this far beyond the last sample, or u if that is longer. This allows for one lost sample at
# 10 Hz and a short delay of the sampler. It widens the error bar.
EDGE_SECONDS = 0.5
# An error bar holds 95 of 100 errors: so many standard deviations.
DEVIATIONS = 1.96
# No error bar is narrower: time stamps and the sensor's own steps err by about this share.
LEAST_ERROR = 1e-4
# If more than this share of the window has no samples, a mean over the rest is a guess, not a reading.
MOST_UNSEEN = 0.5


@dataclass(frozen=True, slots=True)
class Integral:
    """Energy between two moments. If ``joules`` is None, ``reason`` says why."""

    joules: float | None
    reason: str | None
    samples: int
    largest_gap_seconds: float | None
    error_fraction: float | None = None
    in_step: bool = False  # the load repeats in step with the sensor, so that its errors add up


class CounterTrack:
    """Follows one raw counter over wraps and resets, one reading after the other.

    If a step cannot be explained, the epoch increases: energies of two epochs cannot be subtracted.
    """

    def __init__(self, range_joules: float | None, max_watts: float, slack_seconds: float = 0.25) -> None:
        """Start before the first reading.

        Args:
            range_joules: the value at which the counter wraps to 0, or None if it does not wrap.
            max_watts: more than the device can draw; a step that needs more power was not consumption.
            slack_seconds: how much older than its time stamp a reading may be.
        """
        self._range = range_joules
        self._max_watts = max_watts
        self._slack = slack_seconds
        self._last: tuple[float, float] | None = None
        self._total = 0.0
        self._epoch = 0

    def advance(self, moment: float, raw_joules: float) -> tuple[float, int]:
        """Take the next raw reading.

        Returns:
            Cumulative joules since the first reading, and the epoch in which they count.
        """
        if self._last is not None:
            step = self._step(moment - self._last[0], raw_joules - self._last[1])
            if step is None:
                self._epoch += 1
            else:
                self._total += step
        self._last = (moment, raw_joules)
        return self._total, self._epoch

    def _step(self, seconds: float, delta: float) -> float | None:
        """Joules consumed in a step, or None if they cannot be known."""
        if self._range is not None and seconds >= self._range / self._max_watts:
            return None  # the counter may have wrapped several times
        if delta < 0:
            if self._range is None:
                return None
            delta += self._range
        return delta if 0 <= delta <= self._max_watts * (seconds + self._slack) else None


def integrate(
    samples: Sequence[Sample],
    started: float,
    ended: float,
    update_period_seconds: float | None = None,
    settling_seconds: float | None = None,
) -> Integral:
    """Energy between two ``time.monotonic()`` moments, from the counter if there is one, else from power.

    Args:
        samples: in any order; duplicates do no harm. Summed devices are integrated one by one.
        started: the beginning of the window.
        ended: the end of the window.
        update_period_seconds: the sensor's u; None if it is not known (0 is then used).
        settling_seconds: how long power takes to show a step in full; None if it shows a step at once.
    """
    period = update_period_seconds or 0.0
    if not ended > started:
        return Integral(None, "the window has no length", 0, None)
    devices = {len(sample.parts) for sample in samples}
    if len(devices) == 1 and (count := devices.pop()):
        each = [[sample.parts[index] for sample in samples] for index in range(count)]
        return _total([integrate(own, started, ended, period, settling_seconds) for own in each])
    seen = _Seen(0, None)
    try:
        if any(sample.energy_joules is not None for sample in samples):
            energy = _of_counter(samples, started, ended, period, seen)
        elif settling_seconds and ended - started >= 2 * settling_seconds:
            energy = _of_mean_power(samples, started, ended, period, settling_seconds, seen)
        else:
            period = max(period, settling_seconds or 0.0)
            energy = _of_power(samples, started, ended, period, period / 2, seen)
    except _Unknown as reason:
        return Integral(None, str(reason), seen.samples, seen.gap)
    error = max(LEAST_ERROR, DEVIATIONS * energy.deviation_joules / energy.joules)
    return Integral(energy.joules, None, seen.samples, seen.gap, error, energy.in_step)


def _total(each: Sequence[Integral]) -> Integral:
    """The sum over all devices; None if one is missing. Errors add up, because all may have the same sign."""
    for one in each:
        if one.joules is None:
            return one
    joules = sum(one.joules or 0.0 for one in each)
    error = sum((one.joules or 0.0) * (one.error_fraction or 0.0) for one in each)
    in_step = any(one.in_step for one in each)
    gap = max(one.largest_gap_seconds or 0.0 for one in each)
    return Integral(joules, None, min(one.samples for one in each), gap, error / joules, in_step)


class _Unknown(Exception):
    """The energy cannot be known; the text says why."""


@dataclass(slots=True)
class _Seen:
    """The number of samples of a window, and the largest gap between them in s."""

    samples: int
    gap: float | None

    def inside(self, values: Iterable[float], started: float, ended: float, period: float) -> list[float]:
        """The moments of the samples that surround the window, in order."""
        times, edge = sorted(values), max(period, EDGE_SECONDS)
        self.samples = len(times)
        if not times:
            raise _Unknown("the sensor gave no sample")
        first = max(0, bisect_right(times, started) - 1)
        last = min(len(times) - 1, bisect_left(times, ended))
        if times[first] - started > edge:
            raise _Unknown(f"the first sample came {times[first] - started:.2f} s after the window's start")
        if ended - times[last] > edge:
            raise _Unknown(f"the last sample came {ended - times[last]:.2f} s before the window's end")
        if last <= first:
            raise _Unknown("the sensor gave a single sample")
        inside = times[first : last + 1]
        self.samples = len(inside)
        gaps = [after - before for before, after in pairwise(inside)]
        self.gap = max([*gaps, inside[0] - started, ended - inside[-1]])
        return inside


def _of_counter(
    samples: Sequence[Sample], started: float, ended: float, period: float, seen: _Seen
) -> Energy:
    by_time = {
        s.monotonic_seconds: (s.energy_joules, s.epoch)
        for s in samples
        if s.energy_joules is not None and math.isfinite(s.energy_joules)
    }
    points = [(t, *by_time[t]) for t in seen.inside(by_time, started, ended, period)]
    if len({epoch for _, _, epoch in points}) > 1:
        raise _Unknown("the energy counter was reset, or wrapped unseen, inside the window")
    still_since = points[0][0]
    for (_, before, _), (moment, after, _) in pairwise(points):
        if after < before:
            raise _Unknown(f"the energy counter fell by {before - after:.1f} J inside the window")
        if after > before:
            still_since = moment
        elif moment - still_since > max(STILL_SECONDS, STILL_PERIODS * period):
            still = moment - still_since
            raise _Unknown(f"the energy counter stood still for {still:.1f} s inside the window")
    if points[-1][1] == points[0][1]:
        raise _Unknown("the energy counter stood still over the whole window")
    energy = energy_between([(t, joules) for t, joules, _ in points], started, ended, period)
    if energy is None or not energy.joules > 0 or not math.isfinite(energy.joules):
        raise _Unknown(f"the counter showed too few refreshes in a {ended - started:.2f} s window")
    return energy


def _of_power(
    samples: Sequence[Sample], started: float, ended: float, period: float, age: float, seen: _Seen
) -> Energy:
    """Integrate power by trapezoids. A value is ``age`` seconds old when it is read."""
    by_time = {
        s.monotonic_seconds - age: s.power_watts
        for s in samples
        if s.power_watts is not None and math.isfinite(s.power_watts) and s.power_watts >= 0
    }
    inside = seen.inside(by_time, started, ended, period)
    seconds, gap = ended - started, seen.gap or 0.0
    if gap > MOST_UNSEEN * seconds and gap > max(EDGE_SECONDS, 2 * period):
        raise _Unknown(f"no power sample for {gap:.2f} s of a {seconds:.2f} s window")
    if period > seconds:
        window = f"the window of {seconds:.2f} s"
        raise _Unknown(f"{window} is shorter than the sensor's update period of {period:.2f} s")
    # The load begins and ends with the window, so values that may come from outside it can show rest. If there are
    # enough other values, only those count, and the ends of the window take the power of the nearest ones.
    certain = [t for t in inside if started + age <= t <= ended - age]
    used = certain if len(certain) > 1 else inside
    energy = energy_of_power(used, [by_time[t] for t in used], started, ended, period)
    if energy.joules <= 0:
        raise _Unknown("the sensor read 0 W over the whole window")
    return energy


def _of_mean_power(
    samples: Sequence[Sample], started: float, ended: float, period: float, settling: float, seen: _Seen
) -> Energy:
    """Integrate averaged power. Until it has settled, it still includes the load before the window.

    The rest of the window stands for all of it. Each value looks back, so the first moments count as well, with less
    weight than the others.
    """
    settled = [s for s in samples if s.monotonic_seconds >= started + settling]
    rest = _of_power(settled, started + settling, ended, period, 0.0, seen)
    joules = rest.joules * (ended - started) / (ended - started - settling)
    shown = [(s.monotonic_seconds, s.power_watts) for s in settled if s.power_watts is not None]
    times, watts = zip(*sorted(shown), strict=True)
    return Energy(joules, deviation_of_mean_power(times, watts, period, settling))
