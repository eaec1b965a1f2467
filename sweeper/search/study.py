"""The primary record of a sweep on disk: an Optuna study in which every finished trial carries its whole record.

sweeper makes the MLflow runs and the reports from this study. The order of writes makes ``kill -9`` harmless.
sweeper first stores the record on the running trial, then tells Optuna the trial. After a kill between the two
steps, the next start tells the trial. After a kill before the first step, the next start asks for the trial again.
"""

from __future__ import annotations

import logging
import os
import shlex
import sqlite3
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sweeper.errors import ConfigError, StoreError, SweepMissingError
from sweeper.files import sqlite_address
from sweeper.locks import held
from sweeper.records import (
    ModelFile,
    ModelRecord,
    Objective,
    SweepRecord,
    TrialRecord,
    Visit,
    Window,
    from_plain,
    to_plain,
)

T = TypeVar("T")

if TYPE_CHECKING:
    import optuna

BUSY_SECONDS = 60.0  # SQLite waits this long for another process's write
# The attributes of the study and of its trials.
HEADER = "sweep"
VISIT = "final"
CONTROL = "control"
RECORD = "record"
WINDOWS = "windows"
DUPLICATE = "duplicate_of"
SET_ASIDE = "set_aside_by"
# Distinguishes this process from those that ran the sweep before it.
PROCESS = uuid.uuid4().hex

