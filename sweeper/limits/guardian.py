"""The guardian: a process that outlives a killed sweep and restores the limits.

The guardian runs in its own session. It holds one end of a pipe and a handle of the sweep's process, and sleeps
in ``poll`` until one of them shows that the sweep has ended. Then it replays the journal and ends. A sweep that
restored its limits itself sends ``done`` first. A closing terminal or unit sends SIGINT, SIGHUP and SIGTERM to
its whole process group. The guardian ignores them, because it waits for the end of the sweep.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

from sweeper.errors import StoreError, SweeperError
from sweeper.limits import journal as journals
from sweeper.limits.knob import KnobId
from sweeper.limits.restore import Action, MachineKnobs, RestoreOutcome, replay
from sweeper.limits.rights import MeansSettings

READY = b"ready\n"
DONE = b"done\n"
LOG = "guardian.log"
# Python starts within a second or two on a busy small machine; a start that takes ten times as long has hung.
START_SECONDS = 20.0
# After `done` the guardian only has to end.
END_SECONDS = 5.0
# A device that returns errors may recover, for example after a driver reload. After this time the guardian gives
# up, and the next start of sweeper replays the journal.
RETRY_SECONDS = 10.0
RETRY_PAUSE_SECONDS = 0.5


class Guardian:
    """The sweep's side: it starts the guardian and dismisses it."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
        self._process = process
        self._pipe = pipe

    @classmethod
    def start(cls, journal: Path, means: MeansSettings, sysfs: Path, keep_open: Sequence[int] = ()) -> Self:
        """Start the guardian, and return when it watches the sweep.

        Args:
            journal: the journal that the guardian replays.
            means: how to set limits.
            sysfs: the path of sysfs, with RAPL's files.
            keep_open: descriptors that the guardian holds until it ends: the device locks.

        Raises:
            StoreError: the guardian did not start; the sweep must not set a limit then.
        """
        words = json.dumps({"journal": str(journal.resolve()), "pid": os.getpid(), "sysfs": str(sysfs)})
        package_folder = str(Path(__file__).resolve().parents[2])
        code = (
            f"import sys; sys.path.append({package_folder!r});"
            "from sweeper.limits.guardian import main; sys.exit(main(sys.argv[1:]))"
        )
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, words, means.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=tuple(keep_open),
            cwd="/",
        )
        assert process.stdin is not None
        guardian = cls(process, process.stdin)
        try:
            guardian._await_ready()
        except BaseException:
            guardian.abandon()
            process.kill()
            process.wait()
            raise
        return guardian

    def _await_ready(self) -> None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        if ready and self._process.stdout.readline() == READY:
            return
        self._process.kill()
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        raise StoreError(
            f"no limit was set: the guardian did not start ({lines[-1] if lines else 'it printed nothing'})"
        )

    @property
    def pid(self) -> int:
        """The guardian's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the guardian still runs."""
        return self._process.poll() is None

    def dismiss(self) -> None:
        """Let the guardian end after the sweep restored every limit, and wait for its end."""
        with contextlib.suppress(BrokenPipeError):  # the guardian was killed
            self._pipe.write(DONE)
            self._pipe.flush()
        self.abandon()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def abandon(self) -> None:
        """Close the pipe without ``done``: the guardian then acts as if this process had died."""
        for stream in (self._pipe, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def main(arguments: Sequence[str]) -> int:
    """The guardian's side. The arguments are the sweep to watch and the means, both as JSON."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    words = json.loads(arguments[0])
    journal = Path(words["journal"])
    with MachineKnobs(MeansSettings.from_json(arguments[1]), Path(words["sysfs"])) as machine:
        _open_early(journal, machine)
        owner = _handle_of(words["pid"])
        with contextlib.suppress(BrokenPipeError):  # the sweep died during this start: go on with its journal
            os.write(sys.stdout.fileno(), READY)
        if _dismissed(sys.stdin.fileno(), owner):
            return 0
        _speak_into_log(journal)
        outcomes = _replay_until_done(journal, machine)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    sys.stderr.writelines(f"{now} {outcome}\n" for outcome in outcomes)
    return 1 if any(outcome.action is Action.FAILED for outcome in outcomes) else 0


def _open_early(journal: Path, machine: MachineKnobs) -> None:
    """Open the devices now, which makes restoring faster. An open NVML also keeps the driver's limits alive."""
    record = journals.read_journal(journal)
    for name in record.entries if record else ():
        _open_one(name, machine)


def _open_one(name: KnobId, machine: MachineKnobs) -> None:
    with contextlib.suppress(SweeperError):  # the replay tries again and reports the error
        machine.knob(name)


def _handle_of(pid: int) -> int | None:
    """A file that becomes readable when the process ends; None if it has ended or the kernel is too old."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _dismissed(pipe: int, owner: int | None) -> bool:
    """Sleep until the sweep is done (True) or dead (False)."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    if owner is not None:
        # A child of the sweep could keep the pipe open; the handle shows the sweep's death even then.
        poll.register(owner, select.POLLIN)
    heard = b""
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if pipe in ready:
            piece = os.read(pipe, 64)
            heard += piece
            if not piece or DONE in heard:
                return DONE in heard
        elif owner in ready:
            return False


def _replay_until_done(journal: Path, machine: MachineKnobs) -> list[RestoreOutcome]:
    deadline = time.monotonic() + RETRY_SECONDS
    while True:
        record = journals.read_journal(journal)
        if record is None:
            return []
        outcomes = replay(record, machine)
        failed = any(outcome.action is Action.FAILED for outcome in outcomes)
        if not failed or time.monotonic() >= deadline:
            return outcomes
        time.sleep(RETRY_PAUSE_SECONDS)


def read_log(root: Path) -> tuple[str, ...]:
    """The log lines of the guardians under a root, oldest first, for `sweeper restore`.

    A guardian logs the limits that it restored after its sweep had died.
    """
    try:
        text = (root / journals.FOLDER / LOG).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    return tuple(text.splitlines())


def _speak_into_log(journal: Path) -> None:
    """Send standard error, with the outcomes or a traceback, to a log beside the journal.

    The sweep has died, so no process reads the guardian's pipes any more.
    """
    log = os.open(journal.parent / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(log, sys.stderr.fileno())
    os.close(log)
