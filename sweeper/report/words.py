"""How figures, metrics and parameters are written in every kind of report."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sweeper.client.prompt_file import BUNDLED
from sweeper.metrics import FIRST_WHEN_FULL, describe
from sweeper.records import (
    Configuration,
    Constraint,
    PowerSource,
    Reading,
    SweepRecord,
    TrialRecord,
    Workload,
)
from sweeper.results import front
from sweeper.results.contexts import default_at, metrics_when_full
from sweeper.results.provisional import visits_of
from sweeper.space.auto import Facts, default_configuration

TOO_NOISY = "too noisy"  # for a change that noise hides
NOT_USABLE = "too noisy to use"  # for a figure that noise hides
MISSING = "–"  # for a missing figure; never a 0
MOST_DECIMALS = 4


def clean(text: object) -> str:
    """Foreign text (names, paths, an engine's log) without control characters and direction marks."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in str(text))


def decimals(value: float) -> int:
    """Digits behind the point that leave three significant ones, at most four."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(MOST_DECIMALS, max(0, 2 - math.floor(math.log10(abs(value)))))


def figure(value: float | None, like: float | None = None) -> str:
    """A value in three significant digits, with as many decimals as ``like`` has."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.{decimals(value if like is None else like)}f}"


def half_width(reading: Reading) -> float | None:
    """Half the width of the 95 % interval in the metric's unit, or None where one repeat knows no spread."""
    if reading.n < 2:
        return None
    return front.wider_half(reading)


def spread(reading: Reading | None) -> str:
    """``29.8 ± 0.3``; ``± ?`` where it was measured once only; plain where every repeat gave the same.

    Both have the decimals that the half-width needs to show a digit: never a ``± 0`` that is none. Where noise hides
    all but the order of magnitude, words say so: an interval of 10.8 ± 141 reads like a figure.
    """
    if reading is None:
        return MISSING
    if front.too_noisy(reading):
        return f"{figure(reading.median)}, {NOT_USABLE}"
    return " ± ".join(filter(None, parts(reading)))


def parts(reading: Reading) -> tuple[str, str]:
    """A median and its half-width as they are written; the second is ``?`` where unknown, empty where 0."""
    half = half_width(reading)
    if half is None:
        return figure(reading.median), "?"
    if half == 0 or not math.isfinite(half):
        return figure(reading.median), ""
    digits = decimals(reading.median)
    while digits < MOST_DECIMALS and round(half, digits) == 0:
        digits += 1
    shown = f"{half:.{digits}f}"
    return f"{reading.median:.{digits}f}", shown if float(shown) else f"{half:.1g}"


def figures(trial: TrialRecord, metric: str) -> str:
    """A trial's figure with its spread, where the metric is one that has a spread."""
    reading = trial.metrics.get(metric)
    if reading is not None and describe(metric).exact:
        half = parts(reading)[1]
        return figure(reading.median) if half in ("", "?") else " ± ".join(parts(reading))
    if reading is not None and visits_of(trial) == 1 and front.too_noisy(reading):
        return f"{figure(reading.median)} ± ?"  # one visit shows no scatter; that is not noise
    return spread(reading)


def quality(trial: TrialRecord) -> str:
    """``0.0312 ± 0.0021 · 94.1 %``: the KL divergence, and the top-token agreement where it is known."""
    agreement = trial.metrics.get("top_token_agreement_percent")
    same = [] if agreement is None else [f"{figure(agreement.median)} %"]
    return " · ".join([figures(trial, "kl_divergence"), *same])


def change(reading: Reading | None, base: Reading | None) -> str:
    """The difference to the baseline as ``+12 %`` or ``−28 %``; ``too noisy`` where the intervals overlap."""
    if reading is None or base is None or base.median == 0:
        return ""
    percent = round(100 * (reading.median / base.median - 1))
    if front.too_noisy(reading) or front.too_noisy(base) or (percent and front.overlap(reading, base)):
        return TOO_NOISY
    sign = "+" if percent > 0 else "−" if percent < 0 else ""  # no ±: that is an interval's
    return f"{sign}{abs(percent)} %"


def value(item: Any) -> str:
    """A parameter's value as the user would type it."""
    if item is None:
        return "as found"
    if isinstance(item, bool):
        return "on" if item else "off"
    return clean(item)


def settings(configuration: Configuration, base: Configuration | None) -> str:
    """The differences of ``configuration`` from ``base``: ``n_threads=4 quant=Q4_K_M``."""
    there = {} if base is None else base.to_dict()
    changed = [
        (key, item)
        for key, item in configuration.to_dict().items()
        # Only the baseline leaves its placement to the server; the layers of the others say where they are.
        if (key, item) not in {**there, "fit": False}.items()
    ]
    return " ".join(f"{key}={value(item)}" for key, item in changed) or "baseline"


def baseline_of(record: SweepRecord) -> TrialRecord | None:
    """The trial of the engine's own defaults, where there is one."""
    return None if record.baseline is None else record.trial(record.baseline)


def own_settings(record: SweepRecord, trial: TrialRecord) -> str:
    """The settings of ``trial`` that differ from the baseline; for the baseline, what it is."""
    base = baseline_of(record)
    if base is not None and base.number == trial.number:
        return baseline_name(record)
    return settings(trial.configuration, base.configuration if base else record.baseline_configuration)


def baseline_name(record: SweepRecord) -> str:
    """``the engine's defaults``, and the settings that the user fixed at other values."""
    if record.engine.name == "endpoint":
        return "the server as it runs"
    fixed = fixed_settings(record)
    return "the engine's defaults" + (f" with your fixed settings ({fixed})" if fixed else "")


def fixed_settings(record: SweepRecord) -> str:
    """The parameters that the user fixed at another value than the engine's default: ``n_threads=99``."""
    given = {} if record.engine.name == "endpoint" else record.config.get("space") or {}
    facts = Facts(record.machine, record.model, record.workload, record.engine.gpu_offload)
    default = default_configuration(facts).to_dict()
    fixed = (
        (name, item)
        for name, item in given.items()
        if name in default and isinstance(item, (bool, int, str)) and item not in ("auto", default[name])
    )
    return " ".join(f"{name}={value(item)}" for name, item in fixed)


def prompts_in_words(workload: Workload) -> str:
    """The prompts of a workload: ``512 prompt tokens``, or the user's own file with the start of its digest."""
    own, random = workload.prompts, f"{workload.prompt_tokens} prompt tokens"
    if own is None:
        return random
    of_file = f"of {clean(own.name)} ({own.sha256[:12]})"
    if own.name == BUNDLED:
        return f"{random}, generation after one of {own.prompts} passages {of_file}"
    return f"{own.prompts} prompts {of_file}"


def limits(constraints: Sequence[Constraint]) -> str:
    """The constraints in words: ``decode speed at least 5 tok/s``; empty if there are none."""

    def one(constraint: Constraint) -> str:
        how = "at most" if constraint.op == "<=" else "at least"
        metric = describe(constraint.metric)
        return f"{metric.title} {how} {constraint.bound:g} {metric.unit}".strip()

    return ", ".join(map(one, constraints))


def when_full(record: SweepRecord, trial: TrialRecord) -> str:
    """``16,384 tokens: 20.1 tok/s with a full context, first word after 166 s (default settings: 393 s)``.

    What was not measured is left out.
    """
    speed, _ = metrics_when_full(record)
    said = []
    if speed in trial.metrics:
        said.append(f"{figure(trial.metrics[speed].median)} tok/s with a full context")
    if FIRST_WHEN_FULL in trial.metrics:
        base = default_at(record, trial)
        other = None if base is None or base is trial else base.metrics.get(FIRST_WHEN_FULL)
        beside = f" (default settings: {figure(other.median)} s)" if other else ""
        said.append(f"first word after {figure(trial.metrics[FIRST_WHEN_FULL].median)} s{beside}")
    return ": ".join(filter(None, (f"{trial.configuration.n_ctx:,} tokens", ", ".join(said))))


def machine_name(record: SweepRecord) -> str:
    """The GPUs, or the processor where there is none."""
    return " + ".join(gpu.name for gpu in record.machine.gpus) or record.machine.cpu


SCOPES = {
    "gpu": "the GPU only (no CPU, memory or fans)",
    "module": "the GPU's module with its memory",
    "package": "the processor only",
    "psys": "the platform as the processor counts it",
    "battery": "the whole machine, at the battery",
    "wall": "the whole machine, at the wall",
    "custom": "what the user's own command reads",
    "simulated": "a simulated machine",
}

TRUST = {
    "measured": "read from a sensor",
    "estimated": "estimated, not measured: good for orders of magnitude, not for a decision about money",
    "mixed": "partly measured, partly estimated",
    "none": "not measured",
    "simulated": "simulated, not measured: says nothing about a real machine",
}


def power_line(power: PowerSource) -> str:
    """One line on where watts come from: ``measured by nvml (…); covers the GPU only (…)``."""
    if power.kind == "simulated":
        return "from a formula (simulated machine)"
    if power.kind == "none":
        return f"not measured: {clean(power.note or 'there is no sensor')}"
    means = (
        "from CPU load" if power.name == "estimate" else f"by {clean(power.name)} ({clean(power.interface)})"
    )
    return f"{power.kind} {means}; covers {SCOPES[power.scope]}"


def sampling(record: SweepRecord) -> str:
    """Whether decode speed includes the sampling of each token, which a server's client always pays for."""
    if record.engine.sampling:
        return f"sampled {clean(record.engine.sampling)}"
    return "not sampled" + ("" if record.engine.simulated else ": a server's client gets less")


def doubt(power: PowerSource, metric: str = "watts") -> str:
    """The label that figures of ``metric`` need where watts were not measured: `` estimated``, else empty."""
    return f" {power.kind}" if power.kind not in ("measured", "none") and describe(metric).power else ""


def unit(metric: str, power: PowerSource) -> str:
    """The unit behind a figure that has no heading: ``tok/s``, ``prefill tok/s``, ``W estimated``."""
    phase = "prefill " if metric.startswith("prompt_") else ""
    return f"{phase}{describe(metric).unit or metric.replace('_', ' ')}{doubt(power, metric)}"


def head(metric: str, power: PowerSource) -> str:
    """A column's head; where watts are not measured it says so."""
    return describe(metric).head + doubt(power, metric)


def axis_title(metric: str, record: SweepRecord) -> str:
    """An axis' title with its unit; watts that are not measured say so."""
    found = describe(metric)
    behind = ",".join(filter(None, (found.unit, doubt(record.power, metric))))
    return clean(f"{found.title} ({behind.strip()})" if behind else found.title)


def searched(record: SweepRecord) -> tuple[str, ...]:
    """The parameters that took more than one value, in their documented order."""
    seen = [t.configuration.to_dict() for t in record.trials]
    names = Configuration().to_dict()
    return tuple(name for name in names if len({str(values[name]) for values in seen}) > 1)


STATES = {
    "complete": "complete",
    "failed": "failed",
    "out_of_memory": "out of memory",
    "infeasible": "breaks a constraint",
    "dominated": "stopped early, beaten",
    "interrupted": "interrupted",
}


def outcome(trial: TrialRecord) -> str:
    """The key of ``STATES`` under which a trial counts: complete only where it keeps every constraint."""
    return "infeasible" if trial.state == "complete" and not trial.feasible else trial.state


def broken_constraints(trial: TrialRecord) -> list[str]:
    """The constraints that a trial breaks: ``kl_divergence <= 0.1``."""
    return [constraint for constraint, distance in trial.violations.items() if distance > 0]


def tally(record: SweepRecord) -> str:
    """How the trials ended: ``42 trials: 36 complete, 4 out of memory, 2 failed``."""
    counts = {state: sum(outcome(t) == state for t in record.trials) for state in STATES}
    broken = ", ".join(dict.fromkeys(name for t in record.trials for name in broken_constraints(t)))
    names = {"infeasible": f" ({broken})" if broken else ""}
    parts = ", ".join(
        f"{n} {_of_several(state, n)}{names.get(state, '')}" for state, n in counts.items() if n
    )
    plural = "trial" if len(record.trials) == 1 else "trials"
    return f"{len(record.trials)} {plural}" + (f": {parts}" if parts else "")


def _of_several(state: str, count: int) -> str:
    return STATES[state] if count == 1 else STATES[state].replace("breaks", "break")


def moment(utc: str) -> str:
    """``2026-11-23 10:09 UTC``; what is no ISO 8601 time stays as it is."""
    try:
        then = datetime.fromisoformat(utc)
    except ValueError:
        return utc or MISSING
    return f"{then.astimezone(UTC) if then.tzinfo else then:%Y-%m-%d %H:%M} UTC"


def warnings(record: SweepRecord) -> Iterator[str]:
    """Reasons to doubt the answer, for the head of every report."""
    if record.engine.simulated:
        yield "Everything here is simulated: no figure was measured on a real machine."
    elif record.power.kind != "measured":
        sensor = (
            "; `sweeper doctor` shows how to connect a sensor" if record.power.kind == "estimated" else ""
        )
        yield f"Watts are {TRUST[record.power.kind]}{sensor}."
    if record.state == "running":
        yield "This sweep is unfinished: these figures may change."
    if record.state == "stopped":
        yield f"This sweep was stopped before its end: {clean(record.stopped_because or 'by hand')}."
    if doubt := disturbed(record):
        yield doubt


def disturbed(record: SweepRecord) -> str:
    """A warning where something disturbed the machine during the measurement; else empty."""
    wide = []
    for number in dict.fromkeys((record.baseline, record.recommended)):
        metrics = record.trial(number).metrics if number is not None else {}
        readings = [metrics[o.metric] for o in record.objectives if o.metric in metrics]
        shares = ((half_width(r) or 0.0) / abs(r.median) for r in readings if r.median)
        if max(shares, default=0.0) > front.TOO_NOISY:
            wide.append(f"#{number}")
    if not wide:
        return ""
    return (
        "These results are not reliable yet: something disturbed the machine during the measurement "
        f"(the figures of {' and '.join(wide)} are {NOT_USABLE}). "
        "Close other programs, then repeat the sweep under another name (name=NAME)."
    )


def model_line(record: SweepRecord) -> str:
    """``llama-110m: llama, 110 M parameters, synthetic``."""
    model = record.model
    size = f"{model.parameters / 1e9:.3g} G" if model.parameters >= 1e9 else f"{model.parameters / 1e6:.3g} M"
    return clean(f"{model.name}: {model.architecture}, {size} parameters, {model.source}")
