"""What a machine really allows: masks, quotas, hybrid processors, and the calls that only Linux has."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sweeper import doctor, machine, system
from sweeper.control_groups import cpu_quota, memory_left_mib, memory_limit_mib
from sweeper.errors import SensorMissingError
from sweeper.meter.sensors.command import CommandSensor
from sweeper.meter.sensors.estimate import EstimateSensor
from sweeper.meter.trust import known_or_examined
from sweeper.power_settings import CommandSettings, EstimateSettings
from sweeper.records import ModelFile, ModelRecord, Workload
from sweeper.space.auto import Facts, default_configuration, fill_auto

GIB = 1 << 30


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def grouped(root: Path, lines: str, **files: str) -> tuple[Path, Path]:
    """A procfs whose process is in the groups of ``lines``, and a folder of groups with these files."""
    write(root / "proc/self/cgroup", lines)
    for name, text in files.items():
        write(root / "groups" / name, text)
    return root / "proc", root / "groups"


V2 = "0::/pod/box"
V1 = "4:memory:/pod/box\n3:cpu,cpuacct:/pod/box\n1:name=systemd:/pod/box"


@pytest.mark.parametrize(
    ("lines", "files", "quota"),
    [
        (V2, {"pod/box/cpu.max": "150000 100000"}, 1.5),
        (V2, {"pod/cpu.max": "50000 100000", "pod/box/cpu.max": "max 100000"}, 0.5),
        (V2, {"pod/cpu.max": "50000 100000", "pod/box/cpu.max": "400000 100000"}, 0.5),
        (V2, {"pod/cpu.max": "900000 100000", "pod/box/cpu.max": "400000 100000"}, 4),
        (V2, {"cpu.max": "200000 100000"}, 2),  # a container sees its own group as the topmost
        (V2, {"box/cpu.max": "200000 100000"}, 2),
        (V2, {"unified/pod/box/cpu.max": "200000 100000"}, 2),
        (V2, {"pod/box/cpu.max": "max 100000"}, None),
        (V2, {"pod/box/cpu.max": ""}, None),
        (V2, {"pod/box/cpu.max": "100000 0"}, None),
        (V2, {}, None),
        ("0::/../other", {"cpu.max": "200000 100000"}, None),
        ("", {"cpu.max": "200000 100000"}, None),
        (V1, {f"cpu,cpuacct/pod/cpu.cfs_{n}_us": "70000" for n in ("quota", "period")}, 1),
        (V1, {"cpu/cpu.cfs_quota_us": "765000", "cpu/cpu.cfs_period_us": "100000"}, 7.65),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        (V1, {"cpu/cpu.cfs_quota_us": "100000"}, None),
    ],
)
def test_the_smallest_cpu_quota_of_all_groups_holds(
    lines: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert cpu_quota(*grouped(tmp_path, lines, **files)) == quota


@pytest.mark.parametrize(
    ("lines", "files", "limit", "left"),
    [
        (V2, {"pod/memory.max": GIB, "pod/memory.current": GIB // 2}, 1024, 512),
        (V2, {"pod/memory.max": GIB}, 1024, None),
        (V2, {"pod/memory.max": "max", "pod/memory.current": 1}, None, None),
        (
            V1,
            {
                "memory/pod/box/memory.limit_in_bytes": 2 * GIB,
                "memory/pod/box/memory.usage_in_bytes": GIB,
                "memory/pod/box/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 4}",
            },
            2048,
            1024 + 256,
        ),
        (
            V1,
            {"memory/memory.limit_in_bytes": 9223372036854771712, "memory/memory.usage_in_bytes": GIB},
            None,
            None,
        ),
    ],
)
def test_memory_limits_of_both_versions(
    lines: str, files: dict[str, str], limit: float | None, left: float | None, tmp_path: Path
) -> None:
    proc, groups = grouped(tmp_path, lines, **files)
    assert memory_limit_mib(proc, groups) == limit
    assert memory_left_mib(proc, groups) == left


def test_without_procfs_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path) is None
    assert memory_limit_mib(tmp_path, tmp_path) is None


Plant = Callable[..., machine.MachineRecord]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Examines a machine of 16 CPUs, two for each core, with this quota, mask and list of fast CPUs."""

    def examine(
        quota: str = "max", cpus: range = range(16), fast: str | None = None
    ) -> machine.MachineRecord:
        monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
        monkeypatch.setattr(machine, "usable_cpus", lambda: frozenset(cpus))
        write(tmp_path / "proc/self/cgroup", "0::/")
        write(tmp_path / "proc/cpuinfo", "model name : Some CPU")
        write(tmp_path / "sys/fs/cgroup/cpu.max", f"{quota} 100000")
        for cpu in range(16):
            write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/core_id", cpu // 2)
        if fast is not None:
            write(tmp_path / "sys/devices/cpu_core/cpus", fast)
        return machine.examine(tmp_path / "sys", tmp_path / "proc")

    return examine


