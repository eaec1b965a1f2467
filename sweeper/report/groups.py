"""What a drawing shows: its two metrics, and the trials on the front, beaten, outside, the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.words import outcome
from sweeper.results.front import undominated

# What lies off the front: some point beats it, or it was measured once and looked no better than the finalists.
REST = "beaten, or measured once"


@dataclass(frozen=True, slots=True)
class Plane:
    """One drawing's metrics: what it costs ``across``, what it gives ``up``; and where more is better."""

    across: str
    up: str
    more_across: bool = False
    more_up: bool = True

    @property
    def turns_late(self) -> bool:
        """Whether the staircase of the front goes across before it goes up.

        Between two points of a front nothing was measured: what is sure there is only the nearer point that
        costs no more, and a straight line would promise what nobody saw.
        """
        return not self.more_across

    @property
    def better(self) -> str:
        """Where the better points lie: ``up and to the left``."""
        return f"{'up' if self.more_up else 'down'} and to the {'right' if self.more_across else 'left'}"


def planes_of(record: SweepRecord) -> tuple[Plane, ...]:
    """The first objective against what it costs, then each other one against the same.

    What it costs is the first other objective that is minimised, else the second objective; watts where the
    sweep has one objective only.
    """
    first, *others = record.objectives
    cost = next((o for o in others if o.direction == "minimize"), others[0] if others else None)
    rest = [o for o in others if o is not cost]
    return tuple(
        Plane(
            across=cost.metric if cost else "watts",
            up=o.metric,
            more_across=cost is not None and cost.direction == "maximize",
            more_up=o.direction == "maximize",
        )
        for o in (first, *rest)
    )


@dataclass(frozen=True, slots=True)
class Groups:
    """Trials that have both metrics; ``front`` runs from left to right. A trial may be baseline and front.

    ``stairs`` are those of the front that nothing else of it beats in these two metrics: with a third
    objective others stand on the front for that one's sake.
    """

    scored: tuple[TrialRecord, ...]
    front: tuple[TrialRecord, ...]
    stairs: tuple[TrialRecord, ...]
    beaten: tuple[TrialRecord, ...]
    outside: tuple[TrialRecord, ...]
    baseline: tuple[TrialRecord, ...]


def groups_of(record: SweepRecord, plane: Plane) -> Groups:
    """The groups of those trials that have a finite figure in both metrics of ``plane``."""
    scored = tuple(t for t in record.trials if _has(t, plane.across) and _has(t, plane.up))
    on_front = set(record.front)
    off_front = [t for t in scored if t.number not in on_front]

    def place(trial: TrialRecord) -> tuple[float, float]:
        return trial.metrics[plane.across].median, trial.metrics[plane.up].median

    front = tuple(sorted((t for t in scored if t.number in on_front), key=place))
    signs = (1 if plane.more_across else -1), (1 if plane.more_up else -1)
    kept = undominated([[sign * x for sign, x in zip(signs, place(t), strict=True)] for t in front])
    return Groups(
        scored=scored,
        front=front,
        stairs=tuple(front[index] for index in kept),
        beaten=tuple(t for t in off_front if outcome(t) != "infeasible"),
        outside=tuple(t for t in off_front if outcome(t) == "infeasible"),
        baseline=tuple(t for t in scored if t.number == record.baseline),
    )


def _has(trial: TrialRecord, metric: str) -> bool:
    reading = trial.metrics.get(metric)
    return reading is not None and math.isfinite(reading.median)
