"""``sweeper verify``: is the server as fast as the sweep promised, with the settings that it recommended?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sweeper.apply.fresh import model_file
from sweeper.apply.names import alias_for
from sweeper.apply.run import resolve
from sweeper.apply.verify.client_speed import ClientSpeed, Meter, measure_speed
from sweeper.apply.verify.find import VerifyOptions, found_or_started
from sweeper.apply.verify.servers import InForce
from sweeper.errors import TrialFailed, UsageError, VerifyError
from sweeper.parameters import SERVER_TUNABLES, as_engine_has_it, changes_nothing
from sweeper.records import PowerSource, Reading, SweepRecord, TrialRecord

Verdict = Literal["kept", "missed", "unclear", "drifted", "unknown"]
SpeedsNow = Callable[[TrialRecord], Mapping[str, Reading]]
"""Measures sweeper's own engine once more: decode and prefill in tok/s, by metric."""

SURPRISE = 0.3  # a server that beats its promise by more than this shows that the promise was wrong
TOO_WIDE = 0.25  # half an interval, as a share of its median: with more, medians that agree prove nothing


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

    @property
    def kept(self) -> bool:
        """No setting and no metric has the verdict ``missed``."""
        verdicts = [s.verdict for s in self.settings] + [f.verdict for f in self.figures]
        return "missed" not in verdicts

    def demand(self) -> None:
        """Raise an error if the promise is not kept.

        Raises:
            VerifyError: names each setting and metric that is not as promised.
        """
        wrong = [
            f"{s.name} is {s.in_force}, not {s.configured}" for s in self.settings if s.verdict == "missed"
        ]
        wrong += [figure.says for figure in self.figures if figure.verdict == "missed"]
        if wrong:
            raise VerifyError(f"the promise is not kept at {self.url}: {'; '.join(wrong)}")


