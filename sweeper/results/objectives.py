"""Decides which objectives of a sweep are its speed and its cost, and formats amounts."""

from __future__ import annotations

from collections.abc import Sequence

from sweeper.metrics import POWERS, SPEEDS, describe
from sweeper.records import Objective, SweepRecord, TrialRecord


def first_of(objectives: Sequence[Objective], preferred: Sequence[str], direction: str) -> str | None:
    """The first objective of ``direction`` that is in ``preferred``, else the first objective of that direction."""
    metrics = [o.metric for o in objectives if o.direction == direction]
    return next((m for m in metrics if m in preferred), metrics[0] if metrics else None)


def speed_metric(record: SweepRecord) -> str | None:
    """The objective that picks call speed: the first one in tok/s, else the first one that is maximised."""
    return first_of(record.objectives, SPEEDS, "maximize")


def cost_metric(record: SweepRecord) -> str | None:
    """The objective that picks call cost: the first one in W, else the first one that is minimised."""
    return first_of(record.objectives, POWERS, "minimize")


def amount_words(trial: TrialRecord, metric: str) -> str:
    """The median with its unit, such as ``18.4 tok/s``."""
    described = describe(metric)
    return f"{trial.metrics[metric].median:.4g} {described.unit or described.title}"
