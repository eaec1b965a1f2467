"""Charts as plain SVG: they need no script, follow the page's colours, and print as they look.

Colours come from the page's style sheet by class name, so one drawing serves light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear or logarithmic axis from ``low`` to ``high`` in data, over ``start`` to ``end`` in pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where ``value`` lies, in pixels."""
        low, high, here = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values on the axis, ``most`` or a few fewer."""
        return _log_ticks(self.low, self.high, most) if self.log else _ticks(self.low, self.high, most)


def fit(
    values: Iterable[float], start: float, end: float, *, margin: float = 0.06, log: bool = False
) -> Axis:
    """An axis over all ``values`` with some air at both ends; ValueError where there is none."""
    found = list(values)
    low, high = min(found), max(found)
    if log:
        factor = (high / low) ** margin if high > low else 1.5
        return Axis(low / factor, high * factor, start, end, log=True)
    air = (high - low) * margin or abs(low) * 0.1 or 1.0
    return Axis(low - air, high + air, start, end)


def dots(points: Iterable[Point], kind: str, radius: float) -> str:
    """Many dots as one path of strokes without length: a tenth of the bytes of as many circles."""
    data = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path class="dots {kind}" stroke-width="{2 * radius:g}" d="{data}"/>' if data else ""


def line(points: Sequence[Point], kind: str) -> str:
    """A line through ``points``."""
    data = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="line {kind}" d="M{data}"/>' if len(points) > 1 else ""


def steps(points: Sequence[Point], kind: str, *, turn_late: bool) -> str:
    """A staircase through ``points`` from left to right: across first where ``turn_late``, else up first."""
    if len(points) < 2:
        return ""
    data = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for x, y in points[1:]:
        data += f"H{x:.1f}V{y:.1f}" if turn_late else f"V{y:.1f}H{x:.1f}"
    return f'<path class="line {kind}" d="{data}"/>'


def crosses(points: Iterable[Point], kind: str, arm: float = 3) -> str:
    """Small crosses, for points that are not to be had."""
    data = "".join(
        f"M{x - arm:.1f} {y - arm:.1f}l{2 * arm} {2 * arm}m0 {-2 * arm}l{-2 * arm} {2 * arm}"
        for x, y in points
    )
    return f'<path class="line {kind}" d="{data}"/>' if data else ""


def arms(x: float, y: float, across: Point | None, up: Point | None, kind: str) -> str:
    """Interval bars through a point, in pixels; none where no interval is known."""
    data = f"M{across[0]:.1f} {y:.1f}H{across[1]:.1f}" if across else ""
    data += f"M{x:.1f} {up[0]:.1f}V{up[1]:.1f}" if up else ""
    return f'<path class="line {kind}" d="{data}"/>' if data else ""


def ring(x: float, y: float, kind: str, radius: float) -> str:
    """A ring around a point."""
    return f'<circle class="ring {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def square(x: float, y: float, kind: str, half: float) -> str:
    """An open square around a point."""
    return _closed(
        [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)], kind
    )


def sign(x: float, y: float, name: str, r: float) -> str:
    """A pick's own shape: ``fastest`` points up, ``greenest`` down, ``knee`` is a diamond, others a ring."""
    shapes = {
        "fastest": [(x, y - r), (x + r, y + 0.7 * r), (x - r, y + 0.7 * r)],
        "greenest": [(x, y + r), (x + r, y - 0.7 * r), (x - r, y - 0.7 * r)],
        "knee": [(x, y - r), (x + r, y), (x, y + r), (x - r, y)],
    }
    return _closed(shapes[name], name) if name in shapes else ring(x, y, "pick", r)


def _closed(corners: Sequence[Point], kind: str) -> str:
    data = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    return f'<path class="ring {kind}" d="M{data}Z"/>'


def words(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    """Text, escaped."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def rules(across: Axis, up: Axis, ticks_across: int = 6, ticks_up: int = 5) -> str:
    """Grid lines and tick labels of both axes; none across where ``ticks_across`` is 0."""
    parts = []
    for tick in across.ticks(ticks_across) if ticks_across else ():
        x = across.at(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {up.start:.1f}V{up.end:.1f}"/>')
        parts.append(words(x, up.start + 14, number(tick), "tick", "middle"))
    for tick in up.ticks(ticks_up):
        y = up.at(tick)
        parts.append(f'<path class="grid" d="M{across.start:.1f} {y:.1f}H{across.end:.1f}"/>')
        parts.append(words(across.start - 5, y + 4, number(tick), "tick", "end"))
    return "".join(parts)


def picture(width: float, height: float, body: str, title: str, kind: str = "") -> str:
    """The whole drawing; ``title`` is what a screen reader says."""
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{body}</svg>"
    )


def number(tick: float) -> str:
    """A tick's label: short, without a trail of zeros."""
    return f"{tick:.6g}" if abs(tick) < 1e5 else f"{tick:.3g}"


def _ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / max(1, most)
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / max(1, most)))
    return [2.0**k for k in range(first, last + 1, step)]
