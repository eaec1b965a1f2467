"""One search on one landscape: ask, measure in virtual time, tell; and what it had found after each trial."""

from __future__ import annotations

import itertools
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from search_landscapes import Landscape

from sweeper.errors import TrialFailed
from sweeper.measure.trial import Stage, measure
from sweeper.records import (
    Configuration,
    MachineRecord,
    Measurement,
    ModelRecord,
    Objective,
    SweepRecord,
    TrialRecord,
    Visit,
)
from sweeper.results.assemble import choose_finalists, conclude, with_finals
from sweeper.results.front import hypervolume
from sweeper.results.picks import DEFAULT_PICK, choose, line_of
from sweeper.search.early_stop import EarlyStop
from sweeper.search.finals import rounds, visit_of, visit_stage
from sweeper.search.gp_front import GpFrontSampler
from sweeper.search.smoothing import smoothed
from sweeper.search.warm_start import initial_design

FINALISTS = 5
FULL = ", full trials"  # a sampler's name with it measures every window of every trial
# ... learns the figures of what was measured before, and of what is ruled out that it is worst
TOLD = " told"
CAPS = " + caps"  # a sampler's name with it measures what it proposes at other power limits too
MOST_ASKS_IN_VAIN = 300  # a sampler that repeats itself this often in a row has nothing new to say


@dataclass(frozen=True)
class Step:
    """The state of a search after one trial."""

    trial: int
    seconds: float  # of virtual time
    share: float  # of the true front's hypervolume
    sampler_seconds: float  # of real time, for this proposal


@dataclass(frozen=True)
class Picked:
    """What `within:5%` recommends at the end of a search, and what it is truly worth."""

    configuration: Configuration
    visits: int  # of the final stage
    tokens_per_second: float
    watts: float
    regret: float  # in watts over the best possible, as a share
    noise: tuple[float, float]  # half of its intervals of speed and watts, as shares
    over_fit: float | None = None  # its true speed over that of the placement that --fit would choose


@dataclass(frozen=True)
class Search:
    """One finished search."""

    landscape: str
    sampler: str
    seed: int
    steps: tuple[Step, ...]
    picked: Picked | None


def objectives_of(landscape: Landscape) -> list[Objective]:
    """A landscape's objectives as a sweep has them."""
    return [Objective(m, "maximize" if sign > 0 else "minimize") for m, sign in landscape.objectives]


