"""The loop of a sweep: ask, measure, tell, record; then measure the candidates for the front again; then conclude.

The loop receives everything that it needs, so it runs on llama.cpp, on a simulated machine and on a recorded table. It
catches only the errors of a trial, by their type.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sweeper.engine.base import Engine
from sweeper.errors import NoResultError, QualityUnknown, StoreError, TimeOver, TrialFailed
from sweeper.limits.base import LimitControl
from sweeper.measure.disturbance import Watch, worst
from sweeper.measure.trial import (
    UNLIMITED,
    Hopeless,
    Limit,
    Stage,
    measure,
    pooled,
    wait_for_temperature,
)
from sweeper.meter.base import PowerMeter
from sweeper.metrics import OF_QUALITY
from sweeper.parameters import LIMIT_KEYS
from sweeper.records import (
    Caveat,
    Configuration,
    Measurement,
    Reading,
    SweepRecord,
    TrialRecord,
    Visit,
)
from sweeper.report.caveats import why_nothing
from sweeper.report.progress import Progress
from sweeper.report.words import settings
from sweeper.results.assemble import (
    assemble,
    baseline_of,
    choose_finalists,
    choose_to_confirm,
    conclude,
    growth,
    may_keep,
    so_far,
    violations_of,
)
from sweeper.search.early_stop import EarlyStop
from sweeper.search.finals import (
    FINAL_VISITS,
    in_doubt,
    measured_seconds,
    rounds,
    visit_of,
    visit_stage,
)
from sweeper.search.smoothing import smoothed
from sweeper.search.study import Proposal, SweepStudy
from sweeper.search.time_budget import TimeBudget
from sweeper.search.timekeeper import Room, Timekeeper
from sweeper.space.space import SearchSpace
from sweeper.tracking import Tracker

# If a sampler proposes this many known points in a row, the sweep chooses another point instead.
MOST_DUPLICATES = 5
# That many points are enough to choose from. Of a larger space, points are drawn, because listing it takes minutes.
MOST_LISTED, DRAWS = 2000, 200
# The front has stopped growing if the hypervolume rose by less than this share over `patience` trials.
GROWTH = 0.01
# If a control measurement differs from the baseline by more than this, and by more than noise, the machine drifts.
DRIFT = 0.05
BY_HAND = "stopped by hand"


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """When to stop the search, and which trials to run first."""

    trials: int | None
    minutes: float | None
    patience: int | None
    finalists: int
    control_every: int
    first: tuple[Configuration, ...]  # the baseline, then the corners
    total: int  # maximum number of trials, for the display
    exhaustive: bool = False  # run through the grid in order
    seed: int = 0
    stop_reason: Callable[[], str | None] | None = None  # the sampler's stopping rule
    early_stop: bool = False  # end trials that another trial beats in every objective beyond noise
    full_depth: bool = True  # measure finalists also as deep as their context allows
    # The default settings at each context, the shortest first; they run before all other trials.
    ladder: tuple[Configuration, ...] = ()


@dataclass(slots=True)
class StopFlag:
    """The first Ctrl-C sets it: the sweep finishes the current trial, visits the pick once, then concludes."""

    set_by_hand: bool = False


@dataclass(slots=True)
class Sweep:
    """One sweep, with everything that it needs."""

    study: SweepStudy
    space: SearchSpace
    engine: Engine
    meter: PowerMeter
    limits: LimitControl
    tracker: Tracker
    progress: Progress
    plan: SearchPlan
    report_folder: Path
    write_report: Callable[[SweepRecord, Path], Mapping[str, Path]]
    quality: Callable[[Configuration], Mapping[str, Reading]]
    forecast: Callable[[Configuration], str | None]
    standing_caveats: tuple[Caveat, ...] = ()  # for every trial, such as SYNTHETIC_QUALITY
    stop: StopFlag = field(default_factory=StopFlag)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    watch: Watch | None = None  # None: nothing can disturb this machine
    budget: TimeBudget | None = None  # the limit of the whole job
    _began: float = 0.0
    _compared_seconds: float = 0.0  # spent on measuring quality, which is not part of `SearchPlan.minutes`
    _reference_celsius: float | None = None
    _tracking_failed: str | None = None
    _early_stop: EarlyStop | None = None
    _ladder_is_over: bool = False
    _said_too_long: bool = False
    _time: Timekeeper = field(init=False)

    def run(self) -> SweepRecord:
        """Run to the end, or resume where an earlier run stopped.

        Raises:
            NoResultError: the sweep ended without a valid trial.
            StoreError: the database can no longer be written, for example because the disk is full. Finished trials are
                kept.
            KeyboardInterrupt: a second Ctrl-C stopped the sweep at once. Finished trials are kept.
        """
        with self.study.plain_errors():
            self._time = Timekeeper(
                self.study,
                self.space,
                self.engine,
                self.meter.update_period_seconds,
                self._screening(self.study.header()),
                self.budget,
            )
            return self._run()

    def _run(self) -> SweepRecord:
        self._began = self.clock()
        if self.budget is not None:
            self.progress.limited(self.budget.left)
        header = self.study.header()
        for number in self.study.recover(header.objectives):
            self.progress.note(f"trial #{number} was interrupted when the sweep stopped: it runs again")
        self._track(lambda: self.tracker.sweep_started(assemble(self.study)))
        if self.study.trials():
            self.progress.phase("bringing MLflow up to date")
            self._track(lambda: self.tracker.sync(assemble(self.study)))
            self._show()
        if self.plan.early_stop:
            self._early_stop = EarlyStop(header.objectives, header.constraints)
            for trial in self.study.trials():
                self._early_stop.learn(trial)
        self._wait_for_quiet()
        reason = self._search()
        too_short = None if self.stop.set_by_hand else self._time.too_short()
        state = "stopped" if self.stop.set_by_hand or too_short else "complete"
        record = self._conclude(reason, state, too_short)
        if not record.on_front():
            raise NoResultError(too_short or why_nothing(record))
        return record

    def _wait_for_quiet(self) -> None:
        """Wait before the first trial while other programs use the processors; the wait is bounded."""
        if self.watch is None:
            return
        first = self.plan.first[0]
        on_gpu = self.study.header().engine.gpu_offload and first.n_gpu_layers
        threads = 1 if on_gpu else max(first.n_threads, first.n_threads_batch)
        busy = self.watch.wait(self.progress.phase, self.watch.tolerated_share(threads))
        if busy and not self.stop.set_by_hand:
            self.progress.note(f"the machine did not become quiet ({busy}); the sweep goes on")

    # -- the search ---------------------------------------------------------------------------------------

    def _search(self) -> str:
        """Ask, measure and tell until there is a reason to stop, then visit the best trials. Returns the reason."""
        distributions = self.space.distributions()
        grid = self.space.grid() if self.plan.exhaustive else None
        duplicates = 0
        while (reason := self._reason_to_stop()) is None:
            known, room = self.study.known(), self._time.room()
            on_ladder = duplicates < MOST_DUPLICATES and self._enqueue_first(known, room)
            if not on_ladder and (grid is not None or duplicates >= MOST_DUPLICATES):
                other = self._unmeasured(known, grid, room)
                if other is None:
                    rest = any(c.digest not in known for c in self.space.grid())
                    every = "every configuration of the space has been measured"
                    reason = self._time.ended_for_visits() if rest else every
                    break
                self.study.enqueue(self.space.params_of(other))
            self.progress.phase("choosing the next trial")
            proposal = self.study.ask(distributions)
            configuration = self.space.configuration(proposal.params)
            if configuration.digest in known:
                self.study.duplicate(proposal, known[configuration.digest])
                duplicates += 1
                continue
            if not self._has_time(configuration, room):
                self.study.set_aside(proposal)
                duplicates += 1
                continue
            duplicates, count = 0, len(known) + 1
            self._trial(proposal, configuration, room)
            self._control(count)
        if self.watch:
            self.watch.finals_begin()
        if self.stop.set_by_hand:
            self._confirm()
        else:
            self._final_stage()
        return BY_HAND if self.stop.set_by_hand else reason

    def _enqueue_first(self, known: Mapping[str, int], room: Room) -> bool:
        """Queue the next context of the ladder, or after it the first configurations. True while the ladder goes on."""
        step = self._next_step(room)
        if step is not None:
            self.study.enqueue(self.space.params_of(step))
            return True
        baseline, *others = self.plan.first
        # The others follow once the baseline is known, also where the sweep was killed before the first of them.
        if not known:
            self.study.enqueue(self.space.params_of(baseline))
        elif known.keys() <= {c.digest for c in (baseline, *self.plan.ladder)}:
            for configuration in others:
                if configuration.digest not in known and room.fits(configuration):
                    self.study.enqueue(self.space.params_of(configuration))
        return False

    def _next_step(self, room: Room) -> Configuration | None:
        """The next context of the ladder; None at its end, or once a context broke a limit or failed."""
        trials = {trial.configuration: trial for trial in self.study.trials()}
        before: TrialRecord | None = None
        for step in self.plan.ladder:
            if step not in trials:
                if before is not None and not self._ladder_is_over:
                    self._ladder_is_over = self._is_too_long(step, room)
                return None if self._ladder_is_over else step
            before = trials[step]
            if not before.feasible:
                return None
        return None

    def _is_too_long(self, step: Configuration, room: Room) -> bool:
        """Whether the time left is too short for a longer context. It says so."""
        expected, left = room.expected.trial(step), room.left(step)
        if self.plan.minutes is not None:
            left = min(left, 60 * self.plan.minutes - self._searched_seconds())
        if expected <= left:
            return False
        self.progress.note(
            f"{step.n_ctx:,} tokens are not tried with the default settings: that would take about {expected:.0f} s "
            f"(computed), and {max(0.0, left):.0f} s are left{self._beside()}"
        )
        return True

    def _has_time(self, configuration: Configuration, room: Room) -> bool:
        """Whether a trial fits the time left. The first one that does not is told of."""
        if room.fits(configuration):
            return True
        if not self._said_too_long:
            self._said_too_long = True
            own = settings(configuration, self.plan.first[0])
            self.progress.note(
                f"trials that would take longer than the time left are not begun; the first of them ({own}) would "
                f"take about {room.expected.trial(configuration):.0f} s (computed), and "
                f"{max(0.0, room.left(configuration)):.0f} s are left{self._beside()}"
            )
        return False

    def _beside(self) -> str:
        return "" if self.budget is None else " beside measuring the best trials again"

    def _reason_to_stop(self) -> str | None:
        plan, trials = self.plan, self.study.trials()
        if self.stop.set_by_hand:
            return BY_HAND
        if plan.trials is not None and len(trials) >= plan.trials:
            return f"the limit of {plan.trials} trials is reached"
        if plan.minutes is not None and self._searched_seconds() >= plan.minutes * 60:
            return (
                "1 minute of searching is over"
                if plan.minutes == 1
                else f"{plan.minutes:g} minutes of searching are over"
            )
        if over := self._time.search_is_over(plan.finalists):
            return over
        if (
            plan.patience is not None
            and len(trials) > plan.patience
            and growth(trials, self.study.header().objectives, plan.patience) < GROWTH
        ):
            return f"the last {plan.patience} trials added less than {GROWTH:.0%} to the front"
        return plan.stop_reason() if plan.stop_reason else None

    def _searched_seconds(self) -> float:
        return self.clock() - self._began - self._compared_seconds

    def _unmeasured(self, known: Mapping[str, int], grid: Any, room: Room) -> Configuration | None:
        """The next unmeasured point of the grid, or any unmeasured point, that fits into the ``room``."""
        if grid is not None:
            return next((c for c in grid if c.digest not in known and room.fits(c)), None)
        draw, some = random.Random(self.plan.seed + len(known)), []
        if self.space.size > MOST_LISTED:
            some = [c for c in self.space.drawn(draw, DRAWS) if c.digest not in known]
        if not some:
            some = list(
                itertools.islice((c for c in self.space.grid() if c.digest not in known), MOST_LISTED)
            )
        some = [c for c in some if room.fits(c)]
        return draw.choice(some) if some else None

    # -- one trial ----------------------------------------------------------------------------------------

    def _trial(self, proposal: Proposal, configuration: Configuration, room: Room) -> None:
        header, began = self.study.header(), self.clock()
        self.progress.trial_started(len(self.study.trials()) + 1, self.plan.total, configuration)
        try:
            record, measurement = self._measured(proposal.number, configuration, header, room)
        except TimeOver as over:
            self.study.set_aside(proposal)
            # The rest of this trial, and a visit that fills its context again.
            self._time.given_up_seconds = self.clock() - began + 2 * over.more_seconds
            self.progress.note(f"the trial was given up and does not count: {over}")
            return
        if measurement is not None and self._reference_celsius is None:
            # A working device is warm: the other trials start near the temperature at the end of the first one.
            self._reference_celsius = self.meter.temperature_celsius()
        windows = measurement.windows if measurement else ()
        self.study.tell(proposal, record, header.objectives, self._constraints_of(record, header), windows)
        if self._early_stop is not None:
            self._early_stop.learn(record)
        self.progress.trial_finished(record)
        self._show()
        self._track(lambda: self.tracker.trial_finished(header, record))

    def _show(self) -> None:
        """Offer the display the sweep so far."""
        self.progress.so_far(lambda: so_far(self.study))

    def _measured(
        self, number: int, configuration: Configuration, header: SweepRecord, room: Room
    ) -> tuple[TrialRecord, Measurement | None]:
        """Run one trial and return its record, even if the trial failed.

        Raises:
            TimeOver: the time was too short for it, so there is no record.
        """
        began, utc = self.clock(), datetime.now(UTC)
        self.progress.phase("checking memory and quality")
        why = "; ".join(self.space.violations(configuration)) or self.forecast(configuration)
        quality: Mapping[str, Reading] = {}
        unknown: Mapping[str, str] = {}
        before = self._compared_seconds
        if not why:
            quality, unknown, why = self._quality(configuration)
        # The comparison serves every trial of its level, so it is not part of this one's time.
        compared = self._compared_seconds - before
        began, utc = began + compared, utc + timedelta(seconds=compared)
        started = utc.isoformat(timespec="milliseconds")
        base = TrialRecord(number, "infeasible", configuration, reason=why, started_utc=started)
        if why:
            return replace(base, seconds=self.clock() - began), None
        try:
            measurement, ran = self._screened(base, header, room, quality)
            measurement = replace(measurement, missing={**measurement.missing, **unknown})
            _demand_objectives(measurement, header)
        except TimeOver:
            raise
        except TrialFailed as failure:
            return replace(
                base,
                state=failure.state,
                reason=str(failure),
                log_tail=failure.log_tail,
                seconds=self.clock() - began,
            ), None
        base = replace(base, run_seconds=ran, prompt_seconds=measurement.prompt_seconds)
        return self._record_of(base, measurement, header, self.clock() - began), measurement

    def _screened(
        self, base: TrialRecord, header: SweepRecord, room: Room, quality: Mapping[str, Reading]
    ) -> tuple[Measurement, float]:
        """Measure a trial, and once more if chance may rule it out.

        Returns:
            The measurement, and the seconds of one without loading and filling.
        """
        configuration, stage = base.configuration, self._screening(header)
        hopeless = self._early_stop.hopeless if self._early_stop else None
        if configuration in self.plan.ladder:
            # It answers the user's question itself: also how long the first token takes, and to the end.
            least = None if stage.least_prefill is None else max(1, stage.least_prefill)
            stage, hopeless = replace(stage, least_prefill=least), None
        limit, ready = self._time.limit_of_trial(room), self.clock()
        found = self._measure(configuration, stage, quality, hopeless, limit)
        ran = self.clock() - ready - found.load_seconds - found.fill_seconds
        if self._may_be_ruled_out_by_chance(found, header, room, ran):
            self.progress.note(
                f"trial #{base.number} breaks a constraint, perhaps by chance: it is measured once more"
            )
            again = self._measure(configuration, stage, quality)
            found = pooled(found, again, header.workload, stage)
        return found, ran

    def _may_be_ruled_out_by_chance(
        self, found: Measurement, header: SweepRecord, room: Room, seconds: float
    ) -> bool:
        """Whether a trial breaks constraints, a repeat of ``seconds`` may show that it keeps them, and there is time.

        On the ladder, where one broken constraint ends the climb, noise is reason enough; else only other programs.
        """
        disturbed = Caveat.BUSY_MACHINE in found.caveats
        if Caveat.STOPPED_EARLY in found.caveats or self.stop.set_by_hand:
            return False
        if not disturbed and found.configuration not in self.plan.ladder:
            return False
        in_time = self.budget is None or seconds <= self.budget.left() - room.reserved(found.configuration)
        return in_time and may_keep(found.metrics, header.constraints, disturbed=disturbed)

    def _quality(
        self, configuration: Configuration
    ) -> tuple[Mapping[str, Reading], Mapping[str, str], str | None]:
        """The quality loss of the configuration, measured when a trial first has its level.

        Returns:
            The loss; or why the whole sweep has none, by metric; or why this trial cannot run.
        """
        began = self.clock()
        try:
            return self.quality(configuration), {}, None
        except QualityUnknown as unknown:
            return {}, dict.fromkeys(OF_QUALITY, str(unknown)), None
        except TrialFailed as failure:
            return {}, {}, f"its quality cannot be measured: {failure}"
        finally:
            seconds = self.clock() - began
            self._compared_seconds += seconds
            self.progress.compared(seconds)

    def _measure(
        self,
        configuration: Configuration,
        stage: Stage,
        quality: Mapping[str, Reading],
        hopeless: Hopeless | None = None,
        limit: Limit = UNLIMITED,
    ) -> Measurement:
        for name in LIMIT_KEYS:
            if name in self.space.parameters or getattr(configuration, name) is not None:
                self.limits.set(name, getattr(configuration, name))
        wait_for_temperature(
            self.meter,
            self._reference_celsius,
            self.clock,
            self.sleep,
            self.progress.phase,
            self._time.longest_wait(),
        )
        self._time.loaded = None  # if this fails, it is unknown what is loaded
        found = measure(
            configuration,
            self.engine,
            self.meter,
            self.study.header().workload,
            stage,
            quality,
            self.progress.phase,
            self.clock,
            self.sleep,
            hopeless,
            self.watch,
            limit,
        )
        self._time.loaded = configuration
        return found

    def _record_of(
        self, base: TrialRecord, measurement: Measurement, header: SweepRecord, seconds: float
    ) -> TrialRecord:
        caveats = set(measurement.caveats) | set(self.standing_caveats)
        return replace(
            base,
            state="complete",
            reason=None,
            metrics=measurement.metrics,
            missing=measurement.missing,
            violations=violations_of(dict(measurement.metrics), header.constraints),
            caveats=tuple(c for c in Caveat if c in caveats),
            in_force=measurement.in_force,
            seconds=seconds,
            measured_seconds=measured_seconds(measurement),
            load_seconds=measurement.load_seconds if measurement.reloaded else None,
            disturbance=worst(measurement.windows),
        )

    def _screening(self, header: SweepRecord) -> Stage:
        decides = [*(o.metric for o in header.objectives), *(c.metric for c in header.constraints)]
        stage = Stage.screening(header.workload, decides)
        # Without early stop, every trial measures each prompt, however long it takes.
        return stage if self.plan.early_stop else replace(stage, least_prefill=stage.repeats_of("prefill"))

    def _constraints_of(self, record: TrialRecord, header: SweepRecord) -> dict[str, float]:
        """The constraints of a trial. Every trial has the same keys, because Optuna's GP refuses a study otherwise."""
        known = dict.fromkeys((str(c) for c in header.constraints), 0.0) | dict(record.violations)
        return known | {"runs": 0.0 if record.state == "complete" else 1.0}

    def _control(self, count: int) -> None:
        """Measure the baseline again every `control_every` trials. If it changes, the machine drifts."""
        if count % self.plan.control_every or self.stop.set_by_hand:
            return
        header = self.study.header()
        number = baseline_of(self.study.trials(), header)
        baseline = next((t for t in self.study.trials() if t.number == number), None)
        if baseline is None or baseline.state != "complete":
            return
        if not self._time.room().fits(baseline.configuration):
            return
        began = self.clock()
        try:
            again = self._measure(baseline.configuration, self._screening(header), {})
        except TrialFailed as failure:
            self.progress.note(f"the control measurement failed: {failure}")
            return
        self.study.save_control(count, visit_of(baseline.number, count, again, self.clock() - began))
        # A figure that another program disturbed says nothing about the machine.
        busy = Caveat.BUSY_MACHINE in (*baseline.caveats, *again.caveats)
        drift = None if busy else _drift(baseline, again)

        def speed(measured: TrialRecord | Measurement) -> float:
            return measured.metrics["tokens_per_second"].median

        if drift is not None and Caveat.DRIFT not in self.study.header().caveats:
            self.progress.note(
                f"the default setting gave {speed(baseline):.3g} tok/s first and {speed(again):.3g} later: "
                "something else was running, or the machine changed"
            )
            kept = self.study.header()
            self.study.save_header(replace(kept, caveats=(*kept.caveats, Caveat.DRIFT)))

    # -- the final stage ----------------------------------------------------------------------------------

    def _final_stage(self) -> None:
        """Measure the candidates again, interleaved. sweeper recommends only trials that it measured twice."""
        record = assemble(self.study)
        visits = self.study.visits()
        # The figures of the screening: trials that ran after an earlier run's final stage count as well.
        screened = replace(record, trials=self.study.trials())
        expected = conclude(smoothed(screened, self.space))
        chosen = choose_finalists(expected, self.plan.finalists, conclude(screened))
        finalists = tuple(dict.fromkeys((*_finalists_of(visits), *chosen)))
        done = {(visit.trial, visit.visit) for visit in visits}
        total = len(finalists) * FINAL_VISITS
        stage = visit_stage(record.workload)
        if not visits and not any(self._time.visit_in_time(record.trial(n), stage) for n in finalists):
            return
        self.progress.finalists(len(finalists), total - sum(visit < FINAL_VISITS for _, visit in done))
        missed = False
        for visit, order in rounds(finalists, done, lambda: assemble(self.study), self.plan.seed):
            deep = self.plan.full_depth and visit < FINAL_VISITS
            stage = replace(stage, full_depth=deep)
            needed = self._needed_of(finalists)
            if not self._time.is_enough([record.trial(number) for number in order], stage):
                order.sort(key=[*needed, *finalists].index)
            trials = [record.trial(number) for number in order]
            later = [record.trial(number) for number in needed] * (FINAL_VISITS - 1 - visit)
            if trials and not any(self._time.visit_in_time(trial, stage) for trial in trials):
                missed = True
                break
            if visit >= FINAL_VISITS and trials:
                total += len(trials)
                self.progress.undecided(len(trials), disturbed=bool(in_doubt(assemble(self.study))))
            for place, trial in enumerate(trials, 1):
                if self.stop.set_by_hand:
                    if visit == 0:  # else every finalist has had a visit
                        self._confirm()
                    return
                in_time = self._time.visit_in_time(trial, stage, () if trial.number in needed else later)
                if in_time is None:
                    missed = True
                    continue
                self.progress.trial_started(len(self.study.visits()) + 1, total, trial.configuration)
                self._visit(trial, visit, in_time, [*trials[place:], *later])
        if missed:
            self.progress.note("the time is over; some finalists were measured fewer times than usual")

    def _needed_of(self, finalists: Sequence[int]) -> list[int]:
        """The finalists that every report compares: the baseline and the recommended trial, or what may become it."""
        now = assemble(self.study)
        if now.recommended is None:
            return list(finalists[:2])
        return [number for number in finalists if number in (now.baseline, now.recommended)]

    def _confirm(self) -> None:
        """After Ctrl-C: one visit to the baseline, the pick and its near-ties, unless they have one already.

        sweeper recommends only trials that it measured twice, so without these visits a stopped search has no answer.
        """
        record, visited = assemble(self.study), {visit.trial for visit in self.study.visits()}
        screened = conclude(replace(record, trials=self.study.trials()))
        order = [number for number in choose_to_confirm(screened) if number not in visited]
        self.progress.confirming(len(order))
        for place, number in enumerate(order, 1):
            trial = record.trial(number)
            self.progress.trial_started(place, len(order), trial.configuration)
            self._visit(trial, 0, visit_stage(record.workload))

    def _visit(
        self, trial: TrialRecord, visit: int, stage: Stage, others: Sequence[TrialRecord] = ()
    ) -> None:
        """Measure ``trial`` again. Its full context leaves the time for the visits to ``others``."""
        began = self.clock()
        # After Ctrl-C, the user waits for the visits themselves.
        limit = UNLIMITED if self.stop.set_by_hand else self._time.limit_of_visit(stage, others)
        try:
            quality = {name: trial.metrics[name] for name in OF_QUALITY if name in trial.metrics}
            m = self._measure(trial.configuration, stage, quality, limit=limit)
        except TrialFailed as failure:
            self.progress.note(f"trial #{trial.number} could not be measured again: {failure}")
            return
        self.study.save_visit(visit_of(trial.number, visit, m, self.clock() - began))
        self.progress.trial_finished(assemble(self.study).trial(trial.number))
        self._show()

    # -- the conclusion -----------------------------------------------------------------------------------

    def _conclude(self, reason: str, state: Any, too_short: str | None = None) -> SweepRecord:
        header = self.study.header()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        notes = (*header.notes, *self._disturbances(), *([too_short] if too_short else []))
        if self._tracking_failed:
            self.progress.note("writing the missing trials to MLflow")
        self.study.save_header(
            replace(header, state=state, stopped_because=reason, updated_utc=now, notes=notes)
        )
        record = assemble(self.study)
        self.progress.phase("writing the report")
        files = self.write_report(record, self.report_folder)
        self.progress.phase("writing to MLflow")
        try:
            self.tracker.sweep_finished(record, files)
        except StoreError as error:
            self.progress.note(
                f"{error}; all results are kept in optuna.db, and the same command writes them to MLflow again"
            )
        self.progress.finished(record)
        return record

    def _disturbances(self) -> tuple[str, ...]:
        """A note about the time that other programs cost; none if they cost none."""
        watch = self.watch
        if watch is None or not (watch.measured_again or watch.waited_seconds >= 1):
            return ()
        windows = "1 window" if watch.measured_again == 1 else f"{watch.measured_again} windows"
        again = f"measured {windows} again and " if watch.measured_again else ""
        waited = f"waited {watch.waited_seconds:.0f} s for quiet"
        return (f"other programs used the processors: sweeper {again}{waited}",)

    def _track(self, write: Callable[[], object]) -> None:
        """Write to MLflow. If that fails, the sweep continues, reports it once, and writes everything at the end."""
        try:
            write()
        except StoreError as error:
            if self._tracking_failed is None:
                self.progress.note(f"{error}; the sweep continues and writes everything to MLflow at the end")
            self._tracking_failed = str(error)


def _finalists_of(visits: Sequence[Visit]) -> tuple[int, ...]:
    """The finalists of an earlier run that already began its final stage."""
    return tuple(dict.fromkeys(visit.trial for visit in visits))


def _demand_objectives(measurement: Measurement, header: SweepRecord) -> None:
    for objective in header.objectives:
        if objective.metric not in measurement.metrics:
            why = measurement.missing.get(objective.metric, "it was not measured")
            raise TrialFailed(f"{objective.metric} is missing: {why}")


def _drift(baseline: TrialRecord, again: Measurement) -> float | None:
    """The change of decode speed as a fraction; None if it is small or within noise."""
    before, now = baseline.metrics["tokens_per_second"], again.metrics["tokens_per_second"]
    change = now.median / before.median - 1
    apart = now.high < before.low or now.low > before.high
    return change if apart and abs(change) > DRIFT else None
