"""Candidates for a model-based sampler: the whole grid if it is small, else random points and mutations."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
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
        self._judged: dict[Configuration, bool] = {}
        self._points: dict[tuple[Any, ...], Configuration] = {}  # cache: values -> configuration
        self._pool: list[Configuration] = []
        self._grid: list[Configuration] | None = None
        if space.size <= WHOLE_GRID_UP_TO:
            self._grid = [c for c in space.grid() if self._may_run(c)]

    def draw(self, around: Sequence[Configuration], known: Collection[Configuration]) -> list[Configuration]:
        """Points that are not in ``known``: random ones, and mutations of the points in ``around``."""
        if self._grid is not None:
            return [c for c in self._grid if c not in known]
        self._renew()
        fresh = dict.fromkeys([*self._pool, *self._mutations(around)])
        return [c for c in fresh if c not in known]

    def random_points(self, count: int) -> list[Configuration]:
        """At most ``count`` distinct random points that may run; fewer if the space has fewer."""
        found: dict[Configuration, None] = {}
        for _ in range(20 * count):  # enough even if only one point in twenty may run
            if len(found) >= count:
                break
            c = self._point({p.name: self._random.choice(p.values) for p in self._space.parameters.values()})
            if self._may_run(c):
                found[c] = None
        return list(found)

    def _renew(self) -> None:
        if not self._pool:
            self._pool = self.random_points(RANDOM)
            return
        self._pool = self._pool[RENEWED:] + self.random_points(RENEWED)

    def _mutations(self, around: Sequence[Configuration]) -> Iterable[Configuration]:
        if not around:
            return ()
        made = (self._mutated(self._random.choice(around)) for _ in range(MUTATIONS))
        return (c for c in islice(made, MUTATIONS) if self._may_run(c))

    def _mutated(self, parent: Configuration) -> Configuration:
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

    def _point(self, params: dict[str, Any]) -> Configuration:
        key = tuple(params.values())
        found = self._points.get(key)
        if found is None:
            found = self._points[key] = self._space.configuration(params)
        return found

    def _moved(self, name: str, value: Any) -> Any:
        parameter = self._space.parameters[name]
        values = parameter.values
        if not parameter.ordinal or self._random.random() < 0.2:
            return self._random.choice(values)
        steps = self._random.randint(1, MOST_STEPS) * self._random.choice((-1, 1))
        return values[min(max(values.index(value) + steps, 0), len(values) - 1)]

    def _may_run(self, configuration: Configuration) -> bool:
        judged = self._judged.get(configuration)
        if judged is None:
            judged = self._judged[configuration] = not self._space.violations(configuration)
        return judged
