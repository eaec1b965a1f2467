"""One trial: load, warm-up, prefill and decode windows with the meter around each, and the resulting metrics.

``measure`` returns a `Measurement`. It decides nothing and prints nothing. ``docs/measuring.md`` describes the protocol
and the reasons for its numbers.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from sweeper import stats
from sweeper.client.steady import UsersRun
from sweeper.engine.base import Engine, FillsContexts, Run
from sweeper.errors import TimeOver
from sweeper.measure.disturbance import Watch, is_disturbed, mostly_disturbed
from sweeper.measure.users import serve_window, served_metrics
from sweeper.meter.base import PowerMeter
from sweeper.metrics import FIRST_WHEN_FULL, NEED_PREFILL, OF_USERS, describe
from sweeper.records import (
    Caveat,
    Configuration,
    Fill,
    Measurement,
    Phase,
    Reading,
    Window,
    Workload,
)

# An unaligned window of length T is wrong by up to u/T: 50 update periods limit this to 2 %, 100 to 1 %.
SCREENING_UPDATE_PERIODS = 50
FINAL_UPDATE_PERIODS = 100
# A recorded grid has thousands of windows, measured in several passes, so errors of 10 % average out.
RECORDING_UPDATE_PERIODS = 10
# Prefill gets this share of decode's time: a round has hundreds of tokens, so its speed settles sooner.
PREFILL_SHARE = 0.5
# A prompt that takes longer than all decode windows needs fewer windows than decode does.
LEAST_DECIDING_PREFILL = 2
# With this many calm windows of a phase, its disturbed ones do not count: two show a spread.
ENOUGH_CALM = 2
# Length of the warm-up prompt, which also predicts the time of a whole prompt.
WARMUP_PROMPT_TOKENS = 64
# A warm-up step is long enough for a few tokens on a slow machine, and short compared with any window.
WARMUP_STEP_SECONDS = 0.15
WARMUP_STEPS_COMPARED = 3
# A window never runs longer than this many times the requested length: a slow machine needs no more tokens.
MOST_OVERRUN = 2.0
# A trial starts this close to the reference temperature, or after the maximum wait.
TEMPERATURE_TOLERANCE_CELSIUS = 3.0
TEMPERATURE_WAIT_SECONDS = 60.0
# If fewer samples than this share are under the cap, the cap did not shape the window.
CAPPED_SHARE = 0.05
# Long enough to average the power at rest, and short compared with the windows of a final visit.
RESIDENT_SECONDS = 1.0
RESIDENT_UPDATE_PERIODS = 10

# A visit does not measure at the full depth if filling the context takes longer than this.
MOST_FILL_SECONDS = 60.0

PHASES: tuple[Phase, ...] = ("prefill", "decode")
MEMORY = ("memory_mib", "vram_mib")
# The parameter with the number of threads of each phase.
THREADS: dict[Phase, str] = {"prefill": "n_threads_batch", "decode": "n_threads"}
NO_PREFILL = (
    "a prompt takes longer here than the rest of a trial, and no objective or constraint depends on it: only "
    "finalists measure prompts (objectives=speed_prompt_watts makes prompt speed an objective)"
)
NO_DRAFT = "the server drafted no token in these windows"

NO_MEMORY = "the engine cannot read it on this machine"
NOT_FILLED = "the context was not filled anew for this trial, so filling it was not timed"

OUT_OF_TIME = "a full context is left out, because the time is over"

PhaseListener = Callable[[str, float | None, float | None], None]
"""sweeper calls it at the start of each phase with the latest tok/s and W, or None, and while a context is filled.

