"""Device locks: at most one sweep uses a device. The sweep and its guardian hold a lock file through ``flock``.

The kernel releases the lock when both processes have ended. So no second sweep can start after the first sweep
dies and before the guardian restores its limits. The lock files stay on the disk: if a process removed one, two
sweeps could each hold a lock for the same device.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from sweeper.errors import StoreError, SweepBusyError

FOLDER_VARIABLE = "SWEEPER_LOCK_DIR"
# A guardian restores limits within milliseconds; a sweep that starts during that time waits for it.
WAIT_SECONDS = 3.0
PAUSE_SECONDS = 0.05
OPEN_TO_ALL = 0o1777


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
        self._descriptors: dict[str, int] = {}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that hold the locks; the guardian inherits them."""
        return tuple(self._descriptors.values())

    def acquire(self) -> None:
        """Take all locks, and wait a few seconds for a guardian that is restoring limits.

        Raises:
            SweepBusyError: another sweep holds one of them.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            busy = self._try_all()
            if busy is None:
                return
            if time.monotonic() >= deadline:
                raise SweepBusyError(
                    f"another sweep is tuning {busy}{self._holder(busy)}: wait until it ends, or stop it"
                )
            time.sleep(PAUSE_SECONDS)

    def _try_all(self) -> str | None:
        for device in self.devices:
            descriptor = _open(self._path(device))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                self.release()
                return device
            self._descriptors[device] = descriptor
        return None

    def _path(self, device: str) -> Path:
        plain = "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in device)
        return (self._folder or lock_folder()) / f"sweeper-{plain}.lock"

    def _holder(self, device: str) -> str:
        pid = _content(self._path(device)).get("pid")
        return f" (process {pid})" if isinstance(pid, int) else ""

    def note(self, *journals: Path) -> None:
        """Write this process's id and the journals still to be replayed into the lock files."""
        text = json.dumps({"pid": os.getpid(), "journals": [str(path.resolve()) for path in journals]})
        for descriptor in self._descriptors.values():
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, text.encode(), 0)

    def journals(self) -> list[Path]:
        """The journals that earlier holders noted, perhaps under another root; only this user's and root's."""
        found = set()
        for device in self.devices:
            named = _content(self._path(device)).get("journals")
            found |= {path for path in named if isinstance(path, str)} if isinstance(named, list) else set()
        return sorted(Path(path) for path in found)

    def release(self) -> None:
        """Close this process's lock files; the guardian keeps its own open. May be called twice."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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


def _content(path: Path) -> dict[str, object]:
    """The content that the holder wrote.

    It is empty if another user owns the file, because that user could write anything into it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return {}  # the file is absent, or this user may not read it
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            return {}
        try:
            content = json.loads(file.read(4096) or b"{}")
        except ValueError:
            return {}  # the holder was killed while it wrote the file
    return content if isinstance(content, dict) else {}
