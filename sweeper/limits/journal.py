"""The journal of limits. It is on the disk before the first set, so that a crash cannot lose the values found.

Each sweep writes one file, ``<root>/journal/limits-<pid>-<moment>.jsonl``. Its first line holds the boot, the
owner and the found value of every limit. Each further line holds a value that the sweep is about to set
(``intent``) or a value that the device then showed (``took``). Every line is on the disk before the sweep touches
the device. An incomplete last line means that the sweep set nothing after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    """One limit: the value found, and the values that this sweep may have in force (``ours``).

    ``ours`` is empty if the sweep never set the limit.
    """

    found: int | None
    ours: tuple[int | None, ...] = ()

    def after_intent(self, raw: int | None) -> Entry:
        """The entry before a set. A kill may come before or after it, so both values count until the read-back."""
        before = self.ours[-1] if self.ours else self.found
        return Entry(self.found, (before, raw))

    def after_taking(self, raw: int | None) -> Entry:
        """The entry after the device showed this value."""
        return Entry(self.found, (raw,))


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """A journal as read from disk."""

    path: Path
    boot_id: str
    pid: int
    pid_start_ticks: int
    entries: Mapping[KnobId, Entry]


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
    """The journal that this process writes. ``entries`` mirrors the file on the disk."""

    def __init__(self, path: Path, entries: Mapping[KnobId, Entry], descriptor: int) -> None:
        self.path = path
        self.entries = dict(entries)
        self._descriptor: int | None = descriptor

    @classmethod
    def create(cls, root: Path, found: Mapping[KnobId, int | None]) -> Self:
        """Write the values found, and return when they are on the disk.

        Raises:
            StoreError: the folder cannot be written.
        """
        pid = os.getpid()
        ticks = process_start_ticks(pid) or 0
        header = {
            "schema": SCHEMA,
            "boot_id": boot_id(),
            "pid": pid,
            "pid_start_ticks": ticks,
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "found": [asdict(knob) | {"raw": raw} for knob, raw in found.items()],
        }
        folder = root / FOLDER
        path = folder / f"limits-{pid}-{time.time_ns()}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(".new")
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            _append(descriptor, header)
            scratch.rename(path)  # so the journal appears with a complete header
            _sync_folder(folder)
        except OSError as error:
            raise StoreError(f"no limit was set: {folder} cannot be written ({error.strerror})") from error
        return cls(path, {knob: Entry(raw) for knob, raw in found.items()}, descriptor)

    def intent(self, knob: KnobId, raw: int | None) -> None:
        """Note the value that the sweep is about to set. The note is on the disk when this returns."""
        self._note("intent", knob, raw)
        self.entries[knob] = self.entries[knob].after_intent(raw)

    def took(self, knob: KnobId, raw: int | None) -> None:
        """Note the value that the device shows."""
        self._note("took", knob, raw)
        self.entries[knob] = self.entries[knob].after_taking(raw)

    def _note(self, word: str, knob: KnobId, raw: int | None) -> None:
        if self._descriptor is None:
            raise StoreError(f"the journal {self.path} is closed")
        try:
            _append(self._descriptor, {word: asdict(knob) | {"raw": raw}})
        except OSError as error:
            self.close()  # the line may be incomplete, and a reader would ignore every line after it
            raise StoreError(f"no limit was set: {self.path} cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Close the file; it stays on the disk. May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Remove the journal after the sweep restored every limit."""
        self.close()
        remove(self.path)


def remove(path: Path) -> None:
    """Delete a journal from the disk; another process may have deleted it already."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        _sync_folder(path.parent)


def _append(descriptor: int, line: Mapping[str, Any]) -> None:
    os.write(descriptor, (json.dumps(line) + "\n").encode())
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


def read_journal(path: Path) -> JournalRecord | None:
    """The content of a journal; None if another process removed it meanwhile.

    Raises:
        StoreError: the first line is no journal header, or the file belongs to another user.
    """
    try:
        with path.open("rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    if owner not in (os.geteuid(), 0) and os.geteuid() != 0:
        raise StoreError(f"{path} belongs to another user: run `sweeper restore` as its owner")
    try:
        header = json.loads(lines[0])
        entries = {_knob(words): Entry(_raw(words)) for words in header["found"]}
        record = JournalRecord(
            path, str(header["boot_id"]), int(header["pid"]), int(header["pid_start_ticks"]), entries
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is not a journal of limits: {error}") from error
    for line in lines[1:]:
        if not _replay(entries, line):
            break
    return record


def _replay(entries: dict[KnobId, Entry], line: bytes) -> bool:
    try:
        word, words = next(iter(json.loads(line).items()))
        knob, raw = _knob(words), _raw(words)
        entry = entries[knob]
    except (ValueError, KeyError, TypeError, StopIteration, AttributeError):
        return False  # a power cut left this line incomplete, so the set that it announces never happened
    entries[knob] = entry.after_intent(raw) if word == "intent" else entry.after_taking(raw)
    return True


def _knob(words: Mapping[str, Any]) -> KnobId:
    if words["kind"] not in get_args(KnobKind):
        raise ValueError(f"unknown kind of limit {words['kind']!r}")
    return KnobId(words["kind"], str(words["device"]), str(words["part"]))


def _raw(words: Mapping[str, Any]) -> int | None:
    return None if words["raw"] is None else int(words["raw"])
