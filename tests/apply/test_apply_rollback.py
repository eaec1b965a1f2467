"""Apply writes what its diff shows, and rollback undoes exactly that."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from apply_sweep import CONFIGURATION, ENGINE, GPU, MACHINE, FakeLimit, make_sweep, tree

from sweeper.apply import journal
from sweeper.apply import run as apply
from sweeper.apply.targets.registry import target_names
from sweeper.apply.text import render_outcome, render_undone, undone_to_plain
from sweeper.cli import main
from sweeper.errors import LimitRefused, MissingError, ModelMissingError, StaleRecordError, UsageError
from sweeper.limits.standing_limit import power_limits
from sweeper.records import SweepRecord


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    return path


def run(sweep: SweepRecord, folder: Path, target: str = "llama-server", **more):
    options = more.pop("options", apply.Options(folder=folder))
    arguments = {"root": folder.parent / "root", "machine": MACHINE, "engine": ENGINE, "write": True, **more}
    return apply.run(sweep, 3, target, options, **arguments)


def test_without_write_nothing_changes(sweep: SweepRecord, folder: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    outcome = run(sweep, folder, write=False)
    assert tree(tmp_path) == before
    assert outcome.entry is None
    text = render_outcome(outcome)
    assert "+threads = 3\n" in text
    assert "add --write" in text


def test_the_diff_is_what_is_written(sweep: SweepRecord, folder: Path) -> None:
    outcome = run(sweep, folder)
    (change,) = outcome.plan.draft.files
    assert change.path.read_bytes() == change.after
    assert "sweeper rollback" in render_outcome(outcome)


def test_applied_twice_changes_nothing_the_second_time(sweep: SweepRecord, folder: Path) -> None:
    run(sweep, folder)
    again = run(sweep, folder)
    assert again.entry is None
    assert "nothing to write" in render_outcome(again)


def test_applies_are_undone_one_by_one_newest_first(
    sweep: SweepRecord, folder: Path, model_path: Path
) -> None:
    root = folder.parent / "root"
    first = tree(folder)
    run(sweep, folder)
    second = tree(folder)
    run(make_sweep(model_path, CONFIGURATION.with_(n_threads=1)), folder)
    assert tree(folder) != second
    journal.rollback(root)
    assert tree(folder) == second
    journal.rollback(root)
    assert tree(folder) == first
    with pytest.raises(MissingError, match="nothing to roll back"):
        journal.rollback(root)


def test_a_created_folder_goes_again_unless_someone_uses_it(sweep: SweepRecord, folder: Path) -> None:
    inside = apply.Options(file=folder / "a" / "b" / "models.ini")
    run(sweep, folder, options=inside)
    journal.rollback(folder.parent / "root")
    assert tree(folder) == {}
    run(sweep, folder, options=inside)
    (folder / "a" / "theirs").write_text("x")
    journal.rollback(folder.parent / "root")
    assert set(tree(folder)) == {"a", "a/theirs"}


def test_mode_and_link_survive(sweep: SweepRecord, folder: Path) -> None:
    real = folder / "real.ini"
    real.write_text("[other]\nmodel = /o\n")
    real.chmod(0o600)
    link = folder / "llama-server.ini"
    link.symlink_to("real.ini")
    before = tree(folder)
    run(sweep, folder)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    journal.rollback(folder.parent / "root")
    assert tree(folder) == before


def test_a_file_edited_since_is_left_alone_without_force(sweep: SweepRecord, folder: Path) -> None:
    run(sweep, folder)
    file = folder / "llama-server.ini"
    file.write_text("mine now\n")
    with pytest.raises(UsageError, match="changed after the apply"):
        journal.rollback(folder.parent / "root")
    assert file.read_text() == "mine now\n"
    undone = journal.rollback(folder.parent / "root", force=True)
    assert not file.exists()
    assert Path(undone.kept_aside[0]).read_text() == "mine now\n"
    assert undone.kept_aside[0] in render_undone(undone)


def test_a_file_that_changed_since_the_diff_is_not_overwritten(sweep: SweepRecord, folder: Path) -> None:
    made = run(sweep, folder, write=False)
    (folder / "llama-server.ini").write_text("[new]\nmodel = /n\n")
    with pytest.raises(UsageError, match="changed since the diff"):
        journal.write_plan(made.plan, root=folder.parent / "root")
    assert (folder / "llama-server.ini").read_text() == "[new]\nmodel = /n\n"


def test_the_limit_is_set_and_given_back(folder: Path, model_path: Path, tmp_path: Path) -> None:
    sweep = make_sweep(model_path, CONFIGURATION.with_(power_limit_watts=120))
    limit = FakeLimit(tmp_path / "limit")
    limit.set(170.25)
    outcome = run(sweep, folder, limit=limit)
    assert limit.read() == 120
    assert "120 W" in render_outcome(outcome)
    with pytest.raises(UsageError, match=r"170\.25 W"):
        journal.rollback(folder.parent / "root")  # without the right to set it
    undone = journal.rollback(folder.parent / "root", limit)
    assert limit.read() == 170.25
    assert "170.25 W again" in render_undone(undone)
    plain = undone_to_plain(undone)
    assert (plain["schema"], plain["target"], plain["trial"]) == (1, "llama-server", 3)
    assert (plain["removed"], plain["power_limit_watts"]) == ([str(folder / "llama-server.ini")], 170.25)


def test_a_limit_that_someone_else_set_since_is_left(folder: Path, model_path: Path, tmp_path: Path) -> None:
    sweep = make_sweep(model_path, CONFIGURATION.with_(power_limit_watts=120))
    limit = FakeLimit(tmp_path / "limit")
    limit.set(170)
    run(sweep, folder, limit=limit)
    limit.set(150)
    undone = journal.rollback(folder.parent / "root", limit)
    assert limit.read() == 150
    assert "left as it is" in render_undone(undone)


def test_a_refused_limit_puts_the_files_back(folder: Path, model_path: Path, tmp_path: Path) -> None:
    class Refusing(FakeLimit):
        def set(self, watts: float) -> float:
            raise LimitRefused(f"{watts} W is below the least")

    sweep = make_sweep(model_path, CONFIGURATION.with_(power_limit_watts=20))
    limit = Refusing(tmp_path / "limit")
    limit.file.write_text("170")
    before = tree(folder)
    with pytest.raises(LimitRefused):
        run(sweep, folder, limit=limit)
    assert tree(folder) == before
    assert journal.last_to_undo(folder.parent / "root") is None


def test_a_limit_that_is_not_set_is_said(folder: Path, model_path: Path) -> None:
    sweep = make_sweep(model_path, CONFIGURATION.with_(power_limit_watts=120, clock_limit_mhz=1500))
    text = render_outcome(run(sweep, folder, write=False))
    assert "120 W" in text
    assert "--power-limit" in text
    assert "1500 MHz" in text


@pytest.mark.parametrize(
    ("target", "sensor", "gpus", "advice"),
    [
        (
            "env",
            "nvml",
            (GPU,),
            "this does not set: add --power-limit or apply --to systemd as well, for every boot",
        ),
        ("systemd", "plug", (), "this does not set: set it by hand"),
        ("env", "plug", (), "this does not set: set it by hand"),
    ],
)
def test_a_note_on_a_limit_advises_only_what_works(
    folder: Path,
    model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    sensor: str,
    gpus,
    advice: str,
) -> None:
    monkeypatch.setattr(
        apply, "power_limits", lambda device: power_limits(device, folder)
    )  # a /sys without RAPL
    sweep = make_sweep(model_path, CONFIGURATION.with_(power_limit_watts=120))
    machine = replace(MACHINE, gpus=gpus)
    device = gpus[0].uuid if gpus else None
    sweep = replace(sweep, machine=machine, power=replace(sweep.power, name=sensor, device=device))
    notes = run(sweep, folder, target, machine=machine, write=False).plan.draft.notes
    (note,) = (note for note in notes if "power limit" in note)
    assert note.endswith(advice)


@pytest.mark.parametrize("by_gpu", [True, False])
def test_a_limit_that_the_machine_has_by_itself_needs_no_note(
    folder: Path, model_path: Path, by_gpu: bool
) -> None:
    def notes(watts: int) -> str:
        sweep = make_sweep(model_path, CONFIGURATION.with_(power_limit_watts=watts))
        if not by_gpu:
            space = {"power_limit_watts": {"low": 40, "high": 170, "step": 10}}
            config = {"space": {"power_limit_watts": "auto"}}
            power = replace(sweep.power, device="intel-rapl:0")
            sweep = replace(sweep, space=space, config=config, power=power)
        return " ".join(run(sweep, folder, write=False).plan.draft.notes)

    assert "power limit" not in notes(170)
    assert "power limit of 160 W" in notes(160)


def test_a_rejected_trial_and_a_single_measurement_are_noted(sweep: SweepRecord, folder: Path) -> None:
    beyond = {"kl_divergence <= 0.1": 0.35, "watts <= 60": -10.0}
    trial = replace(sweep.trials[0], remeasured=False, violations=beyond)
    notes = run(replace(sweep, trials=(trial,)), folder, write=False).plan.draft.notes
    assert notes[:2] == (
        "trial #3 breaks your constraint kl_divergence <= 0.1",
        "trial #3 was measured only once",
    )
    assert not any("trial #3" in note for note in run(sweep, folder, write=False).plan.draft.notes)


def test_no_right_to_write_says_so_and_leaves_nothing(sweep: SweepRecord, folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    folder.chmod(0o500)
    try:
        with pytest.raises(Exception, match="sudo"):
            run(sweep, folder)
    finally:
        folder.chmod(0o700)
    assert tree(folder) == {}
    assert journal.last_to_undo(folder.parent / "root") is None


STALE = {
    "driver": (
        {"machine": replace(MACHINE, gpus=(replace(GPU, driver="575.1"),))},
        "driver of NVIDIA .* 575.1",
    ),
    "gpu gone": ({"machine": replace(MACHINE, gpus=())}, "is not in this machine"),
    "gpu new": ({"machine": replace(MACHINE, gpus=(GPU, replace(GPU, uuid="GPU-2")))}, "GPU-2.* is new"),
    "cpu": (
        {"machine": replace(MACHINE, fingerprint="f2", cpu="Another")},
        "cpu was Some CPU and is Another",
    ),
    "fingerprint": ({"machine": replace(MACHINE, fingerprint="f2")}, "fingerprint was f1 and is f2"),
    "engine": ({"engine": replace(ENGINE, build="build 2")}, "build was 'build 1' and is 'build 2'"),
}


@pytest.mark.parametrize("what", STALE)
def test_a_record_of_another_machine_or_engine_is_refused(
    what: str, sweep: SweepRecord, folder: Path
) -> None:
    changes, words = STALE[what]
    with pytest.raises(StaleRecordError, match=words):
        run(sweep, folder, **changes)
    assert tree(folder) == {}
    outcome = run(sweep, folder, force=True, **changes)
    assert outcome.entry is not None
    assert "changed since the sweep" in render_outcome(outcome)


@pytest.mark.parametrize("content", [b"short", b"GGUF not loaded by these TESTS"], ids=["size", "content"])
def test_another_model_file_is_refused(
    content: bytes, sweep: SweepRecord, folder: Path, model_path: Path
) -> None:
    model_path.write_bytes(content)
    with pytest.raises(StaleRecordError, match=r"(bytes and has|SHA-256)"):
        run(sweep, folder)
    model_path.unlink()
    with pytest.raises(ModelMissingError, match="put it back"):
        run(sweep, folder, force=True)


def test_the_digest_is_not_computed_where_the_size_differs(
    sweep: SweepRecord, folder: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(hashlib, "file_digest")
    model_path.write_bytes(b"short")
    with pytest.raises(StaleRecordError):
        run(sweep, folder)


def test_a_simulated_sweep_is_not_written_without_force(sweep: SweepRecord, folder: Path) -> None:
    engine = replace(ENGINE, name="simulated", simulated=True)
    simulated = replace(sweep, engine=engine)
    with pytest.raises(UsageError, match="simulated"):
        run(simulated, folder, engine=engine)
    text = render_outcome(run(simulated, folder, engine=engine, write=False))
    assert text.endswith("this sweep is simulated, so there is nothing to write")


@pytest.mark.parametrize("target", [name for name in target_names() if name != "textgen"])
def test_a_simulated_sweep_shows_no_path_that_is_not_a_model(
    sweep: SweepRecord, folder: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    engine = replace(ENGINE, name="simulated", simulated=True)
    files = {"Q8_0": replace(sweep.model.files["Q8_0"], path="")}
    sweep = replace(sweep, engine=engine, model=replace(sweep.model, files=files))
    text = render_outcome(run(sweep, folder, target, engine=engine, write=False))
    assert "MODEL.gguf stands for your model file" in text
    assert str(Path.cwd()) not in text
    assert text.count("MODEL.gguf") > 1


def test_unknown_trial_and_target_name_what_there_is(sweep: SweepRecord, folder: Path) -> None:
    with pytest.raises(UsageError, match="no trial #9"):
        apply.resolve(sweep, 9)
    with pytest.raises(UsageError, match="one of llama-server"):
        run(sweep, folder, "vllm")


@pytest.mark.parametrize("command", ["apply", "ui"])
@pytest.mark.parametrize("port", ["0", "65536", "99999999", "-1", "http"])
def test_a_port_that_does_not_exist_is_one_line(
    command: str, port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, f"--port={port}"]) == 2
    assert capsys.readouterr().err == f"sweeper: --port {port}: there is no such port; choose 1 to 65535\n"


def test_a_snippet_says_that_it_is_to_be_copied(sweep: SweepRecord, folder: Path) -> None:
    text = render_outcome(run(sweep, folder, "python"))
    assert text.startswith("copy this to use trial #3 of sweep tiny-1 in python:\nfrom llama_cpp")


def test_what_lies_outside_the_files_is_said_after_a_rollback(sweep: SweepRecord, folder: Path) -> None:
    run(sweep, folder, "systemd")
    undone = journal.rollback(folder.parent / "root")
    assert "systemctl disable --now llama-server.service" in render_undone(undone)


@pytest.mark.parametrize("pick", ["at-least:100000tok/s", "at-most:0.5W"])
def test_a_pick_that_nothing_keeps_is_not_applied_and_the_nearest_is_named(
    sweep: SweepRecord, folder: Path, tmp_path: Path, pick: str
) -> None:
    with pytest.raises(
        UsageError, match=r"the nearest is #3 .* (Ask for less speed|Allow more watts), or use --pick 3"
    ):
        apply.run(
            sweep,
            pick,
            "env",
            apply.Options(folder=folder),
            root=tmp_path / "root",
            machine=MACHINE,
            engine=ENGINE,
            write=True,
        )
    assert not (folder / "llama-server.env").exists()


def test_an_apply_of_the_first_release_still_rolls_back(tmp_path: Path) -> None:
    """Its journal as it wrote it, cut short between the first file and the second."""
    first, second, made = tmp_path / "a.ini", tmp_path / "new" / "b.ini", tmp_path / "new"
    first.write_text("sweeper wrote this\n")
    made.mkdir()
    (made / "b.ini.sweeper-tmp").write_text("half")
    entry = tmp_path / "root" / "journal" / "apply" / "20260101T000000.000000Z-llama-server"
    entry.mkdir(parents=True)
    (entry.parent / ".20260102T000000.000000Z-env").mkdir()  # another, killed while it was prepared
    (entry / "0.before").write_text("theirs\n")
    ours = hashlib.sha256(b"sweeper wrote this\n").hexdigest()
    file = {
        "path": str(first),
        "backup": "0.before",
        "before_sha256": hashlib.sha256(b"theirs\n").hexdigest(),
        "after_sha256": ours,
        "mode": 0o644,
        "made_folders": [],
    }
    missing = {"path": str(second), "backup": None, "before_sha256": None, "mode": None}
    head = {
        "id": entry.name,
        "target": "llama-server",
        "sweep": "s",
        "trial": 3,
        "utc": "2026-01-01T00:00:00",
    }
    files = [file, {**missing, "after_sha256": ours, "made_folders": [str(made)]}]
    rest = {"state": "prepared", "files": files, "limit": None, "undo": ["tell"], "schema": 1}
    (entry / "entry.json").write_text(json.dumps(head | rest, indent=2))
    undone = journal.rollback(tmp_path / "root")
    assert (undone.restored, undone.unchanged, undone.notes) == ((str(first),), (str(second),), ("tell",))
    assert first.read_text() == "theirs\n"
    assert not made.exists()
