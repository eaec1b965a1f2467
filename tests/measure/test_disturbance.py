"""Other programs on the machine: what the kernel says of them, who they are, and waiting until they rest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fake_load import FakeLoad

from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure import disturbance
from sweeper.measure.disturbance import (
    POLL_SECONDS,
    Busy,
    Load,
    MachineLoad,
    Watch,
    between,
    busiest,
    in_words,
    parse_pressure,
    parse_stat,
    tolerated_cores,
    worst,
)
from sweeper.records import Disturbance, EnergyReading, PowerSource, Window

# Recorded on a virtual machine with two CPUs.
STAT = """\
cpu  198382 44961 20193 223706 788 0 316 289 0 0
cpu0 94874 22234 9949 116737 300 0 47 150 0 0
cpu1 103507 22727 10243 106969 488 0 269 138 0 0
intr 1163101 0 0 0 0
ctxt 4711
"""
OLD_STAT = "cpu  10 0 10 80 0 0 0\ncpu0 10 0 10 80 0 0 0\n"  # kernels before 2.6.11 name no stolen time
ENERGY = EnergyReading(PowerSource("rapl", "x", "package", "measured"), 1.0, 5.0)
PRESSURE = "some avg10=2.77 avg60=1.12 avg300=2.55 total=55887465\nfull avg10=0.00 avg60=0.00 total=0\n"


def test_busy_and_stolen_time_of_the_cpus_that_count() -> None:
    busy, steal = parse_stat(STAT, {0, 1}, 100)
    assert busy == pytest.approx((198382 + 44961 + 20193 + 316) / 100)
    assert steal == pytest.approx(2.89)
    assert parse_stat(STAT, range(8), 100) == (busy, steal)  # a mask may have CPUs that are not there
    assert parse_stat(STAT, {1}, 100) == pytest.approx(((103507 + 22727 + 10243 + 269) / 100, 1.38))


@pytest.mark.parametrize("text", ["", "cpu  1 2 3\ncpu0 1 2 3\n", "cpu0 a b c d e f g h\n", "intr 5\n"])
def test_a_stat_file_without_figures_gives_none(text: str) -> None:
    assert parse_stat(text, {0}, 100) == (None, None)


def test_a_container_that_numbers_its_cpus_anew_is_taken_whole() -> None:
    assert parse_stat(STAT, {4, 5}, 100) == parse_stat(STAT, {1, 2}, 100) == parse_stat(STAT, {0, 1}, 100)


def test_an_old_stat_file_has_no_stolen_time() -> None:
    assert parse_stat(OLD_STAT, {0}, 100) == (0.2, None)


def test_pressure_is_the_seconds_in_which_some_task_waited() -> None:
    assert parse_pressure(PRESSURE) == pytest.approx(55.887465)
    assert parse_pressure("") is None
    assert parse_pressure("full total=3\n") is None
    assert parse_pressure("some avg10=0.00 total=soon\n") is None


def test_the_time_of_others_is_all_but_ours() -> None:
    before = Load(10.0, 100.0, 5.0, 1.0, {1: 50.0})
    found = between(before, Load(12.0, 103.5, 5.2, 1.5, {1: 51.5, 2: 0.5}), cores=2, threads=2)
    assert found.others_share == pytest.approx(1.5 / 4)  # a new worker of ours counts whole
    assert found.steal_share == pytest.approx(0.05)
    assert found.pressure_share == pytest.approx(0.25)
    assert found.share == pytest.approx(0.425)
    assert found.disturbs


def test_what_is_missing_is_none_and_disturbs_nothing() -> None:
    assert between(Load(0.0), Load(1.0), cores=4) == Disturbance(4, limit_share=pytest.approx(0.0125))
    assert not between(Load(0.0), Load(0.0), cores=4).disturbs
    ended = between(Load(0.0, 0.0, 0.0, 0.0, {1: 0.0, 2: 3.0}), Load(1.0, 2.0, 0.0, 0.0, {1: 1.0}), cores=2)
    assert ended.others_share is None  # the time of a process of ours that ended is unknown


def test_a_kernel_that_hides_its_figures_is_not_taken_for_a_quiet_one() -> None:
    hidden = between(Load(0.0, 0.0, 0.0, None, {1: 0.0}), Load(1.0, 0.0, 0.0, None, {1: 1.5}), cores=2)
    assert hidden.others_share is None


def test_a_program_on_an_idle_core_disturbs_less_than_one_that_shares_cores() -> None:
    assert tolerated_cores(8, 8, threads=8, seconds=1) < tolerated_cores(8, 8, threads=7, seconds=1)
    assert tolerated_cores(8, 8, threads=7, seconds=1) < tolerated_cores(8, 8, threads=4, seconds=1) < 4
    # The other half of a core is not idle.
    assert tolerated_cores(8, 4, threads=4, seconds=1) == tolerated_cores(8, 8, threads=8, seconds=1)
    # A short window cannot show a single tick.
    assert tolerated_cores(8, 8, threads=8, seconds=0.1) > 0.2


def test_an_engine_that_leaves_the_work_to_a_gpu_shares_its_cores_with_nobody() -> None:
    before, after = Load(0.0, 0.0, 0.0, 0.0, {1: 0.0}), Load(1.0, 1.5, 0.0, 0.0, {1: 1.0})
    assert not between(before, after, cores=8, threads=8).disturbs
    full = Load(1.0, 8.0, 0.0, 0.0, {1: 7.5})
    assert between(before, full, cores=8, threads=8).disturbs


def test_processes_of_one_name_count_together_and_new_ones_whole() -> None:
    before = {(1, 0.0): ("cc1plus", 5.0), (2, 0.0): ("sh", 9.0), (3, 0.0): ("Xorg", 1.0)}
    after = {
        (1, 0.0): ("cc1plus", 5.5),
        (2, 0.0): ("sh", 9.0),
        (3, 0.0): ("Xorg", 1.2),
        (4, 7.0): ("cc1plus", 1.0),
        (3, 8.0): ("late", 0.1),  # another process has the number 3 now
    }
    found = busiest(before, after, 2.0)
    assert [(busy.name, pytest.approx(busy.cores)) for busy in found] == [
        ("cc1plus", 0.75),
        ("Xorg", 0.1),
        ("late", 0.05),
    ]


def test_the_line_names_programs_with_their_cores_and_what_the_kernel_adds() -> None:
    named = (Busy("cc1plus", 0.91), Busy("python3", 0.3))
    assert in_words(Disturbance(2, 0.6), named) == "cc1plus uses 0.9 of 2 cores, python3 0.3"
    more = in_words(Disturbance(2, 0.6, steal_share=0.04, pressure_share=0.351), named)
    assert more.endswith(
        "other virtual machines took 4% of the processor time, tasks had to wait for a CPU 35 % of the time"
    )
    assert in_words(Disturbance(1, None), (Busy("x", 0.5),)) == "x uses 0.5 of 1 core"


def test_processes_that_cannot_be_seen_are_spoken_of() -> None:
    outside = "processes outside this container"
    assert in_words(Disturbance(4, 0.5), (), outside) == f"{outside} use 2.0 of 4 cores"
    both = in_words(Disturbance(4, 0.5), (Busy("sshd", 0.5),), outside)
    assert both == f"{outside} use 1.5 of 4 cores, sshd 0.5"


def test_a_container_has_a_namespace_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "self/ns").mkdir(parents=True)
    monkeypatch.setattr(disturbance.sys, "platform", "linux")
    (tmp_path / "self/ns/pid").symlink_to("pid:[4026532201]")
    assert MachineLoad(tmp_path).elsewhere == "processes outside this container"
    (tmp_path / "self/ns/pid").unlink()
    (tmp_path / "self/ns/pid").symlink_to("pid:[4026531836]")
    assert "container" not in MachineLoad(tmp_path).elsewhere


def test_a_system_without_procfs_gives_what_psutil_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disturbance.sys, "platform", "darwin")
    source = MachineLoad(tmp_path / "no procfs")
    load = source.load()
    assert load.busy_seconds is not None
    assert (load.steal_seconds, load.stalled_seconds) == (None, None)
    assert load.own_seconds[os.getpid()] > 0
    assert "container" not in source.elsewhere


def test_without_procfs_on_linux_nothing_is_known_and_nothing_breaks(tmp_path: Path) -> None:
    source = MachineLoad(tmp_path)
    assert source.load().busy_seconds is None
    assert not between(source.load(), source.load(), 2).disturbs


@pytest.mark.skipif(sys.platform != "linux", reason="reads procfs")
def test_a_real_busy_process_of_another_is_noticed() -> None:
    source = MachineLoad()  # it follows the processes that are ours now, and the child comes later
    before = source.load()
    with _busy_process([sys.executable]) as child:
        while psutil.Process(child.pid).cpu_times().user < 0.5:
            time.sleep(0.05)
        after = source.load()
    found = between(before, after, source.cores)
    seconds = after.monotonic_seconds - before.monotonic_seconds
    assert found.others_share is not None
    assert found.others_share * source.cores * seconds > 0.4


@pytest.mark.skipif(sys.platform != "linux", reason="reads procfs")
def test_our_own_busy_process_is_none_of_the_others() -> None:
    with _busy_process([sys.executable]) as child:
        source = MachineLoad()
        before = source.load()
        had = psutil.Process(child.pid).cpu_times().user
        while psutil.Process(child.pid).cpu_times().user < had + 0.3:
            time.sleep(0.05)
        after = source.load()
        assert after.own_seconds[child.pid] - before.own_seconds[child.pid] > 0.25
        assert all(pid != child.pid for pid, _ in source.processes())


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of processes from procfs")
def test_the_list_names_a_real_program(tmp_path: Path) -> None:
    """A grandchild whose parent ended belongs to nobody of us."""
    program = tmp_path / "busybee"
    program.symlink_to(Path(sys.executable).resolve())
    code = "import time; end = time.process_time() + 60\nwhile time.process_time() < end: pass"
    started = subprocess.run(
        ["sh", "-c", '"$0" -S -c "$1" >/dev/null 2>&1 & echo $!', str(program), code],
        capture_output=True,
        text=True,
        check=True,
    )
    stranger = psutil.Process(int(started.stdout))
    try:
        source = MachineLoad()
        while stranger.cpu_times().user < 0.1:
            time.sleep(0.02)
        before, began = source.processes(), time.monotonic()
        had = stranger.cpu_times().user
        while stranger.cpu_times().user < had + 0.3:
            time.sleep(0.02)
        found = busiest(before, source.processes(), time.monotonic() - began)
        assert "busybee" in [busy.name for busy in found]
    finally:
        stranger.kill()


class _busy_process:  # noqa: N801 - used like a function
    def __init__(self, command: list[str]) -> None:
        self._command = command

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen([*self._command, "-c", "while True: pass"])
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def watch(then: float, foreign: tuple[float, ...] = (), **more) -> tuple[Watch, VirtualClock, FakeLoad]:
    clock = VirtualClock()
    source = FakeLoad(clock, foreign, then)
    return Watch(source, clock=clock, sleep=clock.advance, **more), clock, source


def test_the_wait_ends_at_its_limit_and_says_meanwhile_who_disturbs() -> None:
    waiting, clock, _ = watch(then=0.9, limit_seconds=12)
    lines: list[str] = []
    assert waiting.wait(lines.append) == "cc1plus uses 0.9 of 2 cores"
    assert 12 <= clock() <= 14
    assert waiting.waited_seconds == clock()
    assert lines[-1].startswith("waiting for quiet: cc1plus uses 0.9 of 2 cores, ")
    assert lines[-1].endswith(" s of at most 12 s")


def test_the_wait_ends_as_soon_as_the_machine_is_quiet() -> None:
    waiting, clock, _ = watch(then=0.0, foreign=(0.9, 0.9, 0.9))
    assert waiting.wait(lambda line: None) is None
    assert clock() < 4
    quiet, clock, _ = watch(then=0.0)
    assert quiet.wait(lambda line: None) is None
    assert clock() == POLL_SECONDS


def test_all_waits_together_are_bounded_and_half_is_kept_for_the_final_stage() -> None:
    waiting, clock, _ = watch(then=1.5, limit_seconds=8, minutes=3)  # a sixth of 3 minutes is 30 s
    for _ in range(20):
        waiting.wait(lambda line: None)
    assert 15 <= clock() <= 19
    waiting.finals_begin()
    for _ in range(20):
        waiting.wait(lambda line: None)
    assert 30 <= clock() <= 34
    without, clock, _ = watch(then=1.5, limit_seconds=8)
    without.finals_begin()
    for _ in range(20):
        without.wait(lambda line: None)
    assert 40 <= clock() <= 44


def test_waits_leave_most_of_a_short_search_to_its_trials() -> None:
    waiting, clock, _ = watch(then=1.5, limit_seconds=60, minutes=0.5)
    for _ in range(20):
        waiting.wait(lambda line: None)
    assert 10 <= clock() <= 12


def test_what_a_machine_always_takes_is_waited_for_once() -> None:
    waiting, clock, _ = watch(then=0.5, limit_seconds=20)
    assert waiting.wait(lambda line: None)
    first = clock()
    assert waiting.wait(lambda line: None) is None
    assert clock() - first == POLL_SECONDS
    usual, more = (Window("decode", 0, 1, 1.0, ENERGY, disturbance=Disturbance(2, s)) for s in (0.26, 0.4))
    assert not waiting.is_worth_repeating(usual)
    assert waiting.is_worth_repeating(more)
    assert watch(then=0.5)[0].is_worth_repeating(usual)
    # A pause shows that the wait only met a long burst.
    waiting.judge(Load(0.0, 0.0, 0.0, None, {1: 0.0}), Load(1.0, 2.1, 0.0, None, {1: 2.0}), 2)
    assert waiting.is_worth_repeating(usual)


def test_no_limit_means_no_wait_and_a_stop_ends_one() -> None:
    never, clock, source = watch(then=1.5, limit_seconds=0)
    assert never.wait(lambda line: None) is None
    assert (clock(), source.pairs) == (0, 0)
    stopped, clock, _ = watch(then=1.5, stopped=lambda: True)
    stopped.wait(lambda line: None)
    assert clock() == POLL_SECONDS


def test_a_look_names_who_disturbs_and_is_silent_on_a_quiet_machine() -> None:
    assert watch(then=0.9)[0].look() == "cc1plus uses 0.9 of 2 cores"
    assert watch(then=0.0)[0].look() is None


def test_the_worst_of_no_windows_is_unknown() -> None:
    assert worst(()) is None
