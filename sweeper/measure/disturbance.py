"""Other programs on the machine: what they take of the processors, and waiting until they take little.

Snapshots cost some 0.1 ms and are taken outside the timed stretch of a window. Listing processes costs milliseconds to
tens of milliseconds, so it happens only at the start and while sweeper waits.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from sweeper.records import Disturbance, Phase, Window
from sweeper.system import usable_cpus

# docs/measuring.md has the measurements behind the next two figures (benchmarks/foreign_load.py).
# Beside an engine that needs every core, a process that takes this many cores changes the speed by more than noise.
LEAST_CORES = 0.05
# Where cores are idle, a process takes memory bandwidth and shared cache only. It may use this share of all cores.
FITTING_SHARE = 0.2
# The kernel counts processor time in ticks of up to 10 ms, so a short window cannot show less than a few of them. Two
# cores err by about 0.01 s; the errors of more cores add up as random ones do.
LEAST_SECONDS = 0.03
# What a busy machine always takes, and this much more, does not tell one trial from another.
MORE_THAN_USUAL = 1.25
# A wait must last this long to show what is usual: bursts of a compiler may fill a shorter one.
USUAL_SECONDS = 20.0
# One thread keeps a core busy up to this rounding.
ROUNDING_CORES = 0.05
# Long enough to see a share of 0.06 cores, and short compared with the pauses of a compiler or a browser.
POLL_SECONDS = 0.5
LOOK_SECONDS = 1.0
# All waits together take at most this share of search.minutes, and never less than this many times the limit of one
# wait: beside bursts of a few seconds, even a short sweep needs a minute or two. Without search.minutes, five times.
TOTAL_SHARE, LEAST_WAITS, TOTAL_WAITS = 1 / 6, 2, 5
# The search may spend this share of the waits, and this share of its minutes. The rest belongs to the final stage,
# whose figures decide.
SEARCH_SHARE, MOST_OF_SEARCH = 0.5, 1 / 3
# Other virtual machines or waiting tasks below these shares are no news.
LEAST_STEAL_SHARE, LEAST_PRESSURE_SHARE = 0.01, 0.05
# A caveat needs this share of a phase's windows: the median of many windows does not follow a few.
DISTURBED_SHARE = 1 / 3
MOST_NAMED = 3
# Named if they take this many cores.
LEAST_NAMED_CORES = 0.05
# The kernel gives the first PID namespace this inode (PROC_PID_INIT_INO); a container has another one.
_FIRST_NAMESPACE = "pid:[4026531836]"
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the run time of a process, to the nanosecond

Processes = Mapping[tuple[int, float], tuple[str, float]]
"""Processor seconds by process: (pid, start) -> (name, seconds). Those of this sweep are not in it."""


@dataclass(frozen=True, slots=True)
class Load:
    """A snapshot. Processor times are in s since boot, over the CPUs that the sweep may use; None: not readable."""

    monotonic_seconds: float
    busy_seconds: float | None = None  # of all processes, and of the kernel
    steal_seconds: float | None = None  # that a hypervisor gave to others
    stalled_seconds: float | None = None  # in which some task waited for a CPU
    own_seconds: Mapping[int, float] = field(default_factory=dict)  # of the sweep's processes, by pid


@dataclass(frozen=True, slots=True)
class Busy:
    """A program and the cores that its processes use."""

    name: str
    cores: float


class LoadSource(Protocol):
    """Reads the load of a machine. Missing figures are None; nothing raises."""

    @property
    def cores(self) -> int:
        """The CPUs that the sweep may use."""
        ...

    def follow(self) -> None:
        """Find the sweep's own processes, whose time is not that of others. Costs milliseconds."""
        ...

    def load(self) -> Load:
        """A snapshot."""
        ...

    def processes(self) -> Processes:
        """The processes of others that are visible here. Costs tens of milliseconds."""
        ...


# -- pure functions ---------------------------------------------------------------------------------------------------


def parse_stat(text: str, cpus: Iterable[int], ticks_per_second: int) -> tuple[float | None, float | None]:
    """Busy and stolen seconds of these CPUs since boot, from the text of ``/proc/stat``; None where it has none."""
    lines = {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}
    there, wanted = {name for name in lines if re.fullmatch(r"cpu\d+", name)}, {f"cpu{cpu}" for cpu in cpus}
    # The kernel rounds each line down, so one line for all CPUs is more exact than their sum. Some containers number
    # their CPUs anew in this file: then the line is that of the container.
    names = wanted if wanted < there else {"cpu"} if there else set()
    try:
        rows = [[int(word) for word in lines.get(name, ())] for name in names]
    except ValueError:
        return None, None
    if not rows or any(len(row) < 7 for row in rows):
        return None, None
    # user nice system idle iowait irq softirq steal guest guest_nice: user and nice include the guests.
    busy = sum(sum(row[:3]) + row[5] + row[6] for row in rows)
    steal = sum(row[7] for row in rows) if all(len(row) > 7 for row in rows) else None
    return busy / ticks_per_second, None if steal is None else steal / ticks_per_second


