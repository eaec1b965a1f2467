"""Which objectives a drawing sets against each other, and which way is better in it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sweeper.records import SweepRecord


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
