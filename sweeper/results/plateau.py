"""Finds power or clock caps that change nothing, and the lowest cap that keeps the speed. All functions are pure.

A cap is judged by its effect under load. From the highest cap downwards, the caps that change neither speed nor watts
beyond noise form a plateau: they cost nothing and save nothing. Lower caps may still keep the speed. There watts fall
for free, so the lowest of these caps is recommended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sweeper.records import Caveat, Reading

# Medians closer than this count as one speed, even if three repeats happen to agree to the digit. Repeats of a decode
# window differ by about 1 % between loads of the same model.
SAME_FRACTION = 0.01
# A GPU regulates to its cap within a few percent, and its sensor is exact to 5 %. A GPU that draws less than this share
# of its cap was not held by it.
CAPPED_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class CapPoint:
    """One cap (W or MHz) and its measurements. The rest of the configuration is equal."""

    cap: int
    speed: Reading
    watts: Reading


@dataclass(frozen=True, slots=True)
class Plateau:
    """Caps in rising order. ``recommended`` keeps the speed of the highest cap for the fewest watts."""

    not_binding: tuple[int, ...]
    keeps_speed: tuple[int, ...]
    recommended: int | None

    def caveat(self, cap: int) -> Caveat | None:
        """The caveat of a figure under this cap; None if nothing is known about the cap."""
        if cap in self.not_binding:
            return Caveat.CAP_NOT_BINDING
        return Caveat.POWER_CAPPED if self.not_binding and cap < self.not_binding[0] else None


def find_plateau(points: Iterable[CapPoint]) -> Plateau:
    """Judge caps by their effect.

    Args:
        points: one point for each cap, in any order; all in W or all in MHz. If a cap has several, the last one counts.

    Returns:
        The caps that do not bind, the caps that keep the speed, and the cap to recommend; all empty without points. A
        single cap shows no plateau, so it is unknown whether it binds, and it is recommended.
    """
    by_cap = {point.cap: point for point in points}
    falling = [by_cap[cap] for cap in sorted(by_cap, reverse=True)]
    if not falling:
        return Plateau((), (), None)
    keeping = _from_the_top(falling, _as_fast)
    idle = _from_the_top(keeping, _as_hungry)
    not_binding = tuple(sorted(point.cap for point in idle)) if len(idle) > 1 else ()
    keeps_speed = tuple(sorted(point.cap for point in keeping))
    return Plateau(not_binding, keeps_speed, keeps_speed[0])


def _from_the_top(falling: Sequence[CapPoint], alike: Callable[[CapPoint, CapPoint], bool]) -> list[CapPoint]:
    """The points down to the first one that differs. A lower point that agrees again does so by chance."""
    top, run = falling[0], []
    for point in falling:
        if not alike(top, point):
            break
        run.append(point)
    return run


def _as_fast(top: CapPoint, point: CapPoint) -> bool:
    """Whether a point is not slower than the top one, within noise. A faster point also counts."""
    return point.speed.median >= top.speed.median or _indistinct(top.speed, point.speed)


def _as_hungry(top: CapPoint, point: CapPoint) -> bool:
    return _indistinct(top.watts, point.watts)


def _indistinct(one: Reading, other: Reading) -> bool:
    if one.low <= other.high and other.low <= one.high:
        return True
    return abs(one.median - other.median) <= SAME_FRACTION * max(abs(one.median), abs(other.median))