def parse_pressure(text: str) -> float | None:
    """Seconds since boot in which some task waited for a CPU, from ``/proc/pressure/cpu``; None if it has none."""
    some = next((line for line in text.splitlines() if line.startswith("some ")), "")
    total = next((word[6:] for word in some.split() if word.startswith("total=")), "")
    return int(total) / 1e6 if total.isdecimal() else None


def between(
    before: Load, after: Load, cores: int, physical_cores: int | None = None, threads: int | None = None
) -> Disturbance:
    """What others took between two snapshots, and how much of it an engine with ``threads`` threads tolerates.

    Args:
        before: the first snapshot.
        after: the second snapshot.
        cores: the CPUs that the sweep may use.
        physical_cores: the cores behind them. A process on the other half slows a core, so that half is not idle.
        threads: those of the engine; None: the engine rests, and will need every core.
    """
    seconds = after.monotonic_seconds - before.monotonic_seconds
    if seconds <= 0:
        return Disturbance(cores)
    busy, own = _grown(before.busy_seconds, after.busy_seconds), _own_seconds(before, after)
    steal = _grown(before.steal_seconds, after.steal_seconds)
    stalled = _grown(before.stalled_seconds, after.stalled_seconds)
    others, running = None, cores if threads is None else threads
    # Where the kernel hides its figures, they stand still while the sweep works.
    if busy is not None and own is not None and busy >= own / 2 - LEAST_SECONDS:
        others = max(0.0, busy - own)
        if threads is not None:
            # An engine whose layers are on a GPU keeps fewer cores busy than it has threads.
            running = min(threads, max(1, math.ceil((own + others) / seconds - ROUNDING_CORES)))
    whole = seconds * cores
    return Disturbance(
        cores,
        others_share=None if others is None else others / whole,
        steal_share=None if steal is None else steal / whole,
        pressure_share=None if stalled is None else min(1.0, stalled / seconds),
        limit_share=tolerated_cores(cores, physical_cores or cores, running, seconds) / cores,
    )


def tolerated_cores(cores: int, physical_cores: int, threads: int, seconds: float) -> float:
    """The cores that others may use beside ``threads`` threads in a window of ``seconds`` without disturbing it."""
    least = max(LEAST_CORES, LEAST_SECONDS * math.sqrt(max(1.0, cores / 2)) / seconds)
    idle = max(0, min(cores, physical_cores) - threads)
    return max(least, min(idle + least, FITTING_SHARE * cores)) if idle else least


def busiest(before: Processes, after: Processes, seconds: float) -> tuple[Busy, ...]:
    """The programs that used the processors between two lists, most first, with the cores that each one used.

    The processes of one name count together. A process that started in between counts whole.
    """
    cores: dict[str, float] = {}
    for process, (name, total) in after.items():
        used = total - before[process][1] if process in before else total
        cores[name] = cores.get(name, 0.0) + max(0.0, used) / seconds
    found = [Busy(name, each) for name, each in cores.items() if each >= LEAST_NAMED_CORES]
    return tuple(sorted(found, key=lambda busy: (-busy.cores, busy.name)))


def in_words(found: Disturbance, named: Sequence[Busy] = (), elsewhere: str = "other processes") -> str:
    """``cc1plus uses 0.9 of 2 cores, python3 0.3``, and stolen time and waiting tasks where they are more than usual.

    Args:
        found: the load.
        named: the busiest programs.
        elsewhere: a name for the load of processes that are not in ``named``.
    """
    shown = list(named[:MOST_NAMED])
    others = (found.others_share or 0.0) * found.cores
    rest = others - sum(busy.cores for busy in named)
    # Ticks and the time between two lists make a difference of a tenth.
    if others and rest > max(0.1, 0.2 * others):
        shown.append(Busy(elsewhere, rest))
        shown.sort(key=lambda busy: -busy.cores)
    parts = [f"{busy.name} {busy.cores:.1f}" for busy in shown]
    if shown:
        verb = "use" if shown[0].name == elsewhere else "uses"
        parts[0] = f"{shown[0].name} {verb} {shown[0].cores:.1f} of {_cores(found.cores)}"
    if found.steal_share is not None and found.steal_share >= LEAST_STEAL_SHARE:
        parts.append(f"other virtual machines took {found.steal_share:.0%} of the processor time")
    if found.pressure_share is not None and found.pressure_share >= LEAST_PRESSURE_SHARE:
        parts.append(f"tasks had to wait for a CPU {100 * found.pressure_share:.0f} % of the time")
    return ", ".join(parts) or "other processes use the processors"


