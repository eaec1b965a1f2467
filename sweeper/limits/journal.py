"""The journal of limits. It is on the disk before the first set, so that a crash cannot lose the values found.

Each sweep writes one file, ``<root>/journal/limits-<pid>-<moment>.jsonl``. Its first line holds the boot, the
owner and the found value of every limit. Each further line holds a value that the sweep is about to set
(``intent``), a value that the device then showed (``took``) or a limit that is as found again (``restored``).
A line is on the disk before the sweep goes on. ``docs/life-of-a-limit.md`` describes the states that follow.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, get_args

from sweeper.errors import StoreError
from sweeper.limits.knob import KnobId, KnobKind

SCHEMA = 1
FOLDER = "journal"
PATTERN = "limits-*.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """One limit: the value found, and every other value that sweeper may have in force (``ours``).

    ``unsettled`` counts the sets that no read-back has shown. They may still take effect.
    """

    found: int | None
    ours: tuple[int | None, ...] = ()
    unsettled: int = 0

    @property
    def touched(self) -> bool:
        """Whether a value of ours may be in force."""
        return bool(self.ours or self.unsettled)

    def after(self, word: str, raw: int | None) -> Entry:
        """The entry after a line of the journal: ``intent``, ``took`` or ``restored``.

        The value found needs no intent: it is always one that may be in force. A value that the device took
        settles the last set. If an earlier set is still unsettled, all values stay until the limit is restored.
        """
        if word == "restored":
            return Entry(self.found)
        if word == "intent":
            return self if raw == self.found else Entry(self.found, (*self.ours, raw), self.unsettled + 1)
        if self.unsettled == 0 or (self.unsettled == 1 and self.ours[-1:] == (raw,)):
            return Entry(self.found, () if raw == self.found else (raw,))
        known = raw in (self.found, *self.ours)
        return Entry(self.found, self.ours if known else (*self.ours, raw), self.unsettled)


def boot_id(procfs: Path = Path("/proc")) -> str:
    """The kernel's identifier of this boot; a container has the host's."""
    return (procfs / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def process_start_ticks(pid: int, procfs: Path = Path("/proc")) -> int | None:
    """The start time of a process, in clock ticks since boot; None if there is no such process.

    The kernel reuses pids. The pid and the start time together identify a process until the next boot.
    """
    try:
        text = (procfs / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[19])  # the command's name may contain blanks and brackets


class Journal:
    """One journal, open until ``close``. An open journal stays readable after someone removes its file."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self._descriptor = descriptor
        self.header: Mapping[str, Any] = {}
        self.entries: dict[KnobId, Entry] = {}

    @classmethod
    def create(cls, root: Path, found: Mapping[KnobId, int | None]) -> Self:
        """Write the values found, and return when they are on the disk. Raises StoreError if that fails."""
        pid = os.getpid()
        header = {
            "schema": SCHEMA,
            "boot_id": boot_id(),
            "pid": pid,
            "pid_start_ticks": process_start_ticks(pid) or 0,
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "found": [asdict(knob) | {"raw": raw} for knob, raw in found.items()],
        }
        journal = cls(root / FOLDER / f"limits-{pid}-{time.time_ns()}.jsonl", None)
        journal._publish(json.dumps(header).encode() + b"\n")
        return journal

    @classmethod
    def open(cls, path: Path, noted: Mapping[str, Any] | None = None) -> Self | None:
        """Open a journal; None if there is none. Raises StoreError if it is not a journal of this user's.

        If the file is gone, ``noted``, the header in the lock file, still tells what was found.
        """
        try:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            except PermissionError:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if noted is None:
                return None
            journal = cls(path, None)
            journal._parse([json.dumps(noted).encode()])
            journal.doubt_all()
            return journal
        journal = cls(path, descriptor)
        try:
            journal.reload()
        except StoreError:
            journal.close()
            raise
        return journal

    @property
    def owner(self) -> int | None:
        """The process id of the sweep that wrote this journal; None if that process has ended."""
        pid = int(self.header["pid"])
        return pid if process_start_ticks(pid) == self.header["pid_start_ticks"] else None

    def reload(self) -> None:
        """Read again what the sweep has written meanwhile, also if the file was removed."""
        assert self._descriptor is not None
        if os.geteuid() not in (0, owner := os.fstat(self._descriptor).st_uid) and owner != 0:
            raise StoreError(f"{self.path} belongs to another user: run `sweeper restore` as its owner")
        self._parse(self._content().split(b"\n"))

    def _parse(self, lines: list[bytes]) -> None:
        try:
            header = json.loads(lines[0])
            entries = {_knob(words): Entry(_raw(words)) for words in header["found"]}
            _ = header["boot_id"], int(header["pid"]), int(header["pid_start_ticks"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.path} is not a journal of limits: {error}") from error
        for line in lines[1:]:
            # A line that a full disk or a power cut left incomplete announces a set that never happened.
            with contextlib.suppress(ValueError, KeyError, TypeError, StopIteration, AttributeError):
                word, words = next(iter(json.loads(line).items()))
                knob, raw = _knob(words), _raw(words)
                entries[knob] = entries[knob].after(word, raw)
        self.header, self.entries = header, entries

    def doubt_all(self) -> None:
        """Count every limit as unsettled, because nothing tells any more which values the sweep set."""
        self.entries = {name: replace(one, unsettled=1) for name, one in self.entries.items()}

    def intent(self, knob: KnobId, raw: int | None) -> None:
        """Note the value that the sweep is about to set. The note is on the disk when this returns."""
        if raw != self.entries[knob].found:
            self._note("intent", knob, raw)
            self.entries[knob] = self.entries[knob].after("intent", raw)

    def took(self, knob: KnobId, raw: int | None, word: str = "took") -> None:
        """Note the value that the device shows, or that a limit is ``restored`` for good.

        If the note fails, the file still holds this value and more.
        """
        self.entries[knob] = self.entries[knob].after(word, raw)
        self._note(word, knob, raw)

    def _note(self, word: str, knob: KnobId, raw: int | None) -> None:
        line = json.dumps({word: asdict(knob) | {"raw": raw}})
        if self._descriptor is None:
            raise StoreError(f"the journal {self.path} is closed")
        try:
            _append(self._descriptor, f"{line}\n".encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, b"\n")  # the next line must not continue an incomplete one
            raise StoreError(f"{self.path} cannot be written ({error.strerror})") from error

    def write_again(self) -> None:
        """Put the journal back after someone removed its file. Raises StoreError if that fails."""
        self._publish(self._content())

    def _content(self) -> bytes:
        assert self._descriptor is not None
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def _publish(self, content: bytes) -> None:
        folder = self.path.parent
        scratch = self.path.with_suffix(".new")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            descriptor = os.open(scratch, flags, 0o644)
            try:
                _append(descriptor, content)
                scratch.rename(self.path)  # so the journal appears with a complete header
                _sync_folder(folder)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise StoreError(f"{folder} cannot be written ({error.strerror})") from error
        self.close()
        self._descriptor = descriptor
        self.reload()

    def close(self) -> None:
        """Close the file; it stays on the disk. May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Remove the journal after every limit was restored."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
            _sync_folder(self.path.parent)
        self.close()


def _append(descriptor: int, content: bytes) -> None:
    if os.write(descriptor, content) != len(content):
        raise OSError(28, "No space left on device")  # a full disk takes the first part
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_journals(root: Path) -> list[Path]:
    """The journals under a root, in the order of their names."""
    return sorted((root / FOLDER).glob(PATTERN))


def _knob(words: Mapping[str, Any]) -> KnobId:
    if words["kind"] not in get_args(KnobKind):
        raise ValueError(f"unknown kind of limit {words['kind']!r}")
    return KnobId(words["kind"], str(words["device"]), str(words["part"]))


def _raw(words: Mapping[str, Any]) -> int | None:
    return None if words["raw"] is None else int(words["raw"])
