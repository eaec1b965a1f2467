"""The server as a process: its command line where it runs already, and starting one that always ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sweeper.errors import EngineMissingError, VerifyError

_END_SECONDS = 10.0  # a server that does not end within this is killed
_LOOK_SECONDS = 0.1  # how often a starting server is asked whether it answers
_LOG_LINES = 8
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command_line_of_port(port: int, pid: int | None = None) -> list[str]:
    """The command line of who listens on a port of this machine; empty where this user may not see it."""
    import psutil

    try:
        if pid is None:
            listening = psutil.net_connections(kind="inet")
            owners = {
                c.pid
                for c in listening
                if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr[1] == port and c.pid
            }
            if len(owners) != 1:
                return []
            pid = owners.pop()
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:
        return []


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(
    argv: tuple[str, ...],
    environment: Mapping[str, str],
    log: Path,
    answers: Callable[[], bool],
    timeout_seconds: float,
) -> Iterator[int]:
    """Run a server while the block lasts, from when it answers; gives its process id.

    Args:
        argv: The program and its arguments.
        environment: Variables besides those of this process.
        log: Where its output goes.
        answers: Whether it answers by now.
        timeout_seconds: How long loading the model may take.

    Raises:
        EngineMissingError: the program cannot be started.
        VerifyError: it ended before it answered, or did not answer in time; with its last lines.
    """
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C reaches us alone, and its children end with it
                preexec_fn=_die_with(os.getpid()),
            )
        except OSError as error:
            raise EngineMissingError(
                f"cannot start {argv[0]} ({error.strerror}): install it, or name it"
            ) from error
        try:
            _wait(process, argv, log, answers, timeout_seconds)
            yield process.pid
        finally:
            _end(process)


def _die_with(parent: int) -> Callable[[], None]:
    """Asks the kernel to end the server where this process is killed and cannot end it itself.

    The library is loaded here, before the fork: little is safe between fork and exec.
    """
    library = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before we asked
            os._exit(1)

    return ask


def _wait(
    process: subprocess.Popen[bytes],
    argv: tuple[str, ...],
    log: Path,
    answers: Callable[[], bool],
    timeout_seconds: float,
) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not answers():
        if process.poll() is not None:
            raise VerifyError(
                f"{_program(argv)} ended with {process.returncode} before it answered: {_tail(log)}"
            )
        if time.monotonic() > deadline:
            raise VerifyError(f"{_program(argv)} did not answer within {timeout_seconds:g} s: {_tail(log)}")
        time.sleep(_LOOK_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and whatever it left in its group
    process.wait()


def _program(argv: tuple[str, ...]) -> str:
    return " ".join(argv[:3]) if argv[1:2] == ("-m",) else argv[0]


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return " | ".join(lines[-_LOG_LINES:]) or "it printed nothing"
