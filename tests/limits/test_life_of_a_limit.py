"""The life of a limit as a model: devices that misbehave, other tools, and kills at every step.

The suite runs a short profile. A longer run by hand::

    python tests/limits/test_life_of_a_limit.py 20000

After every history, `sweeper restore` leaves each device as found, or reports what it left and how to mend it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sweeper.errors import LimitRefused, RightMissingError, SensorMissingError, SweepBusyError, SweeperError
from sweeper.limits import device_lock, journal, restore
from sweeper.limits.base import LimitRange, RestoreOutcome
from sweeper.limits.control import DeviceLimits
from sweeper.limits.groups import Found, Group
from sweeper.limits.guardian import guard
from sweeper.limits.knob import CLOCK, POWER, KnobId
from sweeper.limits.rights import MeansSettings

HISTORIES = 150
STEPS = 20
LATEST_SECONDS = 1.9  # a set takes effect at most this late; sweeper looks again after 2 s
CLAMP = 251_000  # no sweep asks for this value
FOREIGN = (333_700, 281_700)  # nor for these, which another tool sets
WAYS = ("obeys", "obeys", "ignores", "clamps", "refuses", "lies", "late")
counted: Counter[str] = Counter()


class Killed(BaseException):
    """kill -9 of the process that runs now."""


class World:
    """Virtual time, the disk, and the moment at which the running process is killed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.kill_in: int | None = None
        self.disk_full = False

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.step()
        self.now += seconds

    def step(self) -> None:
        """One moment at which a process can be killed."""
        self.now += 0.001
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in == 0:
                counted["kills"] += 1
                raise Killed

    def append(self, descriptor: int, content: bytes) -> None:
        """The journal's own function; a kill or a full disk leaves half of a line."""
        self.step()
        half = len(content) // 2
        os.write(descriptor, content[:half])
        self.step()
        if self.disk_full:
            raise OSError(28, "No space left on device")
        os.write(descriptor, content[half:])
        self.step()

    @contextlib.contextmanager
    def killing_in(self, steps: int | None) -> Iterator[None]:
        """Run one process inside the block; it is killed after so many steps."""
        self.kill_in = steps
        try:
            yield
        finally:
            self.kill_in = None


@dataclass
class Device:
    """One limit of one device, and a knob on it. A sweep reads and writes it as it would a real one."""

    world: World
    id: KnobId
    value: int | None
    readable: bool = True
    grid: int = 1
    way: str = "obeys"
    late_seconds: float = 0.0
    denied: bool = False
    lost: bool = False
    late: list[tuple[float, int | None]] = field(default_factory=list)
    clamped: bool = False

    def _now(self) -> None:
        self.world.step()
        self.pass_time()
        if self.lost:
            raise SensorMissingError("GPU is lost")

    def pass_time(self) -> None:
        for one in [one for one in self.late if one[0] <= self.world.now]:
            self.late.remove(one)
            self.value = one[1]

    def read(self) -> int | None:
        self._now()
        return self.value if self.readable else None

    def write(self, raw: int | None) -> None:
        self._now()
        if self.denied:
            raise RightMissingError("no permission")
        way, self.way = self.way, "obeys"  # each misbehaviour is for one set
        counted[f"device {way}"] += 1
        if way == "refuses":
            raise LimitRefused("Unknown Error")
        self.clamped |= way == "clamps"
        if raw is not None:
            raw = max(raw, CLAMP) if way == "clamps" else raw // self.grid * self.grid
        if way == "late":
            self.late.append((self.world.now + self.late_seconds, raw))
        elif way != "ignores":
            self.value = raw
        self.world.step()
        if way == "lies":
            raise LimitRefused("Unknown Error")

    def contradiction(self, raw: int | None) -> str | None:
        self._now()
        high = raw is not None and (self.value is None or self.value > raw)
        return f"the SM clock runs above a lock of {raw}" if high else None


