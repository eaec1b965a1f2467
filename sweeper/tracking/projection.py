"""Builds what MLflow should show for a sweep and its trials, without MLflow's client."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.caveats import reason
from sweeper.report.picks import labels
from sweeper.report.words import MISSING, broken_constraints, clean, figure, own_settings, unit
from sweeper.results.provisional import provisional

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

# MLflow's users filter for FAILED. A trial that was ruled out or interrupted is KILLED, so that
# `attributes.status = "FINISHED"` selects exactly the trials that have figures.
STATUS: dict[str, Status] = {
    "complete": "FINISHED",
    "dominated": "FINISHED",
    "failed": "FAILED",
    "out_of_memory": "FAILED",
    "infeasible": "KILLED",
    "interrupted": "KILLED",
}

TAG_LIMIT = 5000  # characters of a tag's value; every MLflow server of recent years accepts this many
PARAM_LIMIT = 500  # characters of a parameter's value: the smallest limit that any MLflow server had

RUN_NAME = "mlflow.runName"
NAME = "sweeper.name"  # the name that sweeper gave; if the run has another name, its user renamed it
FRONT = "sweeper.front"
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"


@dataclass(frozen=True, slots=True)
class RunImage:
    """The intended content of one run. ``metrics`` holds the latest values, all logged at step 0.

    If metrics were logged at other steps, MLflow would draw line charts of single dots in place of bars.
    """

    name: str
    status: Status
    start_ms: int
    end_ms: int | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def sweep_id(record: SweepRecord) -> str:
    """Twelve hex digits that identify this sweep, also in a store that several machines share.

    They come from name, machine and start time, so a sweep that starts again under an old name is another sweep.
    """
    text = json.dumps([record.sweep, record.machine.fingerprint, record.started_utc])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def experiment_name(record: SweepRecord, chosen: str | None = None) -> str:
    """The ``chosen`` name or the model's. Simulated sweeps get an experiment of their own."""
    name = chosen or clean(record.model.name).strip().replace("/", "-") or "model"
    return f"{name} (simulated)" if record.engine.simulated else name


def sweep_image(record: SweepRecord) -> RunImage:
    """The parent run, without its description."""
    status: dict[str, Status] = {"running": "RUNNING", "complete": "FINISHED", "stopped": "KILLED"}
    start_ms = milliseconds(record.started_utc)
    # If the clock was set back in between, the duration is 0 instead of negative.
    end_ms = max(start_ms, milliseconds(record.updated_utc or record.started_utc))
    how = "not measured" if record.power.kind == "none" else record.power.kind
    kind = "" if how == "measured" else f" · watts {how}"
    tags = _sweep_wide(record) | {
        "sweeper.kind": "sweep",
        "sweeper.state": record.state,
        "sweeper.trials": str(len(record.trials)),
        "sweeper.started": record.started_utc,
        "sweeper.version": record.sweeper_version,
        "sweeper.objectives": ", ".join(f"{o.direction} {o.metric}" for o in record.objectives),
        "sweeper.constraints": ", ".join(map(str, record.constraints)),
        "sweeper.space": json.dumps(dict(record.space), default=str),
        FRONT: ", ".join(map(str, record.front)),
        "sweeper.pick": record.pick,
        "sweeper.recommended": "" if record.recommended is None else str(record.recommended),
        "sweeper.provisional": _provisional(record, record.recommended),
        "sweeper.stopped_because": record.stopped_because,
        "sweeper.notes": "\n".join(record.notes),
        "sweeper.caveats": ", ".join(c.name.lower() for c in record.caveats),
        "sweeper.cpu": record.machine.cpu,
        "sweeper.gpu": ", ".join(gpu.name for gpu in record.machine.gpus),
    }
    name = f"{clean(record.sweep)}{kind}"
    return RunImage(
        name=name,
        status=status[record.state],
        start_ms=start_ms,
        end_ms=None if record.state == "running" else end_ms,
        params=_sweep_params(record),
        tags=_tags(tags | {NAME: name}),
        metrics=_sweep_metrics(record),
    )