# The fields of the header that must be unchanged to resume a sweep, with the user's key for each.
_SAME = {
    "workload": "workload",
    "objectives": "objectives.targets",
    "constraints": "objectives.constraints",
}
OTHER_NAME = "give this sweep another name=…"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration that the sampler proposes."""

    number: int
    params: Mapping[str, Any]
    trial: Any  # optuna.Trial


class SweepStudy:
    """One sweep in ``<root>/optuna.db``."""

    def __init__(self, study: optuna.Study, root: Path) -> None:
        self._study = study
        self._root = root
        self._header: SweepRecord | None = None
        self._known: dict[str, int] = {}
        # A finished trial never changes, and no other process writes this sweep: the trials are read once.
        self._finished: dict[int, TrialRecord] | None = None

    # -- opening ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, root: Path, header: SweepRecord, sampler: Any = None) -> SweepStudy:
        """Open the sweep ``header.sweep``; create it if it does not exist.

        Raises:
            ConfigError: it exists with another space, workload, model or machine, or with other objectives or
                constraints.
            StoreError: the database cannot be read or written.
        """
        import optuna

        with _said_plainly(root):
            study = optuna.create_study(
                study_name=header.sweep,
                storage=_storage(root),
                directions=[o.direction for o in header.objectives],
                sampler=sampler,
                load_if_exists=True,
            )
            found = cls(study, root)
            if HEADER in study.user_attrs:
                found._demand_same(header)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    study.set_metric_names([o.metric for o in header.objectives])
                found.save_header(header)
        return found

    @classmethod
    def load(cls, root: Path, sweep: str) -> SweepStudy:
        """Open an existing sweep for reading. Raises SweepMissingError or StoreError."""
        import optuna

        if not (root / "optuna.db").exists():
            raise SweepMissingError(f"{root / 'optuna.db'} does not exist: run `sweeper sweep` first")
        with _said_plainly(root):
            try:
                study = optuna.load_study(study_name=sweep, storage=_storage(root))
            except KeyError:
                names = ", ".join(sweep_names(root)) or "none"
                raise SweepMissingError(f"there is no sweep {sweep!r}; the sweeps are: {names}") from None
        return cls(study, root)

    def plain_errors(self) -> AbstractContextManager[None]:
        """In this block, an error of the database (a full disk, a missing folder) raises StoreError."""
        return _said_plainly(self._root)

    def _structured(self, plain: Any, record: type[T]) -> T:
        """A record from its stored form. Raises StoreError if another version of sweeper stored it differently."""
        import cattrs

        try:
            return from_plain(plain, record)
        except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"the sweep {self._study.study_name!r} in {self._root / 'optuna.db'} cannot be read: another version "
                "of sweeper wrote it, or it is damaged; choose another root=…"
            ) from error

    def _demand_same(self, header: SweepRecord) -> None:
        had, new = (_jsonlike(to_plain(record)) for record in (self.header(), header))
        for field, key in _SAME.items():
            if had[field] != new[field]:
                raise ConfigError(f"{_difference(key, header.sweep, had[field], new[field])}; {OTHER_NAME}")
        demand_same_model(header.sweep, self.header().model, header.model)
        if had["machine"]["fingerprint"] != new["machine"]["fingerprint"]:
            raise ConfigError(
                f"name: the sweep {header.sweep!r} was measured on another machine "
                f"({had['machine']['cpu']}); {OTHER_NAME}"
            )
        # Last, because the workload, the model and the machine change what `auto` means in a space.
        if had["space"] != new["space"]:
            raise ConfigError(
                f"{_difference('space', header.sweep, had['space'], new['space'])}; {OTHER_NAME}"
            )
        fixed = [_fixed(record) for record in (self.header(), header)]
        if fixed[0] and fixed[0] != fixed[1]:
            raise ConfigError(f"{_difference('space', header.sweep, *fixed)}; {OTHER_NAME}")

    # -- the header ---------------------------------------------------------------------------------------

    def header(self) -> SweepRecord:
        """The record of the sweep without its trials."""
        if self._header is None:
            self._header = self._structured(self._study.user_attrs[HEADER], SweepRecord)
        return self._header

    def save_header(self, header: SweepRecord) -> None:
        """Store the record of the sweep without its trials."""
        self._study.set_user_attr(HEADER, to_plain(replace(header, trials=())))
        self._header = None

    # -- ask and tell -------------------------------------------------------------------------------------

    def enqueue(self, params: Mapping[str, Any]) -> None:
        """Queue these values as the next proposal, unless they are already in the queue.

        Optuna's own ``skip_if_exists`` would also skip a trial that was in flight when the sweep was killed.
        """
        import optuna

        waiting = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        if all(trial.system_attrs.get("fixed_params") != dict(params) for trial in waiting):
            self._study.enqueue_trial(dict(params))

    def ask(self, distributions: Mapping[str, Any]) -> Proposal:
        """The next proposal from the queue or the sampler."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns about every queued value that is not on its grid
            trial = self._study.ask(dict(distributions))
        return Proposal(trial.number, trial.params, trial)

    def duplicate(self, proposal: Proposal, of: int) -> None:
        """Close a proposal that was measured already, without a measurement; the sampler then looks elsewhere."""
        import optuna

        proposal.trial.set_user_attr(DUPLICATE, of)
        self._study.tell(proposal.number, state=optuna.trial.TrialState.PRUNED)

    def set_aside(self, proposal: Proposal) -> None:
        """Close a proposal that has no time. No sampler learns from it, and a resumed sweep may propose it again."""
        import optuna

        proposal.trial.set_user_attr(SET_ASIDE, PROCESS)
        self._study.tell(proposal.number, state=optuna.trial.TrialState.FAIL)

    def tell(
        self,
        proposal: Proposal,
        record: TrialRecord,
        objectives: Sequence[Objective],
        violations: Mapping[str, float],
        windows: Sequence[Window] = (),
    ) -> None:
        """Store a finished trial: its record first, then its values.

        Args:
            proposal: the proposal that was measured.
            record: the result.
            objectives: their medians are the values of a complete trial.
            violations: for every constraint, the distance beyond its bound; every trial has the same keys.
            windows: the raw windows.
        """
        trial = proposal.trial
        if windows:
            trial.set_user_attr(WINDOWS, to_plain(list(windows)))
        for key, violation in violations.items():
            trial.set_constraint(key, violation)
        trial.set_user_attr(RECORD, to_plain(record))
        self._remember(record)
        self._tell(record, objectives)

    def _tell(self, record: TrialRecord, objectives: Sequence[Objective]) -> None:
        import optuna

        states = optuna.trial.TrialState
        if record.state == "complete":
            values = [record.metrics[o.metric].median for o in objectives]
            self._study.tell(record.number, values)
        elif record.state in ("infeasible", "out_of_memory", "dominated"):
            # PRUNED with a violated constraint: samplers learn from the trial, and it never has a value.
            self._study.tell(record.number, state=states.PRUNED)
        else:
            self._study.tell(record.number, state=states.FAIL)

    def recover(self, objectives: Sequence[Objective]) -> tuple[int, ...]:
        """Clean up after a killed run: tell Optuna the finished trials, and queue the trials in flight again.

        Returns:
            The numbers of the trials that were in flight.
        """
        import optuna

        in_flight = []
        for trial in self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            if RECORD in trial.user_attrs:
                self._tell(self._structured(trial.user_attrs[RECORD], TrialRecord), objectives)
                continue
            in_flight.append(trial.number)
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            if trial.params:
                self.enqueue(trial.params)
        return tuple(in_flight)

    # -- reading ------------------------------------------------------------------------------------------

    def trials(self) -> tuple[TrialRecord, ...]:
        """Every finished trial in the order of the numbers, with the figures of its screening."""
        records = self._records()
        return tuple(records[number] for number in sorted(records))

    def _records(self) -> dict[int, TrialRecord]:
        if self._finished is None:
            self._finished = {}
            for trial in self._study.get_trials(deepcopy=False):
                if RECORD in trial.user_attrs:
                    self._remember(self._structured(trial.user_attrs[RECORD], TrialRecord))
        return self._finished

    def _remember(self, record: TrialRecord) -> None:
        self._records()[record.number] = record
        if record.state != "interrupted":
            self._known[record.configuration.digest] = record.number

    def known(self) -> Mapping[str, int]:
        """The trial number by configuration digest, for each trial that ran or was ruled out."""
        self._records()
        return self._known

    def windows(self, number: int) -> tuple[Window, ...]:
        """The raw windows of a trial's screening."""
        attrs = self._study.get_trials(deepcopy=False)[number].user_attrs
        return tuple(self._structured(attrs.get(WINDOWS, []), list[Window]))

    @property
    def optuna_study(self) -> optuna.Study:
        """The study itself, for samplers and stopping rules."""
        return self._study

    # -- the final stage ----------------------------------------------------------------------------------

    def save_visit(self, visit: Visit) -> None:
        """Store one visit of the final stage."""
        self._study.set_user_attr(f"{VISIT}/{visit.trial}/{visit.visit}", to_plain(visit))

    def save_control(self, count: int, control: Visit) -> None:
        """Store one measurement of the baseline after ``count`` trials, as a control for drift."""
        self._study.set_user_attr(f"{CONTROL}/{count}", to_plain(control))

    def controls(self) -> tuple[Visit, ...]:
        """The control measurements in their order."""
        return self._kept(CONTROL)

    def visits(self) -> tuple[Visit, ...]:
        """The visits so far, ordered by trial and visit."""
        return tuple(sorted(self._kept(VISIT), key=lambda v: (v.trial, v.visit)))

    def _kept(self, prefix: str) -> tuple[Visit, ...]:
        attrs = self._study.user_attrs.items()
        return tuple(self._structured(value, Visit) for key, value in attrs if key.startswith(f"{prefix}/"))


