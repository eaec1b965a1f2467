"""Descriptions in MLflow: the parent's alone answers "what should I run?". Pure; markdown."""

from __future__ import annotations

from sweeper.records import SweepRecord


def describe(record: SweepRecord) -> str:
    """The parent run's description."""
    return f"Sweep {record.sweep}: {len(record.trials)} trials."


def describe_experiment(record: SweepRecord) -> str:
    """The experiment's description."""
    return f"Sweeps of {record.model.name} by sweeper."
