"""What each kind of speculation gave, whether or not it is on the Pareto front."""

from __future__ import annotations

from collections.abc import Iterator

from sweeper.parameters import NO_SPECULATION
from sweeper.records import SweepRecord, TrialRecord

SPEED = "tokens_per_second"


def speculation_notes(record: SweepRecord) -> Iterator[str]:
    """A note on the fastest trial of each kind, beside the fastest one without speculation."""
    fastest: dict[str, TrialRecord] = {}
    for trial in record.trials:
        kind = trial.configuration.spec_type
        if SPEED in trial.metrics and (kind not in fastest or _speed(trial) > _speed(fastest[kind])):
            fastest[kind] = trial
    without = fastest.pop(NO_SPECULATION, None)
    told = [f"{kind} {_drafts(trial)}, {_shown(trial)} (#{trial.number})" for kind, trial in fastest.items()]
    if told:
        beside = [] if without is None else [f"none {_shown(without)} (#{without.number})"]
        yield f"the fastest trial of each kind of speculation: {'; '.join([*told, *beside])}"


def _drafts(trial: TrialRecord) -> str:
    accepted = trial.metrics.get("draft_acceptance")
    return "drafted nothing" if accepted is None else f"accepted {100 * accepted.median:.0f} % of its drafts"


def _shown(trial: TrialRecord) -> str:
    speed = _speed(trial)
    return f"{speed:.3g} tok/s" if speed < 1000 else f"{speed:.0f} tok/s"


def _speed(trial: TrialRecord) -> float:
    return trial.metrics[SPEED].median
