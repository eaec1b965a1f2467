"""Update one run of an MLflow store: write only what differs from the record.

Repeating a call is harmless, and a kill between two calls loses nothing: the next call finds what is missing.
"""

from __future__ import annotations

import time
from typing import Any

from sweeper.errors import StoreError
from sweeper.tracking.projection import FRONT, NAME, NOTE, RUN_NAME, RunImage

BEGIN, END = "<!-- sweeper -->", "<!-- /sweeper: what stands outside these two lines is yours -->"


class ForeignRunError(StoreError):
    """A run has this trial's tags but another trial's parameters. A retry cannot help."""


def bring(client: Any, run: Any, image: RunImage) -> None:
    """Write to ``run`` everything in ``image`` that the run lacks; the status last.

    Tags, metrics and artifacts that a user added stay.

    Raises:
        ForeignRunError: the run has another value for a parameter, so it is not this trial's run.
    """
    from mlflow.entities import Metric, Param, RunTag

    run_id, here = run.info.run_id, run.data
    for key, value in image.params.items():
        if here.params.get(key, value) != value:
            raise ForeignRunError(
                f"run {run_id} in MLflow says {key}={here.params[key]}, this trial had {key}={value}: "
                "it belongs to another sweep of this name; choose another name with name=NAME"
            )
    wanted = dict(image.tags)
    if image.name != run.info.run_name == here.tags.get(NAME):
        # Written before NAME: after a kill between the two, the name must not look like one that the user chose.
        wanted = {RUN_NAME: image.name} | wanted
    if NOTE in wanted:
        wanted[NOTE] = merged_note(here.tags.get(NOTE, ""), wanted[NOTE])
    # MLflow shows the value with the latest time: first values get the trial's end, later values the present time.
    at = image.end_ms or image.start_ms
    if here.metrics:
        at = max(at + 1, round(1000 * time.time()))
    params = [Param(k, v) for k, v in image.params.items() if k not in here.params]
    tags = [RunTag(k, v) for k, v in wanted.items() if here.tags.get(k) != v]
    metrics = [Metric(k, v, at, 0) for k, v in image.metrics.items() if here.metrics.get(k) != v]
    if params or tags or metrics:
        client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
    # The image never has the curve's name, and while the sweep runs it has no tags about the front.
    kept = {
        "sweeper.hypervolume",
        *image.tags,
        *(() if FRONT in image.tags else (FRONT, "sweeper.role")),
    }
    for key in here.tags:
        if key.startswith("sweeper.") and key not in kept:
            client.delete_tag(run_id, key)
    if image.end_ms is None:
        if run.info.status != image.status:
            client.update_run(run_id, status=image.status)
    elif (run.info.status, run.info.end_time) != (image.status, image.end_ms):
        client.set_terminated(run_id, status=image.status, end_time=image.end_ms)


def merged_note(there: str, ours: str) -> str:
    """``there`` with sweeper's part replaced by ``ours``; the user's own text around it stays."""
    block = f"{BEGIN}\n{ours}\n{END}"
    head, begin, rest = there.partition(BEGIN)
    if not begin:
        return f"{block}\n\n{there}" if there else block
    _, end, tail = rest.partition(END)
    return f"{head}{block}{tail if end else ''}"