class Rig:
    """Measures configurations of a landscape, and keeps what was measured.

    Args:
        landscape: where.
        seed: of the noise.
        short: as sweeper measures: prefill once where no objective rests on it, and what is hopeless not to its
            end. Else every window of every trial.
    """

    def __init__(self, landscape: Landscape, seed: int, short: bool) -> None:
        self.landscape = landscape
        self.engine, self.meter, self.clock = landscape.rig(seed)
        self.metrics = [metric for metric, _ in landscape.objectives]
        self.stage = Stage.screening(landscape.workload, self.metrics if short else None)
        self.objectives = objectives_of(landscape)
        self.early_stop = EarlyStop(self.objectives, ()) if short else None
        self.records: list[TrialRecord] = []  # of what ran
        self.took: dict[str, Any] = {}  # of the latest trial, as a sweep's record has it
        self.readings: list[tuple[float, ...]] = []  # of its objectives
        self.measured: dict[Configuration, tuple[float, ...] | None] = {}
        self.steps: list[Step] = []
        self._true: list[tuple[float, ...]] = []

    def trial(self, configuration: Configuration, sampler_seconds: float) -> tuple[float, ...] | None:
        """Measure; the objectives as measured (not oriented), None where it did not run."""
        began = self.clock()
        self.took = {}
        try:
            result = self.measured_at(configuration, self.stage, self.early_stop)
            values: tuple[float, ...] | None = tuple(result.metrics[m].median for m in self.metrics)
            load = result.load_seconds if result.reloaded else None
            self.took = {"seconds": self.clock() - began, "load_seconds": load}
            readings = [result.metrics[m] for m in self.metrics]
            self.readings = [(r.median, r.low, r.high, r.n) for r in readings]
            self.records.append(TrialRecord(len(self.measured), "complete", configuration, result.metrics))
            if self.early_stop:
                self.early_stop.learn(self.records[-1])
        except TrialFailed:
            values = None
        self.measured[configuration] = values
        if configuration in self.landscape.all_points:
            self._true.append(self.landscape.all_points[configuration])
        share = hypervolume(self._true, self.landscape.reference) / self.landscape.volume
        self.steps.append(Step(len(self.measured), self.clock(), share, sampler_seconds))
        return values

    def measured_at(
        self, configuration: Configuration, stage: Stage, early_stop: EarlyStop | None = None
    ) -> Measurement:
        """Measure in virtual time, waits included."""
        return measure(
            configuration,
            self.engine,
            self.meter,
            self.landscape.workload,
            stage,
            clock=self.clock,
            sleep=self.clock.advance,
            hopeless=early_stop.hopeless if early_stop else None,
        )

    def pick(self, seed: int) -> Picked | None:
        """Measure the finalists again and pick within:5%, all as a sweep does; None where nothing ran."""
        record = conclude(self.record())
        if not record.front:
            return None
        stage = visit_stage(self.landscape.workload)
        configurations = {trial.number: trial.configuration for trial in record.trials}
        visits: list[Visit] = []

        def so_far() -> SweepRecord:
            return conclude(replace(record, trials=with_finals(record.trials, visits, record)))

        finalists = choose_finalists(conclude(smoothed(record, self.landscape.space)), FINALISTS, record)
        for visit, order in rounds(finalists, (), so_far, seed):
            for number in order:
                again = self.measured_at(configurations[number], stage)
                visits.append(visit_of(number, visit, again, 0.0))
        chosen = choose(so_far(), record.pick).trial
        speed, watts = (chosen.metrics[m] for m in ("tokens_per_second", "watts"))
        noise = tuple((r.high - r.low) / 2 / r.median for r in (speed, watts))
        truth = self._truth_of(chosen.configuration)
        return Picked(
            chosen.configuration,
            len(visits),
            *truth,
            (noise[0], noise[1]),
            self._over_fit(chosen.configuration, truth[0]),
        )

    def _over_fit(self, chosen: Configuration, speed: float) -> float | None:
        if self.landscape.as_fitted is None:
            return None
        fitted = self.landscape.truth(self.landscape.as_fitted(chosen))
        return None if fitted is None else speed / fitted["tokens_per_second"]

    def _truth_of(self, chosen: Configuration) -> tuple[float, float, float]:
        """What was picked truly gives, in tok/s and W, and its regret."""
        truth = self.landscape.all_points
        top = max(p[0] for p in truth.values())
        least = min(-p[-1] for p in truth.values() if p[0] >= 0.95 * top)
        speed, watts = truth[chosen][0], -truth[chosen][-1]
        # Too slow is as bad as too hungry: what is missing to 95 % of the best speed counts as regret too.
        return speed, watts, max(watts / least - 1, 0.0) + max(1 - speed / (0.95 * top), 0.0)

    def record(self) -> SweepRecord:
        """What was measured so far, as a sweep's record."""
        return SweepRecord(
            sweep=self.landscape.name,
            state="running",
            machine=MachineRecord("", "", 1, 1, 0, ""),
            engine=self.engine.record,
            model=ModelRecord("", "", 0, 0, 0, "synthetic", "", {}),
            workload=self.landscape.workload,
            objectives=tuple(self.objectives),
            constraints=(),
            power=self.meter.source,
            space=self.landscape.space.describe(),
            trials=tuple(self.records),
            front=(),
            baseline=None,
            recommended=None,
        )


Sampler = Callable[[Landscape, int], Any]


def run(landscape: Landscape, sampler: str, seed: int, trials: int) -> Search:
    """One search of at most ``trials`` measured configurations."""
    rig, name = Rig(landscape, seed, short=not sampler.endswith(FULL)), sampler
    sampler = sampler.removesuffix(FULL)
    told = sampler.endswith(TOLD)
    if sampler == "grid order":
        grid = (c for c in landscape.space.grid() if landscape.forecast(c))
        for configuration in itertools.islice(grid, trials):
            rig.trial(configuration, 0.0)
    elif sampler == "llama-optimus":
        llama_optimus(rig, seed, trials)
    else:
        corners = initial_design(landscape.space, landscape.baseline, 6, seed) if "corners" in sampler else ()
        made = make_sampler(sampler.removesuffix(TOLD), landscape, seed)
        ask_and_tell(rig, made, corners, trials, caps=sampler.endswith(CAPS), told=told)
    return Search(landscape.name, name, seed, tuple(rig.steps), rig.pick(seed))


