"""The limits of a sweep: find their ranges, set them with read-back, and restore the values found.

``find_limits`` first replays the journals of dead sweeps, then reads the ranges. ``__enter__`` takes the device
locks. The first ``set`` that would change a value writes the journal and starts the guardian. A sweep that sets
no limit does neither. ``__exit__`` restores the values found, except where another tool changed them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from sweeper.errors import LimitRefused, MissingError, StoreError, SweeperError
from sweeper.limits.base import LimitInForce, LimitRange, RestoreOutcome
from sweeper.limits.device_lock import DeviceLocks
from sweeper.limits.groups import Found, Group, look
from sweeper.limits.guardian import Guardian
from sweeper.limits.journal import Entry, Journal, find_journals
from sweeper.limits.knob import PER_UNIT, POWER, Knob, in_words, refusal, same
from sweeper.limits.nvml import PowerKnob
from sweeper.limits.restore import MachineKnobs, give_back, replay, restore_all, restore_each
from sweeper.limits.rights import MeansSettings
from sweeper.power_settings import PowerSettings

NO_DEVICE = "sweeper found no NVIDIA GPU and no processor package with a limit that it could set"


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
        self._entered = False
        self._journal: Journal | None = None
        self._guardian: Guardian | None = None
        self.replayed = tuple(replayed)
        self.outcomes: tuple[RestoreOutcome, ...] = ()
        self._found = self._settled(look(machine))
        self._locks = DeviceLocks(self._found.devices, lock_folder)

    def ranges(self) -> Mapping[str, LimitRange]:
        """The limits that sweeper can set: the device's own ranges, capped at the values found."""
        return {name: group.range for name, group in self._found.groups.items()}

    def refusals(self) -> Mapping[str, SweeperError]:
        """The reason for each limit that cannot be set."""
        return self._found.refusals

    def _settled(self, found: Found) -> Found:
        """The limits without those that an earlier sweep left: their present value is not a value to restore."""
        left = {
            one.limit: LimitRefused(f"from an earlier run: {one}")
            for one in self.replayed
            if not one.done and one.device.split()[0] in found.devices
        }
        groups = {name: group for name, group in found.groups.items() if name not in left}
        return Found(found.devices, groups, {**left, **found.refusals})

    def __enter__(self) -> Self:
        self._locks.acquire()
        try:
            for path in self._locks.noted():  # of sweeps that died since ``find_limits``
                self.replayed += tuple(replay(path, self._locks, self._machine))
            # Another sweep may have held the device until now. Its values do not count as found values.
            self._found = self._settled(self._look(self._machine))
        except BaseException:
            self._machine.close()
            self._locks.release()
            raise
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        journal, guardian = self._journal, self._guardian
        self._journal = self._guardian = None
        self._entered = False
        try:
            if journal is not None:
                self.outcomes = tuple(restore_all(journal, self._found, self._locks.descriptors))
                if guardian is not None and all(outcome.done for outcome in self.outcomes):
                    guardian.dismiss()
                    guardian = None
        finally:
            if guardian is not None:
                guardian.abandon()  # not dismissed: the guardian retries the limits that failed
            if journal is not None:
                journal.close()
            self._locks.release()
            self._machine.close()

    def try_out(self) -> None:
        """Write the power limits in force once more, which shows whether the driver lets sweeper set them.

        A limit that cannot be set moves to the refusals.
        """
        try:
            with self:
                group = self._found.groups.get(POWER)
                for knob in group.knobs if group else ():
                    present = knob.read()
                    knob.write(present)
                    answer = refusal(knob, present)
                    if answer is not None:
                        raise LimitRefused(f"{knob.id} was {in_words(knob.id, present)}, and now {answer}")
        except SweeperError as error:
            groups = {name: one for name, one in self._found.groups.items() if name != POWER}
            self._found = Found(self._found.devices, groups, {**self._found.refusals, POWER: error})

    def set(self, name: str, value: int | None) -> LimitInForce:
        """Set a limit on all its devices and read it back; None restores the value found.

        ``enforced`` is the lowest value that a device reads back. It is None for a clock, which no device shows.
        Raises LimitRefused if the value is out of range, the device does not accept it, the right is missing, or
        another tool changed the limit during the sweep.
        """
        if not self._entered:
            raise RuntimeError("set() needs `with limits:` around the sweep")
        group = self._found.groups.get(name)
        if group is None:
            if value is not None:
                raise LimitRefused(
                    f"{name}={value} cannot be set: {self._found.refusals.get(name, NO_DEVICE)}"
                )
            return LimitInForce(name, None, None)
        if value is not None and not group.range.low <= value <= group.range.high:
            raise LimitRefused(f"{name}={value} is outside the range {group.range.low} to {group.range.high}")
        try:
            self._bring(group, value)
            return LimitInForce(name, value, _in_force(group))
        except MissingError as error:  # a right, a device or a disk was lost after the sweep began
            raise LimitRefused(f"{name}={value} was not set: {error}") from error

    def _bring(self, group: Group, value: int | None) -> None:
        entries = self._journal.entries if self._journal else {}
        if value is None and not any(knob.id in entries and entries[knob.id].touched for knob in group.knobs):
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
                entry = journal.entries[knob.id]
                # `__exit__` tries again if this fails.
                if entry.touched and give_back(knob.id, journal, self._found)[0].done:
                    with contextlib.suppress(StoreError):
                        journal.took(knob.id, entry.found)
            raise

    def _holds(self, group: Group, knob: Knob, raw: int | None) -> bool:
        """Whether a knob already has this value. Raises LimitRefused if another tool changed it."""
        entry = self._journal.entries[knob.id] if self._journal else Entry(group.found[knob.id])
        kind = knob.id.kind
        moved = None
        if knob.readable:
            present = knob.read()
            if not any(same(kind, present, one) for one in (entry.found, *entry.ours)):
                moved = in_words(knob.id, present)
        else:
            present = entry.ours[-1] if entry.ours else entry.found
            if not entry.unsettled:
                moved = knob.contradiction(present)
        if moved is not None:
            raise LimitRefused(
                f"another tool changed the {knob.id} during the sweep ({moved}): sweeper leaves it alone; "
                "stop that tool to sweep this limit"
            )
        return same(kind, present, raw) and not entry.unsettled

    def _protect(self) -> Journal:
        """Have a journal on the disk and a guardian that watches, before sweeper sets a limit."""
        if self._journal is None:
            groups = self._found.groups.values()
            found = {name: raw for group in groups for name, raw in group.found.items()}
            self._journal = Journal.create(self._root, found)
            self._locks.remember(self._journal.path, self._journal.header)
        if not self._journal.path.exists():
            self._journal.write_again()
            if self._guardian is not None:
                self._guardian.dismiss()  # it holds the removed file open
        if self._guardian is None or not self._guardian.alive:
            if self._guardian is not None:
                self._guardian.abandon()
            self._guardian = Guardian.start(
                self._journal.path, self._machine.settings, self._machine.sysfs, self._locks.descriptors
            )
        return self._journal


