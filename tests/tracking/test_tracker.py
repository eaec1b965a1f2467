"""A sweep in a real MLflow store on SQLite: what stands where, and that repeating changes nothing."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_view import client_of, runs_of, seen, sqlite_of
from tracked_sweep import MACHINE, POWER, START, reading, record, trial, unlucky

from sweeper.errors import StoreError
from sweeper.records import Constraint, SweepRecord
from sweeper.tracking import Tracker
from sweeper.tracking.views import view_tag


def swept(tracker: Tracker, final: SweepRecord, files: dict[str, Path] | None = None) -> None:
    """What a sweep calls, in its order; figures come first from screening, then from the second measuring."""
    running = replace(record("running"), sweep=final.sweep, trials=(), baseline=None)
    tracker.sweep_started(running)
    for one in final.trials:
        screened = replace(
            one, remeasured=False, metrics={k: reading(0.99 * r.median) for k, r in one.metrics.items()}
        )
        running = replace(running, trials=(*running.trials, screened))
        tracker.trial_finished(running, screened)
    for one in final.trials:
        if one.remeasured:
            tracker.trial_finished(running, one)
    tracker.sweep_finished(final, files or {})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {"report.html": "<h1>report</h1>", "front.csv": "a,b\n", "plots/front.json": "{}"}
    (tmp_path / "plots").mkdir()
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in made}


def test_a_sweep_is_one_parent_and_one_flat_child_a_trial(root: Path, files: dict[str, Path]) -> None:
    final = record()
    swept(Tracker.open(None, root), final, files)
    client = client_of(sqlite_of(root))
    parent, children = runs_of(client, final)

    assert [int(c.data.tags["sweeper.trial"]) for c in children] == [t.number for t in final.trials]
    assert [c.info.status for c in children] == [
        "FINISHED", "FINISHED", "FAILED", "FINISHED", "KILLED", "FINISHED", "FAILED", "FINISHED",
    ]  # fmt: skip
    assert parent.info.status == "FINISHED"
    assert parent.data.params.keys() >= final.space.keys()
    assert parent.data.params["n_threads"] == "searched: 1 to 4"
    assert parent.data.metrics["pick.tokens_per_second"] == final.trial(5).metrics["tokens_per_second"].median
    curve = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert [(m.step, m.value) for m in curve] == list(enumerate(final.hypervolume))
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} == {
        "config.yaml", "front.csv", "machine.json", "plots", "report.html",
    }  # fmt: skip
    assert (
        root / "artifacts" / parent.info.run_id / "artifacts" / "plots" / "front.json"
    ).read_text() == "{}"


def test_a_child_has_only_swept_params_medians_and_the_sweeps_tags(root: Path) -> None:
    final = record()
    swept(Tracker.open(None, root), final)
    _, children = runs_of(client_of(sqlite_of(root)), final)
    fifth, wanted = children[5], final.trial(5)

    assert fifth.data.params == {
        "n_threads": "2",
        "n_threads_batch": "2",
        "n_batch": "64",
        "flash_attn": "true",
    }
    medians = {name: r.median for name, r in wanted.metrics.items()}
    bounds = {
        f"{name}.{end}": getattr(wanted.metrics[name], end)
        for name in ("tokens_per_second", "watts")
        for end in ("low", "high")
    }
    assert fifth.data.metrics == medians | bounds
    assert fifth.info.start_time == round(1000 * (START.timestamp() + 100))
    assert fifth.info.end_time == fifth.info.start_time + 20_000
    for key, value in {
        "sweeper.kind": "trial", "sweeper.sweep": final.sweep, "sweeper.state": "complete",
        "sweeper.power.source": "rapl", "sweeper.power.kind": "measured", "sweeper.power.scope": "package",
        "sweeper.front": "true", "sweeper.role": "recommended", "sweeper.remeasured": "true",
    }.items():  # fmt: skip
        assert fifth.data.tags[key] == value
    assert children[1].data.tags["sweeper.front"] == "false"


def test_the_view_finds_the_trials_that_count_and_shows_pick_and_state_first(root: Path) -> None:
    bound = Constraint("kl_divergence", "<=", 0.1)
    trials = (trial(0, remeasured=True), trial(1, violations={str(bound): 0.05}), trial(2, remeasured=True))
    final = record(trials=trials, constraints=(bound,), front=(2,), recommended=2, hypervolume=())
    Tracker.open(None, root).sweep_finished(final, {})
    client = client_of(sqlite_of(root))
    parent, children = runs_of(client, final)
    assert children[1].data.tags["sweeper.state"] == "ruled out by kl_divergence"
    packed = json.loads(view_tag(final)[1])["state"].removeprefix("deflate;")
    wanted = json.loads(zlib.decompress(base64.b64decode(packed)))["searchFilter"]
    found = client.search_runs([parent.info.experiment_id], wanted)
    assert sorted(run.data.tags["sweeper.trial"] for run in found) == ["0", "2"]
    # MLflow's page shows columns in the order of the tags that it gets.
    assert all(list(run.data.tags)[:2] == ["sweeper.pick", "sweeper.state"] for run in children)


def test_what_has_no_figures_says_why(root: Path) -> None:
    final = record()
    swept(Tracker.open(None, root), final)
    _, children = runs_of(client_of(sqlite_of(root)), final)
    for number in (2, 4, 6):
        assert children[number].data.metrics == {}
        assert children[number].data.tags["sweeper.reason"] == final.trial(number).reason
        assert str(final.trial(number).reason) in children[number].data.tags["mlflow.note.content"]
    assert "ggml: failed" in children[2].data.tags["mlflow.note.content"]
    assert "mlflow.note.content" not in children[1].data.tags


def test_the_second_measuring_replaces_the_first_in_one_chart(root: Path) -> None:
    final = record()
    swept(Tracker.open(None, root), final)
    client = client_of(sqlite_of(root))
    _, children = runs_of(client, final)
    history = client.get_metric_history(children[5].info.run_id, "watts")
    assert [m.step for m in history] == [0, 0]
    assert children[5].data.metrics["watts"] == final.trial(5).metrics["watts"].median


def test_repeating_everything_changes_nothing(root: Path, files: dict[str, Path]) -> None:
    final = record()
    swept(Tracker.open(None, root), final, files)
    client = client_of(sqlite_of(root))
    before = seen(client, final)

    again = Tracker.open(None, root)
    again.sync(final)
    again.sweep_finished(final, files)
    for one in final.trials:
        again.trial_finished(final, one)
    assert seen(client, final) == before


def test_sync_writes_what_is_missing(root: Path) -> None:
    final = record()
    tracker = Tracker.open(None, root)
    tracker.sweep_started(record("running", trials=()))
    tracker.trial_finished(record("running"), final.trial(3))
    Tracker.open(None, root).sync(final)
    _, children = runs_of(client_of(sqlite_of(root)), final)
    assert [int(c.data.tags["sweeper.trial"]) for c in children] == [t.number for t in final.trials]


def test_a_resume_with_another_reference_point_draws_a_curve_of_its_own(root: Path) -> None:
    tracker = Tracker.open(None, root)
    tracker.sweep_finished(record(hypervolume=(0.5, 1.0)), {})
    longer = record(hypervolume=(0.25, 0.5, 1.0))
    tracker.sweep_finished(longer, {})
    client = client_of(sqlite_of(root))
    parent, _ = runs_of(client, longer)
    first, second = (
        client.get_metric_history(parent.info.run_id, n) for n in ("hypervolume", "hypervolume.2")
    )
    assert [m.value for m in first] == [0.5, 1.0]
    assert [m.value for m in second] == [0.25, 0.5, 1.0]
    assert parent.data.tags["sweeper.hypervolume"] == "hypervolume.2"


def test_what_the_user_wrote_stays(root: Path) -> None:
    tracker = Tracker.open(None, root)
    tracker.sweep_started(record("running", trials=()))
    client = client_of(sqlite_of(root))
    parent, _ = runs_of(client, record())
    note = parent.data.tags["mlflow.note.content"]
    client.set_tag(parent.info.run_id, "mlflow.note.content", f"With the new fan.\n\n{note}\n\nLid open.")
    client.set_tag(parent.info.run_id, "mine", "1")

    tracker.sweep_finished(record(), {})
    tags = runs_of(client, record())[0].data.tags
    assert tags["mlflow.note.content"].startswith("With the new fan.")
    assert tags["mlflow.note.content"].endswith("Lid open.")
    assert "**Run this**" in tags["mlflow.note.content"]
    assert "has not ended" not in tags["mlflow.note.content"]
    assert tags["mine"] == "1"


def test_a_run_that_its_user_renamed_keeps_the_name(root: Path) -> None:
    tracker = Tracker.open(None, root)
    tracker.sweep_started(record("running", trials=()))
    tracker.trial_finished(record("running"), trial(0))
    client = client_of(sqlite_of(root))
    parent, (child,) = runs_of(client, record())
    client.update_run(parent.info.run_id, name="with the new fan")
    client.update_run(child.info.run_id, name="first")
    tracker.sweep_finished(record(), {})
    parent, children = runs_of(client, record())
    assert parent.info.run_name == "with the new fan"
    assert children[0].info.run_name == "first"
    assert children[5].info.run_name.startswith("#5 · ")


def test_a_finished_sweep_that_is_started_again_and_killed_keeps_its_pick(root: Path) -> None:
    final = record()
    Tracker.open(None, root).sweep_finished(final, {})
    again = replace(final, state="running")
    tracker = Tracker.open(None, root)
    tracker.sweep_started(again)
    tracker.sync(again)
    tracker.trial_finished(replace(again, trials=(), baseline=None, recommended=None), trial(8))
    _, children = runs_of(client_of(sqlite_of(root)), final)
    marks = [(c.data.tags["sweeper.pick"], c.data.tags.get("sweeper.role")) for c in children]
    assert marks[5] == ("knee, greenest", "recommended")
    assert any("within:5%" in pick for pick, _ in marks)
    assert marks[8] == ("–", None)


def test_another_recommendation_after_a_resume_takes_the_mark_away(root: Path) -> None:
    tracker = Tracker.open(None, root)
    tracker.sweep_finished(record(recommended=5), {})
    tracker.sweep_finished(record(recommended=3, front=(0, 3)), {})
    _, children = runs_of(client_of(sqlite_of(root)), record())
    assert "sweeper.role" not in children[5].data.tags
    assert children[5].data.tags["sweeper.front"] == "false"
    assert children[3].data.tags["sweeper.role"] == "recommended"


def test_a_trial_that_its_user_deleted_stays_deleted(root: Path) -> None:
    tracker = Tracker.open(None, root)
    tracker.sweep_finished(record(), {})
    client = client_of(sqlite_of(root))
    _, children = runs_of(client, record())
    client.delete_run(children[1].info.run_id)
    Tracker.open(None, root).sweep_finished(record(), {})
    _, left = runs_of(client, record())
    assert [int(c.data.tags["sweeper.trial"]) for c in left] == [0, 2, 3, 4, 5, 6, 7]


def test_a_deleted_sweep_that_goes_on_comes_back_whole(root: Path) -> None:
    Tracker.open(None, root).sweep_finished(record(), {})
    client = client_of(sqlite_of(root))
    parent, children = runs_of(client, record())
    before = seen(client, record())
    for run in (*children, parent):
        client.delete_run(run.info.run_id)
    Tracker.open(None, root).sweep_finished(record(), {})
    assert seen(client, record()) == before


def test_a_deleted_experiment_comes_back(root: Path) -> None:
    Tracker.open(None, root).sweep_started(record("running", trials=()))
    experiment = runs_of(client_of(sqlite_of(root)), record())[0].info.experiment_id
    client_of(sqlite_of(root)).delete_experiment(experiment)
    Tracker.open(None, root).sweep_started(record("running", trials=()))
    assert client_of(sqlite_of(root)).get_experiment(experiment).lifecycle_stage == "active"


@pytest.mark.parametrize(
    "other",
    [
        {"started_utc": "2026-11-21T12:00:00+00:00"},
        {"machine": replace(MACHINE, fingerprint="another")},
        {"sweep": "another"},
    ],
)
def test_another_sweep_is_never_taken_for_this_one(root: Path, other: dict[str, Any]) -> None:
    tracker = Tracker.open(None, root)
    first = tracker.sweep_started(record("running", trials=()))
    second = tracker.sweep_started(record("running", trials=(), **other))
    assert first != second
    assert tracker.sweep_started(record("running", trials=())) == first


def experiment_of(root: Path, swept: SweepRecord, chosen: str | None = None) -> Any:
    Tracker.open(None, root, chosen).sweep_started(swept)
    client = client_of(sqlite_of(root))
    return client.get_experiment(runs_of(client, swept)[0].info.experiment_id)


@pytest.mark.parametrize(("chosen", "name"), [(None, "llama-15m"), ("fan at 40 %", "fan at 40 %")])
def test_an_experiments_name_is_the_models_or_the_chosen_one(
    root: Path, chosen: str | None, name: str
) -> None:
    assert experiment_of(root, record("running", trials=()), chosen).name == name


@pytest.mark.parametrize("chosen", [None, "mine"])
def test_simulated_figures_have_an_experiment_of_their_own(root: Path, chosen: str | None) -> None:
    real = record("running", trials=())
    simulated = replace(real, sweep="simulated", engine=replace(real.engine, simulated=True))
    assert experiment_of(root, real, chosen).name != experiment_of(root, simulated, chosen).name


def test_estimated_watts_are_named_so_wherever_a_name_is_read(root: Path) -> None:
    final = record(power=replace(POWER, name="estimate", kind="estimated"))
    swept(Tracker.open(None, root), final)
    parent, children = runs_of(client_of(sqlite_of(root)), final)
    assert "estimated" in parent.info.run_name
    assert "W estimated" in children[1].info.run_name
    assert children[1].data.tags["sweeper.power.kind"] == "estimated"
    assert "estimated, not measured" in parent.data.tags["mlflow.note.content"]


def test_a_stopped_sweep_is_killed_and_says_so(root: Path) -> None:
    final = record(state="stopped", stopped_because="stopped by hand")
    Tracker.open(None, root).sweep_finished(replace(final, state="stopped"), {})
    parent, _ = runs_of(client_of(sqlite_of(root)), final)
    assert parent.info.status == "KILLED"
    assert "stopped by hand" in parent.data.tags["mlflow.note.content"]


def test_a_run_that_cannot_be_this_trials_is_not_written_to(root: Path) -> None:
    tracker = Tracker.open(None, root)
    tracker.sweep_started(record("running", trials=()))
    tracker.trial_finished(record("running"), trial(1))
    with pytest.raises(StoreError, match=r"n_threads=2.*n_threads=4"):
        tracker.trial_finished(record("running"), trial(1, configuration=trial(3).configuration))


def test_a_trial_that_failed_late_gets_its_new_state(root: Path) -> None:
    tracker = Tracker.open(None, root)
    tracker.trial_finished(record("running"), trial(1, remeasured=True))
    tracker.trial_finished(record("running"), unlucky(1, "failed", "the second measuring crashed"))
    _, (child,) = runs_of(client_of(sqlite_of(root)), record())
    assert child.info.status == "FAILED"
    assert "sweeper.intervals" not in child.data.tags