def trial_image(record: SweepRecord, trial: TrialRecord) -> RunImage:
    """A trial's child run, without the tag that names its parent."""
    start = milliseconds(trial.started_utc or record.started_utc)
    intervals = {name: {"low": r.low, "high": r.high, "n": r.n} for name, r in trial.metrics.items()}
    # The front is known at the end. A sweep that is started again keeps its result until it has another one.
    over = record.state != "running" or record.recommended is not None
    tags = {
        # MLflow shows columns in the order in which their tags were set, so every trial has these from the start. The
        # second one is cut off at 1,600 pixels with MLflow's assistant open, and the view has complete trials only.
        "sweeper.pick": (", ".join(labels(record).get(trial.number, ())) if over else "") or MISSING,
        "sweeper.state": _state(trial),
        "sweeper.settings": own_settings(record, trial),
        **_sweep_wide(record),
        "sweeper.kind": "trial",
        "sweeper.trial": str(trial.number),
        "sweeper.feasible": _flag(trial.feasible),
        "sweeper.remeasured": _flag(trial.remeasured),
        "sweeper.visits": "" if trial.visits is None else str(trial.visits),
        "sweeper.reason": trial.reason or "",
        "sweeper.violations": ", ".join(f"{k} by {v:g}" for k, v in trial.violations.items() if v > 0),
        "sweeper.missing": "\n".join(f"{metric}: {reason}" for metric, reason in trial.missing.items()),
        "sweeper.caveats": ", ".join(c.name.lower() for c in trial.caveats),
        "sweeper.intervals": json.dumps(intervals) if intervals else "",
        "sweeper.configuration": json.dumps(trial.configuration.to_dict()),
        "sweeper.in_force": json.dumps(dict(trial.in_force), default=str) if trial.in_force else "",
        NOTE: _trial_note(trial),
    }
    if over:
        tags[FRONT] = _flag(trial.number in record.front)
        roles = (("baseline", record.baseline), ("recommended", record.recommended))
        tags["sweeper.role"] = ", ".join(role for role, number in roles if number == trial.number)
        if trial.number == record.recommended:
            tags["sweeper.provisional"] = _provisional(record, trial.number)
            tags[NOTE] = "\n\n".join(filter(None, (tags["sweeper.provisional"], tags[NOTE])))
    name = _trial_name(record, trial)
    return RunImage(
        name=name,
        status=STATUS[trial.state],
        start_ms=start,
        end_ms=start + round(1000 * trial.seconds),
        params={key: _param(record, trial, key) for key in record.space},
        tags=_tags(tags | {NAME: name}),
        metrics=_trial_metrics(record, trial),
    )


def ruled_out_by(metric: str) -> str:
    """The state, in MLflow, of a trial with figures that break a constraint on ``metric``."""
    return f"ruled out by {metric}"


def _state(trial: TrialRecord) -> str:
    """The trial's state; where it breaks constraints, the first of them."""
    broken = broken_constraints(trial)
    # A constraint is written as `metric <= bound`.
    return ruled_out_by(broken[0].split()[0]) if trial.state == "complete" and broken else trial.state


