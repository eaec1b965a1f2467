"""Makes the sampler that ``search.sampler`` names. Each is an Optuna sampler; ours is in ``gp_front.py``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sweeper.errors import EngineMissingError
from sweeper.records import Configuration
from sweeper.results.picks import Line
from sweeper.space.space import SearchSpace

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from sweeper.search.prior import Measured


def make_sampler(
    name: str,
    space: SearchSpace,
    seed: int,
    allowed: Callable[[Configuration], bool] | None = None,
    line: Line | None = None,
    earlier: Measured = (),
    metrics: Sequence[str] = (),
    constrained: Sequence[str] = (),
) -> BaseSampler:
    """The sampler of that name, seeded.

    ``auto`` is our sampler. On every simulated machine and recorded table, it needed the fewest trials to 95 % of the
    front, or as few as any other (``docs/decisions/0009-slow-machines-measure-less.md``). The sweep itself runs
    ``grid`` in order, because it knows which points are equal.

    The name is one of ``sweeper.config.SAMPLERS``. For the arguments after ``seed`` see `GpFrontSampler`: the other
    samplers do not use them.

    Raises:
        EngineMissingError: Optuna's own GP needs torch, which is not installed.
    """
    import optuna

    samplers = optuna.samplers
    if name in ("auto", "gp_front"):
        from sweeper.search.gp_front import GpFrontSampler

        return GpFrontSampler(
            space,
            seed,
            allowed=allowed,
            line=line,
            earlier=earlier,
            metrics=metrics,
            constrained=constrained,
        )
    if name in ("random", "grid"):
        return samplers.RandomSampler(seed=seed)
    if name == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=20)
    if name == "gp":
        if importlib.util.find_spec("torch") is None:
            raise EngineMissingError("search.sampler=gp needs torch: `pip install torch`, or choose gp_front")
        return samplers.GPSampler(seed=seed)
    return samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=8)


def stopping_of(sampler: BaseSampler) -> Callable[[], str | None] | None:
    """The stopping rule of a sampler that estimates the remaining gain; None for other samplers."""
    from sweeper.search.gp_front import GpFrontSampler
    from sweeper.search.stopping import StoppingRule

    if not isinstance(sampler, GpFrontSampler):
        return None
    rule = StoppingRule()
    return lambda: rule(sampler.outlook)
