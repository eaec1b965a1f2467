"""Calls to the operating system that Linux and macOS answer differently, each written once."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CAP_IPC_LOCK = 14  # linux/capability.h
_DESCRIPTORS = Path("/proc/self/fd")


def usable_cpus() -> frozenset[int]:
    """The CPUs that this process may run on. macOS has no affinity masks, so there it is all of them."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def peak_memory_mib() -> float:
    """The peak of this process's resident memory. Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def lockable_memory_mib(procfs_root: Path = Path("/proc")) -> float | None:
    """MiB that this process may lock in memory; None if there is no limit."""
    try:
        status = (procfs_root / "self/status").read_text(encoding="utf-8", errors="replace")
        capabilities = next(line for line in status.splitlines() if line.startswith("CapEff:"))
        if int(capabilities.split()[1], 16) >> _CAP_IPC_LOCK & 1:
            return None  # the kernel asks this process for no limit
    except (OSError, StopIteration, ValueError, IndexError):
        pass  # there are no capabilities here, so the limit holds
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft / 2**20


def end_with_parent(number: signal.Signals) -> Callable[[], None]:
    """A function for a child process: it asks the kernel to send ``number`` to the child when its parent ends.

    Only Linux can do that; elsewhere the function does nothing. The library is loaded here, since little is safe
    between fork and exec.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    return lambda: prctl(_PR_SET_PDEATHSIG, number) if prctl is not None else None


def temporary_file(folder: Path) -> tuple[IO[bytes], str]:
    """A file that vanishes when it is closed, and the path under which other processes can open it.

    On Linux the file has no name, and also vanishes if this process is killed.
    """
    if _DESCRIPTORS.is_dir():
        file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
        return file, f"/proc/{os.getpid()}/fd/{file.fileno()}"
    named = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    return cast(IO[bytes], named), named.name
