"""The front as a small plot of signs, for a terminal."""

from __future__ import annotations

from rich.text import Text

from sweeper.metrics import describe
from sweeper.records import SweepRecord
from sweeper.report.charts import Axis
from sweeper.report.front_points import plane_data, planes_of
from sweeper.report.picks import current
from sweeper.report.words import doubt

# The sign, the style and the name of each group of points; a later group covers an earlier one.
SIGNS = {
    "beaten": ("·", "dim", "beaten"),
    "outside": ("×", "dim", "breaks a constraint"),
    "front": ("●", "blue", "front"),
    "baseline": ("■", "", "baseline"),
}
PICK_STYLE = "bold green"
ROWS_AROUND = 3  # the title above the points; the axis and its labels below them, above the key


def text_plot(record: SweepRecord, width: int, rows: int) -> list[Text]:
    """The first objective of every trial against its cost, in ``rows`` rows of at most ``width`` cells.

    Empty where no trial has both figures.
    """
    plane = planes_of(record)[0]
    data = plane_data(record, plane, {trial.number: trial.number for trial in record.trials})
    if not data["view"]:
        return []
    across, up = (Axis(*ends) for ends in data["view"])
    best = current(record)
    groups = [(*SIGNS[kind], data[kind]) for kind in SIGNS]
    if best is not None:
        at = [point for *_, points in groups for point in points if point[2] == best.trial.number]
        groups.append((best.sign, PICK_STYLE, "pick", at))
    key = _key([f"{sign} {name}" for sign, _, name, points in reversed(groups) if points], width)
    height = rows - ROWS_AROUND - len(key)
    labels = {_row(place, height): label for place, label in up.ticks(3)}
    margin = max(map(len, labels.values()), default=0)
    columns = width - margin - 2
    grid = {
        (_row(up.at(y), height), _column(across.at(x), columns)): (sign, style)
        for sign, style, _, points in groups
        for x, y, _ in points
    }
    title = f"{describe(plane.up).head} (up) over {describe(plane.across).head} (right)"
    doubts = dict.fromkeys(filter(None, (doubt(record.power, metric) for metric in (plane.up, plane.across))))
    lines = [Text(",".join([title, *doubts]), "bold")]
    for row in range(height):
        line = Text(f"{labels.get(row, ''):>{margin}} {'┤' if row in labels else '│'}")
        for column in range(columns):
            line.append(*grid.get((row, column), (" ", "")))
        lines.append(line)
    ticks = {_column(place, columns): label for place, label in across.ticks(4)}
    axis = "".join("┬" if column in ticks else "─" for column in range(columns))
    lines.append(Text(f"{'':>{margin}} └{axis}"))
    below = ""
    for column, label in ticks.items():
        start = margin + 2 + column - len(label) // 2
        if start > len(below) or not below:
            below = below.ljust(start) + label
    lines.append(Text(below[:width]))
    return [*lines, *key]


def _key(entries: list[str], width: int) -> list[Text]:
    """The signs and their names in lines of at most ``width`` cells; a sign stays beside its name."""
    lines = [""]
    for entry in entries:
        longer = f"{lines[-1]} {entry}".strip()
        lines[-1:] = [longer] if len(longer) <= width else [lines[-1], entry]
    return [Text(line[:width], "dim") for line in lines]


def _row(percent: float, height: int) -> int:
    return round((100 - percent) / 100 * (height - 1))


def _column(percent: float, columns: int) -> int:
    return round(percent / 100 * (columns - 1))
