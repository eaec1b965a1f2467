"""Restore the limits that the sweep found, unless another tool set a limit meanwhile.

The sweep restores its limits when it ends. If it dies, its guardian restores them; if both die, ``restore`` does.
All three call ``restore_all``. ``docs/life-of-a-limit.md`` describes the states of a limit.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from sweeper.errors import StoreError, SweepBusyError, SweeperError
from sweeper.limits import rapl
from sweeper.limits.base import Action, RestoreOutcome
from sweeper.limits.device_lock import DeviceLocks, Noted, forget, noted_anywhere
from sweeper.limits.journal import Entry, Journal, boot_id, find_journals
from sweeper.limits.knob import Knob, KnobId, in_units, in_words, refusal, same
from sweeper.limits.nvml import ClockKnob, PowerKnob
from sweeper.limits.rights import Means, MeansSettings, choose, has_admin_right
from sweeper.nvml import Nvml

# The user's answer to limits that sweeper cannot settle: set the values found, or keep the present values.
Settle = Literal["found", "present"]
# A set may take effect after its read-back, or after the sweep that asked for it was killed.
LATE_SECONDS = 2.0
LOOKS = 3
SETTLE_WORDS = (
    "set the value found with `sweeper restore --settle found`, "
    "or keep this one with `sweeper restore --settle present`"
)


class Knobs(Protocol):
    """Provides knobs. ``knob`` raises SensorMissingError if the device cannot be reached."""

    def knob(self, knob_id: KnobId, /) -> Knob: ...  # noqa: D102


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

    def knob(self, knob_id: KnobId) -> Knob:
        """The knob of that name, with the best available means. Without a right, its ``write`` raises an error."""
        if knob_id.kind == "rapl":
            bare = rapl.PackageKnob(self.sysfs, knob_id.device, knob_id.part, None)
            means, _ = self.means("rapl", bare.writable)
            return rapl.PackageKnob(self.sysfs, knob_id.device, knob_id.part, means)
        means, _ = self.means("nvml-power", has_admin_right())
        kind = PowerKnob if knob_id.kind == "nvml_power" else ClockKnob
        return kind(self.nvml, knob_id.device, means)

    def in_force(self) -> list[str]:
        """One line for each limit of this machine that can be read, or the reason why there is none."""
        lines = []
        found: list[Knob] = [
            rapl.PackageKnob(self.sysfs, zone, part, None)
            for zone in rapl.packages(self.sysfs)
            for part in rapl.limited_constraints(self.sysfs, zone)
        ]
        try:
            found += [PowerKnob(self.nvml, card.uuid, None) for card in self.nvml.cards()]
        except SweeperError as error:
            lines.append(error.what)
        for knob in found:
            try:
                default = knob.default() if isinstance(knob, PowerKnob) else None
                usual = "" if default is None else f" (the device's default is {in_words(knob.id, default)})"
                lines.append(f"{knob.id}: {in_words(knob.id, knob.read())}{usual}")
            except SweeperError as error:
                lines.append(f"{knob.id}: {error.what}")
        return lines

    def close(self) -> None:
        """Close NVML. May be called twice."""
        self._stack.close()
        self._nvml = None

    def __enter__(self) -> MachineKnobs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def restore_all(
    journal: Journal, knobs: Knobs, locks: Sequence[int], settle: Settle | None = None
) -> list[RestoreOutcome]:
    """Restore every limit of a journal in the reverse order of its entries; a failure does not stop the others.

    A limit with an unsettled set gets the value found even if it shows it already, and a second look later: the
    set may still take effect. The journal is removed if nothing is left to do. The caller holds the locks of its
    devices; ``locks`` are the descriptors of their files, which name the journal.
    """
    outcomes: dict[KnobId, RestoreOutcome] = {}
    waiting = [name for name, entry in reversed(list(journal.entries.items())) if entry.touched]
    for number in range(LOOKS):
        if number:
            time.sleep(LATE_SECONDS)
        for name in list(waiting):
            before = outcomes.get(name)
            outcome, again = give_back(name, journal, knobs, settle, second_look=number > 0)
            if before is None or outcome.action is not Action.AS_FOUND or before.action is Action.FAILED:
                outcomes[name] = outcome
            if not again:
                waiting.remove(name)
        if not waiting:
            break
    for name in waiting:
        if outcomes[name].done:
            outcomes[name] = _outcome(name, journal.entries[name], None, Action.FAILED, "it keeps changing")
    if settle == "present":
        outcomes = {n: one if one.done else replace(one, action=Action.KEPT) for n, one in outcomes.items()}
    if all(outcome.done for outcome in outcomes.values()):
        journal.remove()
        forget(locks, journal.path)
    else:
        with contextlib.suppress(StoreError):  # a full disk: the next try restores them once more
            for name, outcome in outcomes.items():
                if outcome.done:
                    journal.took(name, journal.entries[name].found, "restored")
    return list(outcomes.values())


def give_back(
    name: KnobId,
    journal: Journal,
    knobs: Knobs,
    settle: Settle | None = None,
    second_look: bool = False,
) -> tuple[RestoreOutcome, bool]:
    """Restore the found value of one limit, unless another tool has changed it; and whether to look again later."""
    entry = journal.entries[name]
    try:
        knob = knobs.knob(name)
        present = knob.read() if knob.readable else entry.ours[-1] if entry.ours else None
        verdict = _verdict(knob, journal, present, second_look)
        if verdict is not None and not (settle == "found" and verdict[0] is Action.LEFT_ALONE):
            return _outcome(name, entry, present, *verdict), False
        as_found = knob.readable and same(name.kind, present, entry.found)
        try:
            knob.write(entry.found)
        except SweeperError:
            if not as_found:
                raise
            # The right may be gone, but the limit is as found. Only the second look can confirm that.
            reason = f"{in_words(name, present)}, as found"
            return _outcome(name, entry, present, Action.AS_FOUND, reason), True
        answer = refusal(knob, entry.found)
        if answer is None:
            reason = f"from {in_words(name, present)} to {in_words(name, entry.found)}"
            # No read-back shows a lock on clocks, so the second look removes it once more.
            again = (entry.unsettled > 0 or second_look) if knob.readable else not second_look
            return _outcome(name, entry, entry.found, Action.RESTORED, reason), again
        shown = knob.read()
        with contextlib.suppress(StoreError):  # a full disk must not keep a limit from being restored
            journal.took(name, shown)  # a device that rounds the value found shows a value of ours
        reason = f"the device did not accept {in_words(name, entry.found)}: {answer}; {SETTLE_WORDS}"
        return _outcome(name, entry, shown, Action.FAILED, reason), knob.readable
    except SweeperError as error:
        return _outcome(name, entry, None, Action.FAILED, f"{error}; `sweeper restore` tries again"), False


def _verdict(
    knob: Knob, journal: Journal, present: int | None, second_look: bool
) -> tuple[Action, str] | None:
    """The outcome and its reason if there is nothing to write; None if the value found must be written."""
    name, entry = knob.id, journal.entries[knob.id]
    shown, found = in_words(name, present), in_words(name, entry.found)
    as_found = knob.readable and same(name.kind, present, entry.found)
    ours = knob.readable and not as_found and any(same(name.kind, present, one) for one in entry.ours)
    if journal.header["boot_id"] != boot_id():
        if ours:  # a reboot resets the limits of every device but this one
            return (
                Action.LEFT_ALONE,
                f"after a reboot, it shows {shown}, which a sweep had set; {SETTLE_WORDS}",
            )
        now = f"; it shows {shown} now" if knob.readable else ""
        return Action.REBOOTED, f"the machine has rebooted since, which resets the limits of its devices{now}"
    if as_found:
        return (Action.AS_FOUND, f"{found}, as found") if second_look or not entry.unsettled else None
    if knob.readable:
        who = "the sweep, its driver or another tool" if entry.unsettled else "another tool"
        reason = f"{who} set {shown}; the sweep found {found}; {SETTLE_WORDS}"
        return None if ours else (Action.LEFT_ALONE, reason)
    against = [knob.contradiction(value) for value in entry.ours]
    if entry.unsettled or not all(against):
        return None
    return Action.LEFT_ALONE, f"another tool changed it: {against[-1]}; {SETTLE_WORDS}"


def _outcome(name: KnobId, entry: Entry, present: int | None, action: Action, reason: str) -> RestoreOutcome:
    part = f" {name.part}" if name.part else ""
    found, now = in_units(name.kind, entry.found), in_units(name.kind, present)
    return RestoreOutcome(name.device + part, name.limit, found, now, action, reason)


def restore(
    root: Path,
    means: MeansSettings | None = None,
    sysfs: Path = Path("/sys"),
    lock_folder: Path | None = None,
    settle: Settle | None = None,
) -> list[RestoreOutcome]:
    """`sweeper restore`: replay every journal under ``root``, and every one that a lock file names.

    If the sweep of a journal still runs, the outcome is ``IN_USE`` and the journal stays. Raises StoreError if a
    journal cannot be read.
    """
    journals = dict.fromkeys(find_journals(root.resolve())) | noted_anywhere(lock_folder)
    with MachineKnobs(means or MeansSettings(), sysfs) as machine:
        return restore_each(journals, machine, lock_folder, settle)


def restore_each(
    journals: Mapping[Path, Noted],
    knobs: Knobs,
    lock_folder: Path | None = None,
    settle: Settle | None = None,
) -> list[RestoreOutcome]:
    """Replay these journals, each under the locks of its devices."""
    outcomes: list[RestoreOutcome] = []
    for path, noted in journals.items():
        journal = Journal.open(path, noted)
        if journal is None:
            continue  # another process removed it meanwhile
        why = f"the sweep of process {journal.owner} still runs and restores this limit itself"
        with contextlib.closing(journal):
            if journal.header["boot_id"] != boot_id() or journal.owner in (None, os.getpid()):
                try:
                    with DeviceLocks((name.device for name in journal.entries), lock_folder) as locks:
                        outcomes += replay(path, locks, knobs, settle)
                        continue
                except SweepBusyError as error:
                    why = str(error)
            touched = ((name, entry) for name, entry in journal.entries.items() if entry.touched)
            outcomes += [_outcome(name, entry, None, Action.IN_USE, why) for name, entry in touched]
    return outcomes


def replay(
    path: Path, locks: DeviceLocks, knobs: Knobs, settle: Settle | None = None
) -> list[RestoreOutcome]:
    """Replay one journal, and remove it if all its limits are done. The caller holds the locks."""
    # Another process, such as a guardian, may have replayed the journal before the locks were free.
    journal = Journal.open(path, locks.noted().get(path))
    if journal is None:
        return []
    with contextlib.closing(journal):
        return restore_all(journal, knobs, locks.descriptors, settle)
