"""A counter's edges: the moments of its refreshes, as seen from samples, and the joules between two moments.

A counter holds its value from one refresh to the next. Its value is exact at its edges and late between them. sweeper
therefore counts energy from edge to edge, over whole refresh periods inside the window. Less than a period remains at
each end of the window. sweeper takes that remainder at the power of the neighbouring periods inside. The load begins
and ends with the window, so the period across the window's end is half rest.

The error bar rests on the window itself: for each period inside, the power of the period before or after it predicts
its power as the neighbours of a remainder do. The misses of these predictions show how wrong a remainder may be.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

# The power at a window's end is the power of the nearest periods: this many periods, or this many seconds if that is
# longer. The result is right to a few percent if each edge is known to a fifth of a period. A load that changes later
# does not count.
NEAR_PERIODS = 4.0
NEAR_SECONDS = 0.2
# If a sample was late, its edge is uncertain, and a later edge may be the better start. One that is this much less
# uncertain, in seconds for each second of distance, is.
SLACK_FOR_DISTANCE = 0.25
# The standard deviation of a value that may lie anywhere within ±1.
UNIFORM = 1 / math.sqrt(3)


@dataclass(frozen=True, slots=True)
class Edge:
    """One refresh of a counter: its moment, known to ± ``slack`` seconds, and the new value."""

    moment: float
    slack: float
    joules: float


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules, and the standard deviation of their error."""

    joules: float
    deviation_joules: float
    in_step: bool = False  # the load may repeat in step with the sensor, so that its errors add up


def edges_of(points: Sequence[tuple[float, float]], period: float) -> list[Edge]:
    """The edges that these samples show.

    Args:
        points: moment and joules of each sample, in order of time.
        period: the counter's update period in s; 0 for a counter that is always up to date.

    Returns:
        An edge for the first sample, and for each sample that differs from the one before. An edge lies after the last
        sample with the old value, and at most one period before the first sample with the new value.
    """
    edges: list[Edge] = []
    for index, (moment, joules) in enumerate(points):
        since = moment - points[index - 1][0] if index else math.inf
        if index and joules == points[index - 1][1]:
            continue
        width = min(since, period)
        edges.append(Edge(moment - width / 2, width / 2, joules))
    return edges


def energy_between(
    points: Sequence[tuple[float, float]], started: float, ended: float, period: float
) -> Energy | None:
    """Energy between two moments; None if the samples show too few edges.

    Args:
        points: moment and joules of each sample around the window, in order of time.
        started: the beginning of the window.
        ended: the end of the window.
        period: the counter's update period in s.
    """
    edges = edges_of(points, period)
    inside = [edge for edge in edges if started <= edge.moment <= ended]
    if len(inside) < 2:
        return _mean_around(edges, started, ended)
    # The window's end is the mirror image of its beginning.
    mirrored = [_mirror(edge) for edge in reversed(inside)]
    near = max(NEAR_SECONDS, NEAR_PERIODS * period)
    spread = (_spread(inside, near) + _spread(mirrored, near)) / 2
    earlier = next((edge for edge in reversed(edges) if edge.moment < started), None)
    later = next((edge for edge in edges if edge.moment > ended), None)
    first, head = _beginning(inside, started, near, earlier, points[0][0] <= started, spread)
    last, tail = _beginning(mirrored, -ended, near, later and _mirror(later), points[-1][0] >= ended, spread)
    whole = -last.joules - first.joules
    deviation = math.hypot(head.deviation_joules, tail.deviation_joules)
    return Energy(head.joules + whole + tail.joules, deviation)


def _power_after(edges: Sequence[Edge], index: int, near: float) -> tuple[float, float]:
    """The power in W over about ``near`` seconds after an edge, and its deviation because of the edges' slack."""
    first = edges[index]
    place = bisect_left(edges, first.moment + near, index + 1, key=lambda edge: edge.moment)
    far = edges[min(place, len(edges) - 1)]
    apart = far.moment - first.moment
    watts = (far.joules - first.joules) / apart
    return watts, watts * UNIFORM * math.hypot(first.slack, far.slack) / apart


def _spread(inside: Sequence[Edge], near: float) -> float:
    """How much the power before an edge differs from the power after it: a mean square, in W² s.

    It is given for a second: the mean power of t seconds differs by the square root of spread / t. The edges' own
    uncertainty explains a part of the differences and does not count.
    """
    found = []
    for index in range(1, len(inside) - 1):
        before, edge = inside[index - 1], inside[index]
        seconds = edge.moment - before.moment
        expected, deviation = _power_after(inside, index, near)
        noise = math.hypot(deviation, expected * UNIFORM * math.hypot(before.slack, edge.slack) / seconds)
        difference = (edge.joules - before.joules) / seconds - expected
        found.append(seconds * (difference**2 - noise**2))
    if not found:  # the window has too few periods to show how its power changes: it may be anything
        return (inside[-1].joules - inside[0].joules) ** 2 / (inside[-1].moment - inside[0].moment)
    return max(0.0, sum(found) / len(found))


def _beginning(
    inside: Sequence[Edge], moment: float, near: float, outside: Edge | None, enclosed: bool, spread: float
) -> tuple[Edge, Energy]:
    """The edge at which whole periods begin, and the energy of the window before it.

    Args:
        inside: the edges inside the window, two or more, in order.
        moment: the beginning of the window.
        near: the number of seconds over which to take the neighbouring power.
        outside: the last edge before the window; None if there is none.
        enclosed: whether there was a sample at ``moment`` or before it.
        spread: see `_spread`.
    """
    reach = moment + min(near, (inside[-1].moment - moment) / 4)
    place = min(
        (place for place, edge in enumerate(inside[:-1]) if place == 0 or edge.moment <= reach),
        key=lambda place: inside[place].slack + SLACK_FOR_DISTANCE * (inside[place].moment - moment),
    )
    first, seconds = inside[place], inside[place].moment - moment
    watts, watts_deviation = _power_after(inside, place, near)
    joules = watts * seconds
    variance = (watts_deviation * seconds) ** 2 + spread * seconds
    if not enclosed:
        variance += joules**2
    elif outside is not None:
        # The energy since the outside edge is known. The window has at most all of it, and at least an even share,
        # unless the load was heavier before the window (prefill before decode).
        across = first.joules - outside.joules
        longest = first.moment - outside.moment + first.slack + outside.slack
        flat, joules = joules, min(across, max(joules, across * seconds / longest))
        variance = min(variance, (watts * (longest - seconds) * UNIFORM) ** 2)
        variance += (joules - flat) ** 2 * 2 / 3  # more than of a uniform error: both ends may err alike
    return first, Energy(joules, math.sqrt(variance + (watts * first.slack * UNIFORM) ** 2))


def _mean_around(edges: Sequence[Edge], started: float, ended: float) -> Energy | None:
    """The energy of a window shorter than two periods, from the mean power of the periods around it."""
    if len(edges) < 2:
        return None
    first = next((edge for edge in reversed(edges[:-1]) if edge.moment <= started), edges[0])
    last = next((edge for edge in edges if edge.moment >= ended), edges[-1])
    if last.moment <= first.moment:
        return None
    watts = (last.joules - first.joules) / (last.moment - first.moment)
    doubt = first.slack + last.slack + abs(started - first.moment) + abs(last.moment - ended)
    return Energy(watts * (ended - started), watts * doubt / 2)


def _mirror(edge: Edge) -> Edge:
    return Edge(-edge.moment, edge.slack, -edge.joules)
