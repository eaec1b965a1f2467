"""The limits of a sweep: find their ranges, set them with read-back, and restore the values found.

``find_limits`` first replays the journals of dead sweeps, then reads the ranges. ``__enter__`` takes the device
locks. The first ``set`` that would change a value writes the journal and starts the guardian. A sweep that sets
no limit does neither. ``__exit__`` restores the values found, except where another tool changed them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from sweeper.errors import LimitRefused, MissingError, RightMissingError, SweeperError
from sweeper.limits.base import LimitInForce, LimitRange
from sweeper.limits.device_lock import DeviceLocks
from sweeper.limits.groups import Found, Group, look
from sweeper.limits.guardian import Guardian
from sweeper.limits.journal import Entry, Journal, read_journal
from sweeper.limits.knob import PER_UNIT, Knob, in_words, refusal, same
from sweeper.limits.nvml import PowerKnob
from sweeper.limits.restore import (
    Action,
    MachineKnobs,
    RestoreOutcome,
    give_all_back,
    give_back,
    replay,
    restore,
    restore_one,
)
from sweeper.limits.rights import MeansSettings
from sweeper.power_settings import PowerSettings

NO_DEVICE = "sweeper found no NVIDIA GPU and no processor package with a limit that it could set"


class NoLimits:
    """Limit control for a machine without settable limits. It reports the reasons and takes no lock."""

    def __init__(self, refusals: Mapping[str, SweeperError], replayed: Sequence[RestoreOutcome] = ()) -> None:
        self._refusals = dict(refusals)
        self.replayed = tuple(replayed)
        self.outcomes: tuple[RestoreOutcome, ...] = ()

    def ranges(self) -> Mapping[str, LimitRange]:
        """An empty mapping."""
        return {}

    def refusals(self) -> Mapping[str, SweeperError]:
        """The reason for each limit that cannot be set."""
        return self._refusals

    def set(self, name: str, value: int | None) -> LimitInForce:
        """Accept None, which keeps the present value. Raises LimitRefused for any other value."""
        if value is None:
            return LimitInForce(name, None, None)
        raise LimitRefused(f"{name}={value} cannot be set: {self._refusals.get(name, NO_DEVICE)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class DeviceLimits:
    """Limits of GPUs or processor packages. ``find_limits`` creates it; enter it around a whole sweep.

    ``replayed`` lists the limits restored for earlier sweeps that died. ``outcomes`` lists the limits that
    ``__exit__`` restored. The sweep shows both to the user.
    """

    def __init__(
        self,
        root: Path,
        machine: MachineKnobs,
        look: Callable[[MachineKnobs], Found],
        lock_folder: Path | None = None,
        replayed: Sequence[RestoreOutcome] = (),
    ) -> None:
        self._root = root
        self._machine = machine
        self._look = look
        self._found = look(machine)
        self._locks = DeviceLocks(self._found.devices, lock_folder)
        self._entered = False
        self._journal: Journal | None = None
        self._left: tuple[Path, ...] = ()  # journals of other sweeps that could not be restored yet
        self._guardian: Guardian | None = None
        self.replayed = tuple(replayed)
        self.outcomes: tuple[RestoreOutcome, ...] = ()

    def ranges(self) -> Mapping[str, LimitRange]:
        """The limits that sweeper can set: the device's own ranges, capped at the values found."""
        return {name: group.range for name, group in self._found.groups.items()}

    def refusals(self) -> Mapping[str, SweeperError]:
        """The reason for each limit that cannot be set."""
        return self._found.refusals

    def __enter__(self) -> Self:
        self._locks.acquire()
        try:
            for path in self._locks.journals():  # of sweeps that died, perhaps under another root
                record = read_journal(path)
                if record is not None:
                    self.replayed += tuple(replay(record, self._machine))
            self._left = tuple(path for path in self._locks.journals() if path.exists())
            self._locks.note(*self._left)
            # Another sweep may have held the device until now. Its values do not count as found values.
            self._found = self._look(self._machine)
        except BaseException:
            self._machine.close()
            self._locks.release()
            raise
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._journal is not None:
                self._give_back_all(self._journal)
        finally:
            if self._guardian is not None:
                self._guardian.abandon()  # not dismissed: the guardian retries the limits that failed
                self._guardian = None
            if self._journal is not None:
                self._journal.close()
                self._journal = None
            self._entered = False
            self._locks.release()
            self._machine.close()

    def _give_back_all(self, journal: Journal) -> None:
        self.outcomes = tuple(give_all_back(journal.entries, self._found))
        if any(outcome.action is Action.FAILED for outcome in self.outcomes):
            return
        journal.remove()
        self._journal = None
        self._locks.note(*self._left)
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None

    def set(self, name: str, value: int | None) -> LimitInForce:
        """Set a limit on all its devices and read it back; None restores the value found.

        ``enforced`` is the lowest value that a device reads back. It is None for a clock, which no device shows.

        Raises:
            LimitRefused: the value is out of range, the device did not accept it, this process has no right to
                set it, or another tool changed the limit during the sweep.
        """
        if not self._entered:
            raise RuntimeError("set() needs `with limits:` around the sweep")
        group = self._found.groups.get(name)
        if group is None:
            return NoLimits(self._found.refusals).set(name, value)
        if value is not None and not group.range.low <= value <= group.range.high:
            raise LimitRefused(f"{name}={value} is outside the range {group.range.low} to {group.range.high}")
        try:
            self._bring(group, value)
            return LimitInForce(name, value, _in_force(group))
        except MissingError as error:  # a right, a device or a disk was lost after the sweep began
            raise LimitRefused(f"{name}={value} was not set: {error}") from error

    def _bring(self, group: Group, value: int | None) -> None:
        if value is None and not self._was_set(group):
            return  # this sweep did not set the value in force
        wanted = [(knob, group.raw(knob.id, value)) for knob in group.knobs]
        changing = [(knob, raw) for knob, raw in wanted if not self._holds(group, knob, raw)]
        if not changing:
            return
        journal = self._protect()
        try:
            for knob, raw in changing:
                _turn(journal, knob, raw)
        except SweeperError:
            for knob, _ in changing:  # a failed trial must not leave half of the group changed
                _put_back(journal, knob)
            raise

    def _was_set(self, group: Group) -> bool:
        entries = self._journal.entries if self._journal else {}
        return any(knob.id in entries and entries[knob.id].ours for knob in group.knobs)

    def _holds(self, group: Group, knob: Knob, raw: int | None) -> bool:
        """Whether a knob already has this value. Raises LimitRefused if another tool changed it."""
        entry = self._journal.entries[knob.id] if self._journal else Entry(group.found[knob.id])
        ours = entry.ours or (entry.found,)
        kind = knob.id.kind
        if knob.readable:
            present = knob.read()
            moved = None if any(same(kind, present, one) for one in ours) else in_words(knob.id, present)
        else:
            present = ours[-1]
            moved = knob.contradiction(present)
        if moved is not None:
            raise LimitRefused(
                f"another tool changed the {knob.id} during the sweep ({moved}): sweeper leaves it alone; "
                "stop that tool to sweep this limit"
            )
        return same(kind, present, raw) and (knob.readable or len(ours) == 1)

    def _protect(self) -> Journal:
        """Create the journal and start the guardian before sweeper sets the first limit."""
        if self._journal is None:
            groups = self._found.groups.values()
            found = {name: raw for group in groups for name, raw in group.found.items()}
            self._journal = Journal.create(self._root, found)
            self._locks.note(self._journal.path, *self._left)
        if self._guardian is None or not self._guardian.alive:
            if self._guardian is not None:
                self._guardian.abandon()
            self._guardian = Guardian.start(
                self._journal.path, self._machine.settings, self._machine.sysfs, self._locks.descriptors
            )
        return self._journal


