"""The journal of limits: on the disk before the first set, so that no death loses what was found.

One file a sweep, ``<root>/journal/limits-<pid>-<moment>.jsonl``. Its first line holds boot, owner and every
limit as found; each further line says what is about to be set (``intent``) or what the device then showed
(``took``). Every line is on the disk before the device is touched. A torn last line means that nothing after
it was done.
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
    """One limit: as found, and the values that may be ours now. Without any it was never set."""

    found: int | None
    ours: tuple[int | None, ...] = ()

    def after_intent(self, raw: int | None) -> Entry:
        """A kill may fall before the set or after it: both values are ours until the device is read back."""
        before = self.ours[-1] if self.ours else self.found
        return Entry(self.found, (before, raw))

    def after_taking(self, raw: int | None) -> Entry:
        """The device showed this value."""
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
    """The kernel's identity of this boot; it is the host's in a container too."""
    return (procfs / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def process_start_ticks(pid: int, procfs: Path = Path("/proc")) -> int | None:
    """When a process started, in clock ticks since boot; None where there is no such process.

    Together with the pid this names a process for as long as the machine runs: pids are used again.
    """
    try:
        text = (procfs / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[19])  # the command's name may hold blanks and brackets


class Journal:
    """The journal that this process writes. ``entries`` mirror what is on the disk."""

    def __init__(self, path: Path, entries: Mapping[KnobId, Entry], descriptor: int) -> None:
        self.path = path
        self.entries = dict(entries)
        self._descriptor: int | None = descriptor

    @classmethod
    def create(cls, root: Path, found: Mapping[KnobId, int | None]) -> Self:
        """Write what was found, and return once it is on the disk.

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
            scratch.rename(path)  # the header is there whole or not at all
            _sync_folder(folder)
        except OSError as error:
            raise StoreError(f"no limit was set: {folder} cannot be written ({error.strerror})") from error
        return cls(path, {knob: Entry(raw) for knob, raw in found.items()}, descriptor)

    def intent(self, knob: KnobId, raw: int | None) -> None:
        """Note what is about to be set; on the disk when this returns."""
        self._note("intent", knob, raw)
        self.entries[knob] = self.entries[knob].after_intent(raw)

    def took(self, knob: KnobId, raw: int | None) -> None:
        """Note what the device shows."""
        self._note("took", knob, raw)
        self.entries[knob] = self.entries[knob].after_taking(raw)

    def _note(self, word: str, knob: KnobId, raw: int | None) -> None:
        if self._descriptor is None:
            raise StoreError(f"the journal {self.path} is closed")
        try:
            _append(self._descriptor, {word: asdict(knob) | {"raw": raw}})
        except OSError as error:
            self.close()  # a line may be torn: nothing behind it would be read
            raise StoreError(f"no limit was set: {self.path} cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Let the file go; it stays on the disk. May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Everything was given back: nothing is left to remember."""
        self.close()
        remove(self.path)


def remove(path: Path) -> None:
    """Take a journal off the disk; another process may have done so already."""
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
    """The journals that stand under a root, oldest name first."""
    return sorted((root / FOLDER).glob(PATTERN))


def read_journal(path: Path) -> JournalRecord | None:
    """What a journal says; None where it was removed meanwhile.

    Raises:
        StoreError: its first line is no journal, or it belongs to somebody else.
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
        raise StoreError(f"{path} is no journal of limits: {error}") from error
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
        return False  # torn by a power cut: the set that it announces was never made
    entries[knob] = entry.after_intent(raw) if word == "intent" else entry.after_taking(raw)
    return True


def _knob(words: Mapping[str, Any]) -> KnobId:
    if words["kind"] not in get_args(KnobKind):
        raise ValueError(f"unknown kind of limit {words['kind']!r}")
    return KnobId(words["kind"], str(words["device"]), str(words["part"]))


def _raw(words: Mapping[str, Any]) -> int | None:
    return None if words["raw"] is None else int(words["raw"])
