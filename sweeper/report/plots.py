"""``pareto.png``: the front as a picture for people who share pictures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from sweeper.records import Reading, SweepRecord, TrialRecord
from sweeper.report.groups import REST, Plane, groups_of, planes_of
from sweeper.report.picks import marks, recommended
from sweeper.report.words import axis_title, clean, figure, half_width, machine_name, unit

# Okabe and Ito's colours, which the colour-blind can tell apart; shapes differ as well.
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
GREY, BLACK = "#999999", "#000000"
PICK_STYLES = (("fastest", "^", VERMILLION), ("knee", "D", ORANGE), ("greenest", "v", GREEN))
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
    _draw(drawing.add_subplot(), record)
    out = io.BytesIO()
    with warnings.catch_warnings():
        # The font has no Chinese or Japanese and draws a box instead; a warning would not help the user.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        drawing.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Any, record: SweepRecord) -> None:
    plane = planes_of(record)[0]
    groups = groups_of(record, plane)
    named, best = marks(record), recommended(record)

    def at(trial: TrialRecord) -> tuple[float, float]:
        return trial.metrics[plane.across].median, trial.metrics[plane.up].median

    def plot(trials: Sequence[TrialRecord], form: str, **style: Any) -> None:
        axes.plot(*([place[axis] for place in map(at, trials)] for axis in (0, 1)), form, **style)

    small: dict[str, Any] = {"linestyle": "none", "markersize": 4.5, "zorder": 1}
    if groups.beaten:
        plot(groups.beaten, "o", color=GREY, alpha=0.45, label=REST, **small)
    if groups.outside:
        plot(groups.outside, "x", color=BLACK, alpha=0.5, label="outside the constraints", **small)
    step = "steps-post" if plane.turns_late else "steps-pre"
    plot(groups.stairs, "-", color=BLUE, linewidth=1.2, alpha=0.6, zorder=2, drawstyle=step)
    for trial in groups.front:
        x, y = trial.metrics[plane.across], trial.metrics[plane.up]
        arms = {"xerr": _arms(x), "yerr": _arms(y), "capsize": 2}
        axes.errorbar(x.median, y.median, fmt="o", color=BLUE, markersize=5, zorder=3, **arms)
    axes.plot([], [], "o-", color=BLUE, label="front, with 95 % intervals")
    large: dict[str, Any] = {"linestyle": "none", "markersize": 9, "zorder": 5}
    if groups.baseline:
        plot(groups.baseline, "s", color=BLACK, fillstyle="none", label="baseline", **{**large, "zorder": 4})
    for trial in groups.scored:
        for name, marker, colour in PICK_STYLES:
            if name in named.get(trial.number, ()):
                plot([trial], marker, color=colour, label=name, **large)
        if best is not None and best.trial.number == trial.number:
            ring: dict[str, Any] = {
                "fillstyle": "none",
                "markeredgewidth": 2,
                "zorder": 6,
                "linestyle": "none",
            }
            plot([trial], "o", color=VERMILLION, markersize=16, label=f"recommended ({best.pick})", **ring)
            _tell(axes, record, plane, at(trial))
    _dress(axes, record, plane, empty=not groups.scored)


def _arms(reading: Reading) -> list[list[float]] | None:
    if half_width(reading) is None:
        return None
    return [[max(0.0, reading.median - reading.low)], [max(0.0, reading.high - reading.median)]]


def _tell(axes: Any, record: SweepRecord, plane: Plane, at: tuple[float, float]) -> None:
    """The figures beside the recommended point, on the side where there is room."""
    words = ", ".join(
        f"{figure(value)} {unit(metric, record.power)}"
        for value, metric in ((at[1], plane.up), (at[0], plane.across))
    )
    left, right = axes.get_xlim()
    place, side = ((-14, -18), "right") if at[0] > left + 0.7 * (right - left) else ((12, -16), "left")
    axes.annotate(words, at, xytext=place, textcoords="offset points", fontsize=9, ha=side)


def _dress(axes: Any, record: SweepRecord, plane: Plane, *, empty: bool) -> None:
    axes.set_xlabel(axis_title(plane.across, record), parse_math=False)
    axes.set_ylabel(axis_title(plane.up, record), parse_math=False)
    axes.set_title(
        clean(f"{record.model.name} on {machine_name(record)}"), loc="left", fontsize=11, parse_math=False
    )
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if empty:
        axes.text(0.5, 0.5, "no trial gave a figure", ha="center", va="center", transform=axes.transAxes)
    else:
        # Below the axes: within them there is no corner that never holds a point.
        axes.figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=4, markerscale=0.6)
