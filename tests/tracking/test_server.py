"""The same tracker over HTTP, on a real MLflow server."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from store_view import client_of, runs_of, seen
from tracked_sweep import MODEL, record

from sweeper.errors import StoreError
from sweeper.tracking import Tracker, store, tracker


def test_a_sweep_on_a_server_is_the_same_and_may_be_repeated(
    server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Older than the sweep that the tests of the pages look for on the same server as its newest.
    final = record(
        model=replace(MODEL, name="over http"), sweep="over http", started_utc="2020-01-01T00:00:00+00:00"
    )
    (tmp_path / "report.html").write_text("<h1>report</h1>")
    files = {"report.html": tmp_path / "report.html"}
    tracked = Tracker.open(server, tmp_path / "unused")
    tracked.sweep_started(replace(final, state="running", trials=(), recommended=None, baseline=None))
    for one in final.trials:
        tracked.trial_finished(replace(final, state="running"), one)
    tracked.sweep_finished(final, files)
    client = client_of(server)
    before = seen(client, final)
    Tracker.open(server, tmp_path / "unused").sweep_finished(final, files)

    assert seen(client, final) == before
    parent, children = runs_of(client, final)
    assert parent.info.status == "FINISHED"
    assert len(children) == len(final.trials)
    assert before[0]["files"] == ["config.yaml", "machine.json", "report.html"]
    assert not (tmp_path / "unused").exists()
    assert capfd.readouterr() == ("", "")


def test_a_server_that_goes_away_is_a_store_error_and_no_wait(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "RETRY_SECONDS", (0.0,))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        place = store.location(gone, tmp_path)
        tracked = Tracker(place, store.GuardedClient(client_of(gone), place.words))
        with pytest.raises(StoreError, match="MLflow store http://127"):
            tracked.trial_finished(record("running"), record().trials[0])
