"""The guardian: a process that outlives a killed sweep and restores the limits.

The guardian runs in its own session. It holds one end of a pipe and a handle of the sweep's process, and sleeps
in ``poll`` until one of them shows that the sweep has ended. Then it replays the journal and ends. It holds the
journal open, so that it can act and put the file back if someone removed it. A sweep that restored its limits
itself sends ``done`` first. A closing terminal or unit sends SIGINT, SIGHUP and SIGTERM to its whole process
group. The guardian ignores them, because it waits for the end of the sweep.
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
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sweeper.errors import StoreError, SweeperError
from sweeper.limits.base import Action, RestoreOutcome
from sweeper.limits.journal import FOLDER, Journal
from sweeper.limits.restore import Knobs, MachineKnobs, restore_all
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

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @classmethod
    def start(cls, journal: Path, means: MeansSettings, sysfs: Path, locks: Sequence[int] = ()) -> Self:
        """Start the guardian, and return when it watches the sweep. Raises StoreError if it does not start.

        ``locks`` are the descriptors of the device locks, which the guardian holds until it ends.
        """
        words = {
            "journal": str(journal.resolve()),
            "pid": os.getpid(),
            "sysfs": str(sysfs),
            "locks": tuple(locks),
            "means": asdict(means),
        }
        package_folder = str(Path(__file__).resolve().parents[2])
        code = (
            f"import sys; sys.path.append({package_folder!r});"
            "from sweeper.limits.guardian import main; sys.exit(main(sys.argv[1]))"
        )
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, json.dumps(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=tuple(locks),
            cwd="/",
        )
        guardian = cls(process)
        try:
            guardian._await_ready()
        except BaseException:
            process.kill()
            guardian.abandon()
            process.wait()
            raise
        return guardian

    def _await_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        if not ready or self.process.stdout.readline() != READY:
            self.process.kill()
            lines = self.process.stderr.read().decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else "it printed nothing"
            raise StoreError(f"no limit was set: the guardian did not start ({why})")

    @property
    def alive(self) -> bool:
        """Whether the guardian still runs."""
        return self.process.poll() is None

    def dismiss(self) -> None:
        """Let the guardian end after the sweep restored every limit, and wait for its end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the guardian was killed
            self.process.stdin.write(DONE)
            self.process.stdin.flush()
        self.abandon()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def abandon(self) -> None:
        """Close the pipe without ``done``: the guardian then acts as if this process had died."""
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def main(argument: str) -> int:
    """The guardian's side. The argument names the sweep to watch, as JSON."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    words = json.loads(argument)
    means = MeansSettings(**words["means"] | {"helper": tuple(words["means"]["helper"])})
    with MachineKnobs(means, Path(words["sysfs"])) as machine:
        journal = Journal.open(Path(words["journal"]))
        if journal is None:
            raise StoreError(f"{words['journal']} is gone")
        for name in journal.entries:
            # Open the devices now: later that costs time, and an open NVML keeps the driver's limits alive.
            with contextlib.suppress(SweeperError):  # the replay tries again and reports the error
                machine.knob(name)
        owner = None
        with contextlib.suppress(OSError):  # the sweep has ended, or the kernel is too old
            owner = os.pidfd_open(words["pid"])
        with contextlib.suppress(BrokenPipeError):  # the sweep died during this start: go on with its journal
            os.write(sys.stdout.fileno(), READY)
        if _dismissed(sys.stdin.fileno(), owner):
            return 0
        try:
            outcomes = guard(journal, machine, words["locks"])
        except Exception:
            _log(journal, traceback.format_exc())
            raise
    return 0 if all(outcome.done for outcome in outcomes) else 1


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
        piece = os.read(pipe, 64) if pipe in ready else b""
        heard += piece
        if not piece or DONE in heard:
            return DONE in heard


def guard(journal: Journal, knobs: Knobs, locks: Sequence[int]) -> list[RestoreOutcome]:
    """Restore the limits of a sweep that died, retry what fails, and log the result beside the journal."""
    try:
        journal.reload()
    except StoreError as error:
        journal.doubt_all()
        _log(journal, f"{error}: the guardian goes on with what it read at its start")
    if not journal.path.exists():
        with contextlib.suppress(StoreError):  # what this process has read is enough to restore the limits
            journal.write_again()
        _log(journal, f"{journal.path} was gone: the guardian goes on with the copy that it holds open")
    deadline = time.monotonic() + RETRY_SECONDS
    while True:
        outcomes = restore_all(journal, knobs, locks)
        failed = any(outcome.action is Action.FAILED for outcome in outcomes)
        if not failed or time.monotonic() >= deadline:
            _log(journal, *map(str, outcomes))
            return outcomes
        time.sleep(RETRY_PAUSE_SECONDS)


def _log(journal: Journal, *lines: str) -> None:
    """Write into a log beside the journal. The sweep has died, so no process reads the guardian's pipes any more."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError):  # a full disk must not keep a limit from being restored
        journal.path.parent.mkdir(parents=True, exist_ok=True)
        with (journal.path.parent / LOG).open("a", encoding="utf-8") as file:
            file.writelines(f"{now} {line}\n" for line in lines)


def read_log(root: Path) -> tuple[str, ...]:
    """The log lines of the guardians under a root, oldest first: the limits that they restored."""
    try:
        text = (root / FOLDER / LOG).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    return tuple(text.splitlines())
