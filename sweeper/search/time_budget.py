"""The limit of a whole sweep (``minutes=…``), and what its trials and visits are expected to take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from sweeper.measure.trial import MOST_OVERRUN, RESIDENT_UPDATE_PERIODS, Stage
from sweeper.metrics import FIRST_WHEN_FULL
from sweeper.parameters import MODEL_KEYS
from sweeper.records import Configuration, TrialRecord, Visit, Workload
from sweeper.search.encoding import Encoder
from sweeper.search.finals import FINAL_VISITS
from sweeper.search.gaussian_process import Array
from sweeper.space.space import SearchSpace

# The search gets at least this share of the time, however long the final stage would take.
LEAST_SEARCH_SHARE = 0.5
# A single wait for quiet or for a cooler device takes at most this share of the whole time.
LONGEST_WAIT_SHARE = 1 / 12
_DECODE, _PROMPTS, _PROMPT = (
    "tokens_per_second",
    "prompt_tokens_per_second",
    "time_to_first_token_seconds",
)


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """Tells the search when to end, so that the final stage ends in time as well. Times are in seconds.

    Args:
        seconds: the time of the whole job.
        clock: the clock of the sweep.
        began: the time on that clock when the job began, before models were made.
        closing_seconds: the time that reports and MLflow take after the last measurement.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    began: float = 0.0
    closing_seconds: float = 0.0

    def used(self) -> float:
        """The time since the job began."""
        return self.clock() - self.began

    def left(self) -> float:
        """The time left; negative once the limit is over."""
        return self.seconds - self.closing_seconds - self.used()

    def search_is_over(self, finalists: int, visit_seconds: float) -> bool:
        """Whether the rest is needed for visits to this many finalists and the baseline."""
        wanted = (finalists + 1) * FINAL_VISITS * visit_seconds
        return self.left() <= min(wanted, (1 - LEAST_SEARCH_SHARE) * self.seconds)


