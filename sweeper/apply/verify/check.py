"""``sweeper verify``: is the server as fast as the sweep promised, with the settings that it recommended?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from sweeper.apply.base import asked_for_context, environment_of, unfinished
from sweeper.apply.fresh import model_file
from sweeper.apply.run import alias_of, resolve
from sweeper.apply.verify.client_speed import ClientSpeed, measure_speed
from sweeper.apply.verify.find import VerifyOptions, found_or_started
from sweeper.apply.verify.texts import are_own, prompts_of, texts_of
from sweeper.apply.verify.users_speed import (
    EACH_USER,
    FIRST_TOKEN,
    demand_slots,
    measure_users,
    prompts_of_users,
)
from sweeper.client.llama_options import PLACEMENT
from sweeper.client.servers import InForce
from sweeper.errors import SweeperError, UsageError, VerifyError
from sweeper.measure.trial import speeds_now as engine_speeds
from sweeper.meter.base import PowerMeter
from sweeper.metrics import describe
from sweeper.parameters import DEFAULTS, SERVER_TUNABLES, TUNABLES, as_engine_has_it, changes_nothing
from sweeper.records import Reading, SweepRecord, TrialRecord

Verdict = Literal["kept", "missed", "unclear", "drifted", "unknown"]

# Settings that servers seldom report, and that sweeper does not write at their defaults either.
_UNREPORTED_AT_DEFAULT = {"fit", "n_parallel", *(t.name for t in TUNABLES.values() if t.option_is_new)}
TOLERANCE = 0.05  # a promise is kept if speed is at most this fraction below it, or power above it
SURPRISE = 0.3  # a server that beats its promise by more than this shows that the promise was wrong
TOO_WIDE = 0.25  # half an interval, as a share of its median: with more, medians that agree prove nothing
NO_ROOM = (
    "sweeper's own engine was not measured beside the server, which holds the GPU's memory: end the server and verify "
    "again"
)
SpeedsNow = Callable[[TrialRecord], Mapping[str, Reading]]

_sensor = attrgetter("name", "scope", "kind", "device")  # two sources that agree in these are one sensor


@dataclass(frozen=True, slots=True)
class SettingCheck:
    """One setting, as the sweep recommended it and as the server has it."""

    name: str
    configured: Any
    in_force: Any
    read_from: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class FigureCheck:
    """One metric, as the sweep promised it and as `verify` measured it, in the metric's unit."""

    metric: str
    promised: Reading | None
    found: Reading | None
    own: Reading | None  # as the server reports it
    verdict: Verdict
    says: str = ""
    now: Reading | None = None  # of sweeper's own engine, measured again if the server seemed too slow

    @property
    def change(self) -> float | None:
        """The measured value relative to the promised one, as a fraction: -0.03 is 3 % less."""
        if self.promised is None or self.found is None or not self.promised.median:
            return None
        return self.found.median / self.promised.median - 1.0


@dataclass(frozen=True, slots=True)
class Verification:
    """Everything that `verify` found."""

    sweep: str
    trial: int
    server: str
    url: str
    name: str
    started: bool  # sweeper started it for the measurement, and ended it
    tolerance: float
    settings: tuple[SettingCheck, ...]
    figures: tuple[FigureCheck, ...]
    notes: tuple[str, ...] = ()
    users: int = 1  # who send requests at the same time

    @property
    def kept(self) -> bool:
        """No setting and no metric has the verdict ``missed``."""
        verdicts = [s.verdict for s in self.settings] + [f.verdict for f in self.figures]
        return "missed" not in verdicts

    def demand(self) -> None:
        """Raise VerifyError, which names each setting and metric that is not as promised, if there is one."""
        wrong = [
            f"{s.name} is {s.in_force}, not {s.configured}" for s in self.settings if s.verdict == "missed"
        ]
        wrong += [figure.says for figure in self.figures if figure.verdict == "missed"]
        if wrong:
            raise VerifyError(f"the promise is not kept at {self.url}: {'; '.join(wrong)}")


