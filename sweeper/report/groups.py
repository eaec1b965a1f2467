"""What a drawing shows: its two metrics, and the trials on the front, beaten, outside, the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.words import outcome
from sweeper.results.front import undominated

# The label of trials off the front: another trial beats them, or they were measured once only.
REST = "dominated, or measured only once"


@dataclass(frozen=True, slots=True)
class Plane:
    """The two metrics of a drawing, the cost ``across`` and the gain ``up``, and where more is better."""

    across: str
    up: str
    more_across: bool = False
    more_up: bool = True

    @property
    def turns_late(self) -> bool:
        """Whether the staircase of the front goes across before it goes up.

        The sweep measured nothing between two points of a front. Only the nearer point that costs no more is
        certain there, so a straight line would promise too much.
        """
        return not self.more_across

    @property
    def better(self) -> str:
        """Where the better points lie: ``up and to the left``."""
        return f"{'up' if self.more_up else 'down'} and to the {'right' if self.more_across else 'left'}"


def planes_of(record: SweepRecord) -> tuple[Plane, ...]:
    """A plane for the first objective against its cost, then one for each further objective against the same cost.

    The cost is the first other objective that is minimised, else the second objective; watts where the
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

    ``stairs`` are the trials of the front that no other one beats in these two metrics. A third objective
    brings further trials onto the front.
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