def milliseconds(utc: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time; one without a zone is UTC.

    Raises:
        ValueError: ``utc`` is not such a time.
    """
    moment = datetime.fromisoformat(utc)
    return round(1000 * (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _sweep_wide(record: SweepRecord) -> dict[str, str]:
    """Tags of the parent and of every child, because MLflow's filters see only a run's own tags."""
    power = record.power
    return {
        "sweeper.sweep": record.sweep,
        "sweeper.id": sweep_id(record),
        "sweeper.model": record.model.name,
        "sweeper.model.sha256": record.model.file(None).sha256,
        "sweeper.machine": record.machine.fingerprint,
        "sweeper.engine": f"{record.engine.name} {record.engine.version}".strip(),
        "sweeper.workload": record.workload.name,
        "sweeper.power.source": power.name,
        "sweeper.power.kind": power.kind,
        "sweeper.power.scope": power.scope,
        "mlflow.source.name": "sweeper sweep",
        "mlflow.source.type": "LOCAL",
    }


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow accepts them: without empty values, and with long values cut and marked with an ellipsis."""
    cut = {k: v if len(v) <= TAG_LIMIT else v[: TAG_LIMIT - 1] + "…" for k, v in tags.items()}
    return {key: value for key, value in cut.items() if value}


def _provisional(record: SweepRecord, number: int | None) -> str:
    return "" if number is None else provisional(record, record.trial(number)) or ""


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _param(record: SweepRecord, trial: TrialRecord, key: str) -> str:
    """A swept parameter as text. An unset parameter shows the value read back from the engine, if there is one."""
    value: Any = trial.configuration.to_dict().get(key)
    if value is None:
        value = record.model.base_quant if key == "quant" else trial.in_force.get(key)
    if value is None:
        return "as found"
    return _flag(value) if isinstance(value, bool) else str(value)[:PARAM_LIMIT]


def _trial_metrics(record: SweepRecord, trial: TrialRecord) -> dict[str, float]:
    """Each metric's median, and the objectives' intervals if the spread is known.

    A tag holds the intervals of all metrics, because as metrics they would triple the number of charts. No name
    contains a slash, because MLflow's charts put such names into sections above all others.
    """
    found = {name: reading.median for name, reading in trial.metrics.items()}
    for objective in record.objectives:
        reading = trial.metrics.get(objective.metric)
        if reading is not None and reading.n > 1:
            found |= {f"{objective.metric}.low": reading.low, f"{objective.metric}.high": reading.high}
    return _finite(found)


def _sweep_params(record: SweepRecord) -> dict[str, str]:
    """What was searched, with its values, and what was fixed. A resume changes neither, since MLflow could not."""
    found = {key: f"searched: {_values(described)}"[:PARAM_LIMIT] for key, described in record.space.items()}
    base = record.baseline_configuration
    for key, value in ({} if base is None else base.to_dict()).items():
        if key not in found:
            shown = record.model.base_quant if key == "quant" and value is None else value
            text = "as found" if shown is None else _flag(shown) if isinstance(shown, bool) else str(shown)
            found[key] = f"fixed: {text}"[:PARAM_LIMIT]
    return found


def _values(described: Any) -> str:
    """The values of one searched parameter: ``1 to 8``, ``0 to 30 in steps of 10``, ``64, 256, 512``."""
    if isinstance(described, Mapping):
        step = described.get("step") or 1
        steps = f" in steps of {step}" if step != 1 else ""
        return f"{described.get('low')} to {described.get('high')}{steps}"
    values = described if isinstance(described, list | tuple) else [described]
    return ", ".join("as found" if v is None else _flag(v) if isinstance(v, bool) else str(v) for v in values)


def _sweep_metrics(record: SweepRecord) -> dict[str, float]:
    """The objectives of the pick and the baseline, so that MLflow's table of runs can compare sweeps."""
    found: dict[str, float] = {}
    for role, number in (("pick", record.recommended), ("baseline", record.baseline)):
        for trial in record.trials:
            if trial.number == number:
                readings = {o.metric: trial.metrics.get(o.metric) for o in record.objectives}
                found |= {f"{role}.{name}": r.median for name, r in readings.items() if r is not None}
    if record.idle_watts is not None:
        found["idle_watts"] = record.idle_watts.median
    return _finite(found)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _trial_name(record: SweepRecord, trial: TrialRecord) -> str:
    """The name for legends and for a table's first column, such as ``#12 · 41.3 tok/s · 23.1 W``."""
    parts = [f"#{trial.number}"]
    if trial.state in ("complete", "dominated"):
        for objective in record.objectives:
            reading = trial.metrics.get(objective.metric)
            if reading is not None:
                parts.append(f"{figure(reading.median)} {unit(objective.metric, record.power)}")
    if trial.state != "complete":
        parts.append(trial.state.replace("_", " "))
    elif not trial.feasible:
        parts.append("breaks a constraint")
    return " · ".join(parts)


def _trial_note(trial: TrialRecord) -> str:
    """The child's description: why it has no figures, or their caveats; empty if there is nothing to say."""
    parts = []
    if trial.state != "complete":
        parts.append(
            f"**{trial.state.replace('_', ' ')}**: {clean(trial.reason or 'no reason was recorded')}"
        )
    elif not trial.feasible:
        parts.append(f"**{clean(reason(trial))}**: it cannot be recommended")
    parts += [f"- {caveat.advice}" for caveat in trial.caveats]
    if trial.log_tail:
        lines = "\n".join(clean(line).replace("```", "'''") for line in trial.log_tail)
        parts.append(f"Last lines of the engine's log:\n```\n{lines[-2000:]}\n```")
    return "\n\n".join(parts)
