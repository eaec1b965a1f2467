"""Setting limits on a fake GPU through the real pynvml: ranges, read-back, refusals, and giving back."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_nvml import H100_MIG, LAPTOP_4060, RTX_3060, RTX_4090, UNKNOWN
from limits_bed import DIRECT, Bed, left_behind, settled, wait_for

from sweeper.errors import LimitRefused, SweepBusyError, UsageError
from sweeper.limits.base import Action
from sweeper.limits.control import find_limits
from sweeper.limits.guardian import read_log
from sweeper.limits.restore import restore
from sweeper.power_settings import PowerSettings


def test_ranges_come_from_the_device_and_never_exceed_what_was_found(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    power = here.find().ranges()["power_limit_watts"]
    assert (power.low, power.high, power.found) == (150, 450, 450)
    clock = here.find().ranges()["clock_limit_mhz"]
    assert (clock.low, clock.high, clock.found, clock.step) == (210, 3105, None, 15)
    here.nvml.gpus[0].power_limit_watts = 300
    assert here.find().ranges()["power_limit_watts"].high == 300
    assert here.find().refusals() == {}


def test_entering_and_leaving_without_a_set_changes_nothing(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    with here.find() as limits:
        limits.set("power_limit_watts", None)
        limits.set("power_limit_watts", 450)  # as found
        limits.set("clock_limit_mhz", None)
    assert gpu.sets == 0
    assert not here.root.exists()
    assert here.find().ranges()  # and nothing stays locked


def test_caps_and_clocks_are_set_read_back_and_given_back(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    gpu.power_limit_watts = 400  # neither the default nor the most
    limits = here.find()
    with limits:
        taken = limits.set("power_limit_watts", 250)
        assert (taken.requested, taken.enforced) == (250, 250)
        locked = limits.set("clock_limit_mhz", 1505)
        assert (locked.requested, locked.enforced) == (1505, None)
        assert gpu.power_limit_watts == 250
        assert gpu.locked_clocks_mhz == (210, 1500)  # the next supported clock below
        assert limits.set("power_limit_watts", 300).enforced == 300
        limits.set("clock_limit_mhz", None)
        assert gpu.locked_clocks_mhz is None
        limits.set("clock_limit_mhz", 900)
        assert len(here.journals()) == 1
    assert gpu.power_limit_watts == 400
    assert gpu.locked_clocks_mhz is None
    assert here.journals() == []
    assert {outcome.action for outcome in limits.outcomes} == {Action.RESTORED}


def test_persistence_mode_is_left_alone(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    with here.find() as limits:
        limits.set("power_limit_watts", 250)
    assert here.nvml.gpus[0].get("persistence") == 0


def test_all_gpus_move_together_and_each_gets_its_own_back(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090, RTX_3060)
    first, second = here.nvml.gpus
    with here.find() as limits:
        power = limits.ranges()["power_limit_watts"]
        assert (power.low, power.high) == (150, 170)
        limits.set("power_limit_watts", 160)
        assert (first.power_limit_watts, second.power_limit_watts) == (160, 160)
    assert (first.power_limit_watts, second.power_limit_watts) == (450, 170)


def test_one_gpu_can_be_named(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090, RTX_3060)
    with here.find(source="nvml", device=here.nvml.gpus[1].uuid) as limits:
        limits.set("power_limit_watts", 120)
        assert [gpu.power_limit_watts for gpu in here.nvml.gpus] == [450, 120]
    assert here.find(device="0000:02:00.0").ranges()["power_limit_watts"].high == 170
    with pytest.raises(UsageError, match=r"power\.device=7 names no NVIDIA GPU"):
        here.find(source="nvml", device="7")


@pytest.mark.parametrize(
    ("visible", "order", "high"),
    [("1", "PCI_BUS_ID", 170), ("GPU-fa4e0000-0000-4000-8000-000000000000", None, 450), ("1", None, None)],
)
def test_visible_devices_are_obeyed(
    bed: Callable[..., Bed], visible: str, order: str | None, high: int | None
) -> None:
    here = bed(RTX_4090, RTX_3060)
    environ = {"CUDA_VISIBLE_DEVICES": visible} | ({"CUDA_DEVICE_ORDER": order} if order else {})
    settings = PowerSettings(sysfs_root=str(here.sysfs))
    limits = find_limits(here.root, settings, DIRECT, here.locks, environ)
    if high is None:
        assert "name them by UUID" in str(limits.refusals()["power_limit_watts"])
    else:
        assert limits.ranges()["power_limit_watts"].high == high


def test_a_visible_mig_instance_has_no_limit_and_says_why(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    settings = PowerSettings(sysfs_root=str(here.sysfs))
    limits = find_limits(here.root, settings, DIRECT, here.locks, {"CUDA_VISIBLE_DEVICES": "MIG-1234"})
    assert "MIG instance" in str(limits.refusals()["power_limit_watts"])


@pytest.mark.parametrize("mode", ["ignores", "clamps"])
def test_a_floor_of_the_driver_is_seen_by_read_back(bed: Callable[..., Bed], mode: str) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    gpu.floor(250, mode)
    with here.find() as limits:
        with pytest.raises(LimitRefused, match=r"did not change to 200 W: it reads back (250|450) W"):
            limits.set("power_limit_watts", 200)
        assert gpu.power_limit_watts == 450  # not left at the floor
        assert limits.set("power_limit_watts", 260).enforced == 260
    assert gpu.power_limit_watts == 450
    assert here.journals() == []


def test_a_lock_without_effect_is_refused(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    gpu.load(compute=1.0)
    gpu.floor(0, "ignores")
    with here.find() as limits:
        with pytest.raises(LimitRefused, match=r"SM clock runs at \d+ MHz, above a lock of 1200 MHz"):
            limits.set("clock_limit_mhz", 1200)
        gpu.heal()
        limits.set("clock_limit_mhz", 1200)
        assert gpu.locked_clocks_mhz == (210, 1200)
    assert gpu.locked_clocks_mhz is None


def test_one_gpu_that_refuses_leaves_no_other_half_set(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090, RTX_4090)
    first, second = here.nvml.gpus
    with here.find() as limits:
        second.floor(400, "ignores")
        with pytest.raises(LimitRefused):
            limits.set("power_limit_watts", 300)
        assert (first.power_limit_watts, second.power_limit_watts) == (450, 450)


def test_what_another_tool_sets_is_left_alone_and_reported(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    limits = here.find()
    with limits:
        limits.set("power_limit_watts", 250)
        gpu.power_limit_watts = 333
        with pytest.raises(LimitRefused, match=r"another tool changed .*\(333 W\): sweeper leaves it alone"):
            limits.set("power_limit_watts", 200)
    assert gpu.power_limit_watts == 333
    (outcome,) = limits.outcomes
    assert outcome.action is Action.LEFT_ALONE
    assert (outcome.found, outcome.present) == (450, 333)
    assert "another tool set 333 W" in str(outcome)
    assert len(here.journals()) == 1  # until the user decides
    assert "earlier run" in str(here.find().refusals()["power_limit_watts"])
    assert settled(here, "present") == {Action.KEPT}
    assert here.find().ranges()["power_limit_watts"].found == 333


def test_clocks_freed_by_another_tool_are_seen_under_load(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    gpu.load(compute=0.5)
    limits = here.find()
    with limits:
        limits.set("clock_limit_mhz", 1200)
        gpu.locked_clocks_mhz = (210, 2400)
    assert gpu.locked_clocks_mhz == (210, 2400)
    assert [outcome.action for outcome in limits.outcomes] == [Action.LEFT_ALONE]


def test_clocks_that_another_tool_holds_are_not_searched(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    gpu.put(lock_shows_reason=1)
    gpu.locked_clocks_mhz = (210, 1800)
    limits = here.find()
    assert "power_limit_watts" in limits.ranges()
    assert "nvidia-smi --reset-gpu-clocks" in str(limits.refusals()["clock_limit_mhz"])


def test_a_gpu_lost_in_the_middle_keeps_its_journal_for_later(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    limits = here.find()
    with limits:
        limits.set("power_limit_watts", 200)
        gpu.lose()
        with pytest.raises(LimitRefused, match="GPU is lost"):
            limits.set("power_limit_watts", 210)
    assert [outcome.action for outcome in limits.outcomes] == [Action.FAILED]
    gpu.heal()  # the guardian, not dismissed, tries for ten seconds
    assert wait_for(lambda: gpu.power_limit_watts == 450)
    assert wait_for(lambda: not here.journals())
    assert wait_for(lambda: len(read_log(here.root)) == 1)
    assert "restored (from 200 W to 450 W)" in read_log(here.root)[0]


def test_permission_lost_in_the_middle_fails_trials_only(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    with here.find() as limits:
        gpu.deny_setting()
        for name, value in (("power_limit_watts", 300), ("clock_limit_mhz", 1500)):
            with pytest.raises(LimitRefused, match="sweeper doctor"):
                limits.set(name, value)
    # The power limit reads as found. No call shows that the clock is free.
    assert {outcome.limit: outcome.action for outcome in limits.outcomes} == {
        "power_limit_watts": Action.AS_FOUND,
        "clock_limit_mhz": Action.FAILED,
    }
    gpu.heal()
    assert wait_for(lambda: not here.journals())


def test_a_driver_that_answers_with_an_error_fails_the_trial(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    with here.find() as limits:
        gpu.fail("nvmlDeviceSetPowerManagementLimit", code=UNKNOWN)
        with pytest.raises(LimitRefused, match="Unknown Error"):
            limits.set("power_limit_watts", 300)
        gpu.heal()
        limits.set("power_limit_watts", 300)
    assert gpu.power_limit_watts == 450


def test_laptops_and_mig_answer_plainly(bed: Callable[..., Bed]) -> None:
    here = bed(LAPTOP_4060)
    limits = here.find()
    assert "Not Supported" in str(limits.refusals()["power_limit_watts"])
    with limits:
        assert limits.set("power_limit_watts", None).enforced is None
    with pytest.raises(RuntimeError, match="with limits"):
        limits.set("power_limit_watts", None)


def test_mig_limits_are_not_touched(bed: Callable[..., Bed]) -> None:
    here = bed(H100_MIG)
    assert set(here.find().refusals()) == {"power_limit_watts", "clock_limit_mhz"}
    assert "MIG" in str(here.find().refusals()["power_limit_watts"])


def test_no_driver_no_package(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    here.nvml.unload_driver()
    limits = here.find()
    assert limits.ranges() == {}
    assert "Driver Not Loaded" in str(limits.refusals()["power_limit_watts"])
    with limits:
        assert limits.set("power_limit_watts", None).enforced is None
        with pytest.raises(LimitRefused, match="power_limit_watts=100 cannot be set"):
            limits.set("power_limit_watts", 100)


def test_a_second_sweep_on_the_device_is_refused(bed: Callable[..., Bed], tmp_path: Path) -> None:
    here = bed(RTX_4090, RTX_3060)
    uuids = [gpu.uuid for gpu in here.nvml.gpus]
    with here.find(source="nvml", device=uuids[0]) as limits:
        limits.set("power_limit_watts", 200)
        with (
            pytest.raises(SweepBusyError, match=rf"{uuids[0]} \(process {os.getpid()}\)"),
            here.find(root=tmp_path / "other"),
        ):
            pass
        with here.find(source="nvml", device=uuids[1], root=tmp_path / "other") as beside:
            beside.set("power_limit_watts", 120)  # another device is free
    assert [gpu.power_limit_watts for gpu in here.nvml.gpus] == [450, 170]


def test_a_killed_guardian_is_replaced_before_the_next_set(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    limits = here.find()
    with limits:
        limits.set("power_limit_watts", 200)
        assert limits._guardian is not None
        first = limits._guardian.process.pid
        os.kill(first, signal.SIGKILL)
        limits._guardian.process.wait()
        limits.set("power_limit_watts", 210)
        assert limits._guardian.process.pid != first
        assert limits._guardian.alive
    assert here.nvml.gpus[0].power_limit_watts == 450


def test_a_disk_that_cannot_be_written_sets_nothing(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    here.root.parent.mkdir(exist_ok=True)
    here.root.write_text("a file, where a folder should be")
    with here.find() as limits, pytest.raises(LimitRefused, match=r"was not set: .*cannot be written"):
        limits.set("power_limit_watts", 200)
    assert here.nvml.gpus[0].sets == 0


def test_restore_replays_what_a_killed_sweep_left(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    gpu = here.nvml.gpus[0]
    left_behind(here, here.root)
    outcomes = restore(here.root, DIRECT, here.sysfs, here.locks)
    assert {(o.limit, o.found, o.present, o.action) for o in outcomes} == {
        ("power_limit_watts", 450, 450, Action.RESTORED),
        ("clock_limit_mhz", None, None, Action.RESTORED),
    }
    assert (gpu.power_limit_watts, gpu.locked_clocks_mhz) == (450, None)
    assert here.journals() == []
    assert restore(here.root, DIRECT, here.sysfs, here.locks) == []


def test_the_next_start_replays_and_finds_the_whole_range(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    left_behind(here, here.root)
    limits = here.find()
    assert limits.ranges()["power_limit_watts"].found == 450
    assert {outcome.action for outcome in limits.replayed} == {Action.RESTORED}
    assert here.nvml.gpus[0].locked_clocks_mhz is None


def test_a_start_under_another_root_replays_too(bed: Callable[..., Bed], tmp_path: Path) -> None:
    here = bed(RTX_4090)
    left_behind(here, tmp_path / "elsewhere")
    assert here.find().ranges()["power_limit_watts"].found == 450
    assert here.journals(tmp_path / "elsewhere") == []


def test_restore_leaves_what_another_tool_set(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    left_behind(here, here.root)
    here.nvml.gpus[0].power_limit_watts = 320
    outcomes = restore(here.root, DIRECT, here.sysfs, here.locks)
    by_limit = {outcome.limit: outcome.action for outcome in outcomes}
    assert by_limit == {"power_limit_watts": Action.LEFT_ALONE, "clock_limit_mhz": Action.RESTORED}
    assert here.nvml.gpus[0].power_limit_watts == 320
    assert settled(here, None) == {Action.LEFT_ALONE}
    assert settled(here, "found") == {Action.RESTORED}
    assert here.nvml.gpus[0].power_limit_watts == 450
    assert here.journals() == []


def test_after_a_reboot_there_is_nothing_to_restore(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    left_behind(here, here.root)
    (path,) = here.journals()
    first, *rest = path.read_text().splitlines()
    header = json.loads(first) | {"boot_id": "another"}
    path.write_text("\n".join([json.dumps(header), *rest]) + "\n")
    sets = here.nvml.gpus[0].sets
    assert settled(here, None) == {Action.REBOOTED, Action.LEFT_ALONE}  # the device kept our limit
    here.nvml.gpus[0].power_limit_watts = 450  # as devices do
    assert settled(here, None) == {Action.REBOOTED}
    assert here.nvml.gpus[0].sets == sets
    assert here.journals() == []


def test_restore_leaves_a_running_sweep_to_itself(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    code = "print('ready', flush=True); input()"
    environment = os.environ | here.nvml.environment()
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        left_behind(here, here.root)
        (path,) = here.journals()
        first, *rest = path.read_text().splitlines()
        from sweeper.limits.journal import process_start_ticks

        header = json.loads(first) | {"pid": other.pid, "pid_start_ticks": process_start_ticks(other.pid)}
        path.write_text("\n".join([json.dumps(header), *rest]) + "\n")
        outcomes = restore(here.root, DIRECT, here.sysfs, here.locks)
        assert {outcome.action for outcome in outcomes} == {Action.IN_USE}
        assert here.nvml.gpus[0].power_limit_watts == 200
        other.communicate(b"\n")
    assert {o.action for o in restore(here.root, DIRECT, here.sysfs, here.locks)} == {Action.RESTORED}


def test_restore_with_the_gpu_away_keeps_the_journal(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    left_behind(here, here.root)
    here.nvml.gpus[0].lose()
    outcomes = restore(here.root, DIRECT, here.sysfs, here.locks)
    assert {outcome.action for outcome in outcomes} == {Action.FAILED}
    assert len(here.journals()) == 1
    here.nvml.gpus[0].heal()
    assert {o.action for o in restore(here.root, DIRECT, here.sysfs, here.locks)} == {Action.RESTORED}


def test_a_torn_last_line_was_never_set(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    left_behind(here, here.root)
    (path,) = here.journals()
    with path.open("a") as file:
        file.write('{"intent": {"kind": "nvml_power", "dev')
    assert {o.action for o in restore(here.root, DIRECT, here.sysfs, here.locks)} == {Action.RESTORED}


def test_a_sweep_that_sets_nothing_does_not_mind_another_tool(bed: Callable[..., Bed]) -> None:
    here = bed(RTX_4090)
    with here.find() as limits:
        here.nvml.gpus[0].power_limit_watts = 300
        assert limits.set("power_limit_watts", None).enforced == 300
    assert here.nvml.gpus[0].sets == 0


def test_a_journal_that_must_wait_is_not_forgotten(bed: Callable[..., Bed], tmp_path: Path) -> None:
    here = bed(RTX_4090)
    left_behind(here, tmp_path / "elsewhere")
    gpu = here.nvml.gpus[0]
    gpu.deny_setting()
    with here.find() as limits:
        assert {outcome.action for outcome in limits.replayed} == {Action.FAILED}
    gpu.heal()
    assert here.find().ranges()["power_limit_watts"].found == 450
    assert here.journals(tmp_path / "elsewhere") == []