The phases are load, at rest, filling, warm-up, prefill, decode, and waiting. A measurement begins right after
``at rest``, ``prefill`` and ``decode``, and lasts until the next call.
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """How long and how often to measure: `screening` during the search, `final` for possible recommendations."""

    seconds: float  # of all decode windows together
    repeats: int
    update_periods: int
    warmup_seconds: float
    resident_seconds: float = 0.0  # length of a window with the model loaded and idle; 0: no such window
    prefill_repeats: int | None = None  # None: as many as for decode
    least_prefill: int | None = None  # prefill windows that run however long they take; None: all
    full_depth: bool = False  # one more window of each phase, as deep as the context allows

    @classmethod
    def screening(cls, workload: Workload, decides: Iterable[str] | None = None) -> Stage:
        """Short windows, which separate good trials from bad ones.

        ``decides`` has the metrics that objectives and constraints name. If one of them depends on prefill, two prefill
        windows suffice where prompts take longer than the rest of a trial, as on a slow machine. If none does, one
        window is enough, and none is needed there. With None, every window is measured, however long it takes.
        """
        prefill = set(NEED_PREFILL) - (set(OF_USERS) if workload.users > 1 else set())
        needed = decides is None or any(metric in prefill for metric in decides)
        least = LEAST_DECIDING_PREFILL if needed else 0
        return cls(
            workload.screening_seconds,
            workload.screening_repeats,
            SCREENING_UPDATE_PERIODS,
            workload.warmup_seconds,
            prefill_repeats=None if needed else 1,
            least_prefill=None if decides is None else least,
        )

    @classmethod
    def recording(cls, workload: Workload) -> Stage:
        """Windows as short as the workload says, for a grid that is measured in several passes."""
        return replace(cls.screening(workload), update_periods=RECORDING_UPDATE_PERIODS)

    @classmethod
    def final(cls, workload: Workload) -> Stage:
        """Long windows, for the final figures."""
        return cls(
            workload.final_seconds,
            workload.final_repeats,
            FINAL_UPDATE_PERIODS,
            workload.warmup_seconds,
            RESIDENT_SECONDS,
            least_prefill=1,
        )

    def repeats_of(self, phase: Phase) -> int:
        """The number of windows of ``phase``."""
        return self.repeats if phase == "decode" or self.prefill_repeats is None else self.prefill_repeats

    def window_seconds(self, phase: Phase, update_period_seconds: float) -> float:
        """The length of one window of ``phase`` in seconds, for a sensor with this update period."""
        share = 1.0 if phase == "decode" else PREFILL_SHARE
        return max(self.seconds * share, self.update_periods * update_period_seconds) / self.repeats


Hopeless = Callable[[Mapping[str, Reading]], bool]
"""Says whether a trial with these metrics so far cannot win, whatever its other windows show."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The time that a measurement may still take. Both functions give seconds from now, negative once it is over."""

    fill: Callable[[], float]  # a fill that would take longer is given up
    spare: Callable[[], float]  # a full context that would take longer is left out


UNLIMITED = Limit(lambda: math.inf, lambda: math.inf)


def measure(
    configuration: Configuration,
    engine: Engine,
    meter: PowerMeter,
    workload: Workload,
    stage: Stage,
    known: Mapping[str, Reading] | None = None,
    listener: PhaseListener | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    hopeless: Hopeless | None = None,
    watch: Watch | None = None,
    limit: Limit = UNLIMITED,
) -> Measurement:
    """Measure one configuration.

    ``meter`` must be open. ``known`` has metrics that are known in advance, such as ``kl_divergence`` of the
    quantisation. ``clock`` stamps the meter's samples, and ``sleep`` waits on it while the loaded model is idle. If
    ``hopeless`` returns True after a round of windows, the trial ends there. With a ``watch``, windows that other
    processes disturb are measured again. The ``limit`` ends fills that would take too long.

    Raises:
        TimeOver: the time is too short to fill the context to the workload's depth.
        TrialFailed: the engine failed; the engine can be used again.
    """
    tell = listener or (lambda phase, tokens_per_second, watts: None)
    tell("load", None, None)
    load = engine.load(configuration)
    n_ctx = load.in_force.get("n_ctx", configuration.n_ctx)  # None: a server that does not report it
    depth = workload.depth_at(int(n_ctx or configuration.n_ctx))
    resident = _at_rest(meter, stage, clock, sleep, tell)
    full = workload.full_depth(int(n_ctx)) if n_ctx else None  # None: the windows run there
    began = clock()
    filled = _fill(engine, depth, tell, limit, clock, cold=load.reloaded)
    fill_seconds = clock() - began
    fill = filled if full is None else None  # only the time of a full context counts
    tell("warm-up", None, None)
    warmup_seconds, prompt_seconds = _warm_up(engine, workload, depth, stage.warmup_seconds)
    prompts = _Prompts(stage, meter.update_period_seconds, prompt_seconds)
    if load.reloaded and not prompts.allowed(0):
        # The first prompt after a load reads the weights from disk, so a second one shows how long prompts take.
        _, prompts.expected_seconds = _warm_up(engine, workload, depth, 0.0)
    prompt_seconds = prompts.expected_seconds
    threads = {phase: int(load.in_force.get(name, 0)) or None for phase, name in THREADS.items()}
    rounds = _Rounds(engine, meter, workload, depth, stage, prompts, tell, watch, threads)
    windows, stopped_early = rounds.run(hopeless)
    memory = engine.memory()
    if stage.full_depth and full is not None and rounds.may_go_to(full, windows, limit.spare()):
        try:
            fill = _fill(engine, full, tell, limit, clock)
            windows += rounds.at(full)
            memory = engine.memory()
        except TimeOver:  # the windows so far count all the same
            tell(OUT_OF_TIME, None, None)
    metrics, missing = metrics_of(windows, workload)
    first = first_token_when_full(fill, windows, workload)
    read_once = (
        ("resident_watts", resident, None),
        *((name, value, NO_MEMORY) for name, value in zip(MEMORY, memory, strict=True)),
        ("n_ctx", float(n_ctx) if n_ctx else None, "the server does not report its context"),
        (FIRST_WHEN_FULL, first, _why_no_first(fill) if depth and full is None else None),
    )
    metrics |= {
        **(known or {}),
        **{name: exactly(value) for name, value, _ in read_once if value is not None},
    }
    missing |= {name: why for name, value, why in read_once if value is None and why is not None}
    return Measurement(
        configuration=configuration,
        in_force=load.in_force,
        metrics=metrics,
        missing=missing,
        windows=tuple(windows),
        caveats=(*load.caveats, *_caveats(windows, stage, stopped_early)),
        load_seconds=load.load_seconds,
        warmup_seconds=warmup_seconds,
        reloaded=load.reloaded,
        fill=fill,
        fill_seconds=fill_seconds,
        prompt_seconds=prompt_seconds,
    )