def _turn(journal: Journal, knob: Knob, raw: int | None) -> None:
    entry = journal.entries[knob.id]
    journal.intent(knob.id, raw)
    try:
        knob.write(raw)
    except RightMissingError:
        if not knob.readable:  # the value did not change, and no read-back can show that
            journal.took(knob.id, entry.ours[-1] if entry.ours else entry.found)
        raise
    answer = refusal(knob, raw)
    journal.took(knob.id, knob.read() if knob.readable else raw)
    if answer is not None:
        raise LimitRefused(f"the {knob.id} did not change to {in_words(knob.id, raw)}: {answer}")


def _put_back(journal: Journal, knob: Knob) -> None:
    """Restore a knob after a refusal. ``__exit__`` retries a failure here; the caller reports the refusal."""
    entry = journal.entries[knob.id]
    with contextlib.suppress(SweeperError):
        outcome = give_back(knob, entry)
        if outcome.action is Action.LEFT_ALONE and not knob.readable:
            knob.write(entry.found)  # the driver still remembers the lock that had no effect
            journal.took(knob.id, entry.found)
        elif outcome.action in (Action.RESTORED, Action.AS_FOUND):
            journal.took(knob.id, entry.found)


def _in_force(group: Group) -> int | None:
    """The lowest value that the devices read back, rounded to whole W; None for clocks."""
    values = []
    for knob in group.knobs:
        raw = knob.read()
        enforced = knob.enforced() if isinstance(knob, PowerKnob) else None
        present = [value for value in (raw, enforced) if value is not None]
        if present:
            values.append(min(present) / PER_UNIT[knob.id.kind])
    return round(min(values)) if values else None


def find_limits(
    root: Path,
    settings: PowerSettings | None = None,
    means: MeansSettings | None = None,
    lock_folder: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> DeviceLimits | NoLimits:
    """Restore the limits of dead sweeps, then find the limits that sweeper can set on this machine.

    The power limit belongs to the GPUs if there are any, otherwise to the processor packages. Apart from
    restoring, this function changes no limit.

    Args:
        root: the folder of runs; its subfolder ``journal`` holds the journals.
        settings: the device (``device``, ``source``) and the path of sysfs.
        means: how to set limits; None takes them from ``settings``.
        lock_folder: the folder of the locks, for tests; None: one folder for all users of the machine.
        environ: the environment, for CUDA_VISIBLE_DEVICES.

    Raises:
        StoreError: a journal cannot be read.
        UsageError: ``power.device`` names no device.
    """
    settings = settings or PowerSettings()
    root, sysfs = root.resolve(), Path(settings.sysfs_root)
    means = means or MeansSettings.of(settings.limits)
    replayed = restore(root, means, sysfs, lock_folder)
    with MachineKnobs(means, sysfs) as machine:

        def look_here(machine: MachineKnobs) -> Found:
            return look(machine, settings, environ)

        found = look_here(machine)
        if not found.devices:
            return NoLimits(found.refusals, replayed)
        for path in DeviceLocks(found.devices, lock_folder).journals():
            replayed += restore_one(path, machine, lock_folder)  # journals under another root
        return DeviceLimits(root, machine, look_here, lock_folder, replayed)