class ExpectedTime:
    """What trials and visits will take, in s, computed from the complete trials of the sweep.

    A configuration takes what the trial with the most similar settings took, with its own load, and its own fill at
    that trial's prompt speed.

    Args:
        trials: the trials of the sweep; those that did not complete are left out.
        space: the space, which tells how similar two configurations are.
        workload: the workload of the trials.
        period_seconds: the update period of the sensor.
        loaded: the configuration whose model is loaded; None: no model is.
        restores: whether the engine would restore a context instead of filling it.
    """

    def __init__(
        self,
        trials: Sequence[TrialRecord],
        space: SearchSpace,
        workload: Workload,
        period_seconds: float,
        loaded: Configuration | None = None,
        restores: Callable[[Configuration, int], bool] = lambda configuration, depth: False,
    ) -> None:
        self.trials = tuple(trial for trial in trials if trial.state == "complete")
        self._same = {trial.configuration: trial for trial in self.trials}
        self._encode = Encoder(space)
        self._features: Array | None = None
        self._workload, self._period = workload, period_seconds
        self._loaded, self._restores = loaded, restores
        # A server loads for each configuration: then every trial reports a load.
        self._keeps_model = any(trial.load_seconds is None for trial in self.trials)

    def trial(self, configuration: Configuration) -> float:
        """The expected time of a trial; 0 if no trial is complete yet."""
        like = self._like(configuration)
        return 0.0 if like is None else self._before(like, configuration) + _run(like)

    def visit(self, configuration: Configuration, stage: Stage, screening: Stage) -> float:
        """The expected time of a visit of ``stage``, without a full context at its end.

        ``screening`` is the stage of the trials.
        """
        like = self._like(configuration)
        resident = stage.resident_seconds and max(
            stage.resident_seconds, RESIDENT_UPDATE_PERIODS * self._period
        )
        if like is None:
            return self._windows(stage, 0.0) + resident
        around = max(0.0, _run(like) - self._measured_windows(like, screening))
        prompt = self._workload.prompt_tokens * self._seconds_per_token(like)
        return self._before(like, configuration) + around + self._windows(stage, prompt) + resident

    def usual_visit(self, stage: Stage, screening: Stage) -> float:
        """The median of the expected visits to all complete trials."""
        each = [self.visit(trial.configuration, stage, screening) for trial in self.trials]
        return median(each) if each else self.visit(Configuration(), stage, screening)

    def _like(self, configuration: Configuration) -> TrialRecord | None:
        """The complete trial of the same or the most similar settings; None if there is none."""
        if configuration in self._same or not self.trials:
            return self._same.get(configuration)
        if self._features is None:
            self._features = self._encode([trial.configuration for trial in self.trials])
        distances = ((self._features - self._encode([configuration])) ** 2).sum(1)
        return self.trials[int(np.argmin(distances))]

    def _before(self, like: TrialRecord, configuration: Configuration) -> float:
        """The time until the warm-up: loading, and filling the context."""
        return self._load(like, configuration) + self._fill(like, configuration)

    def _load(self, like: TrialRecord, configuration: Configuration) -> float:
        had = self._loaded
        if had == configuration or (
            self._keeps_model and had is not None and _model(had) == _model(configuration)
        ):
            return 0.0
        if like.load_seconds is not None and _model(like.configuration) == _model(configuration):
            return like.load_seconds
        loads = [(t.configuration.quant, t.load_seconds) for t in self.trials if t.load_seconds is not None]
        alike = [seconds for quant, seconds in loads if quant == configuration.quant]
        return median(alike or [seconds for _, seconds in loads] or [0.0])

    def _fill(self, like: TrialRecord, configuration: Configuration) -> float:
        """Prompts take longer the deeper they are; a timed fill and the prompts after it tell by how much."""
        depth = self._workload.depth_at(configuration.n_ctx)
        if not depth or self._loaded == configuration or self._restores(configuration, depth):
            return 0.0
        deepest = self._seconds_per_token(like)
        full, known = like.metrics.get(FIRST_WHEN_FULL), self._workload.depth_at(like.configuration.n_ctx)
        if full is None or not known or self._workload.depth is not None:
            return depth * deepest
        mean = (full.median - self._workload.prompt_tokens * deepest) / known
        return depth * (mean + max(0.0, deepest - mean) * (depth / known - 1))

    def _seconds_per_token(self, trial: TrialRecord) -> float:
        """The time of one token of a prompt at the depth of the windows; 0 in older records without prompts."""
        speed = trial.metrics.get(_PROMPTS)
        return 1 / speed.median if speed else trial.prompt_seconds / self._workload.prompt_tokens

    def _measured_windows(self, trial: TrialRecord, screening: Stage) -> float:
        """The time of the windows that a trial measured."""
        decode, prompts = trial.metrics.get(_DECODE), trial.metrics.get(_PROMPTS)
        prompt = self._workload.prompt_tokens * self._seconds_per_token(trial)
        of_decode = (decode.n if decode else screening.repeats) * screening.window_seconds(
            "decode", self._period
        )
        of_prompts = max(prompt, screening.window_seconds("prefill", self._period))
        return of_decode + (prompts.n if prompts else 0) * of_prompts

    def _windows(self, stage: Stage, prompt_seconds: float) -> float:
        """The time of the windows of a stage that measures no more prompts than it must."""
        decode = stage.repeats * stage.window_seconds("decode", self._period)
        one = max(prompt_seconds, stage.window_seconds("prefill", self._period))
        most = stage.repeats_of("prefill")
        least = most if stage.least_prefill is None else stage.least_prefill
        return decode + one * min(most, max(least, int(MOST_OVERRUN * decode / one)))


def again_seconds(visit: Visit, *, prompts: bool) -> float | None:
    """What another visit like ``visit`` takes without a full context at its end, with ``prompts`` or without.

    None if the answer is with prompts and ``visit`` had none.
    """
    depth = min((window.depth for window in visit.windows), default=0)
    deeper = [window for window in visit.windows if window.depth > depth]
    of_prompts = [window for window in visit.windows if window.depth == depth and window.phase == "prefill"]
    if prompts and not of_prompts:
        return None
    fill = visit.fill.seconds if deeper and visit.fill else 0.0
    left_out = deeper if prompts else [*deeper, *of_prompts]
    return visit.seconds - fill - sum(window.energy.seconds for window in left_out)


def _run(trial: TrialRecord) -> float:
    """The time of a trial without making files, measuring quality, loading and filling."""
    return trial.run_seconds or max(0.0, trial.seconds - (trial.load_seconds or 0.0))


def _model(configuration: Configuration) -> tuple[object, ...]:
    return tuple(getattr(configuration, key) for key in MODEL_KEYS)
