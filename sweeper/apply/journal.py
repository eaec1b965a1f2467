"""Writes several files and a power limit as one change that can be undone, also when it was killed half way.

One folder an apply, ``<root>/journal/apply/<when>-<target>/``: ``entry.json`` and each file's content from
before (``0.before``, …). The folder appears by one rename before the first file is touched, so that whatever
happens afterwards can be undone from it:

1. an entry in state ``prepared``; 2. the files, one by one; 3. the power limit; 4. state ``done``.

`rollback` compares first: a file that is neither as it was nor as we wrote it belongs to someone else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from sweeper.apply.base import FileChange
from sweeper.errors import SweepBusyError, SweeperError, UsageError
from sweeper.files import (
    Step,
    cannot_write,
    no_step,
    remove,
    sync_folder,
    temporary_of,
    write_atomically,
)

SCHEMA = 1
_LIMIT_TOLERANCE_WATTS = 0.13  # processors count in units of 1/8 W, rounded down; GPUs in mW
State = Literal["prepared", "done", "rolled_back"]


class PowerLimit(Protocol):
    """Sets one device's power limit so that it outlives this process. In W."""

    @property
    def device(self) -> str:
        """UUID of a GPU or name of a zone."""
        ...

    def read(self) -> float | None:
        """The limit in force, as exactly as the device says it, or None where it does not."""
        ...

    def set(self, watts: float) -> float:
        """Set it and return what the device reads back. Raises a SweeperError where it was refused."""
        ...


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an apply. Digests are SHA-256; ``before_sha256`` is None where there was no file."""

    path: str
    backup: str | None
    before_sha256: str | None
    after_sha256: str
    mode: int | None = None  # of the file as it was
    made_folders: tuple[str, ...] = ()  # outermost first


@dataclass(frozen=True, slots=True)
class LimitEntry:
    """A power limit as found and as set, in W."""

    device: str
    found_watts: float
    set_watts: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One apply in the journal."""

    id: str
    target: str
    sweep: str
    trial: int
    utc: str
    state: State
    files: tuple[FileEntry, ...]
    limit: LimitEntry | None = None
    undo: tuple[str, ...] = ()  # what is left to the user after a rollback
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Undone:
    """What a rollback did."""

    entry: Entry
    restored: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: tuple[str, ...]  # never written, or put back already
    kept_aside: tuple[str, ...]  # copies of files that someone edited, from before they were overwritten
    limit_watts: float | None = None
    notes: tuple[str, ...] = ()


def journal_folder(root: Path) -> Path:
    """Where the journal of applies lies under sweeper's data folder."""
    return root / "journal" / "apply"


def entries(root: Path) -> tuple[Entry, ...]:
    """All applies in the journal, oldest first."""
    folder = journal_folder(root)
    if not folder.is_dir():
        return ()
    return tuple(
        _load(path)
        for path in sorted(folder.iterdir())
        if (path / "entry.json").is_file() and path.name[0] != "."
    )


def last_to_undo(root: Path) -> Entry | None:
    """The newest apply that was not rolled back."""
    return next((entry for entry in reversed(entries(root)) if entry.state != "rolled_back"), None)


def commit(
    root: Path,
    changes: tuple[FileChange, ...],
    *,
    target: str,
    sweep: str,
    trial: int,
    now: datetime,
    limit: PowerLimit | None = None,
    watts: int | None = None,
    undo: tuple[str, ...] = (),
    step: Step = no_step,
) -> Entry:
    """Write ``changes`` and set the limit; returns the entry by which it is undone.

    Raises:
        UsageError: an apply before this one was cut short, or a file changed since the diff was made.
        RightMissingError, StoreError: a file or the journal cannot be written; what was written is undone.
        LimitRefused: the device did not take the limit; the files are put back.
    """
    with _lock(root):
        _refuse_unfinished(root)
        for item in changes:
            if _read(item.path) != item.before:
                raise UsageError(
                    f"{item.path} changed since the diff was made: look at the new diff and apply again"
                )
        entry = _prepare(root, changes, target, sweep, trial, now, limit, watts, undo, step)
        try:
            for item, noted in zip(changes, entry.files, strict=True):
                for folder in noted.made_folders:
                    _make_folder(Path(folder), step)
                write_atomically(item.path, item.after, item.mode, step)
            if entry.limit is not None and limit is not None:
                limit.set(entry.limit.set_watts)
                step("set the power limit")
        except SweeperError:
            _undo(root, entry, limit, force=True, step=no_step)
            raise
        return _mark(root, entry, "done", step)