def ask_and_tell(
    rig: Rig,
    sampler: Any,
    firsts: Sequence[Configuration],
    trials: int,
    *,
    caps: bool = False,
    told: bool = False,
) -> None:
    """The loop of a sweep around an Optuna sampler, with duplicates settled for free; ``firsts`` go first.

    With ``caps`` each proposal is also measured at the lowest and at the middle power limit while it is loaded.
    With ``told`` nothing is told as pruned, which Optuna's GP does not look at: what is known again with its
    figures, what did not run with the worst figures so far.
    """
    space = rig.landscape.space
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=["maximize" if s > 0 else "minimize" for _, s in rig.landscape.objectives],
        sampler=sampler,
    )
    distributions = space.distributions()
    for first in firsts:
        study.enqueue_trial(space.params_of(first))
    in_vain = 0
    asked: set[Configuration] = set()  # at other limits than they were proposed with
    while len(rig.measured) < trials and in_vain < MOST_ASKS_IN_VAIN:
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = study.ask(distributions)
        took = time.perf_counter() - began
        configuration = space.configuration(trial.params)
        known = configuration in rig.measured
        if known or space.violations(configuration) or not rig.landscape.forecast(configuration):
            # As in a sweep: what is known or ruled out beforehand costs nothing, and the sampler is told.
            in_vain += 1
            if known:
                trial.set_user_attr("duplicate_of", 0)
            else:
                trial.set_user_attr("state", "infeasible")
            trial.set_constraint("runs", 0.0 if rig.measured.get(configuration) else 1.0)
            settle(study, trial, rig, rig.measured.get(configuration), told)
            continue
        in_vain = 0
        values = rig.trial(configuration, took)
        trial.set_user_attr("configuration", configuration.to_dict())
        trial.set_user_attr("record", rig.took)
        trial.set_user_attr("state", "complete" if values else "out_of_memory")
        trial.set_constraint("runs", 0.0 if values else 1.0)
        if values:
            trial.set_user_attr("readings", rig.readings)
            study.tell(trial, list(values))
            if caps and configuration not in asked:
                limits = space.parameters["power_limit_watts"].values
                for limit in (limits[0], limits[len(limits) // 2]):
                    params = space.params_of(configuration) | {"power_limit_watts": limit}
                    asked.add(space.configuration(params))
                    study.enqueue_trial(params)
        else:
            settle(study, trial, rig, None, told)


def settle(
    study: optuna.Study, trial: optuna.Trial, rig: Rig, values: Sequence[float] | None, told: bool
) -> None:
    """Tell a trial that cost nothing or did not run: pruned, or with ``told`` its figures or the worst so far."""
    ran = [v for v in rig.measured.values() if v]
    if not told or not ran:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return
    signs = [sign for _, sign in rig.landscape.objectives]
    worst = [
        (min if sign > 0 else max)(column) for sign, column in zip(signs, zip(*ran, strict=True), strict=True)
    ]
    study.tell(trial, list(values or worst))


def make_sampler(name: str, landscape: Landscape, seed: int) -> Any:
    """An Optuna sampler by the name it has in the tables."""
    samplers = optuna.samplers
    base = name.removesuffix(" + corners").removesuffix(CAPS)
    made: dict[str, Callable[[], Any]] = {
        "gp_front": lambda: GpFrontSampler(
            landscape.space,
            seed,
            baseline=landscape.baseline,
            allowed=landscape.forecast,
            line=line_of(objectives_of(landscape), DEFAULT_PICK),
            metrics=[metric for metric, _ in landscape.objectives],
        ),
        "random": lambda: samplers.RandomSampler(seed=seed),
        "nsga2": lambda: samplers.NSGAIISampler(seed=seed),
        "tpe": lambda: samplers.TPESampler(seed=seed),
        "tpe multivariate": lambda: samplers.TPESampler(seed=seed, multivariate=True),
        "gp": lambda: samplers.GPSampler(seed=seed),
    }
    return made[base]()


def llama_optimus(rig: Rig, seed: int, trials: int) -> None:
    """Its three stages, for speed alone: TPE over numbers, a grid over flags, TPE over numbers again.

    It knows no power limit, so that stays as found; each trial is a fresh process there and is here a
    measurement like any other, which flatters it.
    """
    space = rig.landscape.space
    numbers = [p for p in space.parameters.values() if p.ordinal and not p.name.endswith(("watts", "mhz"))]
    flags = [p for p in space.parameters.values() if not p.ordinal]
    fixed = space.params_of(rig.landscape.baseline)
    best: dict[str, Any] = dict(fixed)
    most_speed = 0.0
    third = max(1, trials * 35 // 80)

    def speed(params: dict[str, Any]) -> float | None:
        nonlocal best, most_speed
        configuration = space.configuration(fixed | params)
        if space.violations(configuration) or not rig.landscape.forecast(configuration):
            return None
        values = rig.measured.get(configuration)
        if configuration not in rig.measured:
            values = rig.trial(configuration, 0.0)
        if values and values[0] > most_speed:
            best, most_speed = space.params_of(configuration), values[0]
        return values[0] if values else None

    def tpe(until: int, held: dict[str, Any]) -> None:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        distributions = {p.name: space.distributions()[p.name] for p in numbers}
        for _ in range(5 * trials):
            if len(rig.measured) >= until:
                return
            trial = study.ask(distributions)
            found = speed(held | trial.params)
            study.tell(trial, found if found is not None else 0.0)  # failures score 0 there

    def flag_grid() -> Iterator[dict[str, Any]]:
        for values in itertools.product(*(p.values for p in flags)):
            yield dict(zip([p.name for p in flags], values, strict=True))

    tpe(third, {})
    for choice in random.Random(seed).sample(list(flag_grid()), len(list(flag_grid()))):
        if len(rig.measured) < trials - third:
            speed(best | choice)
    tpe(trials, {p.name: best[p.name] for p in flags})