def mostly_disturbed(windows: Sequence[Window], phase: Phase) -> bool:
    """Whether others disturbed so many windows of this phase that its figures are in doubt."""
    of_phase = [window for window in windows if window.phase == phase]
    hit = sum(is_disturbed(window) for window in of_phase)
    return hit > 0 and hit >= DISTURBED_SHARE * len(of_phase)


def is_disturbed(window: Window) -> bool:
    """Whether others took so much during this window that its figures are in doubt."""
    return window.disturbance is not None and window.disturbance.disturbs


def worst(windows: Iterable[Window]) -> Disturbance | None:
    """The disturbance of the window in which others took most; None if no window knows."""
    known = [window.disturbance for window in windows if window.disturbance is not None]
    return max(known, key=lambda found: found.share, default=None)


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)


def _own_seconds(before: Load, after: Load) -> float | None:
    """The sweep's own processor time; None if one of its processes ended, since its time is then unknown."""
    if not after.own_seconds or before.own_seconds.keys() - after.own_seconds.keys():
        return None
    return sum(now - before.own_seconds.get(pid, 0.0) for pid, now in after.own_seconds.items())


def _cores(count: int) -> str:
    return f"{count} core{'s' if count > 1 else ''}"


# -- the machine ------------------------------------------------------------------------------------------------------