def rollback(
    root: Path, limit: PowerLimit | None = None, *, force: bool = False, step: Step = no_step
) -> Undone:
    """Undo the newest apply that is not undone yet, finished or cut short; safe to be cut short itself.

    Raises:
        UsageError: there is nothing to undo; or someone edited a file since (``force`` overwrites it
            and keeps a copy of it in the journal); or the entry set a limit and ``limit`` is not that device.
    """
    with _lock(root):
        entry = last_to_undo(root)
        if entry is None:
            raise UsageError(
                f"nothing to roll back: {journal_folder(root)} holds no apply that is still in force"
            )
        return _undo(root, entry, limit, force=force, step=step)


def _prepare(
    root: Path,
    changes: tuple[FileChange, ...],
    target: str,
    sweep: str,
    trial: int,
    now: datetime,
    limit: PowerLimit | None,
    watts: int | None,
    undo: tuple[str, ...],
    step: Step,
) -> Entry:
    folder = journal_folder(root)
    name = f"{now:%Y%m%dT%H%M%S.%fZ}-{target}"
    staging = folder / f".{name}"
    try:
        for old in folder.glob(".2*"):  # staged by an apply that was killed before it changed anything
            shutil.rmtree(old)
        staging.mkdir()
        step("made the journal's folder")
        noted, made = [], set[str]()
        for number, item in enumerate(changes):
            backup = None
            if item.before is not None:
                backup = f"{number}.before"
                write_atomically(staging / backup, item.before, 0o600, step)
            folders = tuple(f for f in _missing_folders(item.path) if f not in made)
            made.update(folders)
            noted.append(
                FileEntry(
                    str(item.path),
                    backup,
                    _digest(item.before),
                    _sha256(item.after),
                    _mode(item.path),
                    folders,
                )
            )
        entry = Entry(
            name,
            target,
            sweep,
            trial,
            now.isoformat(),
            "prepared",
            tuple(noted),
            _noted_limit(limit, watts),
            undo,
        )
        _save(staging, entry, step)
        staging.rename(folder / name)
        step("put the journal's entry in place")
        sync_folder(folder)
    except OSError as error:
        raise cannot_write(staging, error) from error
    return entry


def _noted_limit(limit: PowerLimit | None, watts: int | None) -> LimitEntry | None:
    if limit is None or watts is None:
        return None
    found = limit.read()
    if found is None:
        raise UsageError(
            f"{limit.device} does not say its power limit, so that it could not be given back: set it by hand"
        )
    return LimitEntry(limit.device, found, watts)


def _undo(root: Path, entry: Entry, limit: PowerLimit | None, *, force: bool, step: Step) -> Undone:
    folder = journal_folder(root) / entry.id
    edited = [noted for noted in entry.files if not _is_ours(noted)]
    if edited and not force:
        names = ", ".join(noted.path for noted in edited)
        raise UsageError(
            f"{names} changed after the apply, so nothing was rolled back: "
            "--force overwrites it and keeps a copy"
        )
    if entry.limit is not None and (limit is None or limit.device != entry.limit.device):
        raise UsageError(
            f"the apply set the power limit of {entry.limit.device} to {entry.limit.set_watts:g} W: "
            f"to give back {entry.limit.found_watts:g} W it must be settable here (see `sweeper doctor`)"
        )
    aside = tuple(copy for noted in edited if (copy := _keep_aside(folder, noted, step)))
    watts, notes = _undo_limit(entry.limit, limit, step)
    done: dict[str, list[str]] = {"restored": [], "removed": [], "unchanged": []}
    for noted in reversed(entry.files):
        done[_put_back(folder, noted, step)].append(noted.path)
    entry = _mark(root, entry, "rolled_back", step)
    return Undone(
        entry,
        tuple(done["restored"]),
        tuple(done["removed"]),
        tuple(done["unchanged"]),
        aside,
        watts,
        (*notes, *entry.undo),
    )


