"""``search.sampler=gp_front``: a model of each objective, and the point that should add most to the front.

Each proposal is the candidate with the greatest expected hypervolume improvement times the probability that
it runs and keeps every constraint. Both are learned from the trials: speeds and watts as logarithms (their
noise and their effects are multiplicative), what ran out of memory or broke as a second model of its own.
Nothing is measured twice: the model's mean, not a repeat, takes the noise out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from sweeper.pareto import hypervolume, reference_point, undominated
from sweeper.records import Configuration
from sweeper.search.candidates import Candidates
from sweeper.search.encoding import Encoder
from sweeper.search.expected_improvement import expected_improvement, free_boxes
from sweeper.search.gaussian_process import GaussianProcess, Hyper, correlation, fit, starting_hyper
from sweeper.search.memory_order import MemoryOrder
from sweeper.search.warm_start import initial_design
from sweeper.space import SearchSpace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    Array = npt.NDArray[np.float64]

# Attributes that `study.py` writes on trials.
STATE, CONFIGURATION, DUPLICATE = "state", "configuration", "duplicate_of"
# States that say something about where configurations cannot run.
BROKEN = ("failed", "out_of_memory", "infeasible")
SHORT_OF_MEMORY = ("out_of_memory", "infeasible")  # a forecast of memory makes a trial infeasible

# Before there is this much to learn from, the initial design is followed.
INITIAL_TRIALS = 7
# Repeats of inference scatter by about this share; the noise that a model may assume lies around it.
EXPECTED_NOISE = 0.02
MOST_FORECASTS = 20
# A candidate counts from this much better than the front, in standard deviations of one measurement.
# Without it the search goes on re-measuring what it has found, with idle parameters changed.
LEAST_GAIN_IN_NOISE = 0.5
# Hyperparameters are fitted anew each time up to here, then every REFIT_EVERY trials.
REFIT_ALWAYS_UP_TO = 40
REFIT_EVERY = 6
# A model rests on at most this many trials, those nearest the front first: cost grows with the cube.
MOST_DATA = 300


@dataclass(slots=True)
class _History:
    """What the trials so far say, in oriented values."""

    known: set[Configuration] = field(default_factory=set)
    measured: list[Configuration] = field(default_factory=list)
    values: list[tuple[float, ...]] = field(default_factory=list)  # as told, not oriented
    violations: list[dict[str, float]] = field(default_factory=list)
    broken: list[Configuration] = field(default_factory=list)
    short: list[Configuration] = field(default_factory=list)  # those of the broken that lacked memory


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the model expected when it last proposed: for stopping rules.

    ``gain`` is the share of the present hypervolume that ``trials`` more would be expected to add, ``noise``
    the share that one measurement's noise is worth, in the objective where it is largest.
    """

    trials: int
    gain: float
    noise: float
    finished: int  # trials that it rested on


