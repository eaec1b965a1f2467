"""What stands in a store, read with MLflow's own client, in a shape that two stores can be compared by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeper.files import sqlite_address
from sweeper.records import SweepRecord
from sweeper.tracking.projection import sweep_id


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def sqlite_of(root: Path) -> str:
    return sqlite_address(root / "mlflow.db")


def runs_of(client: Any, record: SweepRecord) -> tuple[Any, list[Any]]:
    """The parent and its children by trial number; more than one parent is an error."""
    everything = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(everything, f"tags.`sweeper.id` = '{sweep_id(record)}'", max_results=1000)
    (parent,) = (r for r in runs if r.data.tags["sweeper.kind"] == "sweep")
    children = [r for r in runs if r.data.tags["sweeper.kind"] == "trial"]
    assert all(r.data.tags["mlflow.parentRunId"] == parent.info.run_id for r in children)
    return parent, sorted(children, key=lambda r: int(r.data.tags["sweeper.trial"]))


def seen(client: Any, record: SweepRecord) -> list[dict[str, Any]]:
    """Every run of a sweep with all that a user sees of it, and how often each metric was logged."""
    parent, children = runs_of(client, record)
    return [_seen(client, run) for run in (parent, *children)]


def _seen(client: Any, run: Any) -> dict[str, Any]:
    mine = ("sweeper.id", "sweeper.started", "sweeper.sweep", "mlflow.parentRunId")
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "times": (run.info.start_time, run.info.end_time),
        "params": run.data.params,
        "metrics": run.data.metrics,
        "tags": {k: v for k, v in run.data.tags.items() if k not in mine},
        "logged": {
            key: len(client.get_metric_history(run.info.run_id, key))
            for key in ("watts", "hypervolume", "pick.watts")  # one of each kind: every history is a query
            if key in run.data.metrics
        },
        "files": sorted(f.path for f in client.list_artifacts(run.info.run_id)),
    }