def verify(
    record: SweepRecord,
    pick: str | int,
    options: VerifyOptions | None = None,
    *,
    meter: PowerMeter | None = None,
    speeds_now: SpeedsNow | None = None,
    progress: Callable[[str], None] = lambda _line: None,
    root: Path | None = None,
) -> Verification:
    """Find or start a server, read its settings, measure it, and compare with the promise.

    With several users, the server gets the same load as in the sweep. The watts of the open ``meter`` are compared only
    if it is the sweep's own sensor. ``speeds_now`` measures sweeper's own engine again, by metric, if a speed is lower
    than promised. This tells a slow server from a machine that has changed. It is not called while the server holds a
    GPU's memory. ``progress`` gets one line for each step.

    Raises:
        UsageError: a simulated sweep, or a server that does not offer the model, or cannot serve so many users.
        MissingError: no server answers, or none can be started, or the prompts of the sweep's users are gone.
        VerifyError: the server refuses, breaks off, or cannot be measured; not for a broken promise, see `demand`.
    """
    options = _demand_verifiable(record, options or VerifyOptions())
    trial = resolve(record, pick)
    name = options.name or alias_of(record, trial, pick)
    measure, changed = _measure_of(record, trial, options)
    with found_or_started(record, trial, name, options, progress) as (server, name, ours):
        demand_slots(record, server.kind)
        if not ours:
            progress("loading the model, unless it is loaded …")
        server.generate(name, "a", 1)  # loads it, so that its settings can be read
        settings = _settings(record, trial, server.in_force(name))
        contexts = (s.in_force for s in settings if s.name == "n_ctx" and s.in_force)
        n_ctx = int(next(contexts, trial.configuration.n_ctx))
        speed = measure(server, name, n_ctx=n_ctx, meter=meter, progress=progress)
    figures = _figures(record, trial, speed, meter)
    notes = [*changed, *_notes(record, trial, speed, meter, root)]
    if speeds_now is not None and any(map(_asks_for_engine, figures)):
        on_gpu = record.engine.gpu_offload and trial.configuration.n_gpu_layers != 0
        room = ours or not on_gpu
        beside = _beside_engine(figures, trial, speeds_now, progress) if room else (figures, [NO_ROOM])
        figures, notes = beside[0], notes + beside[1]
    return Verification(
        sweep=record.sweep,
        trial=trial.number,
        server=server.kind,
        url=server.url,
        name=name,
        started=ours,
        tolerance=TOLERANCE,
        settings=settings,
        figures=tuple(figures),
        notes=tuple(notes),
        users=record.workload.users,
    )


def _demand_verifiable(record: SweepRecord, options: VerifyOptions) -> VerifyOptions:
    """The options. Raises UsageError if no server can be compared with this sweep, or not by these options."""
    if record.engine.simulated:
        raise UsageError(f"sweep {record.sweep!r} is simulated: no server can be verified against it")
    if record.engine.name == "endpoint":
        raise UsageError(
            f"sweep {record.sweep!r} measured a running server already: sweep again under another name, and compare"
        )
    demand_slots(record, options.server)
    if options.repeats < 2:
        raise UsageError(
            f"--repeats {options.repeats}: give at least 2, because one measurement shows no spread"
        )
    only_one = record.workload.users > 1 and options.server == "auto"
    return replace(options, server="llama-server") if only_one else options


def _measure_of(
    record: SweepRecord, trial: TrialRecord, options: VerifyOptions
) -> tuple[Callable[..., ClientSpeed], tuple[str, ...]]:
    """`measure_speed` or `measure_users` with the sweep's workload, and a note if it sends other prompts."""
    often: dict[str, Any] = {"repeats": options.repeats, "repeat_seconds": options.repeat_seconds}
    if record.workload.users > 1:
        prompts = prompts_of_users(record)
        return partial(measure_users, record=record, trial=trial, prompts=prompts, **often), ()
    texts, changed = texts_of(record)
    return partial(measure_speed, workload=record.workload, texts=texts, **often), changed


def _asks_for_engine(check: FigureCheck) -> bool:
    """Whether the engine's own speed may explain the figure; of few requests, a percentile is seldom clear."""
    unclear = check.verdict == "unclear" and check.metric != FIRST_TOKEN
    return check.metric != "watts" and (check.verdict == "missed" or unclear)


def _beside_engine(
    figures: list[FigureCheck], trial: TrialRecord, speeds_now: SpeedsNow, progress: Callable[[str], None]
) -> tuple[list[FigureCheck], list[str]]:
    """The figures beside those of sweeper's own engine now, and a note if it cannot be measured."""
    missed = any(f.metric != "watts" and f.verdict == "missed" for f in figures)
    why = "slower than promised" if missed else "too noisy to tell"
    progress(f"{why}: measuring sweeper's own engine, to tell the server from the machine …")
    try:
        now = speeds_now(trial)
    except SweeperError as failure:
        return figures, [f"sweeper's own engine could not be measured: {failure}"]
    return [_beside_now(figure, now.get(figure.metric)) for figure in figures], []


