"""Writes a plan's files and power limit as one change that can be undone, also after a kill half way.

Each apply has a folder, ``<root>/journal/apply/<when>-<target>/``. It holds each file's old content
(``0.before``, …) and ``entry.json``. The order of writing makes every moment safe to be killed at:

1. the old contents, then the entry in state ``prepared``; before that the folder counts for nothing;
2. the files, one by one, each atomically; 3. the power limit; 4. the entry in state ``done``.

`rollback` compares first: a file that is neither as it was nor as sweeper wrote it belongs to someone else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cattrs import BaseValidationError

from sweeper.apply.base import ApplyPlan, FileChange, read_existing
from sweeper.errors import MissingError, SweepBusyError, SweeperError, UsageError
from sweeper.files import cannot_write, temporary_of, write_atomically
from sweeper.locks import held
from sweeper.records import from_plain, to_plain

if TYPE_CHECKING:
    from sweeper.limits.standing_limit import StandingLimit

_LIMIT_TOLERANCE_WATTS = 0.13  # processors count in units of 1/8 W, rounded down; GPUs in mW


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
    state: Literal["prepared", "done", "rolled_back"]
    files: tuple[FileEntry, ...]
    limit: LimitEntry | None = None
    undo: tuple[str, ...] = ()  # what is left to the user after a rollback
    name: str = ""  # of the model on the server; empty in entries of earlier versions
    port: int | None = None
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Undone:
    """What a rollback did."""

    entry: Entry
    restored: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: tuple[str, ...]  # never written, or restored already
    kept_aside: tuple[str, ...]  # copies of files that someone edited, from before they were overwritten
    limit_watts: float | None
    notes: tuple[str, ...]


def journal_folder(root: Path) -> Path:
    """Where the journal of applies lies under sweeper's data folder."""
    return root / "journal" / "apply"


def last_to_undo(root: Path) -> Entry | None:
    """The newest apply that was not rolled back. Raises UsageError if an entry cannot be read."""
    return next((entry for entry in _entries(root) if entry.state != "rolled_back"), None)


def last(root: Path) -> Entry | None:
    """The newest apply, also one that was rolled back. Raises UsageError if its entry cannot be read."""
    return next(_entries(root), None)


def _entries(root: Path) -> Iterator[Entry]:
    """All applies, the newest first."""
    for path in sorted(journal_folder(root).glob("2*/entry.json"), reverse=True):  # names begin with the year
        try:
            entry = from_plain(json.loads(path.read_text("utf-8")), Entry)
        except (OSError, ValueError, BaseValidationError) as error:
            raise UsageError(
                f"{path} is not an apply's journal ({error}): move it away to go on without undoing it"
            ) from error
        yield entry


def _lock(root: Path) -> contextlib.AbstractContextManager[None]:
    """Allow one apply or rollback at a time on this data folder."""

    def busy(owner: str) -> Exception:
        return SweepBusyError(
            f"another apply or rollback (process {owner}) runs on this data folder: wait for it"
        )

    return held(journal_folder(root) / ".lock", busy)


def write_plan(plan: ApplyPlan, *, root: Path, limit: StandingLimit | None = None) -> Entry:
    """Write a plan's files and set its power limit; returns the entry by which `rollback` undoes it.

    Raises:
        UsageError: an apply before this one was cut short, or a file changed since the diff was made.
        RightMissingError, StoreError: a file or the journal cannot be written; what was written is undone.
        LimitRefused: the device did not take the limit; the files are restored.
    """
    with _lock(root):
        last = last_to_undo(root)
        if last is not None and last.state == "prepared":
            raise UsageError(
                f"the apply of {last.utc} to {last.target} was cut short: run `sweeper rollback` first"
            )
        for change in plan.draft.files:
            if read_existing(change.path) != change.before:
                raise UsageError(
                    f"{change.path} changed since the diff was made: look at the new diff and apply again"
                )
        entry = _prepare(root, plan, limit)
        try:
            for change in plan.draft.files:
                write_atomically(change.path, change.after)
            if entry.limit is not None and limit is not None:
                limit.set(entry.limit.set_watts)
        except SweeperError:
            _undo(root, entry, limit, force=True)
            raise
        return _save(root, replace(entry, state="done"))


def rollback(root: Path, limit: StandingLimit | None = None, *, force: bool = False) -> Undone:
    """Undo the newest apply that is not undone yet, finished or cut short; safe to be cut short itself.

    Raises:
        MissingError: there is nothing to undo.
        UsageError: someone edited a file since (``force`` overwrites it
            and keeps a copy of it in the journal); or the entry set a limit and ``limit`` is not that device.
    """
    with _lock(root):
        entry = last_to_undo(root)
        if entry is None:
            undone = last(root)
            why = (
                f"sweeper has written no configuration from {root}; another --root may have one"
                if undone is None
                else f"the last apply (to {undone.target}, {undone.utc}) is undone already"
            )
            raise MissingError(f"nothing to roll back: {why}")
        return _undo(root, entry, limit, force=force)


