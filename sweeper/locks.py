"""Lock files between processes. A lock ends with its block, or when its process dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeper.errors import StoreError


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
