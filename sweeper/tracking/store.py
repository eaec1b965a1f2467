"""Opening an MLflow store: quiet, checked before the first trial, its schema made once, mended if moved."""

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
from sweeper.locks import held

DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"
LOCK = "mlflow.lock"

PROBE_SECONDS = 3.0  # a server that does not answer a GET in this time is called unreachable
REQUEST_SECONDS = "20"  # one call: far above any answer's time, far below a sweep's patience
LOCK_SECONDS = 10.0  # how long SQLite waits for another process's write

# Read by MLflow at each call. No retries of its own: a repeated "create run" whose answer was lost would
# make a second run, so `Tracker` retries by looking first. No figures about its user sent to MLflow's makers.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": REQUEST_SECONDS,
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a store is. ``root`` is the folder of a store of sweeper's own, None for one given by URI."""

    uri: str
    artifacts: str | None  # URI under which experiments keep their files; None: as the server decides
    root: Path | None

    @property
    def words(self) -> str:
        """The store as a message should name it: a path, or the URI without a password."""
        return str(self.root / DATABASE) if self.root else without_password(self.uri)


def location(uri: str | None, root: Path) -> Location:
    """The store at ``uri``, or sweeper's own in the folder ``root`` where that is None."""
    if uri:
        return Location(uri, None, None)
    root = root.absolute()
    return Location(f"sqlite:///{root / DATABASE}", (root / ARTIFACTS).as_uri(), root)


def without_password(uri: str) -> str:
    """``uri`` as it may be shown."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return parts._replace(netloc="…@" + parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def quiet() -> Iterator[None]:
    """MLflow without log lines, warnings, phone calls and long retries while the block runs."""
    before = {key: os.environ.get(key) for key in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
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
    """What MLflow, its database or its server raise, as a StoreError that names the store."""
    try:
        with quiet():
            yield
    # A store of the user's choice (a database, a bucket) brings its own driver with its own exceptions.
    except Exception as error:
        raise StoreError(f"MLflow store {where}: {first_line(error)}") from error


class GuardedClient:
    """An ``MlflowClient`` whose every call is quiet and raises ``StoreError`` or nothing.

    Only what the store does is turned into a StoreError: an error of sweeper's own stays what it is.
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
    """An error in one line: the driver's own words, without the SQL that follows them."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def connect(place: Location) -> GuardedClient:
    """A client on a store that can be written, has its schema and answered.

    Raises:
        StoreError: the store cannot be reached or written; within a few seconds.
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
        import mlflow  # noqa: F401 - takes seconds, and so before the lock

        # Two first clients at once make the schema twice, and one dies of it.
        with held(root / LOCK):
            _make_schema(root)
            mend_moved(root)
            return GuardedClient(_client(place.uri), place.words)


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "sqlalchemy.engine"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # This logger prints the traceback of an error that it then raises, and that becomes one line here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)  # the first answer of a server, the second look at a database
    return client


def _make_schema(root: Path) -> None:
    """Give an empty store its tables in one step: MLflow never ends a migration that was killed half way.

    They are made in a file of their own, which then takes the database's place.
    """
    if (root / DATABASE).stat().st_size > 0:
        return
    fresh = root / f".{DATABASE}.new"
    for leftover in root.glob(f"{fresh.name}*"):
        leftover.unlink()
    _client(f"sqlite:///{fresh}")
    fresh.replace(root / DATABASE)


def probe(place: Location) -> None:
    """Ask a server, and nothing else, whether it is there: MLflow's own client would try for minutes.

    Raises:
        StoreError: nothing answers.
    """
    if not place.uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(place.uri.rstrip("/") + "/health", timeout=PROBE_SECONDS):  # noqa: S310
            return
    except urllib.error.HTTPError:
        return  # something answered; the next call asks whether it is MLflow, and lets us in
    except (OSError, ValueError) as error:
        raise StoreError(
            f"no MLflow server answers at {place.words} ({first_line(error)}): "
            "start it, mend tracking.uri, or leave tracking.uri empty for the local store"
        ) from error


def mend_moved(root: Path) -> int:
    """Point every run of a store at the artifacts beside its database; returns how many places were mended.

    MLflow keeps absolute addresses of artifacts. Where the folder was moved or copied, those of sweeper's
    own experiments lead to the old place. This is SQL because no call of MLflow changes an address. The lock
    for writing finds a database that is none or is busy, of which MLflow tries to make a store for a minute.
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
