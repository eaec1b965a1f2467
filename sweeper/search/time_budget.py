"""The limit of a whole sweep (``minutes=…``), divided between preparation, search and final stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from sweeper.measure.trial import MOST_OVERRUN, Stage
from sweeper.records import TrialRecord
from sweeper.search.finals import FINAL_VISITS

# The search gets at least this share of the time, however long the final stage would take.
LEAST_SEARCH_SHARE = 0.5
_PROMPT = "time_to_first_token_seconds"


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """Tells the search when to end, so that the final stage ends in time as well. Times are in seconds.

    Args:
        seconds: the time of the whole job.
        clock: the clock of the sweep.
        began: the time on that clock when the job began, before models were made.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    began: float = 0.0

    def left(self) -> float:
        """The time left; negative once the limit is over."""
        return self.seconds - (self.clock() - self.began)

    def search_is_over(self, finalists: int, visit_seconds: float) -> bool:
        """Whether the rest is needed for visits to this many finalists and the baseline."""
        wanted = (finalists + 1) * FINAL_VISITS * visit_seconds
        return self.left() <= min(wanted, (1 - LEAST_SEARCH_SHARE) * self.seconds)

    def finalists(self, most: int, visit_seconds: float) -> int:
        """The number of finalists, beside the baseline, for which the time left suffices; at least one."""
        return max(1, min(most, int(self.left() / (FINAL_VISITS * visit_seconds)) - 1))


def visit_seconds(
    trials: Sequence[TrialRecord], screening: Stage, final: Stage, period_seconds: float
) -> float:
    """The expected time of one visit: that of a trial, with the windows of the final stage instead of the screening's.

    ``period_seconds`` is the update period of the sensor.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    prompts = [t.metrics[_PROMPT].median for t in complete if _PROMPT in t.metrics]
    prompt_seconds = median(prompts) if prompts else 0.0

    def windows(stage: Stage, with_prompts: bool) -> float:
        decode = stage.repeats * stage.window_seconds("decode", period_seconds)
        if not with_prompts:
            return decode
        one = max(prompt_seconds, stage.window_seconds("prefill", period_seconds))
        return decode + one * max(1, min(stage.repeats_of("prefill"), int(MOST_OVERRUN * decode / one)))

    around = [max(0.0, t.seconds - windows(screening, _PROMPT in t.metrics)) for t in complete]
    return (median(around) if around else 0.0) + windows(final, True) + final.resident_seconds