def verify(
    record: SweepRecord,
    pick: str | int | TrialRecord,
    options: VerifyOptions | None = None,
    *,
    meter: Meter | None = None,
    speeds_now: SpeedsNow | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> Verification:
    """Find or start a server, read its settings, measure it, and compare with the promise.

    Args:
        record: The sweep.
        pick: A pick's words, a trial's number, or a trial.
        options: Which server.
        meter: An open meter; its watts are compared only if it is the sweep's own sensor.
        speeds_now: Measures sweeper's own engine again, if a speed is lower than promised. This tells a slow
            server from a machine that has changed. It is not called while the server holds a GPU's memory.
        progress: Gets one line for each step.

    Raises:
        UsageError: a simulated sweep, or a server that does not offer the model.
        EngineMissingError: no server answers, or none can be started.
        VerifyError: the server refuses, breaks off, or cannot be measured. A broken promise raises no error
            here; `Verification.demand` raises it.
    """
    options = options or VerifyOptions()
    if record.engine.simulated:
        raise UsageError(f"sweep {record.sweep!r} is simulated: no server can be verified against it")
    trial = resolve(record, pick)
    words = pick if isinstance(pick, str) else ""
    name = options.name or alias_for(record.model.name, trial.configuration.quant, words)
    with found_or_started(record, trial, name, options, progress) as (server, name, ours):
        server.generate(name, "a", 1)  # loads the model, so that its settings can be read
        settings = _settings(record, trial, server.in_force(name))
        n_ctx = next(
            (s.in_force for s in settings if s.name == "n_ctx" and s.in_force), trial.configuration.n_ctx
        )
        speed = measure_speed(
            server,
            name,
            record.workload,
            int(n_ctx),
            repeats=options.repeats,
            repeat_seconds=options.repeat_seconds,
            meter=meter,
            progress=progress,
        )
        found = Verification(
            sweep=record.sweep,
            trial=trial.number,
            server=server.kind,
            url=server.url,
            name=name,
            started=ours,
            tolerance=options.tolerance,
            settings=settings,
            figures=_figures(record, trial, speed, meter, options.tolerance),
            notes=_notes(record, trial, speed, meter),
        )
    on_gpu = record.engine.gpu_offload and trial.configuration.n_gpu_layers != 0
    if speeds_now is None or not _too_slow(found) or (on_gpu and not ours):
        return found
    progress("slower than promised: measuring sweeper's own engine, to tell the server from the machine")
    try:
        now = speeds_now(trial)
    except TrialFailed as failure:
        return replace(found, notes=(*found.notes, f"sweeper's own engine could not be measured: {failure}"))
    return replace(
        found, figures=tuple(_beside_now(f, now.get(f.metric), found.tolerance) for f in found.figures)
    )


def _too_slow(found: Verification) -> bool:
    return any(f.metric != "watts" and f.verdict in ("missed", "unclear") for f in found.figures)


def _beside_now(check: FigureCheck, now: Reading | None, tolerance: float) -> FigureCheck:
    """The check beside the engine's own speed now; ``drifted`` if the engine is slower too, as the server is."""
    if now is None or check.promised is None or check.found is None or check.verdict == "kept":
        return check
    moved = 100 * (now.median / check.promised.median - 1)
    own = f"sweeper's own engine gives {now.median:.4g} tok/s now, {moved:+.1f} % against the sweep"
    slower = now.median < (1 - tolerance) * check.promised.median
    if slower and judge(now, check.found, tolerance, more_is_better=True) == "kept":
        return replace(
            check, now=now, verdict="drifted", says=f"{check.says}; {own}: the machine, not the server"
        )
    return replace(check, now=now, says=f"{check.says}; {own}")


def _half(reading: Reading) -> float:
    """The wider half of an interval, as a share of its median."""
    return max(reading.high - reading.median, reading.median - reading.low) / abs(reading.median or 1.0)


def _too_wide(*readings: Reading) -> bool:
    return max(map(_half, readings)) > TOO_WIDE


def judge(promised: Reading, found: Reading, tolerance: float, *, more_is_better: bool) -> Verdict:
    """Whether ``found`` keeps ``promised``.

    - ``kept``: the median is within the tolerance of the promise, or better.
    - ``missed``: it is worse, and the confidence intervals do not touch.
    - ``unclear``: it is worse, but the intervals touch, so it may be noise. Or it is within the tolerance, but
      an interval is so wide that this proves nothing.
    """
    sign = 1.0 if more_is_better else -1.0
    if sign * (found.median - promised.median) >= -tolerance * abs(promised.median):
        better = sign * (found.median - promised.median) > SURPRISE * abs(promised.median)
        return "kept" if better or not _too_wide(promised, found) else "unclear"
    apart = found.high < promised.low if more_is_better else found.low > promised.high
    return "missed" if apart else "unclear"


def _settings(
    record: SweepRecord, trial: TrialRecord, in_force: Mapping[str, InForce]
) -> tuple[SettingCheck, ...]:
    file = model_file(record, trial)
    configured = trial.configuration.to_dict()
    checks = []
    if "sha256" in in_force:
        checks.append(_check("model", file.sha256, in_force["sha256"]))
    elif "model" in in_force:
        path = str(Path(file.path).expanduser().absolute())
        checks.append(_check("model", path, in_force["model"]))
    for key in (tunable.name for tunable in SERVER_TUNABLES):
        if changes_nothing(key, record.engine.gpu_offload, record.model.expert_count > 0):
            continue  # servers report anything here
        said = in_force.get(key)
        if said is None:
            checks.append(
                SettingCheck(key, configured[key], None, "the server does not report it", "unknown")
            )
        elif key == "n_gpu_layers":
            checks.append(_layers_check(configured[key], said, record.model.n_layer))
        else:
            # A command line holds the value as asked for; a log holds what llama.cpp made of it.
            as_asked = said.value == configured[key]
            wanted = configured[key] if as_asked else as_engine_has_it(key, trial.configuration)
            checks.append(_check(key, wanted, said))
    return tuple(checks)


def _layers_check(configured: int, said: InForce, n_layer: int) -> SettingCheck:
    """Servers report all layers as "all", as a number beyond the last layer, or as their count."""

    def layers(value: Any) -> Any:
        return n_layer + 1 if isinstance(value, int) and (value < 0 or value > n_layer) else value

    kept = layers(said.value) == layers(configured)
    return SettingCheck("n_gpu_layers", configured, said.value, said.read_from, "kept" if kept else "missed")


def _check(name: str, configured: Any, said: InForce) -> SettingCheck:
    verdict: Verdict = "kept" if said.value == configured else "missed"
    return SettingCheck(name, configured, said.value, said.read_from, verdict)


def _figures(
    record: SweepRecord, trial: TrialRecord, speed: ClientSpeed, meter: Meter | None, tolerance: float
) -> tuple[FigureCheck, ...]:
    missing = dict(speed.missing)
    rows = [
        ("tokens_per_second", speed.decode, speed.own_decode, True),
        ("prompt_tokens_per_second", speed.prefill, speed.own_prefill, True),
    ]
    if meter is not None:
        rows.append(("watts", speed.watts, None, False))
    checks = []
    for metric, found, own, more_is_better in rows:
        promised = trial.metrics.get(metric)
        verdict: Verdict = "unknown"
        if promised is None:
            says = "the sweep promised no such figure"
        elif found is None:
            says = missing.get(metric, "not measured")
        elif metric == "watts" and meter is not None and not _same_sensor(record.power, meter.source):
            says = "measured on another sensor than the sweep: not compared"
        else:
            verdict = judge(promised, found, tolerance, more_is_better=more_is_better)
            says = _says(metric, promised, found, tolerance, verdict)
        checks.append(FigureCheck(metric, promised, found, own, verdict, says))
    return tuple(checks)


def _says(metric: str, promised: Reading, found: Reading, tolerance: float, verdict: Verdict) -> str:
    """A sentence about one metric; empty if it is as promised."""
    if verdict == "kept" and abs(found.median - promised.median) <= SURPRISE * abs(promised.median):
        return ""
    if verdict == "kept":
        return f"{metric} is far better than promised: the sweep was disturbed, or measured once; sweep again"
    change = 100 * (found.median / promised.median - 1)
    if verdict == "unclear" and _too_wide(promised, found):
        return (
            f"{metric} scatters too much to tell: promised ±{_half(promised):.0%}, found ±{_half(found):.0%}"
        )
    unit = "W" if metric == "watts" else "tok/s"
    return (
        f"{metric} is {found.median:.4g} {unit}, {change:+.1f} % against the promised {promised.median:.4g} "
        f"(tolerance {100 * tolerance:g} %)"
    )


def _same_sensor(one: PowerSource, other: PowerSource) -> bool:
    return (one.name, one.scope, one.kind, one.device) == (other.name, other.scope, other.kind, other.device)


def _notes(
    record: SweepRecord, trial: TrialRecord, speed: ClientSpeed, meter: Meter | None
) -> tuple[str, ...]:
    c = trial.configuration
    notes = [f"{name}: {reason}" for name, reason in speed.missing]
    if record.state == "running":
        notes.append(
            "this sweep is still running, or was cut off: a running sweep and this measurement disturb each other"
        )
    if meter is None and "watts" in trial.metrics:
        notes.append("watts were not measured: no meter was given")
    if c.power_limit_watts is not None:
        notes.append(
            f"the configuration holds a power limit of {c.power_limit_watts} W, which no server reports: "
            "`sweeper doctor` shows the present limit"
        )
    wanted = record.workload.prompt_tokens
    if abs(speed.prompt_tokens - wanted) > 0.1 * wanted:
        notes.append(f"prompts were {speed.prompt_tokens} tokens long, and {wanted} in the sweep")
    return tuple(notes)
