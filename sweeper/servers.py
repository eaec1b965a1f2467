"""Starts a server on this machine, waits until it answers, and ends it together with its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sweeper.errors import EngineMissingError, SweeperError
from sweeper.http import answers
from sweeper.system import end_with_parent

HOST = "127.0.0.1"
_END_SECONDS = 10.0  # a server that does not end within this is killed
_POLL_SECONDS = 0.1
_FIRST_POLL_SECONDS = 0.005  # small models load in a few milliseconds
_ANSWER_SECONDS = 1.0  # of one poll: something that listens and never answers must not hold up the others
_LOG_LINES = 8
# Waits until this process ends, even if it is killed, and then ends the server's whole group. The kernel ends only the
# server itself (`_start_watched`), and not what a wrapper started. The first word is the number of the group. A server
# gives it before it becomes the program, so there is no moment at which nobody would end it. The word "ended" says
# that the group has ended. A llama-server that gets SIGTERM while it starts may hang, but ends at a second one.
_WATCH = """
group=
while read -r word; do
    [ "$word" = ended ] && exit
    group=$word
done
[ -n "$group" ] || exit
for _ in 1 2 3 4 5 6; do
    kill -s TERM -- "-$group" || exit
    sleep 0.5
done
kill -s KILL -- "-$group"
"""


def free_port(wished: int = 0) -> int:
    """``wished`` where it is free on 127.0.0.1, else a free one of the kernel's choice."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: no wait after another
        try:
            probe.bind((HOST, wished))
        except OSError:
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A server in a process group of its own, which ends with this process, however this process ends.

    Its output goes to ``log``. ``environment`` holds variables besides those of this process; None removes one.

    Raises:
        EngineMissingError: the program cannot be started.
    """

    def __init__(self, argv: Sequence[str], log: Path, environment: Mapping[str, str | None]) -> None:
        self._ending = threading.Lock()
        with log.open("wb") as output:
            self._watch = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, "sweeper-watch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            assert self._watch.stdin is not None
            try:
                self.process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={k: v for k, v in (os.environ | dict(environment)).items() if v is not None},
                    start_new_session=True,  # Ctrl-C reaches sweeper alone, which ends the server's whole group
                    preexec_fn=_start_watched(os.getpid(), self._watch.stdin.fileno()),
                )
            except OSError as error:
                self._dismiss_watch()
                raise EngineMissingError(
                    f"cannot start {argv[0]} ({error.strerror}): install it, or name it"
                ) from error
            except BaseException:
                self._watch.stdin.close()  # the server may have started: the watch ends it
                raise

    def end(self, seconds: float = _END_SECONDS) -> None:
        """End the server and its children; those that are left after ``seconds`` are killed.

        It may be called twice, also by two threads at the same time.
        """
        with self._ending:
            try:
                _end_group(self.process, seconds)
            finally:
                self._dismiss_watch()

    def _dismiss_watch(self) -> None:
        assert self._watch.stdin is not None
        if not self._watch.stdin.closed:
            with contextlib.suppress(BrokenPipeError), self._watch.stdin as words:
                words.write(b"ended\n")
            self._watch.wait()


@contextlib.contextmanager
def started(
    argv: Sequence[str],
    page: str,
    log: Path,
    timeout_seconds: float,
    *,
    environment: Mapping[str, str],
    failure: type[SweeperError],
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server while the block lasts, from when ``page`` answers.

    Its output goes to ``log``. ``environment`` holds variables besides those of this process.

    Raises:
        EngineMissingError: the program cannot be started.
        SweeperError: of the type ``failure``, with the last lines of the log, if the server ends or does not
            answer in time.
    """
    server = ServerProcess(argv, log, environment)
    program = " ".join(argv[:3]) if list(argv[1:2]) == ["-m"] else argv[0]
    try:
        if not until_answers(server.process, page, timeout_seconds):
            code = server.process.poll()
            if code is None:
                raise failure(f"{program} did not answer within {timeout_seconds:g} s: {last_lines(log)}")
            raise failure(f"{program} ended with {code} before it answered: {last_lines(log)}")
        yield server.process
    finally:
        server.end()


def until_answers(process: subprocess.Popen[bytes], page: str, timeout_seconds: float) -> bool:
    """Wait until ``page`` answers; False if the server ended or did not answer in time."""
    deadline, pause = time.monotonic() + timeout_seconds, _FIRST_POLL_SECONDS
    while not answers(page, _ANSWER_SECONDS):
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(_POLL_SECONDS, 1.5 * pause)
    return process.poll() is None


def last_lines(log: Path) -> str:
    """The last lines that a server printed, as one line."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return " | ".join(lines[-_LOG_LINES:]) or "it printed nothing"


def command_line_of_port(port: int, pid: int | None = None) -> list[str]:
    """The command line of the process that listens on a port; empty where this user may not see it."""
    import psutil

    try:
        if pid is None:
            listening = psutil.net_connections(kind="inet")
            here = (c for c in listening if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr[1] == port)
            owners = {c.pid for c in here if c.pid}
            if len(owners) != 1:
                return []
            pid = owners.pop()
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:
        return []


def _start_watched(parent: int, watch: int) -> Callable[[], None]:
    """A function for the server's process: it asks the kernel and the watch to end the server when its parent ends.

    ``watch`` is the descriptor that the watch reads from.
    """
    ask_kernel = end_with_parent(signal.SIGTERM)

    def ask() -> None:
        os.write(watch, b"%d\n" % os.getpid())
        ask_kernel()
        if os.getppid() != parent:  # it was killed before we asked
            os._exit(1)

    return ask


def _end_group(process: subprocess.Popen[bytes], seconds: float) -> None:
    _signal_group(process, signal.SIGTERM)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:
        _signal_group(process, signal.SIGKILL)  # whatever of the group is left
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
