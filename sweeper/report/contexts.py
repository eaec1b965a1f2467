"""How long a context one can afford: a table of what the default and the best settings give at each context."""

from __future__ import annotations

from typing import Any

from sweeper.metrics import FIRST_WHEN_FULL, describe
from sweeper.records import SweepRecord, TrialRecord
from sweeper.report import words
from sweeper.report.caveats import reason
from sweeper.report.tables import Row, Table
from sweeper.results.contexts import Rung, metrics_when_full, rungs
from sweeper.results.objectives import cost_metric
from sweeper.results.picks import parse_pick

TITLE = "Contexts, each measured when it is full"
LEGEND = (
    "First word: the time to the first token if your prompt fills the context. "
    f"± ?: measured only once; {words.MISSING}: not measured."
)


def contexts_table(record: SweepRecord) -> Table | None:
    """A row for the default settings at each context, and for better ones; None if contexts are not searched."""
    found = rungs(record)
    if not found:
        return None
    speed, watts = metrics_when_full(record)
    shown = [t for rung in found for t in (rung.default, *rung.others) if t is not None]
    metrics = [
        speed,
        watts,
        "memory_mib",
        *(["vram_mib"] if _is_known(shown, "vram_mib") else []),
        FIRST_WHEN_FULL,
    ]
    doubt = words.doubt(record.power)
    heads = {speed: "tok/s", watts: f"W{doubt}", "memory_mib": "MiB", "vram_mib": "VRAM MiB"}
    rows = []
    for rung in found:
        for trial in (rung.default, *rung.others):
            best = trial is not None and trial.number == record.recommended
            cells = [words.MISSING if trial is None else words.figures(trial, metric) for metric in metrics]
            rows.append(
                Row(
                    [f"{'★' if best else ' '} {rung.n_ctx:,}", *cells],
                    kind="pick" if best else "",
                    below=_below(record, rung, trial),
                )
            )
    # How soon a narrow terminal drops each column: the question is of context, speed and first word.
    gives_way = [0, 0, 1, 3, *([2] if "vram_mib" in metrics else []), 0]
    return Table(["  context", *(heads.get(m, "first word s") for m in metrics)], rows, gives_way=gives_way)


def _is_known(trials: list[TrialRecord], metric: str) -> bool:
    return any(t.metrics[metric].median for t in trials if metric in t.metrics)


def _below(record: SweepRecord, rung: Rung, trial: TrialRecord | None) -> str:
    """What the settings of a row are, and what keeps it from counting."""
    if trial is None:
        return f"default settings: {_why_not_tried(record, rung)}"
    if trial is rung.default:
        said = ["default settings"]
    else:
        step = next(step for step in record.ladder if step.n_ctx == rung.n_ctx)
        said = [_kind_of(record, rung, trial), words.settings(trial.configuration, step)]
    if not trial.feasible:
        said.append(words.clean(reason(trial)))
    elif not trial.remeasured:
        said.append("screening only")
    return " · ".join(said)


def _kind_of(record: SweepRecord, rung: Rung, trial: TrialRecord) -> str:
    """``better settings``: faster than the default ones. Those that are not stand here for what they save."""
    speed, _ = metrics_when_full(record)
    both = [t.metrics[speed].median for t in (rung.default, trial) if t is not None and speed in t.metrics]
    if len(both) < 2 or both[1] > both[0]:
        return "better settings"
    cost, saves = cost_metric(record), parse_pick(record.pick).kind in ("longest", "within", "at-least")
    return "recommended settings" + (f" (least {describe(cost).title})" if cost and saves else "")


def _why_not_tried(record: SweepRecord, rung: Rung) -> str:
    """Why the ladder ended below a context."""
    if record.state == "running":
        return "not tried yet"
    tried = [r for r in rungs(record) if r.default is not None and r.n_ctx < rung.n_ctx]
    if not tried:
        return "not tried"
    last = tried[-1]
    assert last.default is not None
    if last.default.feasible:
        return "not tried, because the time was over"
    return f"not tried, because {last.n_ctx:,} tokens already failed or broke a constraint"


def summary(record: SweepRecord) -> str:
    """The longest contexts that keep every constraint: with the default settings, and with better ones."""
    found = rungs(record)
    default = [r.n_ctx for r in found if r.default is not None and r.default.feasible]
    every = [t.configuration.n_ctx for t in record.trials if t.feasible]
    limits = words.limits(record.constraints)
    kept = f"keeps the constraints ({limits})" if limits else "runs"
    if not default:
        said = f"No context {kept} with the default settings."
    else:
        said = f"With the default settings, {max(default):,} tokens is the longest context that {kept}."
    if every and max(every) > max(default, default=0):
        said += f" With better settings, it is {max(every):,}."
    if every and max(every) == found[-1].n_ctx:
        said += " Longer ones were not tried: space.n_ctx sets the contexts."
    return said


def contexts_document(record: SweepRecord) -> list[dict[str, Any]]:
    """The rows of the table for programs, without the figures. ``trial`` is None where nothing was tried."""
    return [
        {
            "n_ctx": rung.n_ctx,
            "settings": "default" if trial is rung.default else "better",
            "trial": None if trial is None else trial.number,
            "keeps_limits": trial is not None and trial.feasible,
            "why_not": _why_not(record, rung, trial),
            "recommended": trial is not None and trial.number == record.recommended,
        }
        for rung in rungs(record)
        for trial in (rung.default, *rung.others)
    ]


def _why_not(record: SweepRecord, rung: Rung, trial: TrialRecord | None) -> str | None:
    if trial is None:
        return _why_not_tried(record, rung)
    return None if trial.feasible else reason(trial)