class GpFrontSampler(BaseSampler):
    """See the module. Two or three objectives, or one.

    Args:
        space: what to search.
        seed: of everything random.
        baseline: the first configuration to ask for; the space's base by default.
        allowed: False for configurations that must not be asked for, such as by a forecast of memory. Asked
            only of what would be proposed next, at most `MOST_FORECASTS` times a proposal.
        prior: oriented guesses of the objectives' logarithms (for example of a roofline); the models then
            learn what is left. None leaves the models to themselves.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        *,
        baseline: Configuration | None = None,
        allowed: Callable[[Configuration], bool] | None = None,
        prior: Callable[[Configuration], Sequence[float]] | None = None,
    ) -> None:
        self._space = space
        self._encode = Encoder(space)
        self._candidates = Candidates(space, seed)
        self._allowed = allowed
        self._judged: dict[Configuration, bool] = {}
        self._prior = prior
        self._baseline = baseline or space.base
        self._seed = seed
        self._design: tuple[Configuration, ...] | None = None
        self._hyper: dict[str, Hyper] = {}
        self._fitted_at = 0
        self.outlook: Outlook | None = None

    # -- Optuna's side ------------------------------------------------------------------------------------

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All of the space is searched together."""
        return self._space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point, as Optuna's parameters."""
        history = self._read(study, trial.number)
        refused = [c for c, may_run in self._judged.items() if not may_run and c not in history.known]
        history.broken += refused
        history.short += refused
        configuration = self._from_design(history) or self._from_model(history, study)
        if configuration is None:
            return {}
        return self._space.params_of(configuration)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Only where the space is used up: anything, which the sweep then settles as known."""
        return self._space.parameters[param_name].values[0]

    def _read(self, study: Study, number: int) -> _History:
        history = _History()
        for trial in study.get_trials(deepcopy=False):
            if trial.number == number or DUPLICATE in trial.user_attrs or not trial.params:
                continue
            configuration = self._configuration_of(trial)
            history.known.add(configuration)
            state = trial.user_attrs.get(STATE)
            if trial.state == TrialState.COMPLETE and trial.values is not None:
                history.measured.append(configuration)
                history.values.append(tuple(trial.values))
                history.violations.append(dict(trial.constraints))
            elif state in BROKEN or (state is None and trial.state == TrialState.PRUNED):
                history.broken.append(configuration)
                if state in SHORT_OF_MEMORY:
                    history.short.append(configuration)
        return history

    def _configuration_of(self, trial: FrozenTrial) -> Configuration:
        kept = trial.user_attrs.get(CONFIGURATION)
        if kept is not None:
            return Configuration(**kept)
        known = {k: v for k, v in trial.params.items() if k in self._space.parameters}
        return self._space.configuration(known)

    # -- proposals ----------------------------------------------------------------------------------------

    def _from_design(self, history: _History) -> Configuration | None:
        if len(history.measured) >= INITIAL_TRIALS or len(history.known) >= 3 * INITIAL_TRIALS:
            return None
        if self._design is None:
            self._design = initial_design(self._space, self._baseline, 3 * INITIAL_TRIALS, self._seed)
        return next((c for c in self._design if c not in history.known and self._may_run(c)), None)

    def _may_run(self, configuration: Configuration) -> bool:
        """What the forecast says; asked once a configuration, since a forecast may cost a tenth of a second."""
        if self._allowed is None:
            return True
        if configuration not in self._judged:
            self._judged[configuration] = self._allowed(configuration)
        return self._judged[configuration]

    def _from_model(self, history: _History, study: Study) -> Configuration | None:
        if len(history.measured) < 2:
            drawn = self._candidates.draw((), history.known)
            return next((c for c in drawn if self._may_run(c)), drawn[0] if drawn else None)
        model = self._model(history, [d.name == "MAXIMIZE" for d in study.directions])
        candidates = self._candidates.draw(model.front, history.known)
        if not candidates:
            return None
        features = self._encode(candidates)
        gains = model.gains(features, candidates)
        chosen, gains = self._best_that_may_run(candidates, gains)
        self.outlook = model.outlook(features, gains, len(history.known))
        return candidates[chosen]

    def _best_that_may_run(self, candidates: Sequence[Configuration], gains: Array) -> tuple[int, Array]:
        """The candidate of the greatest gain that the forecast lets through, and the gains that are left.

        Who is refused takes those with it that ask for at least as much, so a few forecasts are enough.
        """
        refused: list[Configuration] = []
        best = int(gains.argmax())
        for _ in range(MOST_FORECASTS):
            if self._may_run(candidates[best]):
                break
            refused.append(candidates[best])
            gains = gains * MemoryOrder([], refused).probability(candidates)
            gains[best] = 0.0
            best = int(gains.argmax())
        return best, gains

    def _model(self, history: _History, maximized: Sequence[bool]) -> _Model:
        import numpy as np

        oriented = np.array(history.values, dtype=np.float64) * np.where(maximized, 1.0, -1.0)
        violation = _violation_keys(history.violations)
        feasible = np.array([max(v.values(), default=0.0) <= 0 for v in history.violations])
        kept = _nearest_the_front(oriented, feasible)
        configurations = [history.measured[i] for i in kept]
        features = self._encode(configurations)
        refit = len(history.measured) <= REFIT_ALWAYS_UP_TO or (
            len(history.measured) - self._fitted_at >= REFIT_EVERY
        )
        if refit:
            self._fitted_at = len(history.measured)
        priors = np.array([self._prior(c) for c in configurations]) if self._prior is not None else None
        objectives = [
            self._objective(f"objective {k}", features, oriented[kept, k], refit, priors, k)
            for k in range(oriented.shape[1])
        ]
        constraints = [
            self._fitted(key, features, np.array([history.violations[i][key] for i in kept]), 0.05, refit)
            for key in violation
        ]
        broken = _Breakage(features, self._encode(history.broken)) if history.broken else None
        memory = MemoryOrder(history.measured, history.short) if history.short else None
        return _Model(
            objectives, constraints, broken, memory, configurations, features, feasible[kept], self._prior
        )

    def _objective(
        self, key: str, features: Array, values: Array, refit: bool, priors: Array | None, index: int
    ) -> _Objective:
        """The model of one oriented objective, in logarithms where all its values have one sign."""
        import numpy as np

        sign = 1.0 if (values > 0).all() else -1.0 if (values < 0).all() else 0.0
        transformed = values if sign == 0 else sign * np.log(sign * values)
        if priors is not None:
            transformed = transformed - priors[:, index]
        spread = float(transformed.std()) or 1.0
        relative_noise = min(0.5, max(1e-3, EXPECTED_NOISE / spread)) if sign else 0.05
        return _Objective(self._fitted(key, features, transformed, relative_noise, refit), sign, index)

    def _fitted(
        self, key: str, features: Array, values: Array, relative_noise: float, refit: bool
    ) -> GaussianProcess:
        hyper = self._hyper.get(key) or starting_hyper(features.shape[1], relative_noise)
        if refit or key not in self._hyper:
            hyper = fit(features, values, hyper, relative_noise)
            self._hyper[key] = hyper
        return GaussianProcess(features, values, hyper)


def _violation_keys(violations: Sequence[Mapping[str, float]]) -> list[str]:
    """Constraints that differ between complete trials; the rest says nothing of where they are kept."""
    keys = {key for each in violations for key in each}
    return sorted(k for k in keys if len({each.get(k) for each in violations}) > 1)


def _nearest_the_front(oriented: Array, feasible: Any) -> list[int]:
    """Which trials a model rests on: all, or those on and behind the front, layer by layer."""
    count = len(oriented)
    if count <= MOST_DATA:
        return list(range(count))
    rest = [i for i in range(count) if feasible[i]]
    kept: list[int] = []
    while rest and len(kept) < MOST_DATA // 2:
        layer = {rest[i] for i in undominated([tuple(oriented[j]) for j in rest])}
        kept += sorted(layer)
        rest = [i for i in rest if i not in layer]
    others = [i for i in range(count) if i not in set(kept)]
    step = max(1, len(others) // max(1, MOST_DATA - len(kept)))
    return sorted([*kept, *others[::step]][:MOST_DATA])


@dataclass(frozen=True, slots=True)
class _Objective:
    """A Gaussian process of an oriented objective; ``sign`` says of which logarithm, 0 of none."""

    process: GaussianProcess
    sign: float
    index: int

    def predict(self, features: Array, priors: Array | None) -> tuple[Array, Array]:
        """Mean and deviation of the objective itself (moments of the log-normal)."""
        import numpy as np

        mean, deviation = self.process.predict(features)
        if priors is not None:
            mean = mean + priors[:, self.index]
        if self.sign == 0:
            return mean, deviation
        deviation = np.minimum(deviation, 1.0)  # beyond a factor of e the moments explode and say nothing
        size = np.exp(self.sign * mean + 0.5 * deviation**2)
        return self.sign * size, size * np.sqrt(np.expm1(deviation**2))


class _Breakage:
    """Probability that a configuration runs, from what ran and what did not.

    A Gaussian process on labels, linear plus Matérn: memory grows with nearly every parameter, so what lies
    beyond a failure in the same direction is expected to fail as well, however far.
    """

    LENGTH, LINEAR, LOCAL, NOISE = 0.6, 1.0, 0.7, 0.1

    def __init__(self, ran: Array, broke: Array) -> None:
        import numpy as np
        from scipy.linalg import cho_factor, cho_solve

        self._features = np.vstack([ran, broke])[-2 * MOST_DATA :]
        labels = np.concatenate([np.ones(len(ran)), -np.ones(len(broke))])[-2 * MOST_DATA :]
        self._lengths = np.full(ran.shape[1], math.log(self.LENGTH))
        covariance = self._kernel(self._features, self._features)
        covariance[np.diag_indices_from(covariance)] += self.NOISE
        self._factor: Any = cho_factor(covariance, lower=True, check_finite=False)
        self._weights: Array = cho_solve(self._factor, labels - 0.5, check_finite=False)

    def _kernel(self, a: Array, b: Array) -> Array:
        local = self.LOCAL * correlation(a, b, self._lengths)
        result: Array = local + self.LINEAR * ((a - 0.5) @ (b - 0.5).T)
        return result

    def probability(self, features: Array) -> Array:
        """That each row of ``features`` runs, 0 to 1."""
        import numpy as np
        from scipy.linalg import solve_triangular
        from scipy.special import ndtr

        cross = self._kernel(self._features, features)
        mean = 0.5 + cross.T @ self._weights
        solved = solve_triangular(self._factor[0], cross, lower=True, check_finite=False)
        own = self.LOCAL + self.LINEAR * ((features - 0.5) ** 2).sum(1)
        variance = np.maximum(own - (solved * solved).sum(0), 0.0)
        result: Array = ndtr(mean / np.sqrt(0.1 + variance))
        return result


class _Model:
    """All that was learned from the trials of one moment."""

    def __init__(
        self,
        objectives: Sequence[_Objective],
        constraints: Sequence[GaussianProcess],
        broken: _Breakage | None,
        memory: MemoryOrder | None,
        configurations: Sequence[Configuration],
        features: Array,
        feasible: Any,
        prior: Callable[[Configuration], Sequence[float]] | None,
    ) -> None:
        import numpy as np

        self._objectives, self._constraints, self._broken, self._prior = (
            objectives,
            constraints,
            broken,
            prior,
        )
        self._memory = memory
        means, _ = self._predict(features, configurations)
        usable = [i for i in range(len(configurations)) if feasible[i]] or list(range(len(configurations)))
        points = [tuple(float(x) for x in means[i]) for i in usable]
        best = undominated(points)
        # The front of the model's means: what one lucky repeat put there is taken back.
        self.front = [configurations[usable[i]] for i in best]
        self._points = [points[i] for i in best]
        self._reference = _reference(self._points, np.asarray(means)[usable])
        self._boxes = free_boxes([self._raised(p) for p in self._points], self._reference)

    def _raised(self, point: Sequence[float]) -> tuple[float, ...]:
        """A point of the front, better by a part of one measurement's noise: less than that is no gain."""
        return tuple(
            x + LEAST_GAIN_IN_NOISE * (o.process.noise if o.sign == 0 else abs(x) * o.process.noise)
            for x, o in zip(point, self._objectives, strict=True)
        )

    def _predict(self, features: Array, configurations: Sequence[Configuration]) -> tuple[Array, Array]:
        import numpy as np

        priors = np.array([self._prior(c) for c in configurations]) if self._prior is not None else None
        pairs = [o.predict(features, priors) for o in self._objectives]
        return np.stack([m for m, _ in pairs], axis=1), np.stack([d for _, d in pairs], axis=1)

    def gains(self, features: Array, configurations: Sequence[Configuration]) -> Array:
        """Expected improvement times the probability that it counts, in the objectives' units."""
        means, deviations = self._predict(features, configurations)
        return expected_improvement(means, deviations, self._boxes) * self._feasibility(
            features, configurations
        )

    def _feasibility(self, features: Array, configurations: Sequence[Configuration]) -> Array:
        import numpy as np
        from scipy.special import ndtr

        result = np.ones(len(features))
        for constraint in self._constraints:
            mean, deviation = constraint.predict(features)
            result = result * ndtr(-mean / np.hypot(deviation, 1e-9))
        if self._broken is not None:
            result = result * self._broken.probability(features)
        if self._memory is not None:
            result = result * self._memory.probability(configurations)
        return result

    def outlook(self, features: Array, gains: Array, finished: int, trials: int = 20) -> Outlook:
        """What ``trials`` more proposals would add, each learning from those before it.

        A proposal takes away what its neighbours promise, by the correlation of the first objective's model.
        """
        import numpy as np

        volume = hypervolume(self._points, self._reference)
        left, total = gains.copy(), 0.0
        lengths = self._objectives[0].process.hyper.log_lengths
        for _ in range(trials):
            best = int(left.argmax())
            total += float(left[best])
            near = correlation(features, features[best : best + 1], lengths)[:, 0]
            left = left * (1.0 - near**2)
        noise = max(o.process.noise if o.sign else 0.0 for o in self._objectives)
        return Outlook(trials, total / volume if volume > 0 else math.inf, float(np.expm1(noise)), finished)


def _reference(front: Sequence[Sequence[float]], everything: Array) -> tuple[float, ...]:
    """Behind the front, but no further than what was measured: its ends are worth something, not all."""
    if len(front) > 1:
        return reference_point(front)
    return reference_point([tuple(row) for row in everything])
