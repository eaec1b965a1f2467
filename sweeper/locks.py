"""Lock files between processes. A lock ends with its block, or when its process dies."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeper.errors import StoreError


def of_sweep(root: Path, sweep: str) -> Path:
    """The lock file of a sweep, which its process holds as long as it runs."""
    return root / "journal" / f"{hashlib.sha256(sweep.encode()).hexdigest()[:16]}.lock"


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file ``path``. Raises StoreError if the file cannot be read."""
    try:
        with path.open(encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    return False


@contextmanager
def held(path: Path, busy: Callable[[str], Exception] | None = None) -> Iterator[None]:
    """Hold the lock file ``path``, in which the holder's process id stands.

    `filelock` would empty the file while another process holds it, and with it the holder's id. If another
    process holds the lock, ``busy`` makes the error from that process's id; without ``busy``, this one waits.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write in {path.parent}: {error.strerror}; choose another root=…") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            assert busy is not None
            stream.seek(0)
            raise busy(stream.read().strip() or "another process") from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
