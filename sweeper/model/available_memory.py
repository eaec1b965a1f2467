"""The memory of the host that a new process can take."""

from __future__ import annotations

from pathlib import Path

from sweeper.control_groups import CGROUPS, PROC, memory_left_mib

_KIB_PER_MIB = 1024
_HELD = ("RssAnon", "RssShmem", "RssFile", "VmLck")  # of /proc/PID/status, in KiB


def host_available_mib(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """MiB that a process can take without swapping, within the limits of this process's control groups.

    None if the system does not report it.
    """
    known = [mib for mib in (_system(proc / "meminfo"), memory_left_mib(proc, cgroups)) if mib is not None]
    return min(known, default=None)


def given_back_mib(pid: int, proc: Path = Path("/proc")) -> float:
    """MiB that become available when the process ends; 0 if the system does not report it.

    Its mapped files only cache what is on the disk, so they count as available already, unless they are locked.
    """
    try:
        lines = (proc / str(pid) / "status").read_text().splitlines()
        kib = {
            name: int(rest.split()[0])
            for name, _, rest in (line.partition(":") for line in lines)
            if name in _HELD
        }
    except (OSError, ValueError, IndexError):
        return 0.0
    locked_files = kib.get("RssFile", 0) if kib.get("VmLck") else 0
    return (kib.get("RssAnon", 0) + kib.get("RssShmem", 0) + locked_files) / _KIB_PER_MIB


def _system(meminfo: Path) -> float | None:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / _KIB_PER_MIB
    except (OSError, ValueError, IndexError):
        return None
    return None
