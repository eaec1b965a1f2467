"""The front as plain data: the page and the picture draw it, and front.js finds the point under the pointer in it."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.records import Caveat, SweepRecord, TrialRecord
from sweeper.report.caveats import caveat_name, caveats_of
from sweeper.report.charts import Axis, Chart, fit
from sweeper.report.picks import picks
from sweeper.report.words import axis_title, clean, figures, half_width, outcome, own_settings, unit
from sweeper.results.front import undominated

# The label of trials off the front: another trial beats them, or they were measured once only.
REST = "beaten, or measured only once"


@dataclass(frozen=True, slots=True)
class Plane:
    """The two metrics of a drawing, the cost ``across`` and the gain ``up``, and where more is better."""

    across: str
    up: str
    more_across: bool = False
    more_up: bool = True

    @property
    def better(self) -> str:
        """Where the better points lie: ``up and to the left``."""
        return f"{'up' if self.more_up else 'down'} and to the {'right' if self.more_across else 'left'}"

    def scored(self, record: SweepRecord) -> list[TrialRecord]:
        """The trials with a finite figure in both metrics."""
        return [t for t in record.trials if _is_known(t, self.across) and _is_known(t, self.up)]


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


def front_points(record: SweepRecord) -> str:
    """JSON that can stand inside a script element, whatever the names in it hold."""
    text = json.dumps(front_data(record), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def front_data(record: SweepRecord) -> dict[str, Any]:
    """Each plane, and the words of every trial that has a point in one of them."""
    planes = planes_of(record)
    drawn = {t.number: t for plane in planes for t in plane.scored(record)}
    places = {number: place for place, number in enumerate(drawn)}
    # What holds for the whole sweep stands at the page's head, not beside every point.
    general = {caveat for caveat, carriers in caveats_of(record).items() if not carriers}
    return {
        "planes": [plane_data(record, plane, places) for plane in planes],
        "words": [_words(record, t, general) for t in drawn.values()],
    }


def front_chart(plane: Mapping[str, Any]) -> Chart | None:
    """The axes of a plane of :func:`front_data`; None where it has no point."""
    return Chart(*(Axis(low, high) for low, high in plane["view"])) if plane["view"] else None


def plane_data(record: SweepRecord, plane: Plane, places: Mapping[int, int]) -> dict[str, Any]:
    """Points by group, each ``[across, up, place in words]``; intervals are None where no spread is known.

    ``stairs`` are the points of the front that no other one beats in these two metrics, from left to right: a third
    objective brings further points onto the front. The staircase goes across before it goes up where ``late``. The
    sweep measured nothing between two points, and only the nearer point that costs no more is certain there.
    """

    def at(trials: Iterable[TrialRecord]) -> list[list[float]]:
        medians = ((t.metrics[plane.across].median, t.metrics[plane.up].median, t.number) for t in trials)
        return [[_short(across), _short(up), places[number]] for across, up, number in medians]

    scored = plane.scored(record)
    on_front = [t for t in scored if t.number in record.front]
    on_front.sort(key=lambda t: (t.metrics[plane.across].median, t.metrics[plane.up].median))
    rest = [t for t in scored if t.number not in record.front]
    front = at(on_front)
    signs = (1 if plane.more_across else -1), (1 if plane.more_up else -1)
    stairs = undominated([[sign * x for sign, x in zip(signs, point, strict=False)] for point in front])
    intervals = [[_interval(t, plane.across), _interval(t, plane.up)] for t in on_front]
    view = []
    for axis in (0, 1) if scored else ():
        ends = [end for pair in intervals for end in pair[axis] or ()]
        fitted = fit([*(point[axis] for point in at(scored)), *ends])
        view.append([fitted.low, fitted.high])
    return {
        "across": axis_title(plane.across, record),
        "up": axis_title(plane.up, record),
        "view": view,
        "late": not plane.more_across,
        "beaten": at(t for t in rest if outcome(t) != "infeasible"),
        "outside": at(t for t in rest if outcome(t) == "infeasible"),
        "front": front,
        "stairs": [front[index] for index in stairs],
        "intervals": intervals,
        "baseline": at(t for t in scored if t.number == record.baseline),
        "picks": [
            {
                "kind": "pick" if picked.recommended else picked.pick,
                "name": picked.label,
                "at": at([picked.trial])[0],
            }
            for picked in picks(record)
            if picked.trial in scored
        ],
    }


def _is_known(trial: TrialRecord, metric: str) -> bool:
    return metric in trial.metrics and math.isfinite(trial.metrics[metric].median)


def _interval(trial: TrialRecord, metric: str) -> list[float] | None:
    reading = trial.metrics[metric]
    known = half_width(reading) is not None and math.isfinite(reading.low) and math.isfinite(reading.high)
    return [_short(reading.low), _short(reading.high)] if known else None


def _words(record: SweepRecord, trial: TrialRecord, general: Container[Caveat]) -> list[str]:
    """The lines beside a point under the pointer: number, figures, the trial's own caveats, settings."""
    metrics = dict.fromkeys([*(o.metric for o in record.objectives), "joules_per_token"])
    shown = [f"{figures(trial, m)} {unit(m, record.power)}" for m in metrics if m in trial.metrics]
    own = ", ".join(caveat_name(caveat) for caveat in trial.caveats if caveat not in general)
    lines = [f"trial #{trial.number}", *shown, *([own] if own else []), own_settings(record, trial)]
    return [clean(line) for line in lines]


def _short(number: float) -> float:
    return float(f"{number:.6g}")
