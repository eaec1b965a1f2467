"""Restore the limits that the sweep found, unless another tool set a limit meanwhile.

The sweep restores its limits when it ends. If it dies, its guardian restores them; if both die, ``restore`` does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from sweeper.errors import SweepBusyError, SweeperError
from sweeper.limits import journal as journals
from sweeper.limits.device_lock import DeviceLocks
from sweeper.limits.journal import Entry, JournalRecord
from sweeper.limits.knob import Knob, KnobId, in_units, in_words, refusal, same
from sweeper.limits.nvml import ClockKnob, PowerKnob
from sweeper.limits.rapl import PackageKnob
from sweeper.limits.rights import Means, MeansSettings, choose, has_admin_right
from sweeper.nvml import Nvml


class Action(Enum):
    """The result of an attempt to restore a limit."""

    RESTORED = "restored"
    AS_FOUND = "as found"
    LEFT_ALONE = "left alone"  # another tool set it meanwhile
    REBOOTED = "rebooted"  # a reboot reset the limits of every device
    IN_USE = "in use"  # the sweep that set it still runs
    FAILED = "failed"  # the journal keeps it for the next try


@dataclass(frozen=True, slots=True)
class RestoreOutcome:
    """One limit after an attempt to restore it. Values in W or MHz; None: not locked, or not readable."""

    device: str
    limit: str
    found: float | None
    present: float | None
    action: Action
    reason: str

    def __str__(self) -> str:
        return f"{self.limit} of {self.device}: {self.action.value} ({self.reason})"


class Knobs(Protocol):
    """Provides knobs."""

    def knob(self, knob_id: KnobId) -> Knob:
        """The knob of that name. Raises SensorMissingError if its device cannot be reached."""
        ...


class MachineKnobs:
    """The knobs of this machine. It opens NVML for the first GPU. Enter it around the use of the knobs."""

    def __init__(self, means: MeansSettings, sysfs: Path) -> None:
        self.settings = means
        self.sysfs = sysfs
        self._stack = contextlib.ExitStack()
        self._nvml: Nvml | None = None
        self._means: dict[str, tuple[Means | None, str | None]] = {}

    @property
    def nvml(self) -> Nvml:
        """The open NVML. Raises SensorMissingError if there is none."""
        if self._nvml is None:
            self._nvml = self._stack.enter_context(Nvml())
        return self._nvml

    def means(self, kind: str, direct: bool) -> tuple[Means | None, str | None]:
        """The result of ``rights.choose`` for this kind; it is called only once."""
        if kind not in self._means:
            self._means[kind] = choose(kind, self.settings, direct)
        return self._means[kind]

    def gpu_means(self) -> tuple[Means | None, str | None]:
        """The means by which sweeper sets the limits of a GPU."""
        return self.means("nvml-power", has_admin_right())

    def knob(self, knob_id: KnobId) -> Knob:
        """The knob of that name, with the best available means. Without a right, its ``write`` raises an error."""
        if knob_id.kind == "rapl":
            bare = PackageKnob(self.sysfs, knob_id.device, knob_id.part, None)
            means, _ = self.means("rapl", bare.writable)
            return PackageKnob(self.sysfs, knob_id.device, knob_id.part, means)
        means, _ = self.gpu_means()
        kind = PowerKnob if knob_id.kind == "nvml_power" else ClockKnob
        return kind(self.nvml, knob_id.device, means)

    def close(self) -> None:
        """Close NVML. May be called twice."""
        self._stack.close()
        self._nvml = None

    def __enter__(self) -> MachineKnobs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def give_back(knob: Knob, entry: Entry) -> RestoreOutcome:
    """Restore the found value of one limit that was set, unless another tool has changed it."""
    try:
        return _compare_and_give_back(knob, entry)
    except SweeperError as error:
        return _outcome(knob.id, entry, None, Action.FAILED, str(error))


def _compare_and_give_back(knob: Knob, entry: Entry) -> RestoreOutcome:
    name, found = knob.id, entry.found
    if knob.readable:
        present = knob.read()
        if same(name.kind, present, found):
            return _outcome(name, entry, present, Action.AS_FOUND, f"{in_words(name, found)}, as found")
        if not any(same(name.kind, present, value) for value in entry.ours):
            reason = f"another tool set {in_words(name, present)}; the sweep found {in_words(name, found)}"
            return _outcome(name, entry, present, Action.LEFT_ALONE, reason)
    else:
        present = entry.ours[-1]
        if all(same(name.kind, value, found) for value in entry.ours):
            return _outcome(name, entry, present, Action.AS_FOUND, f"{in_words(name, found)}, as found")
        against = [knob.contradiction(value) for value in entry.ours]
        if all(against):
            reason = f"another tool changed it: {against[-1]}"
            return _outcome(name, entry, None, Action.LEFT_ALONE, reason)
    knob.write(found)
    answer = refusal(knob, found)
    if answer is not None:
        return _outcome(
            name, entry, None, Action.FAILED, f"the device did not accept {in_words(name, found)}: {answer}"
        )
    reason = f"from {in_words(name, present)} to {in_words(name, found)}"
    return _outcome(name, entry, found, Action.RESTORED, reason)


def _outcome(name: KnobId, entry: Entry, present: int | None, action: Action, reason: str) -> RestoreOutcome:
    part = f" {name.part}" if name.part else ""
    return RestoreOutcome(
        name.device + part,
        name.limit,
        in_units(name.kind, entry.found),
        in_units(name.kind, present),
        action,
        reason,
    )


def give_all_back(entries: Mapping[KnobId, Entry], knobs: Knobs) -> list[RestoreOutcome]:
    """Restore every limit in the reverse order of the entries; a failure of one does not stop the others."""
    outcomes = []
    for name, entry in reversed(list(entries.items())):
        if not entry.ours:
            continue  # never set
        try:
            knob = knobs.knob(name)
        except SweeperError as error:
            outcomes.append(_outcome(name, entry, None, Action.FAILED, str(error)))
        else:
            outcomes.append(give_back(knob, entry))
    return outcomes


def replay(record: JournalRecord, knobs: Knobs) -> list[RestoreOutcome]:
    """Restore the limits of a journal, and remove it unless one failed. The caller holds the locks."""
    if record.boot_id != journals.boot_id():
        journals.remove(record.path)
        reason = "the machine has rebooted since: its devices started with their own limits"
        return [_outcome(n, e, None, Action.REBOOTED, reason) for n, e in record.entries.items() if e.ours]
    outcomes = give_all_back(record.entries, knobs)
    if not any(outcome.action is Action.FAILED for outcome in outcomes):
        journals.remove(record.path)
    return outcomes


def owner_lives(record: JournalRecord) -> bool:
    """Whether the sweep that wrote a journal still runs."""
    if record.pid == os.getpid():
        return False  # this process restores its own limits
    return journals.process_start_ticks(record.pid) == record.pid_start_ticks


def restore(
    root: Path,
    means: MeansSettings | None = None,
    sysfs: Path = Path("/sys"),
    lock_folder: Path | None = None,
) -> list[RestoreOutcome]:
    """Replay every journal under ``root``. `sweeper restore` and every start of a sweep call this.

    If the sweep of a journal still runs, the outcome is ``IN_USE`` and the journal stays. Without a journal, this
    function opens no device.

    Raises:
        StoreError: a journal cannot be read.
    """
    outcomes: list[RestoreOutcome] = []
    with MachineKnobs(means or MeansSettings(), sysfs) as machine:
        for path in journals.find_journals(root):
            outcomes += restore_one(path, machine, lock_folder)
    return outcomes


def restore_one(path: Path, knobs: Knobs, lock_folder: Path | None = None) -> list[RestoreOutcome]:
    """Replay one journal under the locks of its devices; an empty list if another process removed it."""
    record = journals.read_journal(path)
    if record is None:
        return []
    if record.boot_id == journals.boot_id() and owner_lives(record):
        reason = f"the sweep of process {record.pid} still runs: it will restore this limit itself"
        return [_outcome(n, e, None, Action.IN_USE, reason) for n, e in record.entries.items() if e.ours]
    locks = DeviceLocks((name.device for name in record.entries), lock_folder)
    try:
        with locks:
            # The guardian may have replayed the journal before the locks were free.
            again = journals.read_journal(path)
            return [] if again is None else replay(again, knobs)
    except SweepBusyError as error:
        return [_outcome(n, e, None, Action.IN_USE, str(error)) for n, e in record.entries.items() if e.ours]
