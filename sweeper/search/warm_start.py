"""The initial design, before the model has data: the default configuration, corners, then points far apart."""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sweeper.model.ggml_types import FILE_BITS_PER_WEIGHT
from sweeper.parameters import layers_on_cpu
from sweeper.records import Configuration
from sweeper.search.encoding import Encoder
from sweeper.space.space import SearchSpace

# The design takes the one of this many random points that is farthest from all known points.
SPREAD_OVER = 200
# How far from llama-server's own placement the first trials look for a better one.
NEIGHBOUR_LAYERS = 2
# A placement of the design must fit with this many more layers' weights on the GPUs too, because a forecast may err by
# a few percent of a GPU's memory, and a trial that runs out of memory teaches little.
SPARED_LAYERS = 3
MOST_PLACEMENTS = 2
LAYER_SHARES = (1.0, 0.92, 0.84, 0.76)  # of the values of n_gpu_layers, tried for a placement


def initial_design(
    space: SearchSpace,
    baseline: Configuration,
    count: int,
    seed: int,
    fits: Callable[[Configuration], bool] | None = None,
) -> tuple[Configuration, ...]:
    """Up to ``count`` distinct configurations that may run, the baseline first.

    If weights must stay on the CPU by ``fits``, a forecast of memory, the design then has for each split the placement
    that leaves the fewest there. Corners that lie near the front on most machines follow. They have the smallest
    weights: at full speed, at the lowest cap, with few threads, and partly on the GPU. Random points far apart come
    last.
    """
    base = _point_of(space, baseline)
    fast: dict[str, Any] = _smallest_weights(space) | _part_way(space, 1.0, "n_gpu_layers", "n_parallel")
    placed = _placements(space, base | fast, fits)
    fast |= placed[0] if placed else {}
    frugal = fast | _part_way(space, 0.0, "power_limit_watts", "clock_limit_mhz")
    few = _part_way(space, 0.0, "n_threads")
    middle = _part_way(space, 0.5, "power_limit_watts", "clock_limit_mhz", "n_threads")
    wished: list[Mapping[str, Any]] = [
        base,
        *_beside_own_placement(space, base),
        *_with_drafts(space, base),
        base | fast,
        *(base | fast | other for other in placed[1:]),
        base | frugal,
        base | fast | few,
        # Partly on the GPU, threads and layers trade speed for watts. The corners above do not show this.
        base | frugal | few | _part_way(space, 0.85, "n_gpu_layers"),
        base | fast | middle | _part_way(space, 0.5, "n_gpu_layers"),
    ]
    corners = dict.fromkeys(space.configuration(params) for params in wished)
    design = [c for c in corners if not space.violations(c)][:count]
    return (*design, *_far_apart(space, design, count - len(design), seed))


def known_first(
    design: Sequence[Configuration], is_known: Callable[[Configuration], bool]
) -> tuple[Configuration, ...]:
    """The design with the configurations whose quality must be measured last, so that others give results meanwhile.

    The baseline stays first, and the order is otherwise the same.
    """
    return (*design[:1], *sorted(design[1:], key=lambda c: not is_known(c)))


def context_ladder(space: SearchSpace, baseline: Configuration) -> tuple[Configuration, ...]:
    """The baseline's settings at each context of the space, the shortest first; empty if contexts are not searched."""
    if "n_ctx" not in space.parameters:
        return ()
    base = _point_of(space, baseline)
    contexts = sorted(space.parameters["n_ctx"].values)
    found = (space.configuration({**base, "n_ctx": n_ctx}) for n_ctx in contexts)
    return tuple(c for c in dict.fromkeys(found) if not space.violations(c))


def _point_of(space: SearchSpace, configuration: Configuration) -> dict[str, Any]:
    """The values of the space's parameters that are nearest to a configuration."""
    return {p.name: nearest(p.values, getattr(configuration, p.name)) for p in space.parameters.values()}


def _beside_own_placement(space: SearchSpace, base: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The base with fewer and with more layers of experts on the CPU than llama-server chose itself."""
    if space.own_placement is None or "n_cpu_moe" not in space.parameters or not space.traits.gpu_offload:
        return
    values = space.parameters["n_cpu_moe"].values
    for step in (-NEIGHBOUR_LAYERS, NEIGHBOUR_LAYERS):
        yield {**base, "n_cpu_moe": nearest(values, base["n_cpu_moe"] + step)}


def _with_drafts(space: SearchSpace, base: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The base with each kind of speculation for which a model drafts; hardly another setting changes speed as much."""
    searched = space.parameters.get("spec_type")
    for kind in () if searched is None else searched.values:
        if kind.startswith("draft"):
            yield {**base, "spec_type": kind}


def _placements(
    space: SearchSpace, params: Mapping[str, Any], fits: Callable[[Configuration], bool] | None
) -> list[dict[str, Any]]:
    """The placements in ``params`` that leave the fewest layers' weights on the CPU and fit, the best one first.

    Empty if all weights fit on the GPUs, or without a forecast. Fewer layers on the GPUs are tried too: GPUs share
    layers by their number and not by their size, so that one of them may be short of memory while another has plenty.
    """
    moved = next((name for name in ("n_cpu_moe", "n_cpu_ffn") if name in space.parameters), None)
    if moved is None or fits is None:
        return []
    values = sorted(space.parameters[moved].values)
    layers = _each(space, "n_gpu_layers", lambda v: [_at(sorted(v), share) for share in LAYER_SHARES])
    found: list[tuple[int, dict[str, Any]]] = []
    for more, some in zip([layers[0], *layers], layers, strict=False):
        for split in _each(space, "tensor_split", list):
            choice = {**params, **split}
            least = layers_on_cpu(space.configuration(choice | some), space.traits.n_layer)
            most = min((count for count, _ in found), default=values[-1]) + SPARED_LAYERS
            left = [value for value in values if least <= value <= most]

            def may_run(
                value: int, choice: dict[str, Any] = choice | some, more: dict[str, Any] = more
            ) -> bool:
                fewer = {moved: max(0, value - SPARED_LAYERS)}
                harder = (choice | {moved: value}, choice | fewer, choice | more | {moved: value})
                return all(fits(space.configuration(point)) for point in harder)

            if left and may_run(left[-1]):
                count = left[bisect.bisect_left(left, True, key=may_run)]
                found.append((count, split | some | {moved: count}))
    found.sort(key=lambda each: each[0])
    return [placed for _, placed in found][:MOST_PLACEMENTS] if found and found[0][0] > 0 else []


def _each(space: SearchSpace, name: str, some: Callable[[Sequence[Any]], list[Any]]) -> list[dict[str, Any]]:
    """``some`` of the values of a parameter as parts of a point; one empty part if it is not searched."""
    if name not in space.parameters:
        return [{}]
    return [{name: value} for value in dict.fromkeys(some(space.parameters[name].values))]


def _at(values: Sequence[Any], share: float) -> Any:
    """The value at this share, 0 to 1, of the way."""
    return values[min(len(values) - 1, int(share * len(values)))]


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
    return {name: _at(values, share) for name, values in searched.items()}
