"""The truth behind a recorded table: what its noise leaves, without a model of what decides speed.

Two visits of a configuration on a shared machine may differ by a tenth, and the best of two thousand rows is the
luckiest. So the truth is what a plain analysis of variance of the logarithms says over the whole balanced grid:
the effects of single factors, and of those pairs and triples of factors that stand out of the noise. Each of them
is a mean over many rows.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

from sweeper.lab.tables import Table, TableRow
from sweeper.records import Configuration

Array = npt.NDArray[np.float64]
Effect = tuple[int, ...]  # the axes that it is of; () is the mean

METRICS = ("tokens_per_second", "watts", "prompt_tokens_per_second", "prompt_watts")
MOST_ORDER = 3  # factors of one effect
SIGNIFICANCE = 1e-3  # of an F test; of some 60 effects, noise alone then lets one in by chance in 17 tables
OUTLIER_MADS = 6.0
REPEATS = 12  # of each row of a smoothed table


@dataclass(frozen=True)
class Truth:
    """Fitted values of each configuration, and what the rows scatter around them."""

    values: Mapping[Configuration, Mapping[str, float]]
    residuals: tuple[
        Mapping[str, float], ...
    ]  # ratios of single windows to the fit, decode and prefill apart
    effects: Mapping[str, tuple[tuple[str, ...], ...]]  # metric -> the factors of each effect that was kept
    foretold: float | None  # median relative error of the first pass's fit on decode speed of later visits
    again: float | None  # the same of the first visit itself: what repeating alone would foretell


def truth_of(table: Table) -> Truth:
    """Fit a table that covers a whole grid. Raises ValueError where it does not."""
    rows = [row for row in table.rows if row.state == "complete"]
    factors = _factors(table, rows)
    shape = tuple(len(levels) for _, levels in factors)
    if len(rows) != math.prod(shape):
        raise ValueError(f"{len(rows)} rows are not the grid of {shape}")
    places = [_place(row.configuration, factors) for row in rows]
    names = ["/".join(group) for group, _ in factors]
    logs = {m: [np.log(np.array(getattr(row, m))) for row in rows] for m in METRICS}
    fitted, effects = {}, {}
    for metric in METRICS:
        tensor = _tensor([v.mean() for v in logs[metric]], places, shape)
        kept = _standing_out(tensor)
        fitted[metric] = _robust(tensor, kept)
        effects[metric] = tuple(tuple(names[axis] for axis in effect) for effect in kept if effect)
    foretold, again = _foretold(logs["tokens_per_second"], places, shape, table.header.repeats)
    values = {
        row.configuration: {m: math.exp(fitted[m][place]) for m in METRICS}
        for row, place in zip(rows, places, strict=True)
    }
    residuals = tuple(
        {m: math.exp(logs[m][index][visit] - fitted[m][place]) for m in METRICS}
        for index, place in enumerate(places)
        for visit in range(len(rows[index].tokens_per_second))
    )
    return Truth(values, residuals, effects, foretold, again)


def smoothed(table: Table, truth: Truth, seed: int = 0) -> Table:
    """The table with the truth in its rows and noise as it was recorded, drawn from all rows alike.

    Otherwise the luck of a row would be the same each time it is replayed, and no repeat could tell.
    """
    rng = random.Random(seed)

    def row_of(row: TableRow) -> TableRow:
        if row.state != "complete":
            return row
        drawn = rng.choices(truth.residuals, k=REPEATS)
        value = truth.values[row.configuration]
        lists: dict[str, Any] = {m: tuple(value[m] * residual[m] for residual in drawn) for m in METRICS}
        return replace(row, **lists)

    return replace(table, rows=tuple(row_of(row) for row in table.rows))


Factor = tuple[tuple[str, ...], list[tuple[Any, ...]]]


def _factors(table: Table, rows: Sequence[TableRow]) -> list[Factor]:
    """Parameters as independent factors; those that allow only some pairs of values count as one."""
    groups: list[set[str]] = [{name} for name in table.header.parameters]
    for a, b in itertools.combinations(table.header.parameters, 2):
        pairs = {_values(row.configuration, (a, b)) for row in rows}
        if len(pairs) < len({x for x, _ in pairs}) * len({y for _, y in pairs}):
            joined = {name for group in groups if a in group or b in group for name in group}
            groups = [group for group in groups if not group & joined] + [joined]
    factors = []
    for group in groups:
        names = tuple(sorted(group))
        factors.append((names, sorted({_values(row.configuration, names) for row in rows}, key=repr)))
    return factors


def _values(configuration: Configuration, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(configuration, name) for name in names)


def _place(configuration: Configuration, factors: Sequence[Factor]) -> tuple[int, ...]:
    return tuple(levels.index(_values(configuration, names)) for names, levels in factors)


def _tensor(values: Sequence[float], places: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> Array:
    tensor = np.full(shape, np.nan)
    for value, place in zip(values, places, strict=True):
        tensor[place] = value
    return tensor


def _effects(values: Array, order: int) -> dict[Effect, Array]:
    """Every effect of at most ``order`` factors (a balanced grid: means of means), the mean first."""
    effects: dict[Effect, Array] = {}
    for size in range(order + 1):
        for kept in itertools.combinations(range(values.ndim), size):
            mean = values.mean(axis=tuple(a for a in range(values.ndim) if a not in kept), keepdims=True)
            effects[kept] = mean - sum(
                effects[less] for n in range(size) for less in itertools.combinations(kept, n)
            )
    return effects


def _standing_out(values: Array) -> tuple[Effect, ...]:
    """The mean, and the effects that an F test tells from what no effect explains."""
    pairs = tuple(kept for size in (0, 1, 2) for kept in itertools.combinations(range(values.ndim), size))
    cleaned = _cleaned(values, pairs)
    effects = _effects(cleaned, MOST_ORDER)
    freedom = {kept: math.prod(values.shape[axis] - 1 for axis in kept) for kept in effects}
    left = values.size - sum(freedom.values())
    noise = float(((cleaned - sum(effects.values())) ** 2).sum()) / left
    found: list[Effect] = []
    for kept, effect in effects.items():
        squares = float((np.broadcast_to(effect, values.shape) ** 2).sum()) / freedom[kept]
        if not kept or scipy.stats.f.sf(squares / noise, freedom[kept], left) < SIGNIFICANCE:
            found.append(kept)
    return tuple(found)


def _fit(values: Array, kept: Sequence[Effect]) -> Array:
    effects = _effects(values, max(map(len, kept)))
    return np.broadcast_to(sum(effects[effect] for effect in kept), values.shape)


def _cleaned(values: Array, kept: Sequence[Effect]) -> Array:
    """Values that lie far off are moved onto the fit: something else ran on the machine then."""
    cleaned = values
    for _ in range(3):
        fitted = _fit(cleaned, kept)
        off = np.abs(values - fitted)
        cleaned = np.where(off > OUTLIER_MADS * np.median(off), fitted, values)
    return cleaned


def _robust(values: Array, kept: Sequence[Effect]) -> Array:
    return _fit(_cleaned(values, kept), kept)


def _foretold(
    logs: Sequence[Array], places: Sequence[tuple[int, ...]], shape: tuple[int, ...], repeats: int
) -> tuple[float | None, float | None]:
    """Median relative error on later visits: of the first pass's fit, and of the first visit itself."""
    first = _tensor([values[:repeats].mean() for values in logs], places, shape)
    fitted = _robust(first, _standing_out(first))
    later = [(p, v[repeats:].mean()) for p, v in zip(places, logs, strict=True) if len(v) > repeats]
    if not later:
        return None, None
    by_fit, by_visit = ([abs(tensor[p] - v) for p, v in later] for tensor in (fitted, first))
    return float(np.median(by_fit)), float(np.median(by_visit))
