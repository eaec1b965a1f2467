"""Whether a figure rests on less than its full final stage."""

from __future__ import annotations

from sweeper.records import SweepRecord, TrialRecord
from sweeper.results.contexts import default_at

FINAL_VISITS = 3  # of each finalist and of the baseline; the final stage may add more


def visits_of(trial: TrialRecord) -> int | None:
    """The visits of the final stage that count; None if the record does not say, as in those made by hand."""
    if trial.visits is None and not trial.remeasured:
        return 0
    return trial.visits


def comparable(base: TrialRecord, trial: TrialRecord) -> bool:
    """False if the final stage visited ``trial`` and not ``base``: a screening, alone, supports no gain."""
    return bool(visits_of(base) != 0 or not visits_of(trial))


def visits_behind(record: SweepRecord, trial: TrialRecord) -> int | None:
    """The visits that a comparison of ``trial`` with its baseline rests on: those of the trial that has fewer.

    None if the record does not say.
    """
    base = default_at(record, trial)
    pair = [trial] if base is None or not base.feasible else [trial, base]
    counts = [visits_of(one) for one in pair]
    return None if None in counts else min(count for count in counts if count is not None)


def provisional(record: SweepRecord, trial: TrialRecord) -> str | None:
    """``provisional: 1 of 3 visits``; None if the trial and the baseline have all visits of the final stage."""
    visits = visits_behind(record, trial)
    if visits is None or visits >= FINAL_VISITS:
        return None
    if visits == 0 and not trial.remeasured:
        later = f"; the best trials are measured {FINAL_VISITS} more times at the end"
        return f"provisional: screened only{later if record.state == 'running' else ''}"
    if visits == 0:
        return "provisional: the baseline was screened only"
    return f"provisional: {visits} of {FINAL_VISITS} visits"
