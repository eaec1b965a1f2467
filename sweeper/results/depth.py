"""What a full context changes: notes on the speed of the recommended trial and of its rivals there."""

from __future__ import annotations

from collections.abc import Iterator

from sweeper.measure.trial import MOST_FILL_SECONDS
from sweeper.records import Reading, SweepRecord, TrialRecord
from sweeper.results.front import too_noisy

FULL = "tokens_per_second_at_full_depth"


def full_context_notes(record: SweepRecord) -> Iterator[str]:
    """Notes on full contexts: the pick beside the default there, and which finalist overtakes the pick."""
    if record.recommended is None:
        return
    pick = record.trial(record.recommended)
    depth = record.workload.full_depth(int(pick.metrics["n_ctx"].median)) if "n_ctx" in pick.metrics else None
    if depth is None:
        return
    if FULL not in pick.metrics:
        prompt = pick.metrics.get("prompt_tokens_per_second")
        seconds = (depth - (record.workload.depth or 0)) / prompt.median if prompt else 0.0
        if pick.remeasured and seconds > MOST_FILL_SECONDS:
            yield (
                f"the speed with a full context ({depth:,} tokens) was not measured, because filling it takes about "
                f"{seconds:.0f} s (computed)"
            )
        return
    if "tokens_per_second" in pick.metrics and too_noisy(pick.metrics["tokens_per_second"]):
        return  # the machine was disturbed: one figure beside such a figure tells nobody anything
    base = None if record.baseline in (None, pick.number) else record.trial(record.baseline)
    beside = (
        f", the default configuration {_speed(base.metrics[FULL])}" if base and FULL in base.metrics else ""
    )
    yield f"with a full context ({depth:,} tokens), #{pick.number} generates {_speed(pick.metrics[FULL])}{beside}"
    overtakes = [t for t in record.trials if t.feasible and _overtakes(t, pick)]
    if overtakes:
        best = max(overtakes, key=lambda t: t.metrics[FULL].median)
        yield (
            f"the order turns with the context: #{best.number} is slower than #{pick.number} in a short context and "
            f"faster in a full one ({_speed(best.metrics[FULL])}); prefer it for long contexts"
        )


def _overtakes(trial: TrialRecord, pick: TrialRecord) -> bool:
    """Whether a trial is slower than the pick in a short context and faster in a full one, both beyond noise."""
    metrics, of_pick = trial.metrics, pick.metrics
    if FULL not in metrics or metrics["n_ctx"] != of_pick["n_ctx"]:
        return False
    slower = metrics["tokens_per_second"].high < of_pick["tokens_per_second"].low
    return slower and metrics[FULL].low > of_pick[FULL].high


def _speed(reading: Reading) -> str:
    doubt = " (not reliable: too noisy)" if too_noisy(reading) else ""
    return f"{reading.median:.3g} tok/s{doubt}"