def cores(record: machine.MachineRecord) -> tuple[int, int, int | None]:
    return record.physical_cores, record.logical_cores, record.performance_cores


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({}, (8, 16, None)),
        ({"quota": "765000"}, (7, 7, None)),
        ({"quota": "50000"}, (1, 1, None)),
        ({"quota": "1600000"}, (8, 16, None)),
        ({"cpus": range(4)}, (2, 4, None)),  # two cores with two threads each
        ({"fast": "0-7"}, (8, 16, 4)),
        ({"fast": "0-3,8"}, (8, 16, 3)),
        ({"fast": "0-7", "cpus": range(6, 8)}, (1, 2, 1)),
        ({"fast": "0-7", "cpus": range(8, 12)}, (2, 4, None)),  # only efficient cores are allowed
        ({"fast": "0-7", "quota": "200000"}, (2, 2, 2)),
        ({"fast": ""}, (8, 16, None)),
        ({"fast": "none"}, (8, 16, None)),
    ],
)
def test_only_usable_cores_count(planted: dict, expected: tuple[int, int, int | None], plant: Plant) -> None:
    assert cores(plant(**planted)) == expected


@pytest.mark.parametrize(
    "planted",
    [{"quota": "765000"}, {"quota": "50000"}, {"fast": "0-7", "cpus": range(2)}, {"cpus": range(3)}, {}],
)
def test_auto_tries_the_baselines_threads_and_no_more_than_are_usable(planted: dict, plant: Plant) -> None:
    here = plant(**planted)
    model = ModelRecord("m", "llama", 1, 4, 0, "file", "Q8_0", {"Q8_0": ModelFile("Q8_0", "m", "0", 1)})
    facts = Facts(here, model, Workload(), False)
    spec, _ = fill_auto({"n_threads": "auto", "n_threads_batch": "auto"}, facts)
    base = default_configuration(facts)
    assert base.n_threads in spec["n_threads"]
    assert base.n_threads_batch in spec["n_threads_batch"]
    assert max(spec["n_threads_batch"]) == here.logical_cores


def test_the_fingerprint_holds_a_quota_and_is_otherwise_as_before(plant: Plant) -> None:
    free, same, limited = plant(), plant(quota="1600000"), plant(quota="250000")
    assert free.fingerprint == same.fingerprint == machine.fingerprint("Some CPU", 16, free.memory_mib, ())
    assert machine.fingerprint("Some CPU", 16, 32768, ()) == "0dfbf5d22e50"  # as recorded sweeps hold it
    assert limited.fingerprint not in (free.fingerprint, plant(quota="200000").fingerprint)
    assert (limited.cpu_quota, free.cpu_quota) == (2.5, None)


def test_a_machine_without_sysfs_and_procfs_is_examined(tmp_path: Path) -> None:
    here = machine.examine(tmp_path / "sys", tmp_path / "proc")
    assert 1 <= here.physical_cores <= here.logical_cores
    assert (here.performance_cores, here.cpu_quota) == (None, None)
    assert here.cpu


# -- calls that only Linux has


def test_without_an_affinity_mask_every_cpu_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert len(system.usable_cpus()) == os.cpu_count()
    assert machine.usable_threads() >= 1