def pooled(first: Measurement, again: Measurement, workload: Workload, stage: Stage) -> Measurement:
    """Both measurements of one configuration as one. Where enough windows are calm, disturbed ones do not count."""
    taken = (*first.windows, *again.windows)
    windows = _least_disturbed(taken, Counter(window.phase for window in taken))
    metrics, missing = metrics_of(windows, workload)
    metrics = {**again.metrics, **first.metrics, **metrics}
    missing = {name: why for name, why in {**first.missing, **missing}.items() if name not in metrics}
    kept = set(first.caveats) - set(caveats_of(first.windows, stage.update_periods))  # those of the load
    kept |= set(caveats_of(windows, stage.update_periods))
    return replace(
        first,
        metrics=metrics,
        missing=missing,
        windows=tuple(windows),
        caveats=tuple(caveat for caveat in Caveat if caveat in kept),
    )


def speeds_now(
    engine: Engine, configuration: Configuration, workload: Workload, repeats: int = 5
) -> dict[str, Reading]:
    """Measure decode and prefill speed in tok/s, by metric, without watts. `verify` uses this to check a server.

    With several users, decode speed is that of all together, and the other metrics of users stand beside it.

    Raises:
        TrialFailed: the engine failed.
    """
    load = engine.load(configuration)
    depth = workload.depth_at(int(load.in_force.get("n_ctx", configuration.n_ctx)))
    _warm_up(engine, workload, depth, workload.warmup_seconds)
    stage = Stage.final(workload)
    seconds = stage.window_seconds("decode", 0.0)
    runs = [
        (_run(phase, engine, workload, depth, seconds), phase) for _ in range(repeats) for phase in PHASES
    ]
    names: dict[Phase, str] = {"decode": "tokens_per_second", "prefill": "prompt_tokens_per_second"}
    speeds = {
        name: stats.reading([run.tokens_per_second for run, of in runs if of == phase])
        for phase, name in names.items()
    }
    return speeds | served_metrics([run for run, _ in runs if isinstance(run, UsersRun)])[0]


def _caveats(windows: Sequence[Window], stage: Stage, stopped_early: bool) -> tuple[Caveat, ...]:
    found = caveats_of(windows, stage.update_periods)
    if not stopped_early:
        return found
    # A trial that stops early has few and short windows by design.
    rest = {*found} - {Caveat.SHORT_WINDOW, Caveat.SPREAD_UNKNOWN} | {Caveat.STOPPED_EARLY}
    return tuple(caveat for caveat in Caveat if caveat in rest)


def _why_no_first(fill: Fill | None) -> str:
    return NOT_FILLED if fill is None else NO_PREFILL


