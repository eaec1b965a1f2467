"""The initial design, before the model has data: the default configuration, corners, then points far apart."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sweeper.model.ggml_types import FILE_BITS_PER_WEIGHT
from sweeper.records import Configuration
from sweeper.search.encoding import Encoder
from sweeper.space.space import SearchSpace

# The design takes the one of this many random points that is farthest from all known points.
SPREAD_OVER = 200
# How far from llama-server's own placement the first trials look for a better one.
NEIGHBOUR_LAYERS = 2


def initial_design(
    space: SearchSpace, baseline: Configuration, count: int, seed: int
) -> tuple[Configuration, ...]:
    """Up to ``count`` distinct configurations that may run, the baseline first.

    Corners that lie near the front on most machines follow. They have the smallest weights: at full speed, at the
    lowest cap, with few threads, and partly on the GPU. Random points far apart come last.
    """
    fast: dict[str, Any] = _smallest_weights(space) | _part_way(space, 1.0, "n_gpu_layers")
    frugal = fast | _part_way(space, 0.0, "power_limit_watts", "clock_limit_mhz")
    few = _part_way(space, 0.0, "n_threads")
    middle = _part_way(space, 0.5, "power_limit_watts", "clock_limit_mhz", "n_threads")
    base = {p.name: nearest(p.values, getattr(baseline, p.name)) for p in space.parameters.values()}
    wished: list[Mapping[str, Any]] = [
        base,
        *_beside_own_placement(space, base),
        base | fast,
        base | frugal,
        base | fast | few,
        # Partly on the GPU, threads and layers trade speed for watts. The corners above do not show this.
        base | frugal | few | _part_way(space, 0.85, "n_gpu_layers"),
        base | fast | middle | _part_way(space, 0.5, "n_gpu_layers"),
    ]
    corners = dict.fromkeys(space.configuration(params) for params in wished)
    design = [c for c in corners if not space.violations(c)][:count]
    return (*design, *_far_apart(space, design, count - len(design), seed))


def _beside_own_placement(space: SearchSpace, base: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The base with fewer and with more layers of experts on the CPU than llama-server chose itself."""
    if space.own_placement is None or "n_cpu_moe" not in space.parameters or not space.traits.gpu_offload:
        return
    values = space.parameters["n_cpu_moe"].values
    for step in (-NEIGHBOUR_LAYERS, NEIGHBOUR_LAYERS):
        yield {**base, "n_cpu_moe": nearest(values, base["n_cpu_moe"] + step)}


def nearest(values: Sequence[Any], wished: Any) -> Any:
    """The value nearest to ``wished``. None (as found) counts as the highest limit."""
    if wished in values:
        return wished
    numbers = [v for v in values if isinstance(v, (int, float))]
    if isinstance(wished, (int, float)) and numbers:
        return min(numbers, key=lambda v: abs(v - wished))
    return values[-1] if wished is None and numbers else values[0]


def _far_apart(
    space: SearchSpace, known: list[Configuration], count: int, seed: int
) -> tuple[Configuration, ...]:
    if count <= 0:
        return ()
    rng, encode = random.Random(seed), Encoder(space)
    draws = [
        space.configuration({p.name: rng.choice(p.values) for p in space.parameters.values()})
        for _ in range(SPREAD_OVER)
    ]
    pool = [c for c in dict.fromkeys(draws) if not space.violations(c) and c not in known]
    chosen: list[Configuration] = []
    while pool and len(chosen) < count:
        taken = encode([*known, *chosen] or pool[:1])
        distances = ((encode(pool)[:, None, :] - taken[None, :, :]) ** 2).sum(2).min(1)
        chosen.append(pool.pop(int(np.argmax(distances))))
    return tuple(chosen)


def _smallest_weights(space: SearchSpace) -> dict[str, Any]:
    """The quantisation with the fewest bits; the last one in the list if its bits are unknown."""
    if "quant" not in space.parameters:
        return {}
    values = space.parameters["quant"].values
    if all(v in FILE_BITS_PER_WEIGHT for v in values):
        return {"quant": min(values, key=lambda v: FILE_BITS_PER_WEIGHT[v])}
    return {"quant": values[-1]}


def _part_way(space: SearchSpace, share: float, *names: str) -> dict[str, Any]:
    """The values at this share, 0 to 1, of the way through the values of those ``names`` that are searched."""
    searched = {name: space.parameters[name].values for name in names if name in space.parameters}
    return {name: v[min(len(v) - 1, int(share * len(v)))] for name, v in searched.items()}
