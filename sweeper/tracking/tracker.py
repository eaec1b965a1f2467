"""``Tracker``: keeps MLflow in step with a sweep. What a sweep calls, and nothing else."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

import yaml

from sweeper.errors import StoreError
from sweeper.records import SweepRecord, TrialRecord, to_plain
from sweeper.tracking import store
from sweeper.tracking.description import describe, describe_experiment
from sweeper.tracking.projection import (
    NOTE,
    PARENT,
    RunImage,
    experiment_name,
    sweep_id,
    sweep_image,
    trial_image,
)
from sweeper.tracking.reconcile import OPEN, ForeignRunError, bring, create
from sweeper.tracking.views import view_tag

T = TypeVar("T")

PAGE = 1000  # runs in one answer of a search: MLflow's own default
RETRY_SECONDS = (0.5, 2.0)  # a server that restarts or a database that is busy is back by then


@dataclass(slots=True)
class _Child:
    """A trial's run: as the store last showed it, or the image that was written since."""

    run_id: str
    run: Any = None
    written: RunImage | None = None


class Tracker:
    """Projects sweeps into one MLflow store.

    Every method may be repeated, and each brings the store to what it should be from whatever a killed
    process left. One process at a time writes a sweep (the sweep's own lock sees to that).

    A method that raises ``StoreError`` (server gone, disk full) left the store as far as it came: say so
    once, go on with the sweep, and call ``sweep_finished`` at the end as always: it writes all that is
    missing. Nothing but ``StoreError`` is raised for what a store does. ``record.started_utc`` must be the
    same through all resumes: with name and machine it is what a sweep is found again by.
    """

    def __init__(self, place: store.Location, client: store.GuardedClient) -> None:
        self._place = place
        self._client = client
        self._experiments: dict[str, str] = {}  # name -> id
        self._parents: dict[str, Any] = {}  # sweep id -> the parent's run as last read
        self._children: dict[str, dict[int, _Child]] = {}  # sweep id -> trial number -> its run
        self._gone = False  # the last call failed for good: try once, without patience

    @classmethod
    def open(cls, uri: str | None, root: Path) -> Self:
        """Open the store at ``uri``, or SQLite in the folder ``root`` where that is None.

        Raises:
            StoreError: where it cannot be reached, read or written; within a few seconds.
        """
        place = store.location(uri, root)
        return cls(place, store.connect(place))

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return self._place.uri

    def experiment_id(self, record: SweepRecord) -> str:
        """The id of the sweep's experiment, which is made where it is not there."""
        return self._do(lambda: self._experiment(record))

    def sweep_started(self, record: SweepRecord) -> str:
        """Open the sweep's parent run, or the one that an earlier process left; returns its run id."""

        def work() -> str:
            run = self._bring_parent(record)
            self._save_view(record)
            self._log_texts(run.info.run_id, _opening_files(record))
            return str(run.info.run_id)

        return self._do(work)

    def trial_finished(self, record: SweepRecord, trial: TrialRecord) -> None:
        """Write one trial's run, or bring it to the trial's final figures."""
        self._do(lambda: self._bring_trial(record, trial))

    def sync(self, record: SweepRecord) -> None:
        """Write whatever is missing, and close what an earlier process left open."""
        self._do(lambda: self._sync(record))

    def sweep_finished(self, record: SweepRecord, files: Mapping[str, Path]) -> None:
        """Conclude: all trials, the parent's description and figures, ``files`` by their names in MLflow."""

        def work() -> None:
            run_id = self._parent(record).info.run_id
            self._save_view(record)
            self._log_texts(run_id, _opening_files(record))
            for name, path in files.items():
                self._log_file(run_id, name, path)
            self._sync(record)  # last, so that a parent that reads FINISHED has everything

        self._do(work)

    # -- patience -----------------------------------------------------------------------------------

    def _do(self, work: Callable[[], T]) -> T:
        """Run ``work``, again after a moment where it failed: it looks first at what stands there."""
        if self._gone:
            store.probe(self._place)  # a server that is still gone costs a sweep no more than this
        for wait in () if self._gone else RETRY_SECONDS:
            try:
                return self._once(work)
            except ForeignRunError:
                raise
            except StoreError:
                time.sleep(wait)
        self._gone = True
        result = self._once(work)
        self._gone = False
        return result

    def _once(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except StoreError:
            self._experiments.clear()
            self._parents.clear()
            self._children.clear()
            raise

    # -- runs ---------------------------------------------------------------------------------------

    def _sync(self, record: SweepRecord) -> None:
        self._parents.pop(sweep_id(record), None)
        self._children.pop(sweep_id(record), None)
        children = self._known(record)
        for trial in record.trials:
            self._bring_trial(record, trial)
        for number in set(children) - {trial.number for trial in record.trials}:
            run = children[number].run
            if run.info.status in OPEN and run.info.lifecycle_stage == "active":
                self._client.set_terminated(run.info.run_id, status="KILLED")
        self._log_hypervolume(record)
        self._bring_parent(record)

    def _bring_parent(self, record: SweepRecord) -> Any:
        image = sweep_image(record)
        run = self._parent(record)
        tags = {**image.tags, NOTE: describe(record)}
        bring(self._client, run, replace(image, tags=tags))
        self._parents.pop(sweep_id(record), None)
        return run

    def _bring_trial(self, record: SweepRecord, trial: TrialRecord) -> None:
        image = trial_image(record, trial)
        children = self._known(record)
        child = children.get(trial.number)
        if child is None:
            marks = {PARENT: self._parent(record).info.run_id, "sweeper.trial": str(trial.number)}
            run = create(self._client, self._experiment(record), image, marks)
            child = children[trial.number] = _Child(run.info.run_id, run)
        if child.written == image:
            return
        run = child.run or self._client.get_run(child.run_id)
        if run.info.lifecycle_stage == "active":  # a trial that its user deleted stays deleted
            bring(self._client, run, image)
        child.run, child.written = None, image

    def _known(self, record: SweepRecord) -> dict[int, _Child]:
        """The sweep's children by trial number, read once."""
        key = sweep_id(record)
        if key not in self._children:
            parent = self._parent(record).info.run_id
            found: dict[int, _Child] = {}
            for run in self._search(self._experiment(record), f"tags.`{PARENT}` = '{parent}'"):
                number = run.data.tags.get("sweeper.trial", "")
                if number.isdecimal():
                    found.setdefault(int(number), _Child(run.info.run_id, run))
            self._children[key] = found
        return self._children[key]

    def _parent(self, record: SweepRecord) -> Any:
        key = sweep_id(record)
        if key not in self._parents:
            self._parents[key] = self._find_parent(record) or self._create_parent(record)
        return self._parents[key]

    def _find_parent(self, record: SweepRecord) -> Any:
        where = f"tags.`sweeper.id` = '{sweep_id(record)}' and tags.`sweeper.kind` = 'sweep'"
        runs = self._search(self._experiment(record), where)
        if not runs:
            return None
        if runs[0].info.lifecycle_stage != "active":
            return self._restore(record, runs[0])
        return runs[0]

    def _restore(self, record: SweepRecord, parent: Any) -> Any:
        """A sweep that its user deleted and then goes on with comes back with all its trials."""
        parent_id = parent.info.run_id
        for run in self._search(self._experiment(record), f"tags.`{PARENT}` = '{parent_id}'"):
            if run.info.lifecycle_stage != "active":
                self._client.restore_run(run.info.run_id)
        self._client.restore_run(
            parent_id
        )  # last: until then a killed process finds it deleted, and begins again
        return self._client.get_run(parent_id)

    def _create_parent(self, record: SweepRecord) -> Any:
        return create(self._client, self._experiment(record), sweep_image(record), {})

    def _search(self, experiment_id: str, where: str) -> list[Any]:
        """All runs that match, the oldest first, deleted ones too."""
        from mlflow.entities import ViewType

        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [experiment_id], where, ViewType.ALL, PAGE, ["attributes.start_time ASC"], token
            )
            found += page
            token = page.token
            if not token:
                return found

    def _experiment(self, record: SweepRecord) -> str:
        name = experiment_name(record)
        if name not in self._experiments:
            self._experiments[name] = self._find_experiment(name) or self._create_experiment(record, name)
        return self._experiments[name]

    def _find_experiment(self, name: str) -> str | None:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return None
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _create_experiment(self, record: SweepRecord, name: str) -> str:
        tags = {
            "sweeper.kind": "experiment",
            "sweeper.model": record.model.name,
            "mlflow.experimentKind": "custom_model_development",  # else its page opens in the GenAI mode
            NOTE: describe_experiment(record),
        }
        try:
            return str(self._client.create_experiment(name, self._place.artifacts, tags))
        except StoreError:
            found = self._find_experiment(name)  # another sweep of this model was faster
            if found is None:
                raise
            return found

    # -- the parent's curve and files ---------------------------------------------------------------

    def _log_hypervolume(self, record: SweepRecord) -> None:
        """The search's progress as one metric over trials.

        The curve is relative to the final reference point, so a resume can change all of it, and MLflow
        deletes no metric: a curve that changed gets a name of its own, and a tag says which one counts.
        """
        from mlflow.entities import Metric

        if record.state == "running" or not record.hypervolume:
            return
        parent = self._parent(record)
        curve = list(enumerate(record.hypervolume))
        name = "hypervolume"
        for edition in range(2, 1000):
            there = [(m.step, m.value) for m in self._client.get_metric_history(parent.info.run_id, name)]
            if sorted(there) == curve[: len(there)]:
                break
            name = f"hypervolume.{edition}"
        now = round(1000 * time.time())
        missing = [Metric(name, value, now, step) for step, value in curve[len(there) :]]
        for begin in range(0, len(missing), PAGE):
            self._client.log_batch(parent.info.run_id, metrics=missing[begin : begin + PAGE])
        self._client.set_tag(parent.info.run_id, "sweeper.hypervolume", name)

    def _save_view(self, record: SweepRecord) -> None:
        """The sweep's view of the page of runs, once: what its user changes in it later stays."""
        key, value = view_tag(record)
        experiment_id = self._experiment(record)
        if key not in self._client.get_experiment(experiment_id).tags:
            self._client.set_experiment_tag(experiment_id, key, value)

    def _log_texts(self, run_id: str, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._client.log_text(run_id, text, name)

    def _log_file(self, run_id: str, name: str, path: Path) -> None:
        """One file as ``name``; a name with slashes goes into folders."""
        folder, _, leaf = name.rpartition("/")
        if path.name == leaf:
            self._client.log_artifact(run_id, str(path), folder or None)
            return
        with store.store_errors(self._place.words), TemporaryDirectory(prefix="sweeper-") as temporary:
            copy = shutil.copyfile(path, Path(temporary) / leaf)
            self._client.log_artifact(run_id, str(copy), folder or None)


def _opening_files(record: SweepRecord) -> dict[str, str]:
    """What is known before the first trial: the composed configuration and the machine."""
    return {
        "config.yaml": yaml.safe_dump(to_plain(dict(record.config)), sort_keys=False, allow_unicode=True),
        "machine.json": json.dumps(to_plain(record.machine), indent=2, ensure_ascii=False) + "\n",
    }
