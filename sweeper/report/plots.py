"""``pareto.png``: the front as a picture for people who share pictures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from sweeper.records import SweepRecord
from sweeper.report.front_points import REST, front_data, planes_of
from sweeper.report.words import clean, figure, machine_name, unit

# Okabe and Ito's colours, which the colour-blind can tell apart; shapes differ as well.
BLUE, GREY, BLACK, VERMILLION = "#0072B2", "#999999", "#000000", "#D55E00"
POINTS: dict[str, dict[str, Any]] = {
    "beaten": {"marker": "o", "color": GREY, "alpha": 0.45, "markersize": 4.5, "zorder": 1},
    "outside": {"marker": "x", "color": BLACK, "alpha": 0.5, "markersize": 4.5, "zorder": 1},
    "baseline": {"marker": "s", "color": BLACK, "fillstyle": "none", "markersize": 9, "zorder": 4},
    "fastest": {"marker": "^", "color": VERMILLION, "markersize": 9, "zorder": 5},
    "longest": {"marker": ">", "color": "#CC79A7", "markersize": 9, "zorder": 5},
    "knee": {"marker": "D", "color": "#E69F00", "markersize": 9, "zorder": 5},
    "greenest": {"marker": "v", "color": "#009E73", "markersize": 9, "zorder": 5},
    "pick": {"marker": "o", "color": VERMILLION, "markersize": 16, "fillstyle": "none", "zorder": 6},
}
SIZE_INCHES = (9.0, 5.6)
DPI = 140  # 1260 x 784: sharp on a phone, under 200 kB


def pareto_png(record: SweepRecord) -> bytes:
    """The first objective of every trial against its cost, with intervals, the baseline and the picks.

    A sweep without a single figure gives a picture that says so.
    """
    # A figure of its own canvas: pyplot would keep global state and look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    data = front_data(record)["planes"][0]
    axes.set_xlabel(data["across"], parse_math=False)
    axes.set_ylabel(data["up"], parse_math=False)
    heading = clean(f"{record.model.name} on {machine_name(record)}")
    axes.set_title(heading, loc="left", fontsize=11, parse_math=False)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if data["view"]:
        _draw(axes, record, data)
        # Below the axes: within them there is no corner that never holds a point.
        drawing.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=4, markerscale=0.6)
    else:
        axes.text(0.5, 0.5, "no trial gave a figure", ha="center", va="center", transform=axes.transAxes)
    out = io.BytesIO()
    with warnings.catch_warnings():
        # The font has no Chinese or Japanese and draws a box instead; a warning would not help the user.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        drawing.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Any, record: SweepRecord, data: dict[str, Any]) -> None:
    def plot(kind: str, points: Sequence[Sequence[float]], label: str) -> None:
        if points:
            columns = [[point[axis] for point in points] for axis in (0, 1)]
            axes.plot(*columns, label=label, linestyle="none", markeredgewidth=1.5, **POINTS[kind])

    plot("beaten", data["beaten"], REST)
    plot("outside", data["outside"], "breaks a constraint")
    plot("baseline", data["baseline"], "baseline")
    step = "steps-post" if data["late"] else "steps-pre"
    stairs = [[point[axis] for point in data["stairs"]] for axis in (0, 1)]
    axes.plot(*stairs, color=BLUE, linewidth=1.2, alpha=0.6, zorder=2, drawstyle=step)
    bars = {"fmt": "o", "color": BLUE, "markersize": 5, "zorder": 3, "capsize": 2}
    for (x, y, _), (across, up) in zip(data["front"], data["intervals"], strict=True):
        axes.errorbar(x, y, _arms(up, y), _arms(across, x), **bars)
    axes.plot([], [], "o-", color=BLUE, label="front, with 95 % intervals")
    for pick in data["picks"]:
        if pick["kind"] == "pick":
            nearest = pick["name"].startswith("nearest")
            plot("pick", [pick["at"]], pick["name"] if nearest else f"recommended ({pick['name']})")
            _tell(axes, record, *pick["at"][:2])
        else:
            plot(pick["kind"], [pick["at"]], pick["name"])


def _arms(interval: Sequence[float] | None, median: float) -> list[list[float]] | None:
    if interval is None:
        return None
    return [[max(0.0, median - interval[0])], [max(0.0, interval[1] - median)]]


def _tell(axes: Any, record: SweepRecord, across: float, up: float) -> None:
    """The figures beside the recommended point, on the side where there is room."""
    plane = planes_of(record)[0]
    figures = ((up, plane.up), (across, plane.across))
    words = ", ".join(f"{figure(value)} {unit(metric, record.power)}" for value, metric in figures)
    left, right = axes.get_xlim()
    place, side = ((-14, -18), "right") if across > left + 0.7 * (right - left) else ((12, -16), "left")
    axes.annotate(words, (across, up), xytext=place, textcoords="offset points", fontsize=9, ha=side)
