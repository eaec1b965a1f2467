"""How trials are told apart in a drawing: on the front, beaten, outside the constraints, the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweeper.records import SweepRecord, TrialRecord

# What lies off the front: some point beats it, or it was measured once and looked no better than the finalists.
REST = "beaten, or measured once"


@dataclass(frozen=True, slots=True)
class Groups:
    """Trials that have both metrics; ``front`` runs from left to right. A trial may be baseline and front."""

    scored: tuple[TrialRecord, ...]
    front: tuple[TrialRecord, ...]
    beaten: tuple[TrialRecord, ...]
    outside: tuple[TrialRecord, ...]
    baseline: tuple[TrialRecord, ...]


def groups_of(record: SweepRecord, metrics: tuple[str, str]) -> Groups:
    """The groups of those trials that have a finite figure in both ``metrics``."""
    scored = tuple(t for t in record.trials if all(_has(t, metric) for metric in metrics))
    on_front = set(record.front)
    return Groups(
        scored=scored,
        front=tuple(
            sorted(
                (t for t in scored if t.number in on_front),
                key=lambda t: (t.metrics[metrics[0]].median, t.metrics[metrics[1]].median),
            )
        ),
        beaten=tuple(
            t for t in scored if t.number not in on_front and t.state != "infeasible" and not _over(t)
        ),
        outside=tuple(
            t for t in scored if t.number not in on_front and (t.state == "infeasible" or _over(t))
        ),
        baseline=tuple(t for t in scored if t.number == record.baseline),
    )


def _has(trial: TrialRecord, metric: str) -> bool:
    reading = trial.metrics.get(metric)
    return reading is not None and math.isfinite(reading.median)


def _over(trial: TrialRecord) -> bool:
    return any(distance > 0 for distance in trial.violations.values())