class MachineLoad:
    """The load of this machine: from procfs on Linux, and what psutil gives on other systems."""

    def __init__(
        self, procfs_root: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._proc, self._clock = procfs_root, clock
        self._cpus = usable_cpus()
        self._own: list[psutil.Process] = []
        self._linux = sys.platform == "linux"
        self.follow()

    @property
    def cores(self) -> int:
        """See the Protocol."""
        return len(self._cpus)

    @property
    def elsewhere(self) -> str:
        """A name for processes that use the processors and are not in the list."""
        try:
            outside = self._linux and os.readlink(self._proc / "self/ns/pid") != _FIRST_NAMESPACE
        except OSError:
            outside = False
        return "processes outside this container" if outside else "short-lived or hidden processes"

    def follow(self) -> None:
        """See the Protocol."""
        own = psutil.Process()
        try:
            self._own = [own, *own.children(recursive=True)]
        except psutil.Error:  # a child ended during the search
            self._own = [own, *(process for process in self._own[1:] if process.is_running())]

    def load(self) -> Load:
        """See the Protocol."""
        own = {process.pid: spent for process in self._own if (spent := self._spent(process)) is not None}
        if self._linux:
            ticks = os.sysconf("SC_CLK_TCK")
            busy, steal = parse_stat(_text(self._proc / "stat"), self._cpus, ticks)
        else:
            times = psutil.cpu_times()
            busy, steal = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system")), None
        return Load(self._clock(), busy, steal, parse_pressure(_text(self._proc / "pressure/cpu")), own)

    def processes(self) -> Processes:
        """See the Protocol."""
        self.follow()
        ours = {process.pid for process in self._own}
        found = {}
        for process in psutil.process_iter(["pid", "name", "create_time", "cpu_times"]):
            about = process.info
            if about["pid"] in ours or about["cpu_times"] is None:
                continue
            name = "".join(c if c.isprintable() else " " for c in about["name"] or "an unnamed process")
            spent = about["cpu_times"].user + about["cpu_times"].system
            found[about["pid"], about["create_time"] or 0.0] = (name, spent)
        return found

    def _spent(self, process: psutil.Process) -> float | None:
        """The processor seconds of one own process; None if it ended."""
        if self._linux:  # psutil's figure has ticks of 10 ms, this clock has none
            with contextlib.suppress(OSError):
                return time.clock_gettime((~process.pid << 3) | _CPUCLOCK_SCHED)
        try:
            times = process.cpu_times()
        except psutil.Error:
            return None
        return float(times.user + times.system)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# -- watching and waiting ---------------------------------------------------------------------------------------------


class Watch:
    """Judges windows by the load of others, and waits for quiet within a limit and a budget.

    Args:
        source: reads the load.
        physical_cores: the cores behind the CPUs that the sweep may use; None: as many.
        limit_seconds: the longest single wait; 0: never wait.
        minutes: those of the sweep, which bound all waits together; None: no limit.
        clock: the time in s.
        sleep: waits on that clock.
        stopped: whether the user stopped the sweep, which ends a wait.
        elsewhere: a name for processes that are not in the source's list.
    """

    def __init__(
        self,
        source: LoadSource,
        physical_cores: int | None = None,
        limit_seconds: float = 60.0,
        minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        stopped: Callable[[], bool] = lambda: False,
        elsewhere: str = "other processes",
    ) -> None:
        self._source, self._physical = source, physical_cores or source.cores
        self._limit = limit_seconds
        self._total = TOTAL_WAITS * limit_seconds
        if minutes is not None:
            self._total = max(60 * minutes * TOTAL_SHARE, LEAST_WAITS * limit_seconds)
        self._budget = min(self._total * SEARCH_SHARE, 60 * MOST_OF_SEARCH * (minutes or math.inf))
        self._clock, self._sleep, self.stopped = clock, sleep, stopped
        self._elsewhere = elsewhere
        self._usual_share = 0.0  # what others took at least in a wait that found no quiet
        self.waited_seconds = 0.0
        self.measured_again = 0  # windows

    def follow(self) -> None:
        """Find the sweep's own processes; call it after a load, which may have started a worker."""
        self._source.follow()

    def load(self) -> Load:
        """A snapshot."""
        return self._source.load()

    def judge(self, before: Load, after: Load, threads: int | None) -> Disturbance:
        """The disturbance of a window between two snapshots, for an engine with so many threads."""
        found = between(before, after, self._source.cores, self._physical, threads)
        # A pause shows that a wait in vain met a long burst, and not the usual load.
        if found.others_share is not None and found.share < self._usual_share / 2:
            self._usual_share = 0.0
        return found

    def tolerated_share(self, threads: int) -> float:
        """The share of the cores that others may take beside an engine with so many threads."""
        cores = self._source.cores
        return tolerated_cores(cores, self._physical, threads, LOOK_SECONDS) / cores

    def is_worth_repeating(self, window: Window) -> bool:
        """Whether others disturbed a window, and took more than they always take on this machine."""
        found = window.disturbance
        return found is not None and found.disturbs and found.share > MORE_THAN_USUAL * self._usual_share

    def finals_begin(self) -> None:
        """From now on, waits may use all that is left."""
        self._budget = self._total

    def look(self) -> str | None:
        """Look for about a second. Returns who uses the processors, in words, or None if the machine is quiet."""
        found, named = self._seen(LOOK_SECONDS)
        pressed = found.pressure_share is not None and found.pressure_share >= LEAST_PRESSURE_SHARE
        stolen = found.steal_share is not None and found.steal_share >= LEAST_STEAL_SHARE
        return in_words(found, named, self._elsewhere) if found.disturbs or pressed or stolen else None

    def wait(self, tell: Callable[[str], None], limit_share: float = 0.0) -> str | None:
        """Wait until others take at most ``limit_share`` of the cores, or until the limit or the budget is used up.

        ``tell`` gets a line for the display about every second. After a long wait in vain, what others took at least
        counts as usual, so that a machine that is never quiet waits only once. Returns who disturbs at the end, in
        words, or None if the machine is quiet or its load is unknown.
        """
        most = min(self._limit, self._budget - self.waited_seconds)
        if most <= 0:
            return None
        began, words, least = self._clock(), None, math.inf
        while True:
            # The list names who disturbs. The first look needs none: it often finds that a burst is over.
            listed = words is not None
            found, named = self._seen(LOOK_SECONDS) if listed else (self._quick(), ())
            waited = self._clock() - began
            if found.share <= max(limit_share, found.limit_share, MORE_THAN_USUAL * self._usual_share):
                words = None
                break
            least = min(least, found.share)
            words = in_words(found, named, self._elsewhere)
            if self.stopped():
                break
            if waited >= most:
                if waited >= USUAL_SECONDS:
                    self._usual_share = max(self._usual_share, least)
                break
            if listed:
                tell(f"waiting for quiet: {words}, {waited:.0f} s of at most {most:.0f} s")
        self.waited_seconds += self._clock() - began
        return words

    def _quick(self) -> Disturbance:
        before = self._source.load()
        self._sleep(POLL_SECONDS)
        return between(before, self._source.load(), self._source.cores)

    def _seen(self, seconds: float) -> tuple[Disturbance, tuple[Busy, ...]]:
        """The load over ``seconds``, with the engine at rest, and the programs behind it."""
        listed, began, before = self._source.processes(), self._clock(), self._source.load()
        self._sleep(seconds)
        after = self._source.load()
        # A list takes long where many processes wait for a CPU.
        listed_again = self._source.processes()
        named = busiest(listed, listed_again, max(seconds, self._clock() - began))
        return between(before, after, self._source.cores), named
