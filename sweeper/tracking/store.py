"""Opens an MLflow store: without log lines, checked before the first trial, and repaired if its folder moved."""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sweeper.errors import StoreError
from sweeper.files import sqlite_address
from sweeper.locks import held

DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"
LOCK = "mlflow.lock"

PROBE_SECONDS = 3.0  # a server that does not answer a GET in this time counts as unreachable
REQUEST_SECONDS = "20"  # for one call: far more than an answer takes, far less than a user would wait
LOCK_SECONDS = 10.0  # SQLite waits this long for another process's write

# MLflow reads these at each call. MLflow's own retries are off: if the answer to "create run" was lost, a retry
# would create a second run. `Tracker` looks for the run before it retries. Telemetry is off.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": REQUEST_SECONDS,
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a store is. ``root`` is the folder of sweeper's own store, and None for a store given by URI."""

    uri: str
    artifacts: str | None  # URI below which experiments keep their files; None: the server decides
    root: Path | None

    @property
    def words(self) -> str:
        """The store's name for messages: a path, or the URI without a password."""
        return str(self.root / DATABASE) if self.root else without_password(self.uri)


def location(uri: str | None, root: Path) -> Location:
    """The store at ``uri``, or sweeper's own in the folder ``root`` where that is None."""
    if uri:
        return Location(uri, None, None)
    root = root.absolute()
    return Location(sqlite_address(root / DATABASE), (root / ARTIFACTS).as_uri(), root)


def without_password(uri: str) -> str:
    """``uri`` with the password replaced, for messages."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return parts._replace(netloc="…@" + parts.netloc.rpartition("@")[2]).geturl()


def environment() -> dict[str, str]:
    """``ENVIRONMENT``, with an empty home folder for a user who has none: MLflow cannot be imported without one."""
    try:
        Path.home()
    except RuntimeError:
        return ENVIRONMENT | {"HOME": os.devnull}
    return ENVIRONMENT


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, MLflow prints no warnings, sends no telemetry and does not retry."""
    wanted = environment()
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turn whatever MLflow, its database or its server raises into a StoreError that names the store."""
    try:
        with quiet():
            yield
    # A store of the user's choice (a database, a bucket) brings its own driver with its own exceptions.
    except Exception as error:
        raise StoreError(f"MLflow store {where}: {first_line(error)}") from error


class GuardedClient:
    """An ``MlflowClient`` whose calls print nothing and raise only ``StoreError``.

    Errors of sweeper's own code stay as they are.
    """

    def __init__(self, client: Any, where: str) -> None:
        self._client = client
        self._where = where

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        @functools.wraps(method)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with store_errors(self._where):
                return method(*args, **kwargs)

        return guarded


def first_line(error: BaseException) -> str:
    """The first line of an error: the driver's message without the SQL that follows it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def connect(place: Location) -> GuardedClient:
    """Return a client of a store that can be written, has its schema and has answered.

    Raises:
        StoreError: the store cannot be reached or written. This takes a few seconds at most.
    """
    probe(place)
    root = place.root
    if root is None:
        with store_errors(place.words):
            return GuardedClient(_client(place.uri), place.words)
    try:
        (root / ARTIFACTS).mkdir(parents=True, exist_ok=True)
        (root / DATABASE).open("ab").close()
    except OSError as error:
        raise StoreError(
            f"cannot write {root / DATABASE}: {first_line(error)}; choose another folder"
        ) from error
    with store_errors(place.words):
        import mlflow  # noqa: F401 - the import takes seconds, so it happens before the lock

        # If two processes create the schema at once, one of them fails.
        with held(root / LOCK):
            _make_schema(root)
            mend_moved(root)
            return GuardedClient(_client(place.uri), place.words)


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "sqlalchemy.engine"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # This logger prints the traceback of an error that MLflow then raises and that sweeper reports in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # This one prints the traceback of a second Ctrl-C that comes while a database is written.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)  # fails now if the server or the database does not answer
    return client


def _make_schema(root: Path) -> None:
    """Create the tables of an empty store in another file, which then replaces the database.

    MLflow cannot finish a migration that was killed half way.
    """
    if (root / DATABASE).stat().st_size > 0:
        return
    fresh = root / f".{DATABASE}.new"
    for leftover in root.glob(f"{fresh.name}*"):
        leftover.unlink()
    _client(sqlite_address(fresh))
    fresh.replace(root / DATABASE)


def probe(place: Location) -> None:
    """Check that a server answers; MLflow's own client would try for minutes. Other stores pass.

    Raises:
        StoreError: no server answers.
    """
    if not place.uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(place.uri.rstrip("/") + "/health", timeout=PROBE_SECONDS):  # noqa: S310
            return
    except urllib.error.HTTPError:
        return  # something answered; the next call checks whether it is MLflow and accepts us
    except (OSError, ValueError) as error:
        raise StoreError(
            f"no MLflow server answers at {place.words} ({first_line(error)}): "
            "start it, correct tracking.uri, or leave tracking.uri empty to use the local store"
        ) from error


def mend_moved(root: Path) -> int:
    """Point every run at the artifacts beside the store's database; returns the number of experiments changed.

    MLflow stores absolute addresses of artifacts. If the folder was moved or copied, the addresses of sweeper's
    experiments still lead to the old place. This uses SQL because no call of MLflow changes an address. Taking the
    write lock first finds a busy or damaged database at once, where MLflow would try for a minute.
    """
    here = (root / ARTIFACTS).as_uri()
    with closing(sqlite3.connect(root / DATABASE, timeout=LOCK_SECONDS)) as database, database:
        database.execute("begin immediate")
        moved = database.execute(
            "select e.experiment_id, e.artifact_location from experiments e join experiment_tags t"
            " on t.experiment_id = e.experiment_id and t.key = 'sweeper.kind'"
            " where e.artifact_location <> ?",
            (here,),
        ).fetchall()
        for experiment, there in moved:
            database.execute(
                "update runs set artifact_uri = ? || substr(artifact_uri, ?)"
                " where experiment_id = ? and substr(artifact_uri, 1, ?) = ?",
                (here, len(there) + 1, experiment, len(there) + 1, there + "/"),
            )
            database.execute(
                "update experiments set artifact_location = ? where experiment_id = ?", (here, experiment)
            )
    return len(moved)
