"""``pareto.png``: the front as a picture for people who share pictures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from sweeper.records import Reading, SweepRecord, TrialRecord
from sweeper.report.groups import REST, groups_of
from sweeper.report.picks import marks, recommended
from sweeper.report.planes import planes_of
from sweeper.report.words import axis_title, clean, figure, half_width, machine_name, unit

# Okabe and Ito's colours, which the colour-blind can tell apart; shapes differ as well.
BLUE, VERMILLION, GREEN, ORANGE, GREY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#999999",
    "#000000",
)
PICK_STYLES = (("fastest", "^", VERMILLION), ("knee", "D", ORANGE), ("greenest", "v", GREEN))
SIZE_INCHES = (9.0, 5.6)
DPI = 140  # 1260 x 784: sharp on a phone, under 200 kB


def pareto_png(record: SweepRecord) -> bytes:
    """The first objective of every trial against what it costs, with intervals; baseline and picks are marked.

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
        # Its font has no Chinese or Japanese: a box stands for such a sign, and that is no user's concern.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        drawing.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Any, record: SweepRecord) -> None:
    plane = planes_of(record)[0]
    across, up = plane.across, plane.up
    groups = groups_of(record, plane)
    scored, ordered, outside = groups.scored, groups.front, groups.outside
    _scatter(axes, groups.beaten, across, up, color=GREY, alpha=0.45, s=18, label=REST)
    _scatter(
        axes, outside, across, up, color=BLACK, marker="x", alpha=0.5, s=24, label="outside the constraints"
    )
    step = "steps-post" if plane.turns_late else "steps-pre"
    axes.plot(
        *_medians(groups.stairs, across, up), color=BLUE, linewidth=1.2, alpha=0.6, zorder=2, drawstyle=step
    )
    for trial in ordered:
        x, y = trial.metrics[across], trial.metrics[up]
        axes.errorbar(
            x.median,
            y.median,
            xerr=_arms(x),
            yerr=_arms(y),
            fmt="o",
            color=BLUE,
            markersize=5,
            capsize=2,
            zorder=3,
        )
    axes.plot([], [], "o-", color=BLUE, label="front, with 95 % intervals")
    _mark(axes, record, scored, across, up)
    _dress(axes, record, across, up, empty=not scored)


def _scatter(axes: Any, trials: Sequence[TrialRecord], across: str, up: str, **style: Any) -> None:
    if trials:
        axes.scatter(*_medians(trials, across, up), linewidths=1, zorder=1, **style)


def _medians(trials: Sequence[TrialRecord], across: str, up: str) -> tuple[list[float], list[float]]:
    return [t.metrics[across].median for t in trials], [t.metrics[up].median for t in trials]


def _arms(reading: Reading) -> list[list[float]] | None:
    if half_width(reading) is None:
        return None
    return [[max(0.0, reading.median - reading.low)], [max(0.0, reading.high - reading.median)]]


def _mark(axes: Any, record: SweepRecord, scored: Sequence[TrialRecord], across: str, up: str) -> None:
    named, best = marks(record), recommended(record)
    at = {t.number: (t.metrics[across].median, t.metrics[up].median) for t in scored}
    if record.baseline in at:
        axes.plot(
            *at[record.baseline], "s", color=BLACK, markersize=9, fillstyle="none", label="baseline", zorder=4
        )
    for number, names in named.items():
        for name, marker, colour in PICK_STYLES:
            if name in names and number in at:
                axes.plot(
                    *at[number], marker, color=colour, markersize=9, label=name, zorder=5, linestyle="none"
                )
        if best is not None and best.trial.number == number and number in at:
            axes.plot(
                *at[number], "o", color=VERMILLION, markersize=16, markeredgewidth=2, fillstyle="none",
                label=f"recommended ({best.pick})", zorder=6, linestyle="none",
            )  # fmt: skip
            _tell(axes, record, (across, up), at[number])


def _tell(axes: Any, record: SweepRecord, metrics: tuple[str, str], at: tuple[float, float]) -> None:
    """The figures beside the recommended point, on the side where there is room."""
    across, up = metrics
    words = f"{figure(at[1])} {unit(up, record.power)}, {figure(at[0])} {unit(across, record.power)}"
    left, right = axes.get_xlim()
    is_far_right = at[0] > left + 0.7 * (right - left)
    place, side = ((-14, -18), "right") if is_far_right else ((12, -16), "left")
    axes.annotate(words, at, xytext=place, textcoords="offset points", fontsize=9, ha=side)


def _dress(axes: Any, record: SweepRecord, across: str, up: str, *, empty: bool) -> None:
    axes.set_xlabel(axis_title(across, record), parse_math=False)
    axes.set_ylabel(axis_title(up, record), parse_math=False)
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
