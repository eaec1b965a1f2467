"""A counter's edges: the moments of its refreshes, as seen from samples, and the joules between two moments.

A counter holds its value from one refresh to the next. Its value is exact at its edges and late between them. sweeper
therefore counts energy from edge to edge, over whole refresh periods inside the window. Less than a period remains at
each end of the window. sweeper takes that remainder at the power of the neighbouring periods inside. The load begins
and ends with the window, so the period across the window's end is half rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The power at a window's end is the power of the nearest periods: this many periods, or this many seconds if that is
# longer. The result is right to a few percent if each edge is known to a fifth of a period. A load that changes later
# does not count.
NEAR_PERIODS = 4.0
NEAR_SECONDS = 0.2
# Between two samples, a stepping load differs from a straight line by at most a quarter of their distance.
STEP_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Edge:
    """One refresh of a counter: its moment, known to ± ``slack`` seconds, and the new value."""

    moment: float
    slack: float
    joules: float


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules of a window, and their possible error."""

    joules: float
    error_joules: float


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
    near = max(NEAR_SECONDS, NEAR_PERIODS * period)
    earlier = next((edge for edge in reversed(edges) if edge.moment < started), None)
    later = next((edge for edge in edges if edge.moment > ended), None)
    # The window's end is the mirror image of its beginning.
    mirrored = [_mirror(edge) for edge in reversed(inside)]
    head = _beginning(inside, started, near, earlier, points[0][0] <= started)
    tail = _beginning(mirrored, -ended, near, later and _mirror(later), points[-1][0] >= ended)
    whole = -tail.edge.joules - head.edge.joules
    return Energy(head.joules + whole + tail.joules, head.error_joules + tail.error_joules)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The edge at which whole periods begin, and the energy of the window before it."""

    edge: Edge
    joules: float
    error_joules: float


def _beginning(
    inside: Sequence[Edge], moment: float, near: float, outside: Edge | None, enclosed: bool
) -> _Beginning:
    """The energy of a window before its first whole period.

    Args:
        inside: the edges inside the window, two or more, in order.
        moment: the beginning of the window.
        near: the number of seconds over which to take the neighbouring power.
        outside: the last edge before the window; None if there is none.
        enclosed: whether there was a sample at ``moment`` or before it.
    """
    # If a sample was late, its edge is uncertain. A later edge may then be the better start.
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
        # The energy since the outside edge is known. The window has at most all of it, and at least an even share,
        # unless the load was heavier before the window (prefill before decode). The amount above the flat estimate is
        # therefore uncertain.
        across = first.joules - outside.joules
        longest = first.moment - outside.moment + first.slack + outside.slack
        joules = min(across, max(flat, across * seconds / longest))
    doubt = first.slack + seconds * (STEP_SHARE if enclosed else 1.0)
    if apart > 0:
        doubt += seconds * (first.slack + far.slack) / apart
    return _Beginning(first, joules, watts * doubt + max(0.0, joules - flat))


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
    return Energy(watts * (ended - started), watts * doubt)


def _mirror(edge: Edge) -> Edge:
    return Edge(-edge.moment, edge.slack, -edge.joules)