def speeds_of_engine(record: SweepRecord, trial: TrialRecord) -> Mapping[str, Reading]:
    """What sweeper's own engine gives for a trial of a finished sweep now, by metric.

    Raises:
        TrialFailed: the engine failed.
        SweeperError: the engine, the model or the prompts of several users are gone.
    """
    from sweeper.engine.llama_cpp import LlamaCppEngine
    from sweeper.engine.of_record import engine_of

    path = Path(model_file(record, trial).path).expanduser()
    config = record.config.get("engine") or {}
    own = prompts_of(record) if record.workload.users > 1 and are_own(record) else ()
    with engine_of(config, {trial.configuration.quant: path}, environment_of(record), own) as engine:
        if isinstance(engine, LlamaCppEngine):
            engine.measure_as(record.engine)
        else:
            engine.use_draft(record.model.draft)
            engine.use_texts(texts_of(record)[0])
        return engine_speeds(engine, trial.configuration, record.workload)


def judge(promised: Reading, found: Reading, *, more_is_better: bool) -> Verdict:
    """Whether ``found`` keeps ``promised``.

    - ``kept``: the median is within the tolerance of the promise, or better.
    - ``missed``: it is worse, and the confidence intervals do not touch.
    - ``unclear``: it is worse, but the intervals touch, so it may be noise. Or it is within the tolerance, but
      an interval is so wide that this proves nothing.
    """
    gain = (1.0 if more_is_better else -1.0) * (found.median - promised.median)
    if gain >= -TOLERANCE * abs(promised.median):
        better = gain > SURPRISE * abs(promised.median)
        return "kept" if better or not _too_wide(promised, found) else "unclear"
    apart = found.high < promised.low if more_is_better else found.low > promised.high
    return "missed" if apart else "unclear"


def _half(reading: Reading) -> float:
    """The wider half of an interval, as a share of its median."""
    return max(reading.high - reading.median, reading.median - reading.low) / abs(reading.median or 1.0)


def _too_wide(*readings: Reading) -> bool:
    return max(map(_half, readings)) > TOO_WIDE


def _beside_now(check: FigureCheck, now: Reading | None) -> FigureCheck:
    """The check beside the engine's own speed now; ``drifted`` if the engine is slower too, as the server is."""
    if now is None or check.promised is None or check.found is None or check.verdict == "kept":
        return check
    metric, moved = describe(check.metric), now.median / check.promised.median - 1
    says = (
        f"{check.says}; sweeper's own engine gives {now.median:.4g} {metric.unit} now, {100 * moved:+.1f} % against "
        "the sweep"
    )
    more = metric.direction == "maximize"
    slower = (-moved if more else moved) > TOLERANCE
    beside = judge(now, check.found, more_is_better=more)
    # The interval of a percentile is wide, so one that was missed is as slow as the engine unless it is apart from it.
    wide = beside == "unclear" and check.verdict == "missed" and check.metric == FIRST_TOKEN
    if slower and (beside == "kept" or wide):
        return replace(check, now=now, verdict="drifted", says=f"{says}: the machine, not the server")
    return replace(check, now=now, says=says)


def _settings(
    record: SweepRecord, trial: TrialRecord, in_force: Mapping[str, InForce]
) -> tuple[SettingCheck, ...]:
    checks = []

    def compare(name: str, configured: Any, said: InForce, kept: bool) -> None:
        verdict: Verdict = "kept" if kept else "missed"
        checks.append(SettingCheck(name, configured, said.value, said.read_from, verdict))

    def layers(value: Any) -> Any:
        """Servers report all layers as "all", as a number beyond the last layer, or as their count."""
        every = record.model.n_layer + 1
        return every if isinstance(value, int) and not 0 <= value < every else value

    file = model_file(record, trial)
    path = str(Path(file.path).expanduser().absolute())
    for key, digest_or_path in (("sha256", file.sha256), ("model", path)):
        if key in in_force:
            compare("model", digest_or_path, in_force[key], in_force[key].value == digest_or_path)
            break
    draft = record.model.draft_file(trial.configuration)
    if draft is not None and "draft" in in_force:
        path = str(Path(draft.path).expanduser().absolute())
        compare("draft", path, in_force["draft"], in_force["draft"].value == path)
    for key in (tunable.name for tunable in SERVER_TUNABLES):
        if changes_nothing(key, record.engine.gpu_offload, record.model.expert_count > 0):
            continue  # servers report anything here
        if trial.configuration.fit and key in PLACEMENT:
            continue  # the server chooses
        wanted = getattr(trial.configuration, key)
        said = in_force.get(key)
        if said is None and key in _UNREPORTED_AT_DEFAULT and wanted == DEFAULTS[key]:
            continue  # `apply` leaves it to the server's default, too
        if said is None:
            checks.append(SettingCheck(key, wanted, None, "the server does not report it", "unknown"))
        elif key == "n_gpu_layers":
            compare(key, wanted, said, layers(said.value) == layers(wanted))
        else:
            if key == "n_ctx" and not asked_for_context(record) and isinstance(said.value, int):
                wanted = said.value  # `apply` keeps the user's own
            # A command line holds the value as asked for; a log holds what llama.cpp made of it.
            if said.value != wanted:
                wanted = as_engine_has_it(key, trial.configuration)
            compare(key, wanted, said, said.value == wanted)
    return tuple(checks)