def _at_rest(
    meter: PowerMeter,
    stage: Stage,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    tell: PhaseListener,
) -> float | None:
    """Power with the model loaded and idle, in W; None if the stage or the meter does not measure it."""
    if stage.resident_seconds <= 0:
        return None
    tell("at rest", None, None)
    seconds = max(stage.resident_seconds, RESIDENT_UPDATE_PERIODS * meter.update_period_seconds)
    with meter.window() as window:
        started = clock()
        sleep(seconds)
        ended = clock()
    return window.reading(started, ended).watts


def _fill(
    engine: Engine,
    depth: int,
    tell: PhaseListener,
    limit: Limit,
    clock: Callable[[], float],
    *,
    cold: bool = False,
) -> Fill | None:
    """Fill the context ahead of its windows, and tell how far it is. None if the engine cannot time that.

    Raises:
        TimeOver: the limit is too short.
        TrialFailed: the engine failed.
    """
    if not depth or not isinstance(engine, FillsContexts):
        return None
    if cold:
        # The first prompt after a load reads the weights from disk, which is no part of filling a context.
        tell("warm-up", None, None)
        engine.prefill(WARMUP_PROMPT_TOKENS, 0, 0.0, WARMUP_STEP_SECONDS)
    tell(f"filling {depth:,} tokens", None, None)
    return engine.fill(depth, _Filling(depth, tell, limit, clock, clock()))


@dataclass(slots=True)
class _Filling:
    """Follows a fill: tells how far it is, and gives it up if it cannot end in time."""

    depth: int
    tell: PhaseListener
    limit: Limit
    clock: Callable[[], float]
    began: float
    done: int = 0
    whole_seconds: float = 0.0  # by the latest progress; 0: not known yet

    def __call__(self, done: int) -> None:
        elapsed = self.clock() - self.began
        if done > self.done:
            self.done, self.whole_seconds = done, elapsed * self.depth / done
        more_seconds = max(0.0, self.whole_seconds - elapsed)
        if more_seconds > self.limit.fill():
            whole = f", which would take about {self.whole_seconds:.0f} s (computed)" if done else ""
            raise TimeOver(f"the time is too short to fill {self.depth:,} tokens{whole}", more_seconds)
        share = f", {100 * done / self.depth:.0f} %" if done else ""
        self.tell(f"filling {self.depth:,} tokens{share}", None, None)


@dataclass(slots=True)
class _Rounds:
    """Measures the windows of a trial, round after round, and disturbed windows again."""

    engine: Engine
    meter: PowerMeter
    workload: Workload
    depth: int
    stage: Stage
    prompts: _Prompts
    tell: PhaseListener
    watch: Watch | None
    threads: Mapping[Phase, int | None]
    speeds: dict[Phase, float] = field(default_factory=dict)

    def run(self, hopeless: Hopeless | None) -> tuple[list[Window], bool]:
        """The windows that count, in order, and whether the trial ended early because it cannot win."""
        taken: list[Window] = []
        counts: dict[Phase, int] = dict.fromkeys(PHASES, 0)
        spare = {phase: self.stage.repeats_of(phase) for phase in PHASES}
        if self.watch is not None:
            self.watch.follow()
        for repeat in range(self.stage.repeats):
            for phase in PHASES:
                if phase == "prefill" and not self.prompts.allowed(repeat):
                    continue
                counts[phase] += 1
                taken.append(self._window(phase, repeat))
                while spare[phase] and self._may_repeat(taken[-1]):
                    spare[phase] -= 1
                    self._wait(taken[-1])
                    taken.append(self._window(phase, repeat))
            windows = _least_disturbed(taken, counts)
            more = repeat + 1 < self.stage.repeats
            # A disturbed window would make a good configuration look hopeless.
            calm = not any(map(is_disturbed, windows))
            if more and calm and hopeless is not None and hopeless(metrics_of(windows, self.workload)[0]):
                return windows, True
        return _least_disturbed(taken, counts), False

    def may_go_to(self, depth: int, windows: Sequence[Window], spare_seconds: float) -> bool:
        """Whether the time suffices to measure at another depth, by the prompts of the ``windows`` so far."""
        fill = _fill_seconds(windows, depth)
        prompt, period = self.prompts.expected_seconds, self.meter.update_period_seconds
        more = [
            max(prompt, self.stage.window_seconds("prefill", period)),
            self.stage.window_seconds("decode", period),
        ]
        return fill <= MOST_FILL_SECONDS and fill + sum(more) <= spare_seconds

    def at(self, depth: int) -> list[Window]:
        """One window of each phase at another depth."""
        self.depth = depth
        return [self._window(phase, 0) for phase in PHASES]

    def _window(self, phase: Phase, repeat: int) -> Window:
        self.tell(phase, self.speeds.get(phase), self.meter.watts_now())
        seconds = self.stage.window_seconds(phase, self.meter.update_period_seconds)
        disturbance = None
        with self.meter.window() as window:
            before = self.watch.load() if self.watch else None
            run = _run(phase, self.engine, self.workload, self.depth, seconds)
            if self.watch and before:
                disturbance = self.watch.judge(before, self.watch.load(), self.threads[phase])
        energy = window.reading(run.started, run.ended)
        utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.speeds[phase] = run.tokens_per_second
        if phase == "prefill":
            self.prompts.took(energy.seconds)
        served = run.served if isinstance(run, UsersRun) else None
        return Window(
            phase, repeat, run.tokens, run.seconds, energy, self.depth, utc, disturbance, served, run.drafts
        )

    def _may_repeat(self, window: Window) -> bool:
        watch = self.watch
        if watch is None or watch.stopped() or not watch.is_worth_repeating(window):
            return False
        return window.phase == "decode" or self.prompts.in_time()

    def _wait(self, disturbed: Window) -> None:
        """Wait for quiet before a window is measured again."""
        assert self.watch is not None
        assert disturbed.disturbance is not None
        self.watch.measured_again += 1
        self.watch.wait(lambda line: self.tell(line, None, None), disturbed.disturbance.limit_share)


