"""Writing one file so that a kill at any moment leaves the old or the new content, never half of either."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from sweeper.errors import RightMissingError, StoreError, SweeperError

TEMPORARY_SUFFIX = ".sweeper-tmp"  # beside the file, so that the rename stays on one file system

Step = Callable[[str], None]
"""Called between any two changes of the disk; tests end the process there."""


def no_step(_what: str) -> None:
    """Does nothing."""


def temporary_of(path: Path) -> Path:
    """Where the new content of ``path`` lies until it is whole."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in ``folder`` last over a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes, mode: int | None = None, step: Step = no_step) -> None:
    """Replace ``path`` by ``data``: temporary file, fsync, rename, fsync of the folder.

    A file that is there keeps its mode and owner; a link keeps pointing where it does, and the file that it
    points to is replaced. ``mode`` is for a new file (default 0644 less the umask).

    Raises:
        RightMissingError: where this user may not write there.
        StoreError: where the disk cannot take it.
    """
    real = path.resolve()
    temporary = temporary_of(real)
    try:
        before = _stat(real)
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()  # left by a run that was killed
        handle = os.open(
            temporary,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW,
            0o600 if before else mode or 0o644,
        )
        step(f"made {temporary.name}")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if before is not None:
                _keep_owner(file.fileno(), before)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            elif mode is not None:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        step(f"wrote {temporary.name}")
        temporary.replace(real)
        step(f"renamed {real.name}")
        sync_folder(real.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def remove(path: Path, step: Step = no_step) -> None:
    """Remove a file that may be gone already."""
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            step(f"removed {path.name}")
            sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> SweeperError:
    """The operating system's refusal to write ``path``, with what to do about it."""
    if isinstance(error, PermissionError):
        return RightMissingError(
            f"this user may not write {path}: run the same command with sudo, "
            "or write elsewhere with --file or --folder and copy it"
        )
    return StoreError(f"cannot write {path}: {error.strerror or error}")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _keep_owner(handle: int, before: os.stat_result) -> None:
    """Give the new file the old one's owner; only root can, and for others it is the same one."""
    now = os.fstat(handle)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(handle, before.st_uid, before.st_gid)