def sweep_names(root: Path) -> tuple[str, ...]:
    """The names of the sweeps in ``root``, the latest last."""
    import optuna

    if not (root / "optuna.db").exists():
        return ()
    with _said_plainly(root):
        summaries = optuna.get_all_study_summaries(storage=_storage(root), include_best_trial=False)
    own = [s for s in summaries if HEADER in s.user_attrs]
    own.sort(key=lambda s: str(s.user_attrs[HEADER].get("updated_utc", "")))
    return tuple(s.study_name for s in own)


def _storage(root: Path) -> Any:
    import optuna
    from sqlalchemy import event

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    database, fresh = root / "optuna.db", root / ".optuna.db.new"
    with held(root / "optuna.lock"):  # if two processes made the schema at once, one would fail
        if not database.exists() or database.stat().st_size == 0:
            # Another file, which then replaces the database: a kill cannot leave an incomplete database.
            fresh.unlink(missing_ok=True)
            optuna.storages.RDBStorage(sqlite_address(fresh)).engine.dispose()
            os.replace(fresh, database)
    storage = optuna.storages.RDBStorage(
        sqlite_address(database), engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}}
    )

    @event.listens_for(storage.engine, "connect")
    def write_ahead(connection: sqlite3.Connection, _: Any) -> None:
        # A write-ahead log syncs once per checkpoint, not twice per commit. A killed process loses no data.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # close the connections that were opened before the listener existed
    return storage