def test_peak_memory_is_in_mib_on_both_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 * 2**20))
    assert system.peak_memory_mib() == 3 * 2**10
    monkeypatch.setattr(sys, "platform", "darwin")
    assert system.peak_memory_mib() == 3


def test_without_prctl_a_child_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "ctypes", SimpleNamespace(CDLL=lambda _: SimpleNamespace()))
    assert system.end_with_parent(9)() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert system.end_with_parent(9)() is None


def test_a_child_ends_with_its_parent() -> None:
    program = (
        "import signal, subprocess, sys; from sweeper.system import end_with_parent\n"
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=end_with_parent(signal.SIGKILL))\n"
        "print(child.pid)"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=30)
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == int(done.stdout)], timeout=5)
    assert not psutil.pid_exists(int(done.stdout))


def test_other_processes_can_open_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("/proc/self/fd", str(tmp_path / "none")):
        monkeypatch.setattr(system, "_DESCRIPTORS", Path(folder))
        file, path = system.temporary_file(tmp_path)
        with file:
            subprocess.run([sys.executable, "-c", f"open({path!r}, 'w').write('x')"], check=True)
            assert file.read() == b"x"
        assert list(tmp_path.iterdir()) == []


def test_locked_memory_is_limited_unless_a_capability_lifts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    assert system.lockable_memory_mib(tmp_path) == 8  # no procfs, as on macOS
    write(tmp_path / "self/status", "CapEff:\t0000000000000000")
    assert system.lockable_memory_mib(tmp_path) == 8
    write(tmp_path / "self/status", "CapEff:\t0000000000004000")
    assert system.lockable_memory_mib(tmp_path) is None
    write(tmp_path / "self/status", "CapEff:\t0000000000000000")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert system.lockable_memory_mib(tmp_path) is None


def test_power_is_estimated_without_procfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    now, busy = [100.0], [50.0]
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=busy[0], nice=0.0, system=0.0))
    sensor = EstimateSensor(EstimateSettings(10.0, 50.0), tmp_path, tmp_path, lambda: now[0])
    sensor.open()
    now[0], busy[0] = 110.0, 70.0  # 20 s of processor time in 10 s, on 4 CPUs
    assert sensor.read().power_watts == pytest.approx(30)
    assert "4 CPUs" in sensor.source.interface
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SensorMissingError):
        EstimateSensor(procfs_root=tmp_path).open()


# -- the doctor


def test_the_doctor_names_quota_memory_limit_and_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(machine.examine(), cpu_quota=1.5)
    monkeypatch.setattr(doctor.machine, "examine", lambda: here)
    monkeypatch.setattr(doctor.machine, "measure_bandwidth_gb_per_second", lambda: 10.0)
    monkeypatch.setattr(doctor, "memory_limit_mib", lambda: 512.0)
    monkeypatch.setattr(doctor, "lockable_memory_mib", lambda: 8.0)
    found = {finding.name: finding for finding in doctor.machine_findings()}
    assert "limits processor time to 1.5 CPUs" in found["cpu"].detail
    assert "a control group allows 0.5 GiB" in found["memory"].detail
    assert "may lock 8 MiB" in found["locked memory"].detail
    assert "ulimit -l" in (found["locked memory"].mend or "")


def test_the_doctor_says_that_the_folder_cannot_be_written(tmp_path: Path) -> None:
    assert doctor.folder_findings(tmp_path / "new") == ()
    write(tmp_path / "file", "")
    (finding,) = doctor.folder_findings(tmp_path / "file")
    assert (finding.status, finding.name) == ("no_right", "folder")
    assert "--root" in (finding.mend or "")


def test_a_trust_check_that_cannot_be_stored_still_counts(tmp_path: Path) -> None:
    write(tmp_path / "file", "")
    sensor = CommandSensor(CommandSettings(["/bin/echo", "42.5"], "watts"))
    sensor.open()
    assert known_or_examined(sensor, tmp_path / "file", seconds=0.05).polls > 0