def _turn(journal: Journal, knob: Knob, raw: int | None) -> None:
    journal.intent(knob.id, raw)
    knob.write(raw)
    answer = refusal(knob, raw)
    if answer is None:
        journal.took(knob.id, raw)
        return
    if knob.readable:
        journal.took(knob.id, knob.read())  # if the driver clamped the value, the device shows one of ours
    raise LimitRefused(f"the {knob.id} did not change to {in_words(knob.id, raw)}: {answer}")


def _in_force(group: Group) -> int | None:
    """The lowest value that the devices read back, rounded to whole W; None for clocks."""
    values = [
        value / PER_UNIT[knob.id.kind]
        for knob in group.knobs
        for value in (knob.read(), knob.enforced() if isinstance(knob, PowerKnob) else None)
        if value is not None
    ]
    return round(min(values)) if values else None


def find_limits(
    root: Path,
    settings: PowerSettings | None = None,
    means: MeansSettings | None = None,
    lock_folder: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> DeviceLimits:
    """Restore the limits of dead sweeps, then find the limits that sweeper can set on this machine.

    ``root`` is the folder of runs, which holds the journals. ``settings`` name the device and the path of sysfs;
    without ``means``, they also say how to set limits. ``environ`` is read for CUDA_VISIBLE_DEVICES. Raises
    StoreError if a journal cannot be read, and UsageError if ``power.device`` names no device.
    """
    settings = settings or PowerSettings()
    root, means = root.resolve(), means or MeansSettings.of(settings.limits)
    look_here = partial(look, settings=settings, environ=environ)
    with MachineKnobs(means, Path(settings.sysfs_root)) as machine:
        noted = DeviceLocks(look_here(machine).devices, lock_folder).noted()
        replayed = restore_each(dict.fromkeys(find_journals(root)) | noted, machine, lock_folder)
        return DeviceLimits(root, machine, look_here, lock_folder, replayed)