def _fill_seconds(windows: Sequence[Window], depth: int) -> float:
    """The expected time to fill a context to ``depth`` by the speed of these windows' prompts; 0 without prompts."""
    prompts = [w for w in windows if w.phase == "prefill"]
    return (depth - prompts[0].depth) * min(w.seconds / w.tokens for w in prompts) if prompts else 0.0


def _least_disturbed(taken: Sequence[Window], counts: Mapping[Phase, int]) -> list[Window]:
    """For each phase, the ``counts`` windows that others disturbed least, in the order in which they were measured.

    Where enough of them are calm, the others do not count. Disturbance decides and never speed, so the choice does not
    favour lucky windows.
    """
    chosen: list[int] = []
    for phase in PHASES:
        of_phase = [index for index, window in enumerate(taken) if window.phase == phase]
        of_phase.sort(key=lambda index: _excess(taken[index]))
        least = of_phase[: counts[phase]]
        calm = [index for index in least if not is_disturbed(taken[index])]
        chosen += calm if len(calm) >= ENOUGH_CALM else least
    seen: dict[Phase, int] = dict.fromkeys(PHASES, 0)
    kept = []
    for window in (taken[index] for index in sorted(chosen)):
        kept.append(replace(window, repeat=seen[window.phase]))
        seen[window.phase] += 1
    return kept


def _excess(window: Window) -> float:
    """How much more others took than the window tolerates, as a share of the cores; 0 where they do not disturb."""
    found = window.disturbance
    return found.share if found is not None and found.disturbs else 0.0


def _run(phase: Phase, engine: Engine, workload: Workload, depth: int, seconds: float) -> Run | UsersRun:
    if phase == "prefill":
        return engine.prefill(workload.prompt_tokens, depth, seconds, seconds * MOST_OVERRUN)
    if workload.users > 1:
        return serve_window(engine, workload, depth, seconds)
    return engine.decode(workload.generated_tokens, depth, seconds, seconds * MOST_OVERRUN)


def _warm_up(engine: Engine, workload: Workload, depth: int, most_seconds: float) -> tuple[float, float]:
    """Run until decode is steady, for at most ``most_seconds``.

    Returns:
        The time of the warm-up, and the expected time of a whole prompt after it, in s.
    """
    tokens = min(workload.prompt_tokens, WARMUP_PROMPT_TOKENS)
    run = engine.prefill(tokens, depth, 0.0, WARMUP_STEP_SECONDS)
    prompt_seconds = run.seconds / run.tokens * workload.prompt_tokens
    took, speeds = run.ended - run.started, []
    while took < most_seconds:
        run = engine.decode(workload.generated_tokens, depth, WARMUP_STEP_SECONDS, WARMUP_STEP_SECONDS)
        took += run.ended - run.started
        speeds.append(run.tokens_per_second)
        cv = stats.coefficient_of_variation(speeds[-WARMUP_STEPS_COMPARED:])
        if len(speeds) >= WARMUP_STEPS_COMPARED and cv is not None and cv < stats.STEADY_CV:
            break
    return took, prompt_seconds


