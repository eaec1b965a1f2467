"""The front as plain data: the template draws it, and front.js finds the point under the pointer in it."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

from sweeper.records import Caveat, SweepRecord, TrialRecord
from sweeper.report.caveats import caveat_name, caveats_of
from sweeper.report.charts import Axis, Chart, fit
from sweeper.report.groups import Groups, Plane, groups_of, planes_of
from sweeper.report.picks import picks
from sweeper.report.words import axis_title, clean, half_width, own_settings, spread, unit

SIGNS = ("fastest", "knee", "greenest")  # picks with a shape of their own; any other one is a ring


def front_points(record: SweepRecord) -> str:
    """JSON that can stand inside a script element, whatever the names in it hold."""
    text = json.dumps(front_data(record), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def front_data(record: SweepRecord) -> dict[str, Any]:
    """Each plane, and the words of every trial that has a point in one of them."""
    planes = [(plane, groups_of(record, plane)) for plane in planes_of(record)]
    drawn = {t.number: t for _, groups in planes for t in groups.scored}
    places = {number: place for place, number in enumerate(drawn)}
    # What holds for the whole sweep stands at the page's head, not beside every point.
    general = {caveat for caveat, carriers in caveats_of(record).items() if not str(carriers)}
    return {
        "planes": [_plane(record, plane, groups, places) for plane, groups in planes],
        "words": [_words(record, t, general) for t in drawn.values()],
    }


def front_chart(plane: Mapping[str, Any]) -> Chart | None:
    """The axes of a plane of :func:`front_data`; None where it has no point."""
    return Chart(*(Axis(low, high) for low, high in plane["view"])) if plane["view"] else None


def _plane(record: SweepRecord, plane: Plane, groups: Groups, places: Mapping[int, int]) -> dict[str, Any]:
    """Points by group, each ``[across, up, place in words]``; intervals are None where no spread is known."""

    def at(trials: Iterable[TrialRecord]) -> list[list[float]]:
        found = [
            (t.metrics[plane.across].median, t.metrics[plane.up].median, places[t.number]) for t in trials
        ]
        return [[_short(across), _short(up), place] for across, up, place in found]

    scored = {t.number for t in groups.scored}
    intervals = [[_interval(t, plane.across), _interval(t, plane.up)] for t in groups.front]
    view = []
    for axis in (0, 1) if scored else ():
        ends = [end for pair in intervals for end in pair[axis] or ()]
        fitted = fit([*(point[axis] for point in at(groups.scored)), *ends])
        view.append([fitted.low, fitted.high])
    return {
        "across": axis_title(plane.across, record),
        "up": axis_title(plane.up, record),
        "view": view,
        "late": plane.turns_late,
        "beaten": at(groups.beaten),
        "outside": at(groups.outside),
        "front": at(groups.front),
        "stairs": at(groups.stairs),
        "intervals": intervals,
        "baseline": at(groups.baseline),
        "picks": [
            {
                "kind": "pick" if picked.recommended or picked.pick not in SIGNS else picked.pick,
                "name": picked.pick,
                "at": at([picked.trial])[0],
            }
            for picked in picks(record)
            if picked.trial.number in scored
        ],
    }


def _interval(trial: TrialRecord, metric: str) -> list[float] | None:
    reading = trial.metrics[metric]
    known = half_width(reading) is not None and math.isfinite(reading.low) and math.isfinite(reading.high)
    return [_short(reading.low), _short(reading.high)] if known else None


def _words(record: SweepRecord, trial: TrialRecord, general: Container[Caveat]) -> list[str]:
    """The lines beside a point under the pointer: number, figures, the trial's own caveats, settings."""
    metrics = dict.fromkeys([*(o.metric for o in record.objectives), "joules_per_token"])
    figures = [f"{spread(trial.metrics[m])} {unit(m, record.power)}" for m in metrics if m in trial.metrics]
    own = ", ".join(caveat_name(caveat) for caveat in trial.caveats if caveat not in general)
    lines = [f"trial #{trial.number}", *figures, *([own] if own else []), own_settings(record, trial)]
    return [clean(line) for line in lines]


def _short(number: float) -> float:
    return float(f"{number:.6g}")
