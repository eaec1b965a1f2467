"""Bringing one run of an MLflow store to what it should be, by the fewest calls.

Every function compares with what stands in the store and writes the difference, so that repeating one is
harmless and being killed between two calls loses nothing: the next one finds what is missing.
"""

from __future__ import annotations

import time
from typing import Any

from sweeper.errors import StoreError
from sweeper.tracking.projection import FRONT, NAME, NOTE, RUN_NAME, RunImage

OPEN = ("RUNNING", "SCHEDULED")


class ForeignRunError(StoreError):
    """The run found by a trial's tags is not that trial's; trying again cannot help."""


def create(client: Any, experiment_id: str, image: RunImage, marks: dict[str, str]) -> Any:
    """A new run that carries the ``marks`` by which it is found again from its first moment on."""
    return client.create_run(
        experiment_id, start_time=image.start_ms, tags=dict(image.tags) | marks, run_name=image.name
    )


def bring(client: Any, run: Any, image: RunImage) -> bool:
    """Write to ``run`` what ``image`` has and it lacks; its status last. True where anything was written.

    What a user added (tags, metrics, artifacts of their own) stays.

    Raises:
        ForeignRunError: where the run has another value for a parameter, so that it is not this trial's run.
    """
    wrote = _bring_data(client, run, image)
    if run.info.status != image.status or (image.end_ms is not None and run.info.end_time != image.end_ms):
        if image.end_ms is None:
            client.update_run(run.info.run_id, status=image.status)
        else:
            client.set_terminated(run.info.run_id, status=image.status, end_time=image.end_ms)
        wrote = True
    return wrote


def _bring_data(client: Any, run: Any, image: RunImage) -> bool:
    from mlflow.entities import Metric, Param, RunTag

    here = run.data
    _same_trial(run, image)
    params = [Param(k, v) for k, v in image.params.items() if k not in here.params]
    tags = [RunTag(k, v) for k, v in _wanted_tags(run, image).items() if here.tags.get(k) != v]
    at = _metric_time(run, image)
    metrics = [Metric(k, v, at, 0) for k, v in image.metrics.items() if here.metrics.get(k) != v]
    stale = [
        k for k in here.tags if k.startswith("sweeper.") and k not in image.tags and k not in _kept(image)
    ]
    if params or tags or metrics:
        client.log_batch(run.info.run_id, metrics=metrics, params=params, tags=tags)
    for key in stale:
        client.delete_tag(run.info.run_id, key)
    return bool(params or tags or metrics or stale)


def _metric_time(run: Any, image: RunImage) -> int:
    """The trial's end for its first figures, now for those that replace them: MLflow takes the latest."""
    end = image.end_ms or image.start_ms
    return end if not run.data.metrics else max(end + 1, round(1000 * time.time()))


def _kept(image: RunImage) -> tuple[str, ...]:
    """Tags that the image does not speak of: the curve's, and while a sweep runs what its end said last."""
    return ("sweeper.hypervolume",) if FRONT in image.tags else ("sweeper.hypervolume", FRONT, "sweeper.role")


def _wanted_tags(run: Any, image: RunImage) -> dict[str, str]:
    wanted = dict(image.tags)
    if run.info.run_name != image.name and run.info.run_name == run.data.tags.get(NAME):
        # First, and so before NAME: a kill in between must not look like a user's new name.
        wanted = {RUN_NAME: image.name} | wanted
    if NOTE in wanted:
        wanted[NOTE] = merged_note(run.data.tags.get(NOTE, ""), wanted[NOTE])
    return wanted


def _same_trial(run: Any, image: RunImage) -> None:
    for key, value in image.params.items():
        there = run.data.params.get(key, value)
        if there != value:
            raise ForeignRunError(
                f"run {run.info.run_id} in MLflow says {key}={there}, this trial had {key}={value}: "
                "it belongs to another sweep of this name; choose another name with name=NAME"
            )


BEGIN, END = "<!-- sweeper -->", "<!-- /sweeper: what stands outside these two lines is yours -->"


def merged_note(there: str, ours: str) -> str:
    """``there`` with sweeper's part replaced by ``ours``; a user's own words around it stay."""
    block = f"{BEGIN}\n{ours}\n{END}"
    head, begin, rest = there.partition(BEGIN)
    if not begin:
        return f"{block}\n\n{there}" if there else block
    _, end, tail = rest.partition(END)
    return f"{head}{block}{tail if end else ''}"