class Machine:
    """The knobs of the model, in the place of ``MachineKnobs``."""

    settings = MeansSettings(means="direct")
    sysfs = Path("/nowhere")

    def __init__(self, devices: list[Device]) -> None:
        self.devices = devices

    def knob(self, knob_id: KnobId) -> Device:
        return next(device for device in self.devices if device.id == knob_id)

    def close(self) -> None: ...

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None: ...


class Watcher:
    """The guardian without a process of its own: it acts when the model says so."""

    def __init__(self, path: Path, descriptors: tuple[int, ...]) -> None:
        opened = journal.Journal.open(path)
        assert opened is not None
        self.journal = opened
        self.descriptors = [os.dup(one) for one in descriptors]
        self.alive = True
        self.on_its_own = False

    def dismiss(self) -> None:
        self.die()

    def abandon(self) -> None:
        self.on_its_own = True

    def die(self) -> None:
        self.alive = False
        self.journal.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()


KILLS = st.none() | st.integers(1, 40)


class LifeOfALimit(RuleBasedStateMachine):
    """Sweeps, guardians and restores on two power limits and one lock of clocks."""

    @initialize(found=st.sampled_from([450_000, 318_250]), grid=st.sampled_from([1, 1, 1, 5_000]))
    def begin(self, found: int, grid: int) -> None:
        counted["histories"] += 1
        counted["devices"] += 3
        self.world = World()
        self.folder = Path(tempfile.mkdtemp(prefix="sweeper-life-", dir=MEMORY))
        self.root, self.locks = self.folder / "mlruns", self.folder / "locks"
        self.locks.mkdir()
        self.cards = [Device(self.world, KnobId("nvml_power", f"GPU-{n}"), found, grid=grid) for n in (0, 1)]
        self.clock = Device(self.world, KnobId("nvml_clock", "GPU-0"), None, readable=False)
        self.machine = Machine([*self.cards, self.clock])
        self.found = found
        self.foreign: dict[KnobId, int] = {}
        self.untouched: set[KnobId] = set()  # no sweep has started since another tool set these
        self.limits: DeviceLimits | None = None
        self.removed = False  # the folder of runs, with a journal
        self.watchers: list[Watcher] = []
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(restore, "LATE_SECONDS", 2.0)
        self.patch.setattr("sweeper.limits.knob.READ_BACK_SECONDS", 1.0)
        for module in ("knob", "restore", "guardian", "device_lock"):
            self.patch.setattr(f"sweeper.limits.{module}.time", self.world)
        self.patch.setattr(journal, "_append", self.world.append)
        self.patch.setattr(journal, "_sync_folder", lambda _: self.world.step())
        self.patch.setattr(restore, "MachineKnobs", lambda *_: self.machine)
        self.patch.setattr("sweeper.limits.guardian._log", lambda *_: None)
        self.patch.setattr(device_lock, "_busy", lambda device, _: SweepBusyError(f"{device} is held"))
        self.patch.setattr("sweeper.limits.control.Guardian.start", self._watch)
        change = device_lock._change
        self.patch.setattr(device_lock, "_change", lambda *words: (self.world.step(), change(*words)))
        self._start(None)

    def _watch(self, path: Path, _means: Any, _sysfs: Path, descriptors: tuple[int, ...] = ()) -> Watcher:
        self.world.step()
        self.watchers.append(Watcher(path, descriptors))
        return self.watchers[-1]

    def _look(self, _machine: Any) -> Found:
        found = {card.id: card.read() for card in self.cards}
        highest = min(value for value in found.values() if value is not None) // 1000
        power = Group(LimitRange(POWER, "GPU-0, GPU-1", 150, highest, highest), tuple(self.cards), found)
        clock = Group(
            LimitRange(CLOCK, "GPU-0", 300, 2000, None), (self.clock,), {self.clock.id: None}, (300, 900)
        )
        return Found(("GPU-0", "GPU-1"), {POWER: power, CLOCK: clock}, {})

    @precondition(lambda self: self.limits is None)
    @rule(kill=KILLS)
    def start(self, kill: int | None) -> None:
        self._start(kill)

    def _start(self, kill: int | None) -> None:
        self.untouched.clear()
        with self._process(kill), contextlib.suppress(SweeperError):
            limits = DeviceLimits(self.root, self.machine, self._look, self.locks)  # type: ignore[arg-type]
            limits.__enter__()
            self.limits = limits

    @precondition(lambda self: self.limits is not None)
    @rule(
        value=st.sampled_from([150, 200, 250, 300, None]),
        way=st.sampled_from(WAYS),
        other=st.sampled_from(WAYS),
        late=st.floats(0.01, LATEST_SECONDS),
        kill=KILLS,
    )
    def set_power(self, value: int | None, way: str, other: str, late: float, kill: int | None) -> None:
        for card, its in zip(self.cards, (way, other), strict=True):
            card.way, card.late_seconds = its, late
        self._set(POWER, value, kill)

    @precondition(lambda self: self.limits is not None)
    @rule(value=st.sampled_from([150, 200]), way=st.sampled_from(WAYS), late=st.floats(0.01, LATEST_SECONDS))
    def set_and_die(self, value: int, way: str, late: float) -> None:
        self.set_power(value, way, way, late, None)
        if self.limits is not None:
            self.kill_sweep()

    @precondition(lambda self: self.limits is not None)
    @rule(value=st.sampled_from([300, 900, None]), way=st.sampled_from(WAYS), kill=KILLS)
    def set_clock(self, value: int | None, way: str, kill: int | None) -> None:
        # Nothing shows that a driver ignored the removal of a lock: see docs/life-of-a-limit.md.
        self.clock.way = "obeys" if way == "clamps" or (way == "ignores" and value is None) else way
        self.clock.late_seconds = 1.5
        self._set(CLOCK, value, kill)

    def _set(self, name: str, value: int | None, kill: int | None) -> None:
        assert self.limits is not None
        counted["sets"] += 1
        for group in self.limits._found.groups.values():  # a value that equals the one found may be changed
            self.untouched -= {name for name, raw in group.found.items() if self.foreign.get(name) == raw}
        with self._process(kill), contextlib.suppress(SweeperError):
            self.limits.set(name, value)
        for device in self.machine.devices:
            device.way = "obeys"

    @precondition(lambda self: self.limits is not None)
    @rule(kill=KILLS)
    def end(self, kill: int | None) -> None:
        limits = self.limits
        assert limits is not None
        with self._process(kill):
            limits.__exit__(None, None, None)
            self.limits = None

    @precondition(lambda self: self.limits is not None)
    @rule()
    def kill_sweep(self) -> None:
        with self._process(1):
            self.world.step()

    @precondition(lambda self: any(one.alive and one.on_its_own for one in self.watchers))
    @rule(kill=KILLS)
    def guardian_acts(self, kill: int | None) -> None:
        watcher = next(one for one in self.watchers if one.alive and one.on_its_own)
        counted["guardians"] += 1
        with contextlib.suppress(Killed), self.world.killing_in(kill):
            guard(watcher.journal, self.machine, watcher.descriptors)
            self.wait(3.0)
            for card in self.cards:  # the guardian knows what it needs, also if the journal was removed
                known = card.id in watcher.journal.entries
                if known and not (card.denied or card.lost) and self._restorable(card):
                    assert card.value == self.found
        watcher.die()

    @precondition(lambda self: any(one.alive for one in self.watchers))
    @rule()
    def kill_guardian(self) -> None:
        counted["kills"] += 1
        next(one for one in self.watchers if one.alive).die()

    @rule(kill=KILLS)
    def restore(self, kill: int | None) -> None:
        with contextlib.suppress(Killed), self.world.killing_in(kill):
            self._restore()

    @rule(card=st.integers(0, 1), value=st.sampled_from(FOREIGN))
    def another_tool_sets(self, card: int, value: int) -> None:
        device = self.cards[card]
        device.pass_time()
        if not device.late:  # else the late set overwrites it
            device.value = self.foreign[device.id] = value
            if device.grid == 1:  # else setting the value found once more rounds it, which restore reports
                self.untouched.add(device.id)

    @rule()
    def remove_the_folder_of_runs(self) -> None:
        self.removed |= self.root.exists()
        counted["journals removed"] += self.root.exists()
        shutil.rmtree(self.root, ignore_errors=True)

    @rule(card=st.integers(0, 2), what=st.sampled_from(["denied", "lost"]), state=st.booleans())
    def withdraw_right_or_lose_device(self, card: int, what: str, state: bool) -> None:
        setattr(self.machine.devices[card], what, state)

    @rule(full=st.booleans())
    def fill_the_disk(self, full: bool) -> None:
        self.world.disk_full = full

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        for device in self.machine.devices:
            device.pass_time()

    @contextlib.contextmanager
    def _process(self, kill: int | None) -> Iterator[None]:
        """Run the sweep; if it is killed, its files close and its guardian is on its own."""
        try:
            with self.world.killing_in(kill):
                yield
        except Killed:
            limits, self.limits = self.limits, None
            if limits is not None:
                limits._locks.release()
                if limits._journal is not None:
                    limits._journal.close()
            for watcher in self.watchers:
                watcher.on_its_own = True

    def _restore(self, settle: restore.Settle | None = None) -> list[RestoreOutcome]:
        counted["restores"] += 1
        return restore.restore(self.root, None, Path("/sys"), self.locks, settle)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._check_the_end()
        finally:
            for watcher in self.watchers:
                watcher.die()
            self.patch.undo()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _check_the_end(self) -> None:
        if self.limits is not None:
            self.kill_sweep()
        for watcher in self.watchers:
            if watcher.alive:
                watcher.die()
        self._look_at_the_devices(self._restore())
        # Now every device answers again. What was ours is gone; what is another tool's is said.
        self.world.disk_full = False
        for device in self.machine.devices:
            device.denied = device.lost = False
        outcomes = self._restore()
        self._look_at_the_devices(outcomes)
        for card in self.cards:
            if self._restorable(card) and not self.removed:
                assert card.value == self.found, f"{card.id} is left at {card.value}: {outcomes}"
        assert self.clock.value is None
        assert all(one.done for one in self._restore("present"))
        assert self._restore() == []
        assert not journal.find_journals(self.root)

    def _restorable(self, card: Device) -> bool:
        """Only a kill between a clamped set and its read-back leaves a value that sweeper cannot know."""
        return card.id not in self.foreign and not card.clamped and self.found % card.grid == 0

    def _look_at_the_devices(self, outcomes: list[RestoreOutcome]) -> None:
        """As found or another tool's, or named with the remedy; and another tool's value is never overwritten."""
        self.wait(3.0)
        left = {(one.device, one.limit): str(one) for one in outcomes if not one.done}
        for device in self.machine.devices:
            said = left.get((device.id.device, device.id.limit))
            expected = self.foreign.get(device.id, None if device is self.clock else self.found)
            if said is None or device.id in self.untouched:
                assert device.value == expected, (
                    f"{device.id} is at {device.value}, not {expected}: {outcomes}"
                )
            if said is not None:
                assert "sweeper restore" in said


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def run(histories: int, derandomize: bool = False) -> None:
    run_state_machine_as_test(
        LifeOfALimit,
        settings=settings(
            max_examples=histories,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=derandomize,
            print_blob=False,
        ),
    )


def test_after_any_history_a_device_is_as_found_or_named() -> None:
    run(HISTORIES, derandomize=True)
    assert counted["kills"] > HISTORIES / 3
    assert sum(counted[f"device {way}"] for way in set(WAYS) - {"obeys"}) > 20


if __name__ == "__main__":
    run(int(sys.argv[1]))
    print(dict(counted))
