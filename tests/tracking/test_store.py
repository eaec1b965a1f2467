"""Opening a store: quiet, made once, checked before the first trial, mended after a move."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from store_view import client_of, runs_of, sqlite_of
from tracked_sweep import record

from sweeper.errors import StoreError
from sweeper.search.study import SweepStudy, sweep_names
from sweeper.tracking import Tracker, store


@pytest.fixture
def report(tmp_path: Path) -> Path:
    (tmp_path / "report.html").write_text("<h1>report</h1>")
    return tmp_path / "report.html"


FIRST_OPEN = """
import sys
from pathlib import Path
from sweeper.tracking import Tracker
Tracker.open(None, Path(sys.argv[1]))
"""


def test_two_first_opens_at_once_both_work_and_say_nothing(tmp_path: Path) -> None:
    """In processes of their own, which make the tables."""
    command = [sys.executable, "-c", FIRST_OPEN, str(tmp_path / "new")]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [(process.returncode, words) for process, words in zip(both, said, strict=True)] == [(0, "")] * 2
    Tracker.open(None, tmp_path / "new").sweep_finished(record(), {})


@pytest.mark.parametrize("name", ["what now?x=1", "a${x}b {y}", "50%41 #1;&, (it's)"])
def test_a_study_stays_in_its_folder_whatever_the_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for root in (Path("mlruns"), tmp_path / name / f"runs {name}"):
        SweepStudy.create(root, record())
        assert sweep_names(root) == (record().sweep,)
        assert (root / "optuna.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing was written beside the folder"


def test_a_busy_study_is_said_to_be_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SweepStudy.create(tmp_path, record())
    monkeypatch.setattr("sweeper.search.study.BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as other:
        other.execute("begin exclusive")
        with pytest.raises(StoreError, match="another program is using"):
            SweepStudy.create(tmp_path, record(sweep="second"))


NO_HOME = """
import pwd, sys
from pathlib import Path
def nobody(_): raise KeyError("no such user")
pwd.getpwuid = nobody
from sweeper.tracking import Tracker
Tracker.open(None, Path(sys.argv[1]))
"""


def test_a_store_opens_for_a_user_without_a_home_folder(root: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_HOME, str(root)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "~").exists()


def test_a_second_ctrl_c_during_a_write_prints_no_traceback(
    root: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Tracker.open(None, root)
    engine = sqlalchemy.create_engine("sqlite://")

    @sqlalchemy.event.listens_for(engine, "reset")
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), engine.connect():
        pass
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_a_moved_folder_keeps_its_artifacts(root: Path, report: Path, tmp_path: Path) -> None:
    Tracker.open(None, root).sweep_finished(record(), {"report.html": report})
    moved = root.rename(tmp_path / "elsewhere")
    Tracker.open(None, moved).sync(record())

    client = client_of(sqlite_of(moved))
    parent, children = runs_of(client, record())
    folder = tmp_path / "there"
    folder.mkdir()
    assert (
        Path(client.download_artifacts(parent.info.run_id, "report.html", str(folder))).read_text()
        == "<h1>report</h1>"
    )
    assert all(
        run.info.artifact_uri.startswith((moved / "artifacts").as_uri()) for run in (parent, *children)
    )
    assert not root.exists(), "nothing was written to the old place"


def test_a_copied_folder_leaves_the_first_one_alone(root: Path, report: Path, tmp_path: Path) -> None:
    Tracker.open(None, root).sweep_finished(record(), {"report.html": report})
    copy = shutil.copytree(root, tmp_path / "copy")
    Tracker.open(None, copy)
    for folder in (root, copy):
        for run in [*runs_of(client_of(sqlite_of(folder)), record())[1]]:
            assert run.info.artifact_uri.startswith((folder / "artifacts").as_uri() + "/")


def test_mending_touches_only_sweepers_own_experiments(root: Path, tmp_path: Path) -> None:
    Tracker.open(None, root).sweep_started(record("running", trials=()))
    theirs = client_of(sqlite_of(root)).create_experiment("theirs", "file:///somewhere/else")
    moved = root.rename(tmp_path / "elsewhere")
    Tracker.open(None, moved)
    assert client_of(sqlite_of(moved)).get_experiment(theirs).artifact_location == "file:///somewhere/else"
    assert store.mend_moved(moved) == 0


def test_a_relative_folder_is_kept_as_an_absolute_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(root.parent)
    tracker = Tracker.open(None, Path(root.name))
    monkeypatch.chdir(tmp_path)
    tracker.sweep_started(record("running", trials=()))
    parent, _ = runs_of(client_of(sqlite_of(root)), record())
    assert (root / "artifacts" / parent.info.run_id / "artifacts" / "config.yaml").is_file()


def test_no_server_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        port = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(
            StoreError, match=rf"no MLflow server answers at http://…@127.0.0.1:{port}.*tracking.uri"
        ):
            Tracker.open(f"http://me:secret@127.0.0.1:{port}", Path("unused"))
        assert time.monotonic() - began < 10


def test_a_server_that_never_answers_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StoreError, match="timed out"):
        Tracker.open(f"http://127.0.0.1:{silent.getsockname()[1]}", Path("unused"))


def test_a_server_that_is_not_mlflow_is_told(tmp_path: Path) -> None:
    from http.server import HTTPServer, SimpleHTTPRequestHandler

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Silent) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        try:
            with pytest.raises(StoreError, match="MLflow store http://127"):
                Tracker.open(f"http://127.0.0.1:{other.server_port}", tmp_path)
        finally:
            other.shutdown()


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*mlruns/mlflow.db: .*choose another folder"):
        Tracker.open(None, tmp_path / "mlruns")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told(root: Path) -> None:
    (root / "mlflow.db").chmod(0o444)
    with pytest.raises(StoreError, match="cannot write"):
        Tracker.open(None, root)


def test_a_database_that_is_none_is_told_and_left(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text(
        "not a database, but someone's notes, longer than a header of SQLite. " * 9
    )
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(StoreError, match="not a database"):
        Tracker.open(None, tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_a_database_of_a_newer_mlflow_is_told(root: Path) -> None:
    with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        database.execute("update alembic_version set version_num = 'fedcba987654'")
    with pytest.raises(StoreError, match=r"mlflow\.db.*(schema|revision)"):
        Tracker.open(None, root)


def test_the_environment_is_given_back() -> None:
    before = dict(os.environ)
    with store.quiet():
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/x", "http://…@host:5000/x"),
        ("https://host", "https://host"),
        ("postgresql://u:p@db/mlflow", "postgresql://…@db/mlflow"),
    ],
)
def test_no_password_is_shown(uri: str, shown: str) -> None:
    assert store.without_password(uri) == shown
