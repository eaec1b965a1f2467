"""The front as plain data for the page's own drawing (front.js): points, intervals, marks, and words for each."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.groups import groups_of
from sweeper.report.picks import picks
from sweeper.report.plots import axes_of, axis_title, turns_late
from sweeper.report.words import clean, half_width, label, own_settings, spread

SIGNS = ("fastest", "knee", "greenest")  # picks with a shape of their own; any other one is a ring


def front_points(record: SweepRecord) -> str:
    """JSON that can stand inside a script element, whatever the names in it hold."""
    text = json.dumps(_points(record), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _points(record: SweepRecord) -> dict[str, Any]:
    """Points by group, each ``[across, up, place in words]``; intervals are None where no spread is known."""
    axes = across, up = axes_of(record)
    groups = groups_of(record, axes)
    places = {trial.number: place for place, trial in enumerate(groups.scored)}

    def at(trials: Sequence[TrialRecord]) -> list[list[float]]:
        return [
            [_short(t.metrics[across].median), _short(t.metrics[up].median), places[t.number]] for t in trials
        ]

    return {
        "across": axis_title(across, record),
        "up": axis_title(up, record),
        "late": turns_late(record),
        "beaten": at(groups.beaten),
        "outside": at(groups.outside),
        "front": at(groups.front),
        "intervals": [[_interval(t, across), _interval(t, up)] for t in groups.front],
        "baseline": at(groups.baseline),
        "picks": [
            {
                "kind": "pick" if picked.recommended or picked.pick not in SIGNS else picked.pick,
                "at": at([picked.trial])[0],
            }
            for picked in picks(record)
            if picked.trial.number in places
        ],
        "words": [_words(record, t) for t in groups.scored],
    }


def _interval(trial: TrialRecord, metric: str) -> list[float] | None:
    reading = trial.metrics[metric]
    known = half_width(reading) is not None and math.isfinite(reading.low) and math.isfinite(reading.high)
    return [_short(reading.low), _short(reading.high)] if known else None


def _words(record: SweepRecord, trial: TrialRecord) -> list[str]:
    """What stands beside a point that is pointed at: its number, its figures, its settings."""
    figures = []
    for metric in dict.fromkeys([*(o.metric for o in record.objectives), "joules_per_token"]):
        if metric in trial.metrics:
            kind = f" {record.power.kind}" if label(metric).power and record.power.kind != "measured" else ""
            figures.append(f"{spread(trial.metrics[metric])} {label(metric).unit}{kind}")
    lines = [f"trial #{trial.number}", *figures, own_settings(record, trial)]
    return [clean(line) for line in lines]


def _short(number: float) -> float:
    return float(f"{number:.6g}")