def _figures(
    record: SweepRecord, trial: TrialRecord, speed: ClientSpeed, meter: PowerMeter | None
) -> list[FigureCheck]:
    of_users = [(EACH_USER, speed.each_user, None), (FIRST_TOKEN, speed.first_token, None)]
    rows = [
        ("tokens_per_second", speed.decode, speed.own_decode),
        *(of_users if record.workload.users > 1 else ()),
        ("prompt_tokens_per_second", speed.prefill, speed.own_prefill),
    ]
    if meter is not None:
        rows.append(("watts", speed.watts, None))
    checks = []
    for metric, found, own in rows:
        promised = trial.metrics.get(metric)
        verdict: Verdict = "unknown"
        if promised is None:
            says = "the sweep promised no such figure"
        elif found is None:
            says = speed.missing.get(metric, "not measured")
        elif metric == "watts" and meter is not None and _sensor(record.power) != _sensor(meter.source):
            says = "measured on another sensor than the sweep: not compared"
        else:
            verdict = judge(promised, found, more_is_better=describe(metric).direction == "maximize")
            says = _says(metric, promised, found, verdict)
        checks.append(FigureCheck(metric, promised, found, own, verdict, says))
    return checks


def _says(metric: str, promised: Reading, found: Reading, verdict: Verdict) -> str:
    """A sentence about one metric; empty if it is as promised."""
    far = abs(found.median - promised.median) > SURPRISE * abs(promised.median)
    if verdict == "kept" and (not far or metric == FIRST_TOKEN):  # few requests' percentile is often far away
        return ""
    if verdict == "kept":
        return f"{metric} is far better than promised: the sweep was disturbed, or measured once; sweep again"
    if verdict == "unclear" and _too_wide(promised, found):
        return (
            f"{metric} scatters too much to tell: promised ±{_half(promised):.0%}, found ±{_half(found):.0%}"
        )
    change, unit = 100 * (found.median / promised.median - 1), describe(metric).unit
    return (
        f"{metric} is {found.median:.4g} {unit}, {change:+.1f} % against the promised {promised.median:.4g} "
        f"(tolerance {100 * TOLERANCE:g} %)"
    )


def _notes(
    record: SweepRecord, trial: TrialRecord, speed: ClientSpeed, meter: PowerMeter | None, root: Path | None
) -> list[str]:
    notes = [f"{metric}: {reason}" for metric, reason in speed.missing.items()]
    if state := unfinished(record, root):
        disturb = ": it and this measurement disturb each other" if state.endswith("running") else ""
        notes.append(f"{state}{disturb}")
    if not record.engine.sampling:
        notes.append(
            "this sweep did not sample the tokens that it generated, as servers do: expect less of a server, up to "
            "8 % for a small model with a large vocabulary; a new sweep samples them"
        )
    if meter is None and "watts" in trial.metrics:
        notes.append("watts were not measured: no meter was given")
    watts = trial.configuration.power_limit_watts
    if watts is not None:
        notes.append(
            f"the configuration holds a power limit of {watts} W, which no server reports: "
            "`sweeper doctor` shows the present limit"
        )
    wanted = record.workload.prompt_tokens
    if abs(speed.prompt_tokens - wanted) > 0.1 * wanted:
        notes.append(f"prompts were {speed.prompt_tokens} tokens long, and {wanted} in the sweep")
    return notes
