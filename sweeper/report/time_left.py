"""The time left of a sweep, estimated from the time of its trials so far. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from sweeper.report.progress import Plan

# Trials of the last third of a search cost what trials near the front cost, so old ones are forgotten; with
# fewer than this many a single model load would rule the estimate.
RECENT = 20
# The first trial makes what later ones find made (quantised files, warm page cache): it is left out where
# it cost more than so many medians of the others.
FIRST_IS_SPECIAL_FROM_MEDIANS = 3.0
# One trial that waited for heat or ran into its time-out says little about the next: it counts as at most
# so many medians. The mean, not the median, of the rest: loads and failures make costs bimodal, and the sum
# of what is left follows the mean.
CLIP_AT_MEDIANS = 4.0


class TimeLeft:
    """Collects the wall time of trials, in seconds from start to start, and estimates the time left."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._trials: list[float] = []
        self._finalists: list[float] = []
        self._stage = self._trials
        self._measurements = plan.finalist_measurements

    def trial_took(self, seconds: float) -> None:
        """One more trial, or one more measurement of a finalist, is over."""
        self._stage.append(seconds)

    def finalists_started(self, measurements: int) -> None:
        """The search is over; so many measurements follow."""
        self._stage = self._finalists
        self._measurements = measurements

    def seconds(self, trials_left: int, elapsed: float = 0.0) -> float | None:
        """Seconds left, or None while nothing is known.

        ``trials_left`` counts the one in flight; in the finalists' stage it counts measurements.
        ``elapsed`` is the time since the sweep started, for a search that is bounded in minutes.
        """
        trial, finalist = typical(self._trials), typical(self._finalists)
        if finalist is None and trial is not None:
            finalist = trial * self._plan.finalist_cost
        if self._stage is self._finalists:
            return None if finalist is None else trials_left * finalist
        if trial is None or finalist is None:
            return None
        search = trials_left * trial
        if self._plan.minutes is not None:
            search = min(search, max(0.0, self._plan.minutes * 60 - elapsed))
        return search + self._measurements * finalist


def typical(costs: Sequence[float]) -> float | None:
    """The expected time of the next trial in seconds, from recent trials; None without any."""
    if not costs:
        return None
    rest = costs[1:]
    is_special = len(rest) > 1 and costs[0] > FIRST_IS_SPECIAL_FROM_MEDIANS * median(rest)
    recent = (rest if is_special else costs)[-RECENT:]
    most = CLIP_AT_MEDIANS * median(recent)
    return fmean(min(cost, most) for cost in recent)


def in_words(seconds: float | None) -> str:
    """``about 6 min left``; coarse on purpose, for the estimate is."""
    if seconds is None:
        return "time left not known yet"
    if seconds < 50:
        return f"about {max(5, round(seconds / 5) * 5)} s left"
    if seconds < 5400:
        return f"about {max(1, round(seconds / 60))} min left"
    return f"about {seconds / 3600:.1f} h left"
