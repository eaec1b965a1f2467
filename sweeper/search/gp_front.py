"""``search.sampler=gp_front``: models each objective, and proposes the point that should add most to the front.

Each proposal is the candidate with the greatest expected hypervolume improvement times the probability that it runs and
keeps every constraint. The sampler learns both from the trials. It models speeds and watts as logarithms, because their
noise and effects are multiplicative, and learns in a second model which configurations fail. It never measures a point
twice: the model's mean, not a repeat, removes the noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from sweeper.parameters import TUNABLES
from sweeper.records import Configuration, Reading
from sweeper.results.front import undominated
from sweeper.results.picks import Line
from sweeper.search.candidates import Candidates
from sweeper.search.encoding import Encoder, idle_for, weighted
from sweeper.search.front_model import Breakage, FrontModel, ObjectiveModel, Outlook
from sweeper.search.gaussian_process import Array, GaussianProcess, Hyper, fit, one_thread, starting_hyper
from sweeper.search.memory_order import MemoryOrder
from sweeper.search.prior import LEAST_TRIALS as LEAST_EARLIER
from sweeper.search.prior import Measured, Prior
from sweeper.search.study import DUPLICATE, PROCESS, RECORD, SET_ASIDE
from sweeper.search.trial_cost import Cost, TrialCost
from sweeper.search.warm_start import initial_design, nearest
from sweeper.space.space import SearchSpace
from sweeper.stats import relative_noise

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

# Older sweeps, and studies without whole records, have the parts of the record that the sampler reads as attributes of
# their own.
STATE, CONFIGURATION, METRICS, READINGS = "state", "configuration", "metrics", "readings"
# States of configurations that could not run.
BROKEN = ("failed", "out_of_memory", "infeasible")
SHORT_OF_MEMORY = ("out_of_memory", "infeasible")  # a memory forecast makes a trial infeasible

# The sampler follows the initial design until this many trials are measured.
INITIAL_TRIALS = 7
INITIAL_TRIALS_WITH_EARLIER = 4
LEAST_PROBABLE = 0.5  # minimum probability that a point of the design fits, after a trial ran out of memory
# The assumed scatter of a trial's value without repeats, and its minimum with repeats.
EXPECTED_NOISE = 0.02
LEAST_NOISE = 0.01
MOST_FORECASTS = 20
# Up to this number of trials, each proposal fits the hyperparameters again; then every REFIT_EVERY trials.
REFIT_ALWAYS_UP_TO = 40
REFIT_EVERY = 6
# The sampler divides gains by a trial's expected seconds to this power: 0 counts trials, 1 counts seconds. The middle
# took no more trials than 0, and less time than either (docs/decisions/0005).
COST_POWER = 0.5
# After AIM_FROM measured trials, every AIM_EVERY-th proposal tries to improve the recommendation instead of the front:
# the point at the recommendation's threshold adds little to the front's volume.
AIM_FROM = 12
AIM_EVERY = 4
LEAST_AIM = 0.005  # as a share of the present recommendation; below it, the front goes first
# The share of a proposal's gain that must remain after ignored parameters return to their baseline values.
CALM_ENOUGH = 0.8
_BOUNDS = {tunable.clamped_to for tunable in TUNABLES.values()}
TAKES_NO_MEMORY = frozenset(t.name for t in TUNABLES.values() if t.memory is None and t.name not in _BOUNDS)
# A model uses at most this many trials, those nearest the front first, because its cost grows with the cube.
MOST_DATA = 300


@dataclass(slots=True)
class _History:
    """The trials so far, sorted by outcome."""

    known: set[Configuration] = field(default_factory=set)
    measured: list[Configuration] = field(default_factory=list)
    values: list[tuple[float, ...]] = field(default_factory=list)  # as recorded, not oriented
    violations: list[dict[str, float]] = field(default_factory=list)
    broken: list[Configuration] = field(default_factory=list)
    short: list[Configuration] = field(default_factory=list)  # the broken ones that lacked memory
    costs: list[Cost] = field(default_factory=list)
    readings: list[list[Reading]] = field(default_factory=list)  # of the objectives, if they were recorded


class GpFrontSampler(BaseSampler):
    """The sampler that the module describes, for one to three objectives.

    Args:
        space: the search space.
        seed: the random seed.
        baseline: the first configuration to propose; the space's base by default.
        allowed: returns False for configurations that the sampler must not propose, for example after a memory
            forecast. Called only for the next proposals, at most `MOST_FORECASTS` times for each.
        line: the threshold of the sweep's pick, if it has one; see `AIM_FROM`.
        earlier: the measurements of an earlier sweep, as points of this space, with this study's objectives.
        metrics: the names of the objectives, which decide the ignored parameters.
        constrained: the names of the metrics that constraints bound.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        *,
        baseline: Configuration | None = None,
        allowed: Callable[[Configuration], bool] | None = None,
        line: Line | None = None,
        earlier: Measured = (),
        metrics: Sequence[str] = (),
        constrained: Sequence[str] = (),
    ) -> None:
        self._space = space
        self._metrics = tuple(metrics)
        self._idle = set(space.parameters) if metrics else set()
        for metric in (*metrics, *constrained):
            self._idle &= set(idle_for(metric, space.traits.fills_context))
        self._earlier = earlier if len(earlier) >= LEAST_EARLIER else ()
        self._prior: Prior | None = None
        self._line = line
        self._encode = Encoder(space)
        self._candidates = Candidates(space, seed)
        self._allowed = allowed
        self._judged: dict[Configuration, bool] = {}
        self._baseline = baseline or space.base
        self._seed = seed
        self._design: tuple[Configuration, ...] | None = None
        self._hyper: dict[str, Hyper] = {}
        self._fitted_at = 0
        self.outlook: Outlook | None = None

    # -- Optuna's side ------------------------------------------------------------------------------------

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The sampler searches the whole space together."""
        return self._space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point, as Optuna's parameters."""
        history = self._read(study, trial.number)
        refused = [c for c, may_run in self._judged.items() if not may_run and c not in history.known]
        history.broken += refused
        history.short += refused
        configuration = self._from_design(history)
        if configuration is None:
            with one_thread():
                configuration = self._from_model(history, study)
        if configuration is None:
            return {}
        return self._space.params_of(configuration)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Called only when the space is used up. Returns any value; the sweep then settles the point as known."""
        return self._space.parameters[param_name].values[0]

    def _read(self, study: Study, number: int) -> _History:
        history = _History()
        for trial in study.get_trials(deepcopy=False):
            if trial.number == number or DUPLICATE in trial.user_attrs or not trial.params:
                continue
            if trial.user_attrs.get(SET_ASIDE, PROCESS) != PROCESS:
                continue  # an earlier process had no time for it
            record = _record_of(trial)
            if CONFIGURATION in record:
                configuration = Configuration(**record[CONFIGURATION])
            else:
                known = {k: v for k, v in trial.params.items() if k in self._space.parameters}
                configuration = self._space.configuration(known)
            history.known.add(configuration)
            state = record.get(STATE)
            if trial.state == TrialState.COMPLETE and trial.values is not None:
                history.measured.append(configuration)
                history.values.append(tuple(trial.values))
                history.violations.append(dict(trial.constraints))
                if READINGS in record:
                    history.readings.append([Reading(*values) for values in record[READINGS]])
                elif METRICS in record:
                    metrics = study.metric_names or self._metrics
                    history.readings.append([Reading(**record[METRICS][name]) for name in metrics])
                if record.get("seconds"):
                    history.costs.append(Cost(configuration, record["seconds"], record.get("load_seconds")))
            elif state in BROKEN or (state is None and trial.state == TrialState.PRUNED):
                history.broken.append(configuration)
                if state in SHORT_OF_MEMORY:
                    history.short.append(configuration)
        return history

    # -- proposals ----------------------------------------------------------------------------------------

    def _from_design(self, history: _History) -> Configuration | None:
        enough = INITIAL_TRIALS_WITH_EARLIER if self._earlier else INITIAL_TRIALS
        if len(history.measured) >= enough or len(history.known) >= 3 * INITIAL_TRIALS:
            return None
        if self._design is None:
            # Not `_may_run`, so that the memory order does not count these forecasts as failures.
            self._design = initial_design(
                self._space, self._baseline, 3 * INITIAL_TRIALS, self._seed, self._allowed
            )
        rest = [c for c in self._design if c not in history.known]
        if history.short and rest:  # a point that asks for at least as much as a failed one also fails
            fits = MemoryOrder(history.measured, history.short).probability(rest)
            rest = [c for c, share in zip(rest, fits, strict=True) if share > LEAST_PROBABLE]
        return next((c for c in rest if self._may_run(c)), None)

    def _may_run(self, configuration: Configuration) -> bool:
        """The forecast's answer, cached for each configuration because a forecast may take a tenth of a second."""
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
        cost = TrialCost(history.costs, self._encode([c.configuration for c in history.costs]))
        seconds = cost(candidates, features)
        costs = (seconds / seconds.mean()) ** COST_POWER
        chosen, gains = self._best_that_may_run(candidates, gains, costs)
        self.outlook = model.outlook(features, gains, len(history.known))
        count, judge = len(history.measured), model.gains
        if self._line is not None and count >= AIM_FROM and count % AIM_EVERY == 0:
            aimed = model.gains_of_pick(self._line, features, candidates)
            if aimed.max() >= LEAST_AIM:
                chosen, _ = self._best_that_may_run(candidates, aimed, costs)
                judge = functools.partial(model.gains_of_pick, self._line)
        return self._calmed(candidates[chosen], history, judge)

    def _calmed(
        self,
        configuration: Configuration,
        history: _History,
        judge: Callable[[Array, Sequence[Configuration]], Array],
    ) -> Configuration:
        """Return ignored parameters to their baseline values, if the result promises about as much.

        These parameters cannot affect the objectives or constraints, so their values would otherwise be arbitrary. A
        recommendation with the fastest answers might then read prompts on one thread.
        """
        baseline, params = self._space.params_of(self._baseline), self._space.params_of(configuration)
        for names in (self._idle, self._idle & TAKES_NO_MEMORY):
            idle = {n: nearest(self._space.parameters[n].values, baseline[n]) for n in sorted(names)}
            calm = self._space.configuration(params | idle)
            if calm in history.known or self._space.violations(calm) or not self._may_run(calm):
                continue
            gain, calm_gain = judge(self._encode([configuration, calm]), [configuration, calm])
            if calm_gain >= CALM_ENOUGH * gain:
                return calm
        return configuration

    def _best_that_may_run(
        self, candidates: Sequence[Configuration], gains: Array, costs: Array
    ) -> tuple[int, Array]:
        """The candidate with the greatest gain for its cost that the forecast accepts, and the remaining gains.

        A refused candidate also rules out candidates that ask for at least as much memory, so a few forecasts suffice.
        """
        refused: list[Configuration] = []
        best = int((gains / costs).argmax())
        for _ in range(MOST_FORECASTS):
            if self._may_run(candidates[best]):
                break
            refused.append(candidates[best])
            gains = gains * MemoryOrder([], refused).probability(candidates)
            gains[best] = 0.0
            best = int((gains / costs).argmax())
        return best, gains

    def _model(self, history: _History, maximized: Sequence[bool]) -> FrontModel:
        oriented = np.array(history.values, dtype=np.float64) * np.where(maximized, 1.0, -1.0)
        feasible = np.array([max(v.values(), default=0.0) <= 0 for v in history.violations])
        kept = _nearest_the_front(oriented, feasible)
        configurations = [history.measured[i] for i in kept]
        features = self._encode(configurations)
        count = len(history.measured)
        refit = count <= REFIT_ALWAYS_UP_TO or count - self._fitted_at >= REFIT_EVERY
        if refit:
            self._fitted_at = count
        if self._earlier and self._prior is None:
            self._prior = Prior(self._encode, self._earlier, maximized)
        objectives = [
            self._objective(k, features, oriented[kept, k], refit, _noise(history, k))
            for k in range(oriented.shape[1])
        ]
        constraints = []
        for key in sorted({key for each in history.violations for key in each}):
            violations = np.array([each.get(key, 0.0) for each in history.violations])
            if len(set(violations)) > 1:  # a constraint that does not differ between trials teaches nothing
                constraints.append(self._fitted(key, features, violations[kept], 0.05, refit))
        broken = Breakage(features, self._encode(history.broken)) if history.broken else None
        memory = MemoryOrder(history.measured, history.short) if history.short else None
        return FrontModel(objectives, constraints, broken, memory, configurations, features, feasible[kept])

    def _objective(
        self, index: int, features: Array, values: Array, refit: bool, noise: float
    ) -> ObjectiveModel:
        """The model of one oriented objective, in logarithms if all its values have the same sign."""
        key = f"objective {index}"
        sign = 1.0 if (values > 0).all() else -1.0 if (values < 0).all() else 0.0
        weights = self._encode.weights(self._metrics[index] if self._metrics else None)
        seen = weighted(features, weights)
        if sign == 0:
            return ObjectiveModel(self._fitted(key, seen, values, 0.05, refit), sign, weights)
        logarithms = sign * np.log(sign * values)
        both = self._prior.joined(index, features, logarithms) if self._prior else None
        if both is not None:
            seen, logarithms = weighted(both[0], np.append(weights, 1.0)), both[1]
            key = f"{key}, joined"
        # The noise of logarithms as a share of their spread, within bounds.
        relative = min(0.5, max(1e-3, noise / (float(logarithms.std()) or 1.0)))
        process = self._fitted(key, seen, logarithms, relative, refit)
        return ObjectiveModel(process, sign, weights, joined=both is not None)

    def _fitted(
        self, key: str, features: Array, values: Array, relative_noise: float, refit: bool
    ) -> GaussianProcess:
        hyper = self._hyper.get(key) or starting_hyper(features.shape[1], relative_noise)
        if refit or key not in self._hyper:
            hyper = fit(features, values, hyper, relative_noise)
            self._hyper[key] = hyper
        return GaussianProcess(features, values, hyper)


def _record_of(trial: FrozenTrial) -> dict[str, Any]:
    """The trial's record as stored, or as much of it as the trial's attributes have."""
    record: dict[str, Any] = trial.user_attrs | trial.user_attrs.get(RECORD, {})
    return record


def _noise(history: _History, objective: int) -> float:
    """The relative deviation of one trial's value, estimated from the trials' repeats."""
    known = relative_noise(readings[objective] for readings in history.readings)
    return EXPECTED_NOISE if known is None else max(known, LEAST_NOISE)


def _nearest_the_front(oriented: Array, feasible: Any) -> list[int]:
    """The trials that a model uses: all, or those on and behind the front, layer by layer."""
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
