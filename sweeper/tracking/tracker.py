"""``Tracker`` writes a sweep and its trials to MLflow."""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import yaml

from sweeper.errors import StoreError
from sweeper.records import SweepRecord, TrialRecord, to_plain
from sweeper.tracking import store
from sweeper.tracking.description import describe, describe_experiment
from sweeper.tracking.projection import NOTE, PARENT, experiment_name, sweep_id, sweep_image, trial_image
from sweeper.tracking.reconcile import ForeignRunError, bring
from sweeper.tracking.views import view_tag

P = ParamSpec("P")
T = TypeVar("T")

RETRY_SECONDS = (0.5, 2.0)  # enough for a server that restarts or a database that is busy
MOST_RUNS = 50_000  # in one answer of a search: MLflow's limit, and more than any sweep has
MOST_METRICS = 1000  # in one call: MLflow's limit


def _patiently(
    work: Callable[Concatenate[Tracker, P], T],
) -> Callable[Concatenate[Tracker, P], T]:
    """Retry ``work`` when the store fails. ``work`` must look at what the store has before it writes."""

    @functools.wraps(work)
    def patient(self: Tracker, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._gone:
            store.probe(self._place)  # quick, so that a server that is still gone does not slow the sweep
        for wait in () if self._gone else RETRY_SECONDS:
            try:
                return work(self, *args, **kwargs)
            except ForeignRunError:
                raise
            except StoreError:
                self._forget()
                time.sleep(wait)
        self._gone = True
        self._forget()
        result = work(self, *args, **kwargs)
        self._gone = False
        return result

    return patient


class Tracker:
    """Writes sweeps to one MLflow store.

    Every method may be called again: it writes only what is missing, whatever a killed process left. The sweep's
    lock ensures that only one process writes a sweep.

    The methods raise only ``StoreError`` when the store fails (server gone, disk full). The sweep can go on, and
    ``sweep_finished`` writes everything that is missing. ``record.started_utc`` must stay the same through all
    resumes: together with name and machine it identifies the sweep.
    """

    def __init__(
        self, place: store.Location, client: store.GuardedClient, experiment: str | None = None
    ) -> None:
        self._place = place
        self._client = client
        self._experiment = experiment
        self._parents: dict[str, Any] = {}  # sweep id -> the parent run's `info`
        self._children: dict[
            str, dict[str, str]
        ] = {}  # parent's run id -> trial number -> the trial's run id
        self._gone = False  # the last call failed despite retries: the next one tries once

    @classmethod
    def open(cls, uri: str | None, root: Path, experiment: str | None = None) -> Self:
        """Open the store at ``uri``, or the SQLite store in the folder ``root`` if ``uri`` is None.

        ``experiment`` names the MLflow experiment; None: the model's name.

        Raises:
            StoreError: the store cannot be reached, read or written. This takes a few seconds at most.
        """
        place = store.location(uri, root)
        return cls(place, store.connect(place), experiment)

    @_patiently
    def sweep_started(self, record: SweepRecord) -> str:
        """Create the sweep's parent run, or find the one of an earlier process; returns its run id."""
        self._bring_parent(record)
        self._log_opening(record)
        return str(self._parent(record).run_id)

    @_patiently
    def trial_finished(self, record: SweepRecord, trial: TrialRecord) -> None:
        """Write one trial's run, or update it."""
        parent = self._parent(record)
        if parent.run_id not in self._children:
            runs = self._trial_runs(parent)
            self._children[parent.run_id] = {number: run.info.run_id for number, run in runs.items()}
        known = self._children[parent.run_id]
        run_id = known.get(str(trial.number))
        run = self._client.get_run(run_id) if run_id else None
        known[str(trial.number)] = self._bring_trial(record, trial, run)

    @_patiently
    def sync(self, record: SweepRecord) -> None:
        """Write whatever is missing, and close runs that an earlier process left open."""
        self._sync(record)

    @_patiently
    def sweep_finished(self, record: SweepRecord, files: Mapping[str, Path]) -> None:
        """Write all trials, the parent's description and figures, and ``files``.

        The keys of ``files`` are the paths in MLflow; each ends with its file's own name.
        """
        self._log_opening(record)
        for name, path in files.items():
            folder = name.rpartition("/")[0]
            self._client.log_artifact(self._parent(record).run_id, str(path), folder or None)
        self._sync(record)  # last, so that a parent marked FINISHED has everything

    def _sync(self, record: SweepRecord) -> None:
        self._parents.pop(sweep_id(record), None)  # the user may have deleted it meanwhile
        parent = self._parent(record)
        children = self._trial_runs(parent)
        for trial in record.trials:
            self._bring_trial(record, trial, children.pop(str(trial.number), None))
        for run in children.values():
            if run.info.status in ("RUNNING", "SCHEDULED") and run.info.lifecycle_stage == "active":
                self._client.set_terminated(run.info.run_id, status="KILLED")
        if record.state != "running" and record.hypervolume:
            self._log_hypervolume(record)
        self._bring_parent(record)

    def _bring_parent(self, record: SweepRecord) -> None:
        image = sweep_image(record)
        run = self._client.get_run(self._parent(record).run_id)
        bring(self._client, run, replace(image, tags={**image.tags, NOTE: describe(record)}))

    def _trial_runs(self, parent: Any) -> dict[str, Any]:
        """The oldest run of each trial below ``parent``, by the trial's number."""
        runs: dict[str, Any] = {}
        for run in self._search(parent.experiment_id, f"tags.`{PARENT}` = '{parent.run_id}'"):
            if "sweeper.trial" in run.data.tags:
                runs.setdefault(run.data.tags["sweeper.trial"], run)
        return runs

    def _forget(self) -> None:
        """Look at the store again before the next write: it may have changed while it did not answer."""
        self._parents.clear()
        self._children.clear()

    def _bring_trial(self, record: SweepRecord, trial: TrialRecord, run: Any | None) -> str:
        """Write one trial's run, which is created if ``run`` is None; returns its id."""
        image = trial_image(record, trial)
        if run is None:
            parent = self._parent(record)
            tags = {**image.tags, PARENT: parent.run_id}
            run = self._client.create_run(parent.experiment_id, image.start_ms, tags, image.name)
        if run.info.lifecycle_stage == "active":  # a run that the user deleted stays deleted
            bring(self._client, run, image)
        return str(run.info.run_id)

    def _parent(self, record: SweepRecord) -> Any:
        """The ``info`` of the sweep's parent run, which is created if missing."""
        key = sweep_id(record)
        if key not in self._parents:
            experiment_id = self._experiment_id(record)
            where = f"tags.`sweeper.id` = '{key}' and tags.`sweeper.kind` = 'sweep'"
            found = self._search(experiment_id, where)
            if found:
                self._restore(found[0].info)
            else:
                image = sweep_image(record)
                found = [self._client.create_run(experiment_id, image.start_ms, image.tags, image.name)]
            self._parents[key] = found[0].info
        return self._parents[key]

    def _restore(self, parent: Any) -> None:
        """Restore a deleted parent run with all its trials, because the sweep resumes."""
        if parent.lifecycle_stage == "active":
            return
        for run in self._search(parent.experiment_id, f"tags.`{PARENT}` = '{parent.run_id}'"):
            if run.info.lifecycle_stage != "active":
                self._client.restore_run(run.info.run_id)
        self._client.restore_run(
            parent.run_id
        )  # last, so that after a kill the next process restores the rest

    def _search(self, experiment_id: str, where: str) -> list[Any]:
        """All runs that match, oldest first, including deleted ones."""
        from mlflow.entities import ViewType

        order = ["attributes.start_time ASC"]
        return list(self._client.search_runs([experiment_id], where, ViewType.ALL, MOST_RUNS, order))

    def _experiment_id(self, record: SweepRecord) -> str:
        """The sweep's experiment, which is created or restored if necessary."""
        name = experiment_name(record, self._experiment)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            tags = {
                "sweeper.kind": "experiment",
                "sweeper.model": record.model.name,
                "mlflow.experimentKind": "custom_model_development",  # otherwise its page opens in GenAI mode
                NOTE: describe_experiment(record),
            }
            # Fails if another sweep of this model created it first; the next attempt finds it.
            return str(self._client.create_experiment(name, self._place.artifacts, tags))
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _log_opening(self, record: SweepRecord) -> None:
        """Log what is known before the first trial: the sweep's view, its configuration and the machine."""
        parent = self._parent(record)
        key, value = view_tag(record)
        if key not in self._client.get_experiment(parent.experiment_id).tags:  # keep the user's changes
            self._client.set_experiment_tag(parent.experiment_id, key, value)
        config = yaml.safe_dump(to_plain(dict(record.config)), sort_keys=False, allow_unicode=True)
        machine = json.dumps(to_plain(record.machine), indent=2, ensure_ascii=False) + "\n"
        self._client.log_text(parent.run_id, config, "config.yaml")
        self._client.log_text(parent.run_id, machine, "machine.json")

    def _log_hypervolume(self, record: SweepRecord) -> None:
        """Log the search's progress as one metric over trials.

        The curve depends on the final reference point, so a resume can change all of it. MLflow cannot delete a
        metric, so a changed curve gets a new name, and a tag names the valid one.
        """
        from mlflow.entities import Metric

        run_id = self._parent(record).run_id
        curve = list(enumerate(record.hypervolume))
        for edition in itertools.count(1):
            name = "hypervolume" if edition == 1 else f"hypervolume.{edition}"
            there = sorted((m.step, m.value) for m in self._client.get_metric_history(run_id, name))
            if there == curve[: len(there)]:
                break
        now = round(1000 * time.time())
        missing = [Metric(name, value, now, step) for step, value in curve[len(there) :]]
        for begin in range(0, len(missing), MOST_METRICS):
            self._client.log_batch(run_id, metrics=missing[begin : begin + MOST_METRICS])
        self._client.set_tag(run_id, "sweeper.hypervolume", name)
