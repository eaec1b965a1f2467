"""Device locks: at most one sweep uses a device. The sweep and its guardian hold a lock file through ``flock``.

The kernel releases the lock when both processes have ended. So no second sweep can start after the first sweep
dies and before the guardian restores its limits. The lock files stay on the disk: if a process removed one, two
sweeps could each hold a lock for the same device.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from sweeper.errors import StoreError, SweepBusyError

FOLDER_VARIABLE = "SWEEPER_LOCK_DIR"
# A guardian restores limits within milliseconds, and looks again two seconds later if a set was under way. A sweep
# that starts during that time waits for it.
WAIT_SECONDS = 5.0
PAUSE_SECONDS = 0.05
OPEN_TO_ALL = 0o1777
# The first line of a journal, as a lock file notes it; None if an older version noted the path alone.
Noted = Mapping[str, Any] | None


def lock_folder() -> Path:
    """The folder in which all users of this machine find each other's locks."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    for folder in (Path("/run/lock"), Path("/tmp")):  # noqa: S108 - files are opened without following links
        if folder.is_dir() and folder.stat().st_mode & OPEN_TO_ALL == OPEN_TO_ALL:
            return folder  # the mode decides, because root can also write to folders closed to others
    raise StoreError(
        f"no folder for locks is writable by all users: set {FOLDER_VARIABLE} to a folder that is"
    )


class DeviceLocks:
    """The locks of some devices. ``acquire`` takes all of them or none."""

    def __init__(self, devices: Iterable[str], folder: Path | None = None) -> None:
        self.devices = tuple(sorted(set(devices)))
        self._folder = folder
        self.descriptors: list[int] = []  # the open files that hold the locks; the guardian inherits them

    def acquire(self) -> None:
        """Take all locks, or raise SweepBusyError. Wait some seconds for a guardian that is restoring limits."""
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            for device in self.devices:  # in one order, so that two sweeps do not wait for each other
                self._take(device, deadline)
        except BaseException:
            self.release()
            raise

    def _take(self, device: str, deadline: float) -> None:
        path = self._path(device)
        self.descriptors.append(_open(path))
        while True:
            try:
                return fcntl.flock(self.descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(self.descriptors.pop())  # the error names the processes that have the file open
                    raise _busy(device, path) from None
                time.sleep(PAUSE_SECONDS)

    def _path(self, device: str) -> Path:
        plain = "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in device)
        return (self._folder or lock_folder()) / f"sweeper-{plain}.lock"

    def remember(self, journal: Path, header: Mapping[str, Any]) -> None:
        """Note this process, a journal and its first line in the lock files, for a start under another root."""
        for descriptor in self.descriptors:
            _change(descriptor, str(journal.resolve()), header)

    def noted(self) -> dict[Path, Noted]:
        """The journals that the holders noted, with their first lines; only this user's and root's."""
        return _noted_in(self._path(device) for device in self.devices)

    def release(self) -> None:
        """Close this process's lock files; the guardian keeps its own open. May be called twice."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _open(path: Path) -> int:
    """Open a lock file for writing if this user owns it, otherwise for reading. ``flock`` works on both.

    An existing file is opened without O_CREAT, which kernels with fs.protected_regular refuse in sticky folders.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        for _ in range(2):  # the file may appear or vanish between two tries
            try:
                return os.open(path, os.O_RDWR | flags)
            except PermissionError:
                return os.open(path, os.O_RDONLY | flags)
            except FileNotFoundError:
                try:
                    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o644)
                except FileExistsError:
                    continue
    except OSError as error:
        raise StoreError(f"the lock {path} cannot be opened ({error.strerror}): remove that file") from error
    raise StoreError(f"the lock {path} keeps vanishing: stop the program that removes files there")


def noted_anywhere(folder: Path | None = None) -> dict[Path, Noted]:
    """The journals that any lock file of this user or of root names, with their first lines."""
    return _noted_in(sorted((folder or lock_folder()).glob("sweeper-*.lock")))


def forget(descriptors: Iterable[int], journal: Path) -> None:
    """Strike out a journal whose limits are restored. The descriptors hold the locks."""
    for descriptor in descriptors:
        _change(descriptor, str(journal.resolve()), None)


def _change(descriptor: int, journal: str, header: Noted) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        return  # another user owns the file
    headers = {path: one for path, one in _headers(descriptor).items() if path != journal}
    if header is not None:
        headers[journal] = header
    text = json.dumps({"pid": os.getpid(), "journals": list(headers), "headers": headers})
    # One write over the whole of the old content, so that a kill leaves the old note or the new one.
    os.pwrite(descriptor, text.ljust(os.fstat(descriptor).st_size).encode(), 0)


def _noted_in(files: Iterable[Path]) -> dict[Path, Noted]:
    found: dict[Path, Noted] = {}
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # the file is absent, or this user may not read it
        found |= {Path(journal): header for journal, header in _headers(descriptor).items()}
        os.close(descriptor)
    return found


def _headers(descriptor: int) -> dict[str, Noted]:
    """The journals that the holder wrote into a lock file, with their first lines.

    Empty if another user owns the file, because that user could write anything into it.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        return {}
    try:
        content = json.loads(os.pread(descriptor, found.st_size, 0) or b"{}")
        headers = content.get("headers", {})  # an older version notes the paths alone
        return {path: headers.get(path) for path in content["journals"] if isinstance(path, str)}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}  # not written by sweeper


def _busy(device: str, path: Path) -> SweepBusyError:
    """The error that names the process which holds the lock, by the files that it has open."""
    import psutil  # here, because the guardian must start quickly

    guardian = None
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if all(file.path != str(path.resolve()) for file in process.open_files()):
                continue
            if not any("sweeper.limits.guardian" in word for word in process.cmdline()):
                who = f"another sweep is tuning {device} (process {process.pid})"
                return SweepBusyError(who, "wait until it ends, or stop it")
            guardian = process
    if guardian is None:
        return SweepBusyError(f"another sweep is tuning {device}", "wait until it ends, or stop it")
    who = f"the guardian of an ended sweep holds {device} (process {guardian.pid})"
    mend = "it is still restoring limits; wait some seconds and try again"
    with contextlib.suppress(psutil.Error):
        if guardian.status() == psutil.STATUS_STOPPED:
            who, mend = f"{who} and is stopped", f"let it go on with `kill -CONT {guardian.pid}`"
    return SweepBusyError(who, mend)