@dataclass(slots=True)
class _Prompts:
    """Decides how many windows of prefill a trial has time for."""

    stage: Stage
    update_period_seconds: float
    expected_seconds: float  # of one prompt
    spent_seconds: float = 0.0

    def allowed(self, repeat: int) -> bool:
        """Whether to measure window ``repeat``, counted from 0."""
        stage = self.stage
        if repeat >= stage.repeats_of("prefill"):
            return False
        return stage.least_prefill is None or repeat < stage.least_prefill or self.in_time()

    def in_time(self) -> bool:
        """Whether another prompt fits into the time that a trial has for prompts."""
        stage, period = self.stage, self.update_period_seconds
        next_seconds = max(self.expected_seconds, stage.window_seconds("prefill", period))
        most = MOST_OVERRUN * stage.repeats * stage.window_seconds("decode", period)
        return self.spent_seconds + next_seconds <= most

    def took(self, seconds: float) -> None:
        """Update the expectation from a finished window."""
        self.spent_seconds += seconds
        self.expected_seconds = seconds


def wait_for_temperature(
    meter: PowerMeter,
    reference_celsius: float | None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    listener: PhaseListener | None = None,
    most_seconds: float = TEMPERATURE_WAIT_SECONDS,
) -> float:
    """Wait until the device is within 3 °C of the reference, for ``most_seconds``. Returns the seconds waited."""
    began = clock()
    while reference_celsius is not None and clock() - began < most_seconds:
        now = meter.temperature_celsius()
        if now is None or now <= reference_celsius + TEMPERATURE_TOLERANCE_CELSIUS:
            break
        if listener is not None:
            listener("waiting until the device is cooler", None, None)
        sleep(1.0)
    return clock() - began


# -- from windows to metrics --------------------------------------------------------------------------------


def metrics_of(windows: Sequence[Window], workload: Workload) -> tuple[dict[str, Reading], dict[str, str]]:
    """Compute the metrics of raw windows: readings by metric, and a reason for each missing metric."""
    windows, full = _by_depth(windows)
    metrics, missing = _acceptance(windows)
    metrics |= _at_full_depth(full)
    seconds_per_token: dict[Phase, list[float]] = {}
    for phase in reversed(PHASES):
        of_phase = [w for w in windows if w.phase == phase]
        seconds_per_token[phase] = [w.seconds / w.tokens for w in of_phase]
        if phase == "prefill" and not of_phase:
            missing.update(dict.fromkeys(NEED_PREFILL, NO_PREFILL))
            continue
        prefix = "" if phase == "decode" else "prompt_"
        metrics[f"{prefix}tokens_per_second"] = stats.reading([w.tokens / w.seconds for w in of_phase])
        watts = [w.energy.watts for w in of_phase if w.energy.watts is not None]
        if len(watts) == len(of_phase):
            # Only the seconds of inference count: the time between rounds costs energy but generates no tokens.
            joules = [each * w.seconds / w.tokens for each, w in zip(watts, of_phase, strict=True)]
            metrics[f"{prefix}watts"] = stats.reading(watts)
            metrics[f"{prefix}joules_per_token"] = stats.reading(joules)
        else:
            reason = next(w.energy.reason for w in of_phase if w.energy.watts is None) or "no reading"
            missing.update(dict.fromkeys((f"{prefix}watts", f"{prefix}joules_per_token"), reason))
    if first := [workload.prompt_tokens * s for s in seconds_per_token["prefill"]]:
        metrics["time_to_first_token_seconds"] = stats.reading(first)
        per_token = seconds_per_token["decode"]
        if len(first) != len(per_token):
            first = [stats.median(first)] * len(per_token)
        request = [f + workload.generated_tokens * s for f, s in zip(first, per_token, strict=True)]
        metrics["request_seconds"] = stats.reading(request)
    if (
        workload.users > 1
    ):  # measured with all users, so nothing computed from one user's prompts may stand there
        found, reasons = served_metrics(windows)
        metrics = {name: value for name, value in metrics.items() if name not in OF_USERS} | found
        missing = {name: why for name, why in missing.items() if name not in found} | reasons
    return metrics, missing


