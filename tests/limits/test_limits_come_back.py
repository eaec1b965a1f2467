"""Ways in which a limit once stayed behind in silence: each ends as found, or with a message and exit code 3."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_nvml import RTX_4090, UNKNOWN
from limits_bed import Bed, die, left_behind, settled, wait_for

from sweeper.cli import main
from sweeper.doctor import Finding
from sweeper.errors import LimitRefused
from sweeper.limits.base import Action, RestoreOutcome
from sweeper.limits.guardian import read_log

MakeBed = Callable[..., Bed]
POWER = "power_limit_watts"


@pytest.fixture
def here(bed: MakeBed, monkeypatch: pytest.MonkeyPatch) -> Bed:
    here = bed(RTX_4090)
    monkeypatch.setenv("SWEEPER_LOCK_DIR", str(here.locks))
    return here


def run(
    here: Bed, capsys: pytest.CaptureFixture[str], *words: str, root: Path | None = None
) -> tuple[int, str]:
    """`sweeper restore` or another command: its exit code and what it prints."""
    capsys.readouterr()
    code = main([*words, "--root", str(root or here.root), "power.limits.means=direct"])
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize("code", [0, UNKNOWN])
def test_two_failed_sets_in_a_row_do_not_disown_the_first_limit(
    here: Bed, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    gpu = here.nvml.gpus[0]
    limits = here.find()
    with limits:
        limits.set(POWER, 150)
        if code:
            gpu.fail("nvmlDeviceSetPowerManagementLimit", code=code)
        else:
            gpu.deny_setting()
        for value in (250, 200):
            with pytest.raises(LimitRefused):
                limits.set(POWER, value)
        die(limits)
    assert settled(here) == {Action.FAILED}
    assert run(here, capsys, "restore")[0] == 3
    gpu.heal()
    assert settled(here) == {Action.RESTORED}
    assert gpu.power_limit_watts == 450


def test_a_driver_that_reports_an_error_and_sets_the_value_is_no_other_tool(here: Bed) -> None:
    gpu = here.nvml.gpus[0]
    limits = here.find()
    with limits:
        limits.set(POWER, 150)
        gpu.lie(UNKNOWN)
        for value in (250, 200):
            with pytest.raises(LimitRefused):
                limits.set(POWER, value)
        gpu.heal()
    assert gpu.power_limit_watts == 450
    assert here.journals() == []


def test_a_full_disk_makes_no_limit_another_tool_s(here: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = here.nvml.gpus[0]
    limits = here.find()
    with limits:
        limits.set(POWER, 150)
        with monkeypatch.context() as full:
            full.setattr("sweeper.limits.journal._append", _no_space)
            for value in (250, 200):
                with pytest.raises(LimitRefused, match="No space left"):
                    limits.set(POWER, value)
        assert limits.set(POWER, 220).enforced == 220  # the disk has space again
        with monkeypatch.context() as full:
            full.setattr("sweeper.limits.journal.Journal.took", _no_note)
            with pytest.raises(LimitRefused, match="No space left"):
                limits.set(POWER, 180)
    assert gpu.power_limit_watts == 450
    assert here.journals() == []


def _no_space(descriptor: int, content: bytes) -> None:
    os.write(descriptor, content[:10])
    raise OSError(28, "No space left on device")


def _no_note(*_: object) -> None:
    from sweeper.errors import StoreError

    raise StoreError("No space left on device")


def test_a_guardian_whose_journal_was_removed_restores_and_says_so(here: Bed) -> None:
    limits = here.find()
    with limits:
        limits.set(POWER, 300)
        limits.set(POWER, 200)
        shutil.rmtree(here.root)
        die(limits, with_guardian=False)
    assert wait_for(lambda: here.nvml.gpus[0].power_limit_watts == 450)
    assert wait_for(lambda: len(read_log(here.root)) == 2)
    gone, restored = read_log(here.root)
    assert ".jsonl was gone" in gone
    assert "restored (from 200 W to 450 W)" in restored
    assert here.journals() == []


def test_a_guardian_that_fails_puts_the_removed_journal_back(
    here: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = here.nvml.gpus[0]
    limits = here.find()
    with limits:
        limits.set(POWER, 200)
        shutil.rmtree(here.root)
        gpu.deny_setting()
        guardian = die(limits, with_guardian=False)
        assert wait_for(lambda: len(here.journals()) == 1)
        os.kill(guardian, signal.SIGKILL)
    assert run(here, capsys, "restore")[0] == 3
    gpu.heal()
    assert settled(here) == {Action.RESTORED}


def test_a_removed_journal_is_written_again_before_the_next_set(here: Bed) -> None:
    limits = here.find()
    with limits:
        limits.set(POWER, 200)
        shutil.rmtree(here.root)
        limits.set(POWER, 210)
        assert len(here.journals()) == 1
        shutil.rmtree(here.root)
        die(limits, with_guardian=False)
    assert wait_for(lambda: here.nvml.gpus[0].power_limit_watts == 450)


def test_without_journal_and_guardian_the_lock_still_tells_what_was_found(
    here: Bed, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    left_behind(here, here.root)
    shutil.rmtree(here.root)
    code, said = run(here, capsys, "restore", root=tmp_path / "elsewhere")
    assert code == 3
    assert "set 200 W; the sweep found 450 W" in said
    assert "sweeper restore --settle found" in said
    code, said = run(here, capsys, "restore", "--settle", "found", root=tmp_path / "elsewhere")
    assert code == 0, said
    assert here.nvml.gpus[0].power_limit_watts == 450
    assert run(here, capsys, "restore")[0] == 0


@pytest.mark.parametrize("killed", [True, False])
def test_a_limit_that_shows_late_comes_back(here: Bed, killed: bool) -> None:
    """With `killed`, the sweep dies between the set and its effect; else the effect comes after the read-back."""
    gpu = here.nvml.gpus[0]
    limits = here.find()
    with limits:
        limits.set(POWER, 300)
        limits.set(POWER, None)
        gpu.come_late(0.15)  # after every later set, which takes effect at once
        with pytest.raises(LimitRefused):
            limits.set(POWER, 200)
        if killed:
            die(limits)
    if killed:
        assert len(here.journals()) == 1
        assert settled(here) == {Action.RESTORED}
    assert wait_for(lambda: gpu.get("late_due_ns") == 0)
    assert gpu.power_limit_watts == 450
    assert here.journals() == []


def test_restore_from_another_folder_finds_the_journal(
    here: Bed, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    left_behind(here, here.root)
    code, said = run(here, capsys, "restore", root=tmp_path / "elsewhere")
    assert code == 0
    assert "restored (from 200 W to 450 W)" in said
    assert here.nvml.gpus[0].power_limit_watts == 450


def test_restore_without_a_record_shows_the_devices(here: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    here.nvml.gpus[0].power_limit_watts = 200
    code, said = run(here, capsys, "restore")
    assert code == 0
    assert "no record of a limit" in said
    assert "200 W (the device's default is 450 W)" in said


def test_a_stopped_guardian_is_named(here: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    limits = here.find()
    with limits:
        limits.set(POWER, 200)
        assert limits._guardian is not None
        os.kill(limits._guardian.process.pid, signal.SIGSTOP)
        guardian = die(limits, with_guardian=False)
    code, said = run(here, capsys, "restore")
    assert code == 3
    assert (
        f"the guardian of an ended sweep holds {here.nvml.gpus[0].uuid} (process {guardian}) and is stopped"
        in said
    )
    assert f"kill -CONT {guardian}" in said
    os.kill(guardian, signal.SIGCONT)
    assert wait_for(lambda: here.nvml.gpus[0].power_limit_watts == 450)
    assert wait_for(lambda: not here.journals())
    assert run(here, capsys, "restore")[0] == 0


def test_a_found_value_between_two_steps_is_said_until_the_user_settles_it(
    here: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = here.nvml.gpus[0]
    gpu.power_limit_watts = 318.25
    gpu.grid(5)
    limits = here.find()
    with limits:
        limits.set(POWER, 300)
        die(limits)
    for _ in range(2):
        code, said = run(here, capsys, "restore")
        assert code == 3
        assert "did not accept 318.25 W: it reads back 315 W" in said
        assert "another tool" not in said
    code, said = run(here, capsys, "restore", "--settle", "present")
    assert code == 0
    assert "kept" in said
    assert gpu.power_limit_watts == 315
    assert here.find().ranges()[POWER].found == 315


def test_a_limit_that_is_not_settled_is_not_searched(here: Bed) -> None:
    """Its present value would count as found, and the value found before would be lost."""
    gpu = here.nvml.gpus[0]
    left_behind(here, here.root)
    gpu.power_limit_watts = 333
    with here.find() as limits:
        assert "another tool set 333 W" in str(limits.refusals()[POWER])
        limits.set("clock_limit_mhz", 1500)  # the other limit of the same device is free
    assert gpu.power_limit_watts == 333
    assert len(here.journals()) == 1


def test_an_old_journal_is_read(here: Bed) -> None:
    """As the version before this one wrote it after two refused sets: 150 W is in force."""
    gpu = here.nvml.gpus[0]
    left_behind(here, here.root)
    (path,) = here.journals()
    knob = {"kind": "nvml_power", "device": gpu.uuid, "part": ""}
    lines = [("intent", 150_000), ("took", 150_000), ("intent", 250_000), ("intent", 200_000)]
    header = path.read_text().splitlines()[0]
    path.write_text("\n".join([header, *(json.dumps({word: knob | {"raw": raw}}) for word, raw in lines)]))
    gpu.power_limit_watts = 150
    assert settled(here) == {Action.RESTORED}
    assert gpu.power_limit_watts == 450


@pytest.mark.parametrize(
    ("action", "code"), [(Action.RESTORED, 0), (Action.FAILED, 3), (Action.LEFT_ALONE, 3)]
)
def test_a_sweep_that_leaves_a_limit_exits_with_3(
    action: Action, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = RestoreOutcome("GPU-1", POWER, 450, 200, action, "why")
    sweep = SimpleNamespace(
        study=SimpleNamespace(header=lambda: SimpleNamespace(sweep="one", constraints=())),
        plan=SimpleNamespace(total=1, ladder=()),
        progress=nullcontext(SimpleNamespace(stopping=lambda: None)),
        stop=SimpleNamespace(set_by_hand=False),
        limits=SimpleNamespace(outcomes=(outcome,)),
        run=lambda: None,
    )
    monkeypatch.setattr("sweeper.prepare.prepared", lambda *_: nullcontext(sweep))
    monkeypatch.setattr("sweeper.commands.show", lambda *_: None)
    assert main(["sweep"]) == code


@pytest.mark.parametrize(("tried", "status"), [(False, "ok"), (True, "missing")])
def test_doctor_learns_that_a_driver_sets_no_limit(
    here: Bed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tried: bool, status: str
) -> None:
    monkeypatch.setattr("sweeper.doctor._sensors", lambda *_: ())  # only the limits matter here
    monkeypatch.setattr("sweeper.doctor.machine_findings", list)
    monkeypatch.setattr("sweeper.doctor.engine_finding", lambda _: Finding("engine", "none", "ok", ""))
    gpu = here.nvml.gpus[0]
    gpu.fail("nvmlDeviceSetPowerManagementLimit")
    code, said = run(here, capsys, "doctor", "--json", *(["--try-limits"] if tried else []))
    assert code == 0
    findings = json.JSONDecoder().raw_decode(said)[0]["findings"]
    (power,) = (one for one in findings if one["name"] == POWER)
    assert power["status"] == status
    assert ("Not Supported" if tried else "--try-limits") in power["detail"]
    gpu.heal()
    assert "setting it works" in run(here, capsys, "doctor", "--try-limits")[1]
    assert gpu.power_limit_watts == 450
