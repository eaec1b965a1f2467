"""What each parameter does to each objective: its share of the spread, and every trial as a dot."""

from __future__ import annotations

from typing import Any

from sweeper.records import SweepRecord
from sweeper.report import svg
from sweeper.report.influence import LEAST_TRIALS, Influence, influences
from sweeper.report.pieces import fold, paragraph, section, text
from sweeper.report.plots import axis_title
from sweeper.report.words import searched, value

WIDTH, HEIGHT = 300.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 8.0, 20.0
LOG_FROM_RATIO = 16  # a parameter that spans more than this, in few values, was stepped by factors
MEANT = (
    "A share of 60 % means: knowing this parameter alone, 60 % of the differences in that objective are "
    "known. Shares do not add up, and what only a combination does is not in them. The search tries good "
    "regions more often than others, so this describes these trials, not every machine."
)
TELLING = 0.05  # below this share a parameter is folded away


def parameters(record: SweepRecord) -> str:
    """The section, or nothing where a single configuration was tried."""
    rows = influences(record)
    title = "What each parameter does"
    if not rows:
        if not searched(record):
            return ""
        few = f"Fewer than {LEAST_TRIALS} trials gave figures: too few to tell parameters from chance."
        return section("parameters", title, paragraph(few, "soft"))
    telling = [row for row in rows if max(one.share for one in row) >= TELLING]
    quiet = [row for row in rows if row not in telling]
    body = paragraph(MEANT, "soft") + "".join(_parameter(record, row) for row in telling)
    names = ", ".join(row[0].parameter for row in quiet)
    body += fold(
        f"without a visible effect here: {names}", "".join(_parameter(record, row) for row in quiet), "screen"
    )
    return section("parameters", title, body)


def _parameter(record: SweepRecord, row: tuple[Influence, ...]) -> str:
    slices = "".join(
        f"<figure>{_slice(one)}<figcaption>{text(_caption(record, one))}</figcaption></figure>" for one in row
    )
    return f'<h3>{text(row[0].parameter)}</h3><div class="slices">{slices}</div>'


def _caption(record: SweepRecord, one: Influence) -> str:
    title = axis_title(one.metric, record)
    if one.share < TELLING:
        return f"{title}: no visible effect"
    return f"{title}: {one.share:.0%} of the spread, ×{one.ratio:.2g} between the best and the worst values"


def _slice(one: Influence) -> str:
    up = svg.fit((figure for _, figure in one.points), HEIGHT - BOTTOM, TOP)
    values = {item for item, _ in one.points}
    numeric = all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in values)
    drawn = _numeric(one, up) if numeric else _named(one, up, values)
    return svg.picture(WIDTH, HEIGHT, drawn, f"{one.metric} for each value of {one.parameter}")


def _numeric(one: Influence, up: svg.Axis) -> str:
    values = [float(item) for item, _ in one.points]
    log = min(values) > 0 and max(values) / min(values) >= LOG_FROM_RATIO
    across = svg.fit(values, LEFT, WIDTH - RIGHT, log=log)
    points = [(across.at(float(item)), up.at(figure)) for item, figure in one.points]
    return svg.rules(across, up, 5, 4) + svg.dots(points, "slice", 2.2)


def _named(one: Influence, up: svg.Axis, values: set[Any]) -> str:
    names = sorted(values, key=lambda item: (item is None, str(item)))
    across = svg.Axis(-0.5, len(names) - 0.5, LEFT, WIDTH - RIGHT)
    places = {item: index for index, item in enumerate(names)}
    # A little to the side by the trial's order, so that equal figures do not hide each other.
    points = [
        (across.at(places[item] + ((index * 7) % 11 - 5) / 40), up.at(figure))
        for index, (item, figure) in enumerate(one.points)
    ]
    lines = svg.rules(svg.Axis(0, 1, LEFT, WIDTH - RIGHT), up, 0, 4)
    labels = "".join(
        svg.words(across.at(index), HEIGHT - 5, value(item)[:12], "tick", "middle")
        for index, item in enumerate(names)
    )
    return lines + labels + svg.dots(points, "slice", 2.2)
