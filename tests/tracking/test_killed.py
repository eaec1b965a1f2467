"""The tracker is killed, or its store fails, at every single call: afterwards all is as if nothing was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_view import client_of, seen, sqlite_of
from tracked_sweep import reading, record, trials

from sweeper.errors import StoreError
from sweeper.records import SweepRecord
from sweeper.tracking import Tracker, store, tracker


class Killed(BaseException):
    """As SIGKILL: nothing of sweeper's runs after it."""


class FailingClient:
    """MLflow's client, which does call number ``first`` and after it raises ``error``, ``times`` times."""

    def __init__(self, client: Any, first: int, error: BaseException, times: int = 1) -> None:
        self.client, self.first, self.error, self.times = client, first, error, times
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            done = method(*args, **kwargs) if self.calls <= self.first else None
            if self.first <= self.calls < self.first + self.times:
                raise self.error
            return done if self.calls <= self.first else method(*args, **kwargs)

        return call


def tracker_on(root: Path, client: Any) -> Tracker:
    place = store.location(None, root)
    return Tracker(place, store.GuardedClient(client, place.words))


def final_of(name: str) -> SweepRecord:
    """A small sweep with a trial that has figures, measured twice, and one that has none."""
    chosen = tuple(replace(t, number=n) for n, t in enumerate((trials()[5], trials()[2])))
    return record(sweep=name, trials=chosen, front=(0,), baseline=0, recommended=0, hypervolume=(0.5, 0.7))


def sweep_on(tracked: Tracker, final: SweepRecord, report: Path) -> None:
    running = replace(
        final, state="running", front=(), recommended=None, hypervolume=(), trials=(), baseline=None
    )
    tracked.sweep_started(running)
    for one in final.trials:
        screened = replace(
            one, remeasured=False, metrics={k: reading(r.median + 1) for k, r in one.metrics.items()}
        )
        running = replace(running, trials=(*running.trials, screened))
        tracked.trial_finished(running, screened)
    tracked.trial_finished(running, final.trials[0])
    tracked.sweep_finished(final, {"report.html": report})


@pytest.fixture
def report(tmp_path: Path) -> Path:
    (tmp_path / "report.html").write_text("<h1>report</h1>")
    return tmp_path / "report.html"


def test_killed_after_any_call_a_resume_ends_as_if_nothing_was(root: Path, report: Path) -> None:
    client = client_of(sqlite_of(root))
    counting = FailingClient(client, 0, Killed(), times=0)
    undisturbed = final_of("sweep 0")
    sweep_on(tracker_on(root, counting), undisturbed, report)
    wanted = seen(client, undisturbed)
    assert counting.calls > 20

    for call in range(1, counting.calls):  # one fewer: the experiment is there from the first sweep on
        final = final_of(f"sweep {call}")
        with pytest.raises(Killed):
            sweep_on(tracker_on(root, FailingClient(client, call, Killed())), final, report)
        # What a resume does: it knows the finished trials and writes what is missing of them, then goes on.
        tracker_on(root, client).sweep_finished(final, {"report.html": report})
        found = seen(client, final)
        expected = json.loads(json.dumps(wanted).replace("sweep 0", final.sweep))
        for run, as_wanted in zip(json.loads(json.dumps(found)), expected, strict=True):
            logged = run.pop("logged")
            del as_wanted["logged"]
            assert run == as_wanted, f"killed after call {call}"
            assert all(count <= (3 if key == "hypervolume" else 2) for key, count in logged.items())


@pytest.mark.parametrize("first", [1, 3, 6, 9, 14])
def test_a_store_that_fails_for_a_while_is_completed_at_the_end(
    root: Path, report: Path, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "RETRY_SECONDS", (0.0, 0.0))
    client, final = client_of(sqlite_of(root)), final_of("gone")
    tracked = tracker_on(root, FailingClient(client, first, OSError(28, "No space left on device"), times=8))
    told: list[str] = []
    running = replace(
        final, state="running", front=(), recommended=None, hypervolume=(), trials=(), baseline=None
    )
    steps: list[Any] = [lambda: tracked.sweep_started(running)]
    steps += [lambda one=one: tracked.trial_finished(running, one) for one in final.trials]
    for step in steps:
        try:
            step()
        except StoreError as error:
            told.append(str(error))
    for _ in range(8):
        try:
            tracked.sweep_finished(final, {"report.html": report})
            break
        except StoreError as error:
            told.append(str(error))
    assert told
    assert all("No space left" in words for words in told)
    Tracker.open(None, root).sweep_finished(replace(final, sweep="whole"), {"report.html": report})
    assert [(r["status"], r["params"], r["metrics"]) for r in seen(client, final)] == [
        (r["status"], r["params"], r["metrics"]) for r in seen(client, replace(final, sweep="whole"))
    ]


def test_one_hiccup_is_not_even_told(root: Path, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "RETRY_SECONDS", (0.0, 0.0))
    client, final = client_of(sqlite_of(root)), final_of("hiccup")
    hiccup = FailingClient(client, 5, OSError("connection reset"))
    sweep_on(tracker_on(root, hiccup), final, report)
    assert len(seen(client, final)) == 1 + len(final.trials)


def test_sweepers_own_mistakes_are_not_called_the_stores(root: Path) -> None:
    with pytest.raises(ValueError, match="isoformat"):
        Tracker.open(None, root).sweep_started(record("running", started_utc="yesterday"))
