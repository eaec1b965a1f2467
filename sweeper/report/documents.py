"""The front and the recommendation as plain documents of schema 1, for other programs to read."""

from __future__ import annotations

from typing import Any

from sweeper.records import SCHEMA, DraftModel, Reading, SweepRecord, TrialRecord, to_plain
from sweeper.report.caveats import why_nothing
from sweeper.report.contexts import contexts_document
from sweeper.report.picks import Picked, current, marks, picks, recommended
from sweeper.report.why import why_document
from sweeper.report.words import baseline_of, half_width
from sweeper.results.price import month_of
from sweeper.results.provisional import visits_of


def front_document(record: SweepRecord) -> dict[str, Any]:
    """The content of ``front.json``: the sweep, the baseline, every point of the front, and the picks by name.

    ``contexts`` has rows only if the sweep looks for the longest one.
    """
    named = marks(record)
    return {
        **_about(record),
        "cost_per_month": _month(record),
        "contexts": [_context(record, row) for row in contexts_document(record)],
        "front": [{"picks": list(named.get(t.number, ())), **_point(t)} for t in record.on_front()],
        "picks": {
            picked.pick: {
                "trial": picked.trial.number,
                "words": picked.words,
                "provisional": picked.provisional,
            }
            for picked in picks(record)
        },
        "current_pick": _current(record),
        "why": why_document(record),
    }


def _context(record: SweepRecord, row: dict[str, Any]) -> dict[str, Any]:
    """One row of the contexts with the figures of its trial, none where it was not tried."""
    metrics = {} if row["trial"] is None else record.trial(row["trial"]).metrics
    return {**row, "metrics": {name: reading_document(reading) for name, reading in metrics.items()}}


def recommendation_document(record: SweepRecord) -> dict[str, Any]:
    """The content of ``recommendation.yaml``. Without a recommendation ``recommended`` is null, with a reason."""
    best = recommended(record)
    quant = None if best is None else best.trial.configuration.quant
    return {
        **_about(record, quant),
        "cost_per_month": _month(record),
        "recommended": None if best is None else _picked(best),
        "reason": None if best else f"{why_nothing(record)}; so nothing is recommended",
        "others": [_picked(picked) for picked in picks(record) if not picked.recommended],
    }


def _about(record: SweepRecord, quant: str | None = None) -> dict[str, Any]:
    model = record.model
    file = model.files.get(quant or model.base_quant)
    baseline = baseline_of(record)
    return {
        "schema": SCHEMA,
        "sweep": record.sweep,
        "state": record.state,
        "updated_utc": record.updated_utc,
        "sweeper_version": record.sweeper_version,
        "machine": to_plain(record.machine),
        "engine": to_plain(record.engine),
        "model": {
            "name": model.name,
            "path": file.path if file else None,
            "sha256": file.sha256 if file else None,
            "architecture": model.architecture,
            "quantisation": quant or model.base_quant,
            "source": model.source,
            **({"draft": _draft(model.draft)} if model.draft else {}),
        },
        "power": {
            "source": record.power.name,
            **{key: getattr(record.power, key) for key in ("interface", "scope", "kind", "device", "note")},
        },
        "workload": to_plain(record.workload),
        "objectives": [to_plain(objective) for objective in record.objectives],
        "constraints": [str(constraint) for constraint in record.constraints],
        "caveats": _caveats(record.caveats),
        "baseline": None if baseline is None else _point(baseline),
    }


def _current(record: SweepRecord) -> dict[str, Any] | None:
    """The pick of a sweep so far, which nothing recommends before it was measured twice."""
    best = current(record)
    if best is None:
        return None
    about = {"pick": best.pick, "words": best.words, "provisional": best.provisional}
    return {**about, "recommended": best.recommended, **_point(best.trial)}


def _draft(draft: DraftModel) -> dict[str, str]:
    return {"path": draft.file.path, "sha256": draft.file.sha256, "spec_type": draft.spec_type}


def _month(record: SweepRecord) -> dict[str, Any] | None:
    """What the recommended trial costs a month, computed; null if it has no watts. ``idle`` is for the other hours."""
    best = recommended(record)
    cost = month_of(record, best.trial) if best else None
    if cost is None:
        return None
    return {
        "kind": "computed",
        "generating": cost.generating,
        "idle": cost.waiting,
        "idle_with_model": cost.waits_with_model,
        "watts": record.power.kind,
        "scope": record.power.scope,
        **to_plain(record.prices),
    }


def _picked(picked: Picked) -> dict[str, Any]:
    about = {"pick": picked.pick, "words": picked.words, "provisional": picked.provisional}
    return {**about, "apply": picked.apply_command, **_point(picked.trial)}


def _point(trial: TrialRecord) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "measured_twice": trial.remeasured,
        "visits": visits_of(trial),
        "configuration": trial.configuration.to_dict(),
        "metrics": {name: reading_document(reading) for name, reading in trial.metrics.items()},
        "missing": dict(trial.missing),
        "caveats": _caveats(trial.caveats),
    }


def reading_document(reading: Reading) -> dict[str, float | int | None]:
    """Low and high are null where one repeat knows no spread: they are not the median."""
    known = half_width(reading) is not None
    low, high = (reading.low, reading.high) if known else (None, None)
    return {"median": reading.median, "low": low, "high": high, "n": reading.n}


def _caveats(caveats: Any) -> dict[str, str]:
    return {caveat.name.lower(): caveat.advice for caveat in caveats}
