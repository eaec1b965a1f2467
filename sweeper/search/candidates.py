"""Candidates for a model-based sampler: the whole grid if it is small, else random points and mutations."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any

from sweeper.records import Configuration
from sweeper.space.space import SearchSpace

# In a space of up to this size, every point is a candidate; in a larger one, RANDOM and MUTATIONS of them.
WHOLE_GRID_UP_TO = 3500
RANDOM = 2000
MUTATIONS = 1500
# Random points are kept from proposal to proposal; this many of them are replaced each time.
RENEWED = 400
MOST_STEPS = 3  # how far a mutation moves along an ordinal parameter


class Candidates:
    """Draws points of a space that may run. A draw contains each point at most once.

    Args:
        space: the search space.
        seed: the random seed.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space = space
        self._random = random.Random(seed)
        # Cache: values -> configuration; None if it cannot run.
        self._points: dict[tuple[Any, ...], Configuration | None] = {}
        self._pool: list[Configuration] = []
        self._grid = list(space.grid()) if space.size <= WHOLE_GRID_UP_TO else None

    def draw(self, around: Sequence[Configuration], known: Collection[Configuration]) -> list[Configuration]:
        """Points that are not in ``known``: random ones, and mutations of the points in ``around``."""
        if self._grid is not None:
            return [c for c in self._grid if c not in known]
        self._pool = self._pool[RENEWED:] + self.random_points(RENEWED if self._pool else RANDOM)
        mutations = [self._mutated(self._random.choice(around)) for _ in range(MUTATIONS if around else 0)]
        fresh = dict.fromkeys([*self._pool, *mutations])
        return [c for c in fresh if c is not None and c not in known]

    def random_points(self, count: int) -> list[Configuration]:
        """At most ``count`` distinct random points that may run; fewer if the space has fewer."""
        found: dict[Configuration, None] = {}
        for _ in range(20 * count):  # enough even if only one point in twenty may run
            if len(found) >= count:
                break
            c = self._point({p.name: self._random.choice(p.values) for p in self._space.parameters.values()})
            if c is not None:
                found[c] = None
        return list(found)

    def _mutated(self, parent: Configuration) -> Configuration | None:
        params = {
            # A parent outside the space, such as a baseline with its own context, moves into the space.
            p.name: v if (v := getattr(parent, p.name)) in p.values else self._random.choice(p.values)
            for p in self._space.parameters.values()
        }
        names = list(params)
        # Most mutations change one parameter, because such points teach the model most.
        changes = self._random.choices((1, 2, 3), weights=(5, 3, 2))[0]
        for name in self._random.sample(names, min(len(names), changes)):
            params[name] = self._moved(name, params[name])
        return self._point(params)

    def _point(self, params: dict[str, Any]) -> Configuration | None:
        key = tuple(params.values())
        if key not in self._points:
            configuration = self._space.configuration(params)
            self._points[key] = None if self._space.violations(configuration) else configuration
        return self._points[key]

    def _moved(self, name: str, value: Any) -> Any:
        parameter = self._space.parameters[name]
        values = parameter.values
        if not parameter.ordinal or self._random.random() < 0.2:
            return self._random.choice(values)
        steps = self._random.randint(1, MOST_STEPS) * self._random.choice((-1, 1))
        return values[min(max(values.index(value) + steps, 0), len(values) - 1)]
