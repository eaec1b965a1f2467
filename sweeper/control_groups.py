"""What the control groups of this process allow it: processor time and memory, in versions 1 and 2.

Containers, systemd and batch systems set these limits. A limit of a group holds for all groups below it, so each
function looks at the process's own group and at those above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_BYTES_PER_MIB = 1 << 20
# Version 1 writes the largest multiple of a page where there is no limit. No machine has a tenth of that.
_UNLIMITED_BYTES = 1 << 60


def cpu_quota(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """The processor time that this process may take, in CPUs, for example 1.5; None if there is no quota."""
    found = []
    for folder in _folders("cpu", proc, cgroups):
        quota, period = _numbers(folder / "cpu.max", 2)
        if quota is None:
            (quota,), (period,) = (
                _numbers(folder / "cpu.cfs_quota_us"),
                _numbers(folder / "cpu.cfs_period_us"),
            )
        if quota is not None and period is not None and quota > 0 and period > 0:
            found.append(quota / period)
    return min(found, default=None)


def memory_limit_mib(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """The memory that this process's groups may take, in MiB; None if there is no limit."""
    return min((limit / _BYTES_PER_MIB for limit, _ in _memory(proc, cgroups)), default=None)


def memory_left_mib(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """The memory that this process's groups may still take, in MiB; None if there is no limit."""
    left = (
        max(0, limit - used) / _BYTES_PER_MIB for limit, used in _memory(proc, cgroups) if used is not None
    )
    return min(left, default=None)


def _memory(proc: Path, cgroups: Path) -> Iterator[tuple[int, int | None]]:
    """The limit of each group and what counts as used, in bytes."""
    for folder in _folders("memory", proc, cgroups):
        for limit_file, used_file, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            (limit,), (used,) = _numbers(folder / limit_file), _numbers(folder / used_file)
            if limit is not None and limit < _UNLIMITED_BYTES:
                # Cached file pages count as used, but the kernel frees them when memory is needed.
                stat = folder / "memory.stat"
                cached = sum(_entry(stat, f"{prefix}{kind}_file") for kind in ("inactive", "active"))
                yield limit, None if used is None else used - cached


def _folders(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of this process's groups, from its own to the topmost that is visible here."""
    try:
        lines = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        parts = [part for part in path.split("/") if part]
        if ".." in parts or not (controllers == "" or controller in controllers.split(",")):
            continue
        names = (".", "unified") if controllers == "" else {controllers: 0, controller: 0}
        for mount in (cgroups / name for name in names):
            yield from _upwards(mount, parts)


def _upwards(mount: Path, parts: list[str]) -> Iterator[Path]:
    """The folders from the process's group up to ``mount``.

    A container may see its own group as the topmost one, while ``parts`` begin at the host's. So the first parts may
    be missing under ``mount``.
    """
    first = next((at for at, part in enumerate(parts) if (mount / part).is_dir()), len(parts))
    folder = mount.joinpath(*parts[first:])
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _numbers(file: Path, count: int = 1) -> list[int | None]:
    """The first ``count`` words of a file as whole numbers; None for a word such as ``max``, or without a file."""
    try:
        words = file.read_text(encoding="utf-8").split()
    except OSError:
        words = []
    found: list[int | None] = [int(word) if word.lstrip("-").isdecimal() else None for word in words[:count]]
    return found + [None] * (count - len(found))


def _entry(file: Path, name: str) -> int:
    """The number after ``name`` in a file of names and numbers; 0 if it is not there."""
    try:
        pairs = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
        return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == name), 0)
    except (OSError, ValueError):
        return 0
