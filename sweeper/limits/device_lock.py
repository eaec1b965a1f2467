"""One sweep a device: a lock file for each, held through ``flock`` by the sweep and by its guardian.

The lock goes when the last of the two is gone, so that no second sweep starts between the death of the first
and the moment its limits are given back. The files stay: removing one would let two sweeps hold "the" lock.
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
# A guardian needs milliseconds to give limits back; whoever starts meanwhile waits for it.
WAIT_SECONDS = 3.0
PAUSE_SECONDS = 0.05
OPEN_TO_ALL = 0o1777


def lock_folder() -> Path:
    """Where all users of this machine find each other's locks."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    for folder in (Path("/run/lock"), Path("/tmp")):  # noqa: S108 - files are opened without following links
        if folder.is_dir() and folder.stat().st_mode & OPEN_TO_ALL == OPEN_TO_ALL:
            return folder  # judged by its mode: what root may write is not where others look
    raise StoreError(f"no folder for locks is open to all users: set {FOLDER_VARIABLE} to one")


class DeviceLocks:
    """The locks of some devices, taken together or not at all."""

    def __init__(self, devices: Iterable[str], folder: Path | None = None) -> None:
        self.devices = tuple(sorted(set(devices)))
        self._folder = folder
        self._descriptors: dict[str, int] = {}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Open files that hold the locks, to be handed to the guardian."""
        return tuple(self._descriptors.values())

    def acquire(self) -> None:
        """Take all locks, waiting a few seconds for a guardian that is at work.

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
                    f"another sweep is tuning {busy}{self._holder(busy)}: wait for it, or end it first"
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
        """Write into the locks whose they are, and which journals wait to be replayed."""
        text = json.dumps({"pid": os.getpid(), "journals": [str(path.resolve()) for path in journals]})
        for descriptor in self._descriptors.values():
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, text.encode(), 0)

    def journals(self) -> list[Path]:
        """Journals that earlier holders noted, perhaps under another root: only this user's or root's."""
        found = set()
        for device in self.devices:
            named = _content(self._path(device)).get("journals")
            found |= {path for path in named if isinstance(path, str)} if isinstance(named, list) else set()
        return sorted(Path(path) for path in found)

    def release(self) -> None:
        """Close this process's hold; the guardian's goes on. May be called twice."""
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
    """Open a lock file for writing where it is ours, else for reading: both can be locked.

    No O_CREAT on a file that exists: kernels with fs.protected_regular refuse that in sticky folders.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        for _ in range(2):  # it may come or go between two tries
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
    raise StoreError(f"the lock {path} comes and goes: something else removes files there")


def _content(path: Path) -> dict[str, object]:
    """What the holder wrote; nothing where the file is somebody else's, who could write anything into it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return {}  # absent, or not ours to read: there is nothing to learn from it
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            return {}
        try:
            content = json.loads(file.read(4096) or b"{}")
        except ValueError:
            return {}  # torn while its holder was killed
    return content if isinstance(content, dict) else {}
