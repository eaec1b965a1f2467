"""``pareto.png``: the front as a picture for people who share pictures."""

from __future__ import annotations

import io
import warnings
from typing import Any

from sweeper.records import Reading, SweepRecord, TrialRecord
from sweeper.report.groups import REST
from sweeper.report.picks import marks, recommended
from sweeper.report.words import clean, figure, is_doubtful, label, machine_name

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
    """The first two objectives of every trial with its interval; baseline and picks are marked.

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


def axes_of(record: SweepRecord) -> tuple[str, str]:
    """The metrics across and up: the second objective across, the first up."""
    first = record.objectives[0].metric
    return (record.objectives[1].metric if len(record.objectives) > 1 else "watts"), first


def turns_late(record: SweepRecord) -> bool:
    """Whether the staircase of the front goes across before it goes up.

    Between two points of a front nothing was measured: what is sure there is only the nearer point that
    costs no more, and a straight line would promise what nobody saw.
    """
    across, _ = axes_of(record)
    return all(o.direction == "minimize" for o in record.objectives if o.metric == across)


def _draw(axes: Any, record: SweepRecord) -> None:
    across, up = axes_of(record)
    scored = [t for t in record.trials if across in t.metrics and up in t.metrics]
    front = [t for t in record.on_front() if t in scored]
    rest = [t for t in scored if t.feasible and t not in front]
    outside = [t for t in scored if not t.feasible]
    _scatter(axes, rest, across, up, color=GREY, alpha=0.45, s=18, label=REST)
    _scatter(
        axes, outside, across, up, color=BLACK, marker="x", alpha=0.5, s=24, label="outside the constraints"
    )
    ordered = sorted(front, key=lambda t: t.metrics[across].median)
    step = "steps-post" if turns_late(record) else "steps-pre"
    axes.plot(*_medians(ordered, across, up), color=BLUE, linewidth=1.2, alpha=0.6, zorder=2, drawstyle=step)
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


def _scatter(axes: Any, trials: list[TrialRecord], across: str, up: str, **style: Any) -> None:
    if trials:
        axes.scatter(*_medians(trials, across, up), linewidths=1, zorder=1, **style)


def _medians(trials: list[TrialRecord], across: str, up: str) -> tuple[list[float], list[float]]:
    return [t.metrics[across].median for t in trials], [t.metrics[up].median for t in trials]


def _arms(reading: Reading) -> list[list[float]]:
    return [[max(0.0, reading.median - reading.low)], [max(0.0, reading.high - reading.median)]]


def _mark(axes: Any, record: SweepRecord, scored: list[TrialRecord], across: str, up: str) -> None:
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
            words = f"{figure(at[number][1])} {label(up).unit}, {figure(at[number][0])} {label(across).unit}"
            axes.annotate(words, at[number], xytext=(12, -16), textcoords="offset points", fontsize=9)


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
        axes.legend(fontsize=8, frameon=False, loc="best")


def axis_title(metric: str, record: SweepRecord) -> str:
    """An axis' title with its unit; watts that are not measured say so."""
    found = label(metric)
    kind = f", {record.power.kind}" if found.power and is_doubtful(record.power) else ""
    unit = f" ({found.unit}{kind})" if found.unit or kind else ""
    return clean(found.title + unit)
