"""The machine at hand: what decides its speed and watts, and a fingerprint of that."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sweeper.control_groups import cpu_quota
from sweeper.errors import MissingError
from sweeper.nvml import Card, Nvml, first, visible_gpus
from sweeper.records import GpuRecord, MachineRecord
from sweeper.system import usable_cpus

# Two copies of this many bytes are far larger than any cache that a desktop or a small server has.
_BANDWIDTH_BYTES = 256 * 2**20
_BANDWIDTH_ROUNDS = 3


def examine(sysfs_root: Path = Path("/sys"), procfs_root: Path = Path("/proc")) -> MachineRecord:
    """The machine's record. Reads files only and sets nothing; its bandwidth is left to be measured."""
    cpu = _cpu_name(procfs_root)
    cores = _cores(sysfs_root, procfs_root)
    memory_mib = psutil.virtual_memory().total // 2**20
    gpus = nvidia_gpus()
    return MachineRecord(
        fingerprint=fingerprint(cpu, cores.logical, memory_mib, gpus, cores.quota),
        cpu=cpu,
        physical_cores=cores.physical,
        logical_cores=cores.logical,
        memory_mib=memory_mib,
        kernel=f"{platform.system()} {platform.release()}",
        gpus=gpus,
        performance_cores=cores.performance,
        cpu_quota=cores.quota,
    )


def usable_threads() -> int:
    """The number of threads that can run at the same time here, within CPU masks and quotas."""
    return _cores(Path("/sys"), Path("/proc")).logical


def fingerprint(
    cpu: str, logical_cores: int, memory_mib: int, gpus: Sequence[GpuRecord], quota: float | None = None
) -> str:
    """Twelve hex digits of what decides speed and watts: CPU, cores, quota, memory in GiB, GPUs and their driver."""
    parts = [cpu, str(logical_cores), str(round(memory_mib / 1024))]
    parts += [f"{gpu.name}/{gpu.uuid}/{gpu.driver}" for gpu in gpus]
    parts += [] if quota is None else [f"quota {quota:g}"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def nvidia_gpus() -> tuple[GpuRecord, ...]:
    """NVIDIA GPUs as NVML describes them; empty where there is no driver."""
    try:
        with Nvml() as nvml:
            cards = nvml.cards()
            visible = visible_gpus([(card.uuid, card.name) for card in cards]).uuids
            driver = nvml.driver()
            return tuple(_gpu(card, nvml.handle(card.uuid), driver, card.uuid in visible) for card in cards)
    except MissingError:  # the doctor's sensors say why
        return ()


def faulty_gpus() -> dict[int, MissingError]:
    """The NVIDIA GPUs that the driver lists and that give no answer, by index, each with the reason."""
    try:
        with Nvml() as nvml:
            with contextlib.suppress(MissingError):  # none of them answers
                nvml.cards()
            return nvml.faults
    except MissingError:  # the doctor's sensors say why
        return {}


def measure_bandwidth_gb_per_second() -> float:
    """Memory bandwidth in GB/s that all cores reach together: the best of three large copies and three pure reads.

    Copies count bytes read and written. Decode only reads, which is faster on most machines: a copy also reads the
    memory that it overwrites. Takes about a second, and 512 MiB or a quarter of the free memory.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    threads = _cores(Path("/sys"), Path("/proc")).physical
    part = min(_BANDWIDTH_BYTES, psutil.virtual_memory().available // 8) // threads // 8
    sources = [np.ones(part) for _ in range(threads)]
    targets = [np.zeros(part) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_BANDWIDTH_ROUNDS):
            for work, operand, bytes_moved in ((np.copyto, targets, 16), (np.dot, sources, 8)):
                began = time.perf_counter()
                list(pool.map(work, operand, sources))
                best = max(best, bytes_moved * part * threads / (time.perf_counter() - began))
    return best / 1e9


def _gpu(card: Card, handle: Any, driver: str, visible: bool) -> GpuRecord:
    import pynvml

    def watts(function: str, part: int | None = None) -> float | None:
        value = first(lambda: getattr(pynvml, function)(handle))  # laptops and virtual GPUs do not say
        return None if value is None else float(value if part is None else value[part]) / 1000

    memory = first(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    return GpuRecord(
        name=card.name,
        uuid=card.uuid,
        driver=driver,
        index=card.index,
        memory_mib=None if memory is None else memory.total // 2**20,
        power_min_watts=watts("nvmlDeviceGetPowerManagementLimitConstraints", 0),
        power_max_watts=watts("nvmlDeviceGetPowerManagementLimitConstraints", 1),
        power_default_watts=watts("nvmlDeviceGetPowerManagementDefaultLimit"),
        power_limit_watts=watts("nvmlDeviceGetPowerManagementLimit"),
        visible=visible,
    )


def _cpu_name(procfs_root: Path) -> str:
    """The CPU's name as the kernel says it; on Arm boards the board's model."""
    try:
        for line in (procfs_root / "cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # macOS and others have no /proc: the platform module says what it knows
    return platform.processor() or platform.machine() or "unknown CPU"


@dataclass(frozen=True, slots=True)
class _Cores:
    """The cores that this process can use. ``quota`` is None where it allows all of them."""

    physical: int
    logical: int
    performance: int | None
    quota: float | None


def _cores(sysfs_root: Path, procfs_root: Path) -> _Cores:
    """Count the cores of the allowed CPUs. A quota of 2.5 CPUs keeps two threads busy without a pause."""
    everywhere = psutil.cpu_count() or 1
    cpus = usable_cpus()
    logical = min(everywhere, len(cpus))
    quota = cpu_quota(procfs_root, sysfs_root / "fs/cgroup")
    quota = None if quota is None or quota >= logical else quota
    logical = logical if quota is None else max(1, int(quota))
    physical = psutil.cpu_count(logical=False) or everywhere
    if len(cpus) < everywhere:
        physical = min(physical, _count_cores(cpus, sysfs_root))
    # The kernel lists a hybrid CPU's performance cores here, those of the whole machine.
    fast = _cpu_list(sysfs_root / "devices/cpu_core/cpus") & cpus
    performance = min(_count_cores(fast, sysfs_root), physical, logical) if fast else None
    return _Cores(min(physical, logical), logical, performance, quota)


def _count_cores(cpus: Iterable[int], sysfs_root: Path) -> int:
    """The physical cores of these CPUs. A CPU without a known topology counts as a core."""

    def core(cpu: int) -> tuple[str, ...]:
        folder = sysfs_root / f"devices/system/cpu/cpu{cpu}/topology"
        try:
            package = folder / "physical_package_id"
            return (package.read_text() if package.exists() else "", (folder / "core_id").read_text())
        except OSError:
            return (str(cpu),)

    return len({core(cpu) for cpu in cpus})


def _cpu_list(file: Path) -> frozenset[int]:
    """The CPUs in a kernel list such as ``0-7,16``; none if the file is missing, empty or not such a list."""
    found: set[int] = set()
    try:
        for part in filter(None, file.read_text().strip().split(",")):
            first_cpu, _, last_cpu = part.partition("-")
            found.update(range(int(first_cpu), int(last_cpu or first_cpu) + 1))
    except (OSError, ValueError):
        return frozenset()
    return frozenset(found)