def _prepare(root: Path, plan: ApplyPlan, limit: StandingLimit | None) -> Entry:
    """Save the old contents, then the entry: from here on the apply can be undone."""
    noted_limit = None
    if limit is not None and plan.limit_watts is not None:
        found = limit.read()
        if found is None:
            raise UsageError(
                f"{limit.device} does not report its power limit, so a rollback could not restore it: "
                "set the limit by hand"
            )
        noted_limit = LimitEntry(limit.device, found, plan.limit_watts)
    now = datetime.now(UTC)
    name = f"{now:%Y%m%dT%H%M%S.%fZ}-{plan.target}"
    entry = Entry(
        id=name,
        target=plan.target,
        sweep=plan.request.record.sweep,
        trial=plan.request.trial.number,
        utc=now.isoformat(),
        state="prepared",
        files=tuple(
            _back_up(journal_folder(root) / name / f"{number}.before", change)
            for number, change in enumerate(plan.draft.files)
        ),
        limit=noted_limit,
        undo=plan.draft.undo,
        name=plan.request.name,
        port=plan.request.port,
    )
    return _save(root, entry)


def _back_up(backup: Path, change: FileChange) -> FileEntry:
    missing = tuple(str(parent) for parent in reversed(change.path.parents) if not parent.exists())
    after = hashlib.sha256(change.after).hexdigest()
    if change.before is None:
        return FileEntry(str(change.path), None, None, after, None, missing)
    write_atomically(backup, change.before, 0o600)
    mode = stat.S_IMODE(change.path.stat().st_mode)
    return FileEntry(str(change.path), backup.name, _digest(change.before), after, mode, missing)


def _undo(root: Path, entry: Entry, limit: StandingLimit | None, *, force: bool) -> Undone:
    folder = journal_folder(root) / entry.id
    present = {noted: read_existing(Path(noted.path)) for noted in entry.files}
    edited = [
        noted
        for noted, content in present.items()
        if _digest(content) not in (noted.before_sha256, noted.after_sha256)
    ]
    if edited and not force:
        raise UsageError(
            f"{', '.join(f.path for f in edited)} changed after the apply, so nothing was rolled back: "
            "--force overwrites it and keeps a copy"
        )
    if entry.limit is not None and (limit is None or limit.device != entry.limit.device):
        raise UsageError(
            f"the apply set the power limit of {entry.limit.device} to {entry.limit.set_watts:g} W: "
            f"sweeper needs the right to set it back to {entry.limit.found_watts:g} W (see `sweeper doctor`)"
        )
    kept_aside = []
    for noted in edited:
        content = present[noted]
        if content is not None:
            copy = folder / f"{Path(noted.path).name}.edited"
            write_atomically(copy, content, 0o600)
            kept_aside.append(str(copy))
    watts, notes = _undo_limit(entry.limit, limit)
    outcomes = {noted.path: _restore(folder, noted) for noted in reversed(entry.files)}
    restored, removed, unchanged = (
        tuple(path for path, outcome in outcomes.items() if outcome == word)
        for word in ("restored", "removed", "unchanged")
    )
    entry = _save(root, replace(entry, state="rolled_back"))
    return Undone(entry, restored, removed, unchanged, tuple(kept_aside), watts, (*notes, *entry.undo))


def _undo_limit(
    entry: LimitEntry | None, limit: StandingLimit | None
) -> tuple[float | None, tuple[str, ...]]:
    if entry is None or limit is None:
        return None, ()
    present = limit.read()
    if present is not None and abs(present - entry.found_watts) <= _LIMIT_TOLERANCE_WATTS:
        return present, ()
    if present is None or abs(present - entry.set_watts) > _LIMIT_TOLERANCE_WATTS:
        return None, (
            f"the power limit of {entry.device} is {present} W, which sweeper did not set: left as it is",
        )
    return limit.set(entry.found_watts), ()


def _restore(folder: Path, noted: FileEntry) -> str:
    path = Path(noted.path)
    try:
        temporary_of(path.resolve()).unlink(missing_ok=True)
        if _digest(read_existing(path)) == noted.before_sha256:
            outcome = "unchanged"
        elif noted.backup is None:
            path.unlink()
            outcome = "removed"
        else:
            write_atomically(path, (folder / noted.backup).read_bytes(), noted.mode)
            outcome = "restored"
    except OSError as error:
        raise cannot_write(path, error) from error
    for made in reversed(noted.made_folders):
        with contextlib.suppress(OSError):  # gone already, or someone put something into it
            Path(made).rmdir()
    return outcome


def _save(root: Path, entry: Entry) -> Entry:
    text = json.dumps(to_plain(entry), indent=2, ensure_ascii=False) + "\n"
    write_atomically(journal_folder(root) / entry.id / "entry.json", text.encode("utf-8"), 0o600)
    return entry


def _digest(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()
