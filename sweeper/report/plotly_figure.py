"""The front as plotly's own JSON. Colours are named, not given: page.js takes them from the style sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.groups import REST, Groups, groups_of
from sweeper.report.picks import picks
from sweeper.report.plots import axes_of, axis_title, turns_late
from sweeper.report.words import clean, half_width, label, own_settings, spread


def figure_json(record: SweepRecord) -> str:
    """Traces and layout as JSON that can stand inside a script element whatever the names in it hold."""
    text = json.dumps({"traces": _traces(record), "layout": _layout(record)}, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _traces(record: SweepRecord) -> list[dict[str, Any]]:
    groups = groups_of(record, axes_of(record))
    marker = {"size": 6, "opacity": 0.4}
    return [
        _trace(record, groups.beaten, REST, "beaten", marker),
        _trace(
            record, groups.outside, "outside the constraints", "outside", {**marker, "symbol": "x-thin-open"}
        ),
        {**_trace(record, groups.front, "front", "front", {"size": 9}, joined=True), **_bars(record, groups)},
        _trace(record, groups.baseline, "baseline", "baseline", _ring("square", 15)),
        *_picks(record, groups),
    ]


def _trace(
    record: SweepRecord,
    trials: Sequence[TrialRecord],
    name: str,
    kind: str,
    marker: dict[str, Any],
    *,
    joined: bool = False,
) -> dict[str, Any]:
    across, up = axes_of(record)
    return {
        "type": "scatter",
        "mode": "lines+markers" if joined else "markers",
        "name": name,
        "kind": kind,
        "x": [_short(t.metrics[across].median) for t in trials],
        "y": [_short(t.metrics[up].median) for t in trials],
        "text": [_hover(record, t) for t in trials],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": dict(marker),
        **({"line": {"width": 1.2, "shape": "hv" if turns_late(record) else "vh"}} if joined else {}),
    }


def _bars(record: SweepRecord, groups: Groups) -> dict[str, Any]:
    across, up = axes_of(record)

    def bars(metric: str) -> dict[str, Any]:
        readings = [t.metrics[metric] for t in groups.front]
        return {
            "type": "data",
            "symmetric": False,
            "array": [_short(max(0.0, r.high - r.median)) for r in readings],
            "arrayminus": [_short(max(0.0, r.median - r.low)) for r in readings],
            "thickness": 1.2,
            "width": 3,
            "visible": any(half_width(r) is not None for r in readings),
        }

    return {"error_x": bars(across), "error_y": bars(up)}


def _picks(record: SweepRecord, groups: Groups) -> list[dict[str, Any]]:
    found = []
    for picked in picks(record):
        trials = [t for t in groups.scored if t.number == picked.trial.number]
        kind = picked.pick if picked.pick in _SYMBOLS and not picked.recommended else "pick"
        title = f"{picked.pick} (recommended)" if picked.recommended else picked.pick
        marker = _ring(_SYMBOLS.get(kind, "circle"), 20 if picked.recommended else 14)
        found.append(_trace(record, trials, escape(title), kind, marker))
    return found


_SYMBOLS = {"fastest": "triangle-up", "knee": "diamond", "greenest": "triangle-down"}


def _ring(symbol: str, size: int) -> dict[str, Any]:
    return {"symbol": f"{symbol}-open", "size": size, "line": {"width": 2.5}}


def _hover(record: SweepRecord, trial: TrialRecord) -> str:
    """What stands beside a point that is pointed at. plotly reads it as its own HTML, so all is escaped."""
    lines = [f"trial #{trial.number}"]
    for metric in dict.fromkeys([*(o.metric for o in record.objectives), "joules_per_token"]):
        if metric in trial.metrics:
            kind = f" {record.power.kind}" if label(metric).power and record.power.kind != "measured" else ""
            lines.append(f"{spread(trial.metrics[metric])} {label(metric).unit}{kind}")
    lines += own_settings(record, trial).split(" ")
    return "<br>".join(escape(clean(line)) for line in lines)


def _layout(record: SweepRecord) -> dict[str, Any]:
    across, up = axes_of(record)
    return {
        "xaxis": {"title": {"text": escape(axis_title(across, record))}, "automargin": True},
        "yaxis": {"title": {"text": escape(axis_title(up, record))}, "automargin": True},
        "showlegend": False,  # the page has its own key, which serves the still drawing as well
        "margin": {"l": 10, "r": 10, "t": 34, "b": 10},
        "hovermode": "closest",
        "dragmode": False,
    }


def _short(number: float) -> float:
    return float(f"{number:.6g}")