def _undo_limit(
    entry: LimitEntry | None, limit: PowerLimit | None, step: Step
) -> tuple[float | None, tuple[str, ...]]:
    if entry is None or limit is None:
        return None, ()
    present = limit.read()
    if _same(present, entry.found_watts):
        return present, ()
    if not _same(present, entry.set_watts):
        return None, (
            f"the power limit of {entry.device} is {present} W, which sweeper did not set: left as it is",
        )
    watts = limit.set(entry.found_watts)
    step("gave back the power limit")
    return watts, ()


def _same(one: float | None, other: float) -> bool:
    return one is not None and abs(one - other) <= _LIMIT_TOLERANCE_WATTS


def _put_back(folder: Path, noted: FileEntry, step: Step) -> str:
    path = Path(noted.path)
    remove(temporary_of(path.resolve()), step)
    present = _digest(_read(path))
    if present == noted.before_sha256:
        outcome = "unchanged"
    elif noted.backup is None:
        remove(path, step)
        outcome = "removed"
    else:
        write_atomically(path, (folder / noted.backup).read_bytes(), noted.mode, step)
        outcome = "restored"
    for made in reversed(noted.made_folders):
        with contextlib.suppress(OSError):  # gone already, or someone put something into it
            Path(made).rmdir()
            step(f"removed folder {made}")
    return outcome


def _is_ours(noted: FileEntry) -> bool:
    present = _digest(_read(Path(noted.path)))
    return present in (noted.before_sha256, noted.after_sha256)


def _keep_aside(folder: Path, noted: FileEntry, step: Step) -> str | None:
    data = _read(Path(noted.path))
    if data is None:
        return None
    copy = folder / f"{Path(noted.path).name}.edited"
    write_atomically(copy, data, 0o600, step)
    return str(copy)


def _refuse_unfinished(root: Path) -> None:
    for entry in entries(root):
        if entry.state == "prepared":
            raise UsageError(
                f"the apply of {entry.utc} to {entry.target} was cut short: run `sweeper rollback` first"
            )


def _missing_folders(path: Path) -> tuple[str, ...]:
    missing = []
    for parent in path.parents:
        if parent.exists():
            break
        missing.append(str(parent))
    return tuple(reversed(missing))


def _make_folder(folder: Path, step: Step) -> None:
    try:
        folder.mkdir(exist_ok=True)
        step(f"made folder {folder.name}")
        sync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _mark(root: Path, entry: Entry, state: State, step: Step) -> Entry:
    entry = replace(entry, state=state)
    _save(journal_folder(root) / entry.id, entry, step)
    return entry


def _save(folder: Path, entry: Entry, step: Step) -> None:
    text = json.dumps(asdict(entry), indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "entry.json", text.encode("utf-8"), 0o600, step)


def _load(folder: Path) -> Entry:
    path = folder / "entry.json"
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
        files = tuple(FileEntry(**{**f, "made_folders": tuple(f["made_folders"])}) for f in data.pop("files"))
        limit = data.pop("limit")
        undo = tuple(data.pop("undo", ()))
        return Entry(files=files, limit=LimitEntry(**limit) if limit else None, undo=undo, **data)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path} is not an apply's journal ({error}): move it away to go on without undoing it"
        ) from error


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise cannot_write(path, error) from error


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(data: bytes | None) -> str | None:
    return None if data is None else _sha256(data)


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[None]:
    """One apply or rollback at a time on this data folder; the lock falls with the process."""
    folder = journal_folder(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SweepBusyError("another apply or rollback runs on this data folder: wait for it") from error
        yield
    finally:
        os.close(handle)
