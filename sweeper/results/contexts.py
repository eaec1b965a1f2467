"""The contexts of a sweep that looks for the longest one: what the default and the best settings give at each."""

from __future__ import annotations

from dataclasses import dataclass

from sweeper.records import SweepRecord, TrialRecord
from sweeper.results.front import overlap

CONTEXT = "n_ctx"
DECODE = "tokens_per_second"


def default_at(record: SweepRecord, trial: TrialRecord) -> TrialRecord | None:
    """The trial that ``trial`` is compared with: the default settings at its context, or the baseline without a ladder.

    None if there is no such trial.
    """
    if not record.ladder:
        return next((t for t in record.trials if t.number == record.baseline), None)
    here = [step for step in record.ladder if step.n_ctx == trial.configuration.n_ctx]
    return next((t for t in record.trials if t.configuration in here), None)


def baseline_name(record: SweepRecord) -> str:
    """What trials are compared with, in words."""
    return "the default settings at this context" if record.ladder else "the baseline"


def metrics_when_full(record: SweepRecord) -> tuple[str, str]:
    """The metrics of decode speed and of power with a full context: windows may run there anyway."""
    if record.workload.depth is None:
        return DECODE, "watts"
    return f"{DECODE}_at_full_depth", "watts_at_full_depth"


@dataclass(frozen=True, slots=True)
class Rung:
    """One context of the ladder, in tokens.

    ``default`` is the trial of the default settings; None if they were not tried there. ``others`` are trials worth
    showing beside it: the fastest one, if it is faster beyond noise, and the recommended one.
    """

    n_ctx: int
    default: TrialRecord | None
    others: tuple[TrialRecord, ...] = ()


def rungs(record: SweepRecord) -> tuple[Rung, ...]:
    """Every context of the ladder, the shortest first; empty if the sweep has no ladder."""
    speed, _ = metrics_when_full(record)
    found = []
    for step in record.ladder:
        default = next((t for t in record.trials if t.configuration == step), None)
        here = [t for t in record.trials if t.feasible and t.configuration.n_ctx == step.n_ctx]
        fast = [t for t in here if t is not default and _is_faster(t, default, speed)]
        others = [max(fast, key=lambda t: t.metrics[speed].median)] if fast else []
        others += [t for t in here if t.number == record.recommended and t not in (default, *others)]
        found.append(Rung(step.n_ctx, default, tuple(others)))
    return tuple(found)


def _is_faster(trial: TrialRecord, default: TrialRecord | None, speed: str) -> bool:
    """Whether a trial decodes faster than the default beyond noise; also true if the default does not count."""
    if speed not in trial.metrics:
        return False
    if default is None or not default.feasible or speed not in default.metrics:
        return True
    here, there = trial.metrics[speed], default.metrics[speed]
    return here.median > there.median and not overlap(here, there)
