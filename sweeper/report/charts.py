"""Charts as numbers for the template: percentages of the drawing, so that a chart fits every width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sweeper.records import SweepRecord
from sweeper.report.influence import NO_EFFECT, TOO_NOISY_TO_SAY, VISIBLE_SHARE, Influence, is_number
from sweeper.report.words import axis_title, value

MOST_NAMES = 8  # numbers up to so many stand side by side, for they may have been stepped by factors

Point = Sequence[float]  # a value across and a value up


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from ``low`` to ``high``, in the data's unit."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """The place of ``value``, in percent of the axis."""
        return 100 * (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Round values, about ``most``, each as its place in percent and its label."""
        raw = (self.high - self.low) / most
        unit = 10 ** math.floor(math.log10(raw))
        step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= raw * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        found = [round(k * step, 12) for k in range(first, last + 1)]
        return [(self.at(tick), f"{tick:.6g}" if abs(tick) < 1e5 else f"{tick:.3g}") for tick in found]


def fit(values: Iterable[float], margin: float = 0.06) -> Axis:
    """An axis over all ``values`` with a margin at both ends. Raises ValueError where there is no value."""
    found = list(values)
    low, high = min(found), max(found)
    air = (high - low) * margin or abs(low) * 0.1 or 1.0
    return Axis(low - air, high + air)


@dataclass(frozen=True, slots=True)
class Chart:
    """Two axes; the methods give a path's data in percent of the drawing."""

    across: Axis
    up: Axis

    def spot(self, point: Point) -> str:
        """``12.50 80.00``: from the left, from the top."""
        return f"{self.across.at(point[0]):.2f} {100 - self.up.at(point[1]):.2f}"

    def dots(self, points: Iterable[Point]) -> str:
        """Strokes of almost no length with round ends: a tenth of the bytes of as many circles."""
        return "".join(f"M{self.spot(point)}h.01" for point in points)

    def line(self, points: Iterable[Point]) -> str:
        """A line through ``points``."""
        return "M" + "L".join(map(self.spot, points))

    def stairs(self, points: Sequence[Point], *, late: bool) -> str:
        """A staircase from left to right: first across where ``late``, else first up."""
        corners = list(points[:1])
        for (x0, y0, *_), (x1, y1, *_) in pairwise(points):
            corners += [(x1, y0) if late else (x0, y1), (x1, y1)]
        return self.line(corners)

    def bars(self, points: Iterable[Point], intervals: Iterable[Sequence[Point | None]]) -> str:
        """The intervals across and up of each point; nothing for an interval that is not known."""
        data = ""
        for (x, y, *_), (across, up) in zip(points, intervals, strict=True):
            data += self.line([(end, y) for end in across]) if across else ""
            data += self.line([(x, end) for end in up]) if up else ""
        return data


def hypervolume(record: SweepRecord) -> tuple[Chart, str] | None:
    """A chart of the hypervolume over the trials and the line in it; None where the front never grew."""
    volumes = record.hypervolume
    if len(volumes) < 2 or max(volumes) <= 0:
        return None
    chart = Chart(fit([1, len(volumes)], margin=0.02), fit([0, *volumes]))
    return chart, chart.line(list(enumerate(volumes, 1)))


@dataclass(frozen=True, slots=True)
class Slice:
    """One parameter against one metric. ``names`` label the places of values that are no numbers."""

    chart: Chart
    dots: str
    names: tuple[tuple[float, str], ...]
    title: str
    caption: str


def parameter_slice(record: SweepRecord, one: Influence) -> Slice:
    """Every trial as a dot, at its value of the parameter."""
    values = {item for item, _ in one.points}
    names: list[Any] = []
    if len(values) > MOST_NAMES and all(map(is_number, values)):
        across, points = fit(values), list(one.points)
    else:
        names = sorted(values, key=lambda item: (not is_number(item), item if is_number(item) else str(item)))
        across = Axis(-0.5, len(names) - 0.5)
        # The trial's order shifts its dot a little to the side, so that equal figures do not hide each other.
        points = [
            (names.index(item) + ((index * 7) % 11 - 5) / 40, figure)
            for index, (item, figure) in enumerate(one.points)
        ]
    chart = Chart(across, fit(figure for _, figure in one.points))
    effect = TOO_NOISY_TO_SAY if one.says_nothing else NO_EFFECT
    if one.share >= VISIBLE_SHARE:
        effect = f"{one.share:.0%} of the spread, ×{one.ratio:.2g} between the best and the worst values"
    return Slice(
        chart,
        chart.dots(points),
        tuple((across.at(index), value(item)[:12]) for index, item in enumerate(names)),
        f"{one.metric} for each value of {one.parameter}",
        f"{axis_title(one.metric, record)}: {effect}",
    )
