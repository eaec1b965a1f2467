"""Write one file so that a kill at any moment leaves the old or the new content, never half of either."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from sweeper.errors import RightMissingError, StoreError, SweeperError


def temporary_of(path: Path) -> Path:
    """Where the new content of ``path`` lies until it is whole: beside it, on the same file system."""
    return path.with_name(path.name + ".sweeper-tmp")


def write_atomically(path: Path, data: bytes, mode: int | None = None) -> None:
    """Replace ``path`` by ``data``: temporary file, fsync, rename.

    An existing file keeps its mode and owner. A link stays, and the file that it points to is replaced.
    ``mode`` is for a new file (default 0644 less the umask), whose folder is made.

    Raises:
        RightMissingError: this user may not write there.
        StoreError: the disk cannot take it.
    """
    real = path.resolve()
    temporary = temporary_of(real)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        old = real.stat() if real.exists() else None
        temporary.unlink(missing_ok=True)  # left by a run that was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, flags, 0o600 if old else mode or 0o644), "wb") as file:
            if old is not None:
                with contextlib.suppress(PermissionError):  # only root can give a file away
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                mode = stat.S_IMODE(old.st_mode)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(real)
    except OSError as error:
        raise cannot_write(path, error) from error


def replace(path: Path, data: str | bytes) -> None:
    """Replace a file of sweeper's own in one step. Several processes may write it at once; its folder is made.

    Raises:
        OSError: the disk cannot take it; the old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> SweeperError:
    """The operating system's refusal to write ``path``, with what to do about it."""
    if isinstance(error, PermissionError):
        return RightMissingError(
            f"this user may not write {path}: run the same command with sudo, "
            "or write elsewhere with --file or --folder and copy it"
        )
    return StoreError(f"cannot write {path}: {error.strerror or error}")


def sqlite_address(path: Path) -> str:
    """The address of a SQLite file for SQLAlchemy and MLflow, whatever signs its path has.

    SQLAlchemy ends a path at ``?`` and decodes ``%``; Optuna fills in ``{…}``. Other signs stay as they are. Where
    an address begins with ``sqlite:///``, MLflow makes the folder of the encoded path.
    """
    encoded = re.sub(r"[%?#{}]", lambda sign: f"%{ord(sign[0]):02X}", str(path.absolute()))
    return f"sqlite+pysqlite:///{encoded}"
