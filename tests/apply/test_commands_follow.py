"""The commands follow each other: what was applied, what runs, what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sweeper import commands, locks
from sweeper.apply import base, journal
from sweeper.apply.base import asked_for_context, unfinished
from sweeper.apply.run import Options, plan, run
from sweeper.cli import _parser, main
from sweeper.config import conf_folder
from sweeper.records import SweepRecord


@pytest.mark.parametrize("workload", base._WORKLOAD_CONTEXTS)
def test_the_contexts_of_the_workloads_are_those_of_the_files(workload: str) -> None:
    text = (conf_folder() / "workload" / f"{workload}.yaml").read_text("utf-8")
    assert yaml.safe_load(text)["n_ctx"] == base._WORKLOAD_CONTEXTS[workload]


def unasked(sweep: SweepRecord) -> SweepRecord:
    return replace(
        sweep,
        workload=replace(sweep.workload, name="quick", n_ctx=2048),
        space={key: value for key, value in sweep.space.items() if key != "n_ctx"},
        config={"space": {"n_ctx": "auto"}},
    )


def test_a_context_that_nobody_asked_for_stays_as_it_is(sweep: SweepRecord, tmp_path: Path) -> None:
    quick = unasked(sweep)
    options = Options(folder=tmp_path)
    made = plan(quick, sweep.trials[0].number, "llama-server", options)
    (change,) = made.draft.files
    text = change.after.decode()
    ours = made.request.configuration.n_ctx
    assert f"ctx-size = {ours}" in text
    change.path.write_text(text.replace(f"ctx-size = {ours}", "ctx-size = 7777"))
    again = plan(quick, sweep.trials[0].number, "llama-server", options)
    assert "ctx-size = 7777" in again.draft.files[0].after.decode()
    assert any("your context of 7777 tokens stays" in note for note in again.draft.notes)
    asked = replace(quick, config={"space": {"n_ctx": ours}})
    assert asked_for_context(asked)
    assert (
        f"ctx-size = {ours}"
        in plan(asked, sweep.trials[0].number, "llama-server", options).draft.files[0].after.decode()
    )


def test_a_lock_tells_a_running_sweep_from_one_that_was_cut_off(sweep: SweepRecord, tmp_path: Path) -> None:
    assert unfinished(sweep, tmp_path) is None
    running = replace(sweep, state="running")
    assert "cut off" in str(unfinished(running, tmp_path))
    with locks.held(locks.of_sweep(tmp_path, sweep.sweep)):
        assert unfinished(running, tmp_path) == "this sweep is still running"
    assert "cut off" in str(unfinished(running, tmp_path))


def test_verify_checks_what_was_applied_last(
    sweep: SweepRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    options = _parser().parse_args(["verify", "--root", str(root)])
    assert commands._applied(options) is None
    assert "no configuration was applied" in capsys.readouterr().err
    number = sweep.trials[0].number
    run(
        sweep,
        number,
        "llama-server",
        Options(folder=tmp_path, port=9999),
        root=root,
        machine=sweep.machine,
        engine=sweep.engine,
        write=True,
        force=True,
    )
    entry = commands._applied(options)
    assert entry is not None
    assert (entry.sweep, entry.trial, entry.target, entry.port) == (sweep.sweep, number, "llama-server", 9999)
    assert commands._applied(_parser().parse_args(["verify", "S", "--root", str(root)])) is None
    journal.rollback(root)
    capsys.readouterr()
    assert commands._applied(options) is None
    assert "nothing is applied (the last apply was rolled back)" in capsys.readouterr().err
    assert main(["rollback", "--root", str(root)]) == 3
    assert "is undone already" in capsys.readouterr().err


def test_the_same_command_shows_a_finished_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "experiment=demo", "search.trials=2", "search.finalists=1", f"root={tmp_path}"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert main([*words, "prices.per_kwh=0,50"]) == 0
    again = capsys.readouterr()
    assert "this sweep is complete; to measure anew, add name=" in again.err
    assert first.splitlines()[1] == again.out.splitlines()[1]
    assert main([*words, "search.trials=3"]) == 0
    assert "this sweep is complete" not in capsys.readouterr().err


def test_the_name_alone_goes_on_with_the_words_of_the_first_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [f"root={tmp_path}", "name=one"]
    assert main(["sweep", "experiment=demo", "search.trials=2", "search.finalists=1", *place]) == 0
    capsys.readouterr()
    assert main(["sweep", *place]) == 0
    said = capsys.readouterr().err
    assert "as it began: experiment=demo search.trials=2 search.finalists=1" in said
    assert "sweep one: 2 trials at most" in said