def _acceptance(windows: Sequence[Window]) -> tuple[dict[str, Reading], dict[str, str]]:
    """The share of drafted tokens that the model accepted, or a reason why there is none; neither without drafts."""
    told = [w.drafts for w in windows if w.drafts is not None]
    shares = [drafts.accepted / drafts.drafted for drafts in told if drafts.drafted]
    if shares:
        return {"draft_acceptance": possible("draft_acceptance", stats.reading(shares))}, {}
    return {}, {"draft_acceptance": NO_DRAFT} if told else {}


def _by_depth(windows: Sequence[Window]) -> tuple[list[Window], list[Window]]:
    """The windows at the workload's depth, and those at the full depth."""
    least = min((w.depth for w in windows), default=0)
    return [w for w in windows if w.depth == least], [w for w in windows if w.depth > least]


def _at_full_depth(windows: Sequence[Window]) -> dict[str, Reading]:
    metrics = {}
    for phase in PHASES:
        of_phase = [w for w in windows if w.phase == phase]
        if of_phase:
            prefix = "" if phase == "decode" else "prompt_"
            speeds = [w.tokens / w.seconds for w in of_phase]
            metrics[f"{prefix}tokens_per_second_at_full_depth"] = stats.reading(speeds)
            watts = [w.energy.watts for w in of_phase if w.energy.watts is not None]
            if phase == "decode" and len(watts) == len(of_phase):
                metrics["watts_at_full_depth"] = stats.reading(watts)
    return metrics


def first_token_when_full(fill: Fill | None, windows: Sequence[Window], workload: Workload) -> float | None:
    """The seconds to the first token of a prompt that fills the whole context; None if a part was not measured.

    They are the seconds of filling the context to its depth, and those of the prompt's last tokens at that depth.
    """
    if fill is None or workload.users > 1:
        return None
    per_token = [w.seconds / w.tokens for w in windows if w.phase == "prefill" and w.depth == fill.tokens]
    return fill.seconds + workload.prompt_tokens * stats.median(per_token) if per_token else None


def exactly(value: float) -> Reading:
    """A reading of a value without spread, such as a peak or a size."""
    return Reading(value, value, value, 1)


def possible(metric: str, reading: Reading) -> Reading:
    """The reading with an interval that ends at the highest possible value of the metric."""
    most = describe(metric).most
    return reading if most is None else replace(reading, high=min(reading.high, most))


def caveats_of(windows: Sequence[Window], update_periods: int) -> tuple[Caveat, ...]:
    """The caveats of these windows. Together they should last ``update_periods`` update periods of the sensor."""
    windows, _ = _by_depth(windows)
    found: set[Caveat] = set()
    for phase in PHASES:
        speeds = [w.tokens / w.seconds for w in windows if w.phase == phase]
        # A single prefill window, or none, is intended; its interval already shows that the spread is unknown.
        found |= set() if phase == "prefill" and len(speeds) <= 1 else _caveats_of_speeds(speeds)
        if mostly_disturbed(windows, phase):
            found.add(Caveat.BUSY_MACHINE)
    for energy in (window.energy for window in windows):
        found |= set(energy.caveats)
        if energy.source.kind in ("estimated", "mixed"):
            found.add(Caveat.ESTIMATED)
        if energy.source.kind == "simulated":
            found.add(Caveat.SIMULATED)
        if energy.capped_share and energy.capped_share > CAPPED_SHARE:
            found.add(Caveat.POWER_CAPPED)
    period = windows[0].energy.source.update_period_seconds
    total = sum(w.energy.seconds for w in windows if w.phase == "decode")
    if period and total < update_periods * period * 0.99:
        found.add(Caveat.SHORT_WINDOW)
    return tuple(caveat for caveat in Caveat if caveat in found)


def _caveats_of_speeds(speeds: Sequence[float]) -> set[Caveat]:
    if len(speeds) < 2:
        return {Caveat.SPREAD_UNKNOWN}
    found = set()
    cv = stats.coefficient_of_variation(speeds)
    if cv is not None and cv >= stats.NOISY_CV:
        found.add(Caveat.NOISY)
    if stats.outliers(speeds):
        found.add(Caveat.OUTLIERS)
    if stats.slow_first_run(speeds):
        found.add(Caveat.SLOW_FIRST_RUN)
    return found