class _said_plainly(AbstractContextManager[None]):  # noqa: N801 - used as a function in `with`
    """Turns errors of the database into one line that says what to do."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            probe = self._root / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"cannot write in {self._root}: {error.strerror}; choose another root=…"
            ) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        import sqlalchemy.exc

        path = self._root / "optuna.db"
        if "database is locked" in _first_line(error):
            raise StoreError(
                f"another program is using {path}: wait until it ends, or choose another root=…"
            ) from error
        if isinstance(error, RuntimeError) and "version" in str(error):
            raise StoreError(
                f"{path} was written by another version of Optuna; upgrade it with "
                f"`optuna storage upgrade --storage {shlex.quote(sqlite_address(path))}`, or choose another root=…"
            ) from error
        if isinstance(error, (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)) or (
            type(error).__module__.startswith("optuna.") and "Storage" in type(error).__name__
        ):
            raise StoreError(
                f"cannot use {path}: {_first_line(error)}; repair it or choose another root=…"
            ) from error


def _first_line(error: BaseException) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause).splitlines()[0] if str(cause) else type(cause).__name__


def _jsonlike(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value, default=list))


def _difference(key: str, sweep: str, had: Any, new: Any) -> str:
    """What differs from the first start, with both values: of a mapping the first key, of a list the whole list."""
    if isinstance(had, dict):
        name = next(name for name in {**had, **new} if had.get(name) != new.get(name))
        key, had, new = f"{key}.{name}", had.get(name, "not searched"), new.get(name, "not searched")
    else:
        had, new = (_listed(values) for values in (had, new))
    return f"{key}: the sweep {sweep!r} was started with {had}, and now it is {new}"


def _listed(values: Sequence[Mapping[str, Any]]) -> str:
    """Objectives or constraints in words: ``watts minimize`` or ``kl_divergence <= 0.1``."""
    return ", ".join(" ".join(str(item) for item in value.values()) for value in values) or "none"


def _fixed(header: SweepRecord) -> dict[str, Any]:
    """The values of the parameters that the sweep does not search; empty if an early version did not record them."""
    baseline = header.baseline_configuration
    return {k: v for k, v in baseline.to_dict().items() if k not in header.space} if baseline else {}


def demand_same_model(sweep: str, had: ModelRecord, new: ModelRecord) -> None:
    """Raise ConfigError unless both records have the same model, draft model, and files of common quantisations.

    The comparison uses the content of the files, so that a sweep resumes after its folder was moved.
    """
    before, now = _files(had), _files(new)
    for key in ("model", "model.draft", *(key for key in before if key in now)):
        files = before.get(key), now.get(key)
        contents = [file and (file.quant, file.sha256) for file in files]
        if contents[0] != contents[1]:
            named = ["none" if file is None else Path(file.path).name or file.quant for file in files]
            if named[0] == named[1]:
                named = [f"{file.path} (SHA-256 {file.sha256[:12]}…)" for file in files if file is not None]
            raise other_model(sweep, named[0], named[1], key)


def other_model(sweep: str, had: str, new: str, key: str = "model") -> ConfigError:
    """The refusal to resume ``sweep`` with the file ``new`` instead of ``had``."""
    return ConfigError(
        f"{key}: the sweep {sweep!r} was started with {had}, and now it is {new}; {OTHER_NAME}"
    )


def _files(model: ModelRecord) -> dict[str, ModelFile]:
    """The files of a model by the user's key for each."""
    drafts = {"model.draft": model.draft.file} if model.draft else {}
    others = {f"model.files.{quant}": file for quant, file in model.files.items()}
    return {"model": model.files[model.base_quant], **drafts, **others}
