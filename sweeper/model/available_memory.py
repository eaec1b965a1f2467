"""The memory of the host that a new process can take."""

from __future__ import annotations

from pathlib import Path

_KIB_PER_MIB = 1024
_BYTES_PER_MIB = 1 << 20
_HELD = ("RssAnon", "RssShmem", "RssFile", "VmLck")  # of /proc/PID/status, in KiB


def host_available_mib(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """MiB that a process can take without swapping, within the limits of this process's control groups.

    None if the system does not report it.
    """
    known = [mib for mib in (_system(proc / "meminfo"), *_groups(proc, cgroups)) if mib is not None]
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


def _groups(proc: Path, cgroups: Path) -> list[float | None]:
    """The free memory of this process's group and of each group above it (control groups, version 2)."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    path = next((line[3:].strip("/") for line in lines if line.startswith("0::")), None)
    if path is None or ".." in path.split("/"):
        return []
    folder = cgroups / path
    found = [_group(folder)]
    while folder != cgroups and cgroups in folder.parents:
        folder = folder.parent
        found.append(_group(folder))
    return found


def _group(folder: Path) -> float | None:
    try:
        limit = int((folder / "memory.max").read_text())  # "max" is not a number and means no limit
        used = int((folder / "memory.current").read_text())
        # Cached file pages count as used, but the kernel frees them when memory is needed.
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith(("inactive_file ", "active_file ")):
                used -= int(line.split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return max(0.0, (limit - used) / _BYTES_PER_MIB)
