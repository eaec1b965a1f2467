"""A counter's edges: when it was refreshed, as far as the looks at it tell, and the joules between two moments.

A counter holds its value from one refresh to the next, so what it shows is exact at its edges and late between
them. Energy is therefore counted from an edge to an edge, over whole refresh periods inside the window. What is
left at the window's two ends, less than a period each, is taken at the power of the periods beside it, inside:
the load begins and ends with the window, so that the period across its edge is half rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Power at a window's end is that of the periods nearest to it. So many of them, or so many seconds where that is
# more, make it good to a few percent where each edge is known to a fifth of a period; a load that changes later
# is left out.
NEAR_PERIODS = 4.0
NEAR_SECONDS = 0.2
# Between two looks a load that steps is off a straight line by at most a quarter of their distance.
STEP_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Edge:
    """One refresh of a counter: its moment, known to ``slack`` seconds either way, and what it showed then."""

    moment: float
    slack: float
    joules: float


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules of a window, and how far they may be off."""

    joules: float
    error_joules: float


def edges_of(points: Sequence[tuple[float, float]], period: float) -> list[Edge]:
    """The edges that these looks show.

    Args:
        points: moment and joules of each look, in order of time.
        period: the counter's update period in s; 0 for a counter that is always fresh.

    Returns:
        An edge for the first look and for each that differs from the one before. An edge lies after the look
        that did not show it yet, and at most a period before the one that did.
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
    """Energy between two moments, None where the looks show too few edges for it.

    Args:
        points: moment and joules of each look around the window, in order of time.
        started: beginning of the window.
        ended: its end.
        period: the counter's update period in s.
    """
    edges = edges_of(points, period)
    inside = [edge for edge in edges if started <= edge.moment <= ended]
    if len(inside) < 2:
        return _mean_around(edges, started, ended)
    near = max(NEAR_SECONDS, NEAR_PERIODS * period)
    earlier = next((edge for edge in reversed(edges) if edge.moment < started), None)
    later = next((edge for edge in edges if edge.moment > ended), None)
    # The window's end is its beginning in a mirror.
    mirrored = [_mirror(edge) for edge in reversed(inside)]
    head = _beginning(inside, started, near, earlier, points[0][0] <= started)
    tail = _beginning(mirrored, -ended, near, later and _mirror(later), points[-1][0] >= ended)
    whole = -tail.edge.joules - head.edge.joules
    return Energy(head.joules + whole + tail.joules, head.error_joules + tail.error_joules)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The edge from which whole periods are counted, and what came before it."""

    edge: Edge
    joules: float
    error_joules: float


def _beginning(
    inside: Sequence[Edge], moment: float, near: float, outside: Edge | None, enclosed: bool
) -> _Beginning:
    """What a window holds before its whole periods.

    Args:
        inside: edges inside the window, two or more, in order.
        moment: the window's beginning.
        near: over how many seconds the power beside it is taken.
        outside: the last edge before the window, None where none was seen.
        enclosed: whether there was a look at ``moment`` or before it.
    """
    # A look that came late leaves its edge in doubt: then the next one may be the better to begin with.
    reach = moment + min(near, (inside[-1].moment - moment) / 4)
    first = min(
        (edge for edge in inside[:-1] if edge is inside[0] or edge.moment <= reach),
        key=lambda edge: edge.slack + STEP_SHARE * (edge.moment - moment),
    )
    far = next((edge for edge in inside if edge.moment - first.moment >= near), inside[-1])
    seconds, apart = first.moment - moment, far.moment - first.moment
    watts = (far.joules - first.joules) / apart if apart > 0 else 0.0
    joules = flat = watts * seconds
    if outside is not None:
        # What flowed since the edge outside is known. No more than all of it is the window's; and no less than an
        # even share, unless more was drawn before, as by prefill before decode: so what it adds is in doubt.
        across = first.joules - outside.joules
        longest = first.moment - outside.moment + first.slack + outside.slack
        joules = min(across, max(flat, across * seconds / longest))
    doubt = first.slack + seconds * (STEP_SHARE if enclosed else 1.0)
    if apart > 0:
        doubt += seconds * (first.slack + far.slack) / apart
    return _Beginning(first, joules, watts * doubt + max(0.0, joules - flat))


def _mean_around(edges: Sequence[Edge], started: float, ended: float) -> Energy | None:
    """A window shorter than two periods: the mean power of the periods around it."""
    if len(edges) < 2:
        return None
    first = next((edge for edge in reversed(edges[:-1]) if edge.moment <= started), edges[0])
    last = next((edge for edge in edges if edge.moment >= ended), edges[-1])
    if last.moment <= first.moment:
        return None
    watts = (last.joules - first.joules) / (last.moment - first.moment)
    doubt = first.slack + last.slack + abs(started - first.moment) + abs(last.moment - ended)
    return Energy(watts * (ended - started), watts * doubt)


def _mirror(edge: Edge) -> Edge:
    return Edge(-edge.moment, edge.slack, -edge.joules)
