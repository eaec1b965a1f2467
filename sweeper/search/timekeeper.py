"""Tells what still fits into the time of a whole sweep: trials, visits, and the parts of a visit that can be left out.

The visits without which sweeper could recommend nothing are one each of the baseline and of the pick. Trials leave them
their time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sweeper.engine.base import Engine, FillsContexts
from sweeper.measure.trial import TEMPERATURE_WAIT_SECONDS, UNLIMITED, Limit, Stage
from sweeper.records import Configuration, TrialRecord
from sweeper.results.assemble import assemble, choose_to_confirm, conclude
from sweeper.search.finals import visit_stage
from sweeper.search.study import SweepStudy
from sweeper.search.time_budget import LONGEST_WAIT_SHARE, ExpectedTime, TimeBudget, again_seconds
from sweeper.space.space import SearchSpace

# A fill is given up if it would end more than this share of the whole time beyond it.
MOST_OVER_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Room:
    """The time left for trials, beside one visit each of the baseline and of the pick. All times are in s.

    Args:
        expected: what trials and visits take.
        visit: what a visit to a configuration takes.
        left_seconds: of the whole job.
        baseline_seconds: of a visit to the baseline; 0 if it had one.
        pick_seconds: of a visit to the present pick; 0 if it had one. A trial may become the pick.
    """

    expected: ExpectedTime
    visit: Callable[[Configuration], float]
    left_seconds: float
    baseline_seconds: float = 0.0
    pick_seconds: float = 0.0

    def reserved(self, configuration: Configuration) -> float:
        """The time of the visits that follow a trial, whether it becomes the pick or not."""
        return self.baseline_seconds + max(self.pick_seconds, self.visit(configuration))

    def left(self, configuration: Configuration) -> float:
        """The time that a trial may take."""
        return self.left_seconds - self.reserved(configuration)

    def fits(self, configuration: Configuration) -> bool:
        """Whether a trial is expected to end in time."""
        return self.left_seconds == math.inf or self.expected.trial(configuration) <= self.left(configuration)


@dataclass(slots=True)
class Timekeeper:
    """Computes what still fits into the time of a sweep. Without a ``budget``, everything does.

    Args:
        study: the sweep so far.
        space: the search space.
        engine: the engine, which may keep contexts.
        period_seconds: the update period of the sensor.
        screening: the stage of the trials.
        budget: the limit of the whole job.
        loaded: the configuration whose model is loaded; None: no model is.
        given_up_seconds: what the trial whose fill was given up would take with a visit; None: none was.
    """

    study: SweepStudy
    space: SearchSpace
    engine: Engine
    period_seconds: float
    screening: Stage
    budget: TimeBudget | None = None
    loaded: Configuration | None = None
    given_up_seconds: float | None = None

    def room(self) -> Room:
        """The time left for a trial."""
        expected, stage = self._expected(), self._visit_stage()

        def visit(configuration: Configuration) -> float:
            return expected.visit(configuration, stage, self.screening)

        if self.budget is None or not expected.trials:
            return Room(expected, visit, math.inf)
        visited = {one.trial for one in self.study.visits()}
        needed = (0.0 if t.number in visited else visit(t.configuration) for t in self._needed())
        return Room(expected, visit, self.budget.left(), *needed)

    def search_is_over(self, finalists: int) -> str | None:
        """Why no further trial may begin, in words; None if one may."""
        if self.budget is None:
            return None
        trials = self.study.trials()
        if self.given_up_seconds is not None or (
            trials and self.budget.search_is_over(finalists, self._usual_visit_seconds())
        ):
            return self.ended_for_visits()
        over = self.budget.left() <= 0
        return f"the {self._minutes()}-minute limit was over before the first trial" if over else None

    def ended_for_visits(self) -> str:
        """That the search ended while there is time for visits, in words."""
        count = len(self.study.trials())
        return (
            f"the search ended after {count} trial{'' if count == 1 else 's'}, to leave time in the "
            f"{self._minutes()}-minute limit for measuring the best trials again"
        )

    def is_enough(self, trials: Sequence[TrialRecord], stage: Stage) -> bool:
        """Whether there is time for a visit to each of the ``trials``, without full contexts."""
        return self.budget is None or self._all_visits(trials, stage) <= self.budget.left()

    def visit_seconds(self, trial: TrialRecord, stage: Stage) -> float:
        """The expected time of a visit: that of the latest one, or computed from the trials."""
        computed = self._expected().visit(trial.configuration, stage, self.screening)
        last = next((v for v in reversed(self.study.visits()) if v.trial == trial.number), None)
        again = None if last is None else again_seconds(last, prompts=stage.least_prefill != 0)
        if again is None:
            return computed
        # The latest visit may have loaded what is loaded now.
        return min(again, computed) if self.loaded == trial.configuration else again

    def visit_in_time(
        self, trial: TrialRecord, stage: Stage, others: Sequence[TrialRecord] = ()
    ) -> Stage | None:
        """The stage with which a visit fits the time left, beside visits to ``others``; None if none does.

        A visit that does not fit leaves out prompts, if no decision needs them.
        """
        if self.budget is None:
            return stage
        least = replace(stage, least_prefill=self.screening.least_prefill, full_depth=False)
        left = self.budget.left() - self._all_visits(others, stage)
        return next((each for each in (stage, least) if self.visit_seconds(trial, each) <= left), None)

    def limit_of_trial(self, room: Room) -> Limit:
        """The limit of a trial: its fill leaves the time for the visits that a recommendation needs."""
        return self._limit(room.baseline_seconds + room.pick_seconds, 0.0)

    def limit_of_visit(self, stage: Stage, others: Sequence[TrialRecord]) -> Limit:
        """The limit of a visit: its full context leaves the time for the visits to ``others``."""
        if self.budget is None:
            return UNLIMITED
        return self._limit(0.0, self._all_visits(others, stage))

    def _limit(self, of_fill: float, of_spare: float) -> Limit:
        budget = self.budget
        if budget is None:
            return UNLIMITED
        over = MOST_OVER_SHARE * budget.seconds
        return Limit(lambda: budget.left() + over - of_fill, lambda: budget.left() - of_spare)

    def longest_wait(self) -> float:
        """The longest wait until a device is cooler, in s."""
        share = math.inf if self.budget is None else LONGEST_WAIT_SHARE * self.budget.seconds
        return min(TEMPERATURE_WAIT_SECONDS, share)

    def too_short(self) -> str | None:
        """What the limit was too short for, and how long it would have to be; None if it was long enough."""
        if self.budget is None or self.study.visits():
            return None
        given = f"minutes={self._minutes()} is too short"
        goes_on = "the same command goes on from here"
        if needed := self._needed():
            more = self._all_visits(needed, self._visit_stage())
            what = "to measure a trial twice, so nothing is recommended"
        elif self.study.trials():
            return None
        elif self.given_up_seconds is not None:
            more = self.given_up_seconds + 2 * self._usual_visit_seconds()  # of its windows
            what = "to fill the context of one trial, so nothing was measured"
        else:
            return f"{given}: it was over before the first trial; what was made is kept, and {goes_on}"
        enough = math.ceil((1 + MOST_OVER_SHARE) * (self.budget.used() + more) / 60)
        return (
            f"{given} {what}: that would take about {more:.0f} s more; minutes={enough} would do (computed), and "
            f"{goes_on}"
        )

    def _all_visits(self, trials: Sequence[TrialRecord], stage: Stage) -> float:
        return sum(self.visit_seconds(trial, stage) for trial in trials)

    def _minutes(self) -> str:
        assert self.budget is not None
        return f"{self.budget.seconds / 60:g}"

    def _visit_stage(self) -> Stage:
        return visit_stage(self.study.header().workload)

    def _usual_visit_seconds(self) -> float:
        return self._expected().usual_visit(self._visit_stage(), self.screening)

    def _needed(self) -> tuple[TrialRecord, ...]:
        """The trials whose visits a recommendation needs: the baseline and the present pick, as far as they count."""
        screened = conclude(replace(assemble(self.study), trials=self.study.trials()))
        return tuple(screened.trial(number) for number in choose_to_confirm(screened)[:2])

    def _expected(self) -> ExpectedTime:
        engine = self.engine
        return ExpectedTime(
            self.study.trials(),
            self.space,
            self.study.header().workload,
            self.period_seconds,
            self.loaded,
            engine.restores if isinstance(engine, FillsContexts) else lambda configuration, depth: False,
        )
