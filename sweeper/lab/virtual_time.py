"""Virtual time: a clock that only code advances, the power that a machine drew meanwhile, and engines in that time.

Simulated and replayed machines use it, so that hours of a sweep pass in seconds without sleeping.
"""

from __future__ import annotations

import bisect
import math
from types import TracebackType
from typing import Self

from sweeper.engine.base import Run
from sweeper.errors import EngineRefused
from sweeper.parameters import MODEL_KEYS
from sweeper.records import Configuration


class VirtualClock:
    """A monotonic clock in seconds. Call it for the time; ``advance`` moves it."""

    def __init__(self, start_seconds: float = 0.0) -> None:
        self._now = start_seconds

    def __call__(self) -> float:
        """The present time, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Advance the clock by ``seconds``. Raises ValueError if they are negative."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self._now += seconds


class PowerTrace:
    """The power that a machine drew, as stretches of constant power; between them it draws ``idle_watts``."""

    # A window is read right after its run, so the trace keeps only about this many of the latest stretches.
    KEPT = 256

    def __init__(self, idle_watts: float) -> None:
        self.idle_watts = idle_watts
        self._starts: list[float] = []
        self._stretches: list[tuple[float, float, float]] = []  # start, end, watts

    def add(self, started: float, ended: float, watts: float) -> None:
        """Record a stretch. Stretches must come in order and must not overlap."""
        if self._stretches and started < self._stretches[-1][1]:
            raise ValueError("a stretch of power overlaps the one before")
        self._starts.append(started)
        self._stretches.append((started, ended, watts))
        if len(self._starts) > 2 * self.KEPT:
            del self._starts[: -self.KEPT], self._stretches[: -self.KEPT]

    def joules(self, started: float, ended: float) -> float:
        """The energy drawn between two moments, in J."""
        total = self.idle_watts * (ended - started)
        at = max(0, bisect.bisect_right(self._starts, started) - 1)
        for begin, end, watts in self._stretches[at:]:
            overlap = min(end, ended) - max(begin, started)
            if begin >= ended:
                break
            total += max(0.0, overlap) * (watts - self.idle_watts)
        return total

    def watts_at(self, moment: float) -> float:
        """The power at a moment, in W."""
        at = bisect.bisect_right(self._starts, moment) - 1
        if at >= 0 and moment <= self._stretches[at][1]:
            return self._stretches[at][2]
        return self.idle_watts


class VirtualEngine:
    """The parts that the simulated and the replaying `Engine` share. Neither runs inference nor sleeps.

    Args:
        clock: virtual time; every load and window advances it.
        idle_watts: the power between windows, in W.
    """

    def __init__(self, clock: VirtualClock, idle_watts: float) -> None:
        self.clock = clock
        self.trace = PowerTrace(idle_watts)
        self._loaded: Configuration | None = None
        self._memory: tuple[float | None, float | None] = (None, None)

    def memory(self) -> tuple[float | None, float | None]:
        """The host and device memory of the loaded configuration, in MiB."""
        return self._memory

    def close(self) -> None:
        """Unload the configuration."""
        self._loaded = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unload(self, next_one: Configuration) -> bool:
        """Unload the configuration. Returns whether ``next_one`` needs a load of the model."""
        had, self._loaded = self._loaded, None
        return had is None or any(getattr(had, key) != getattr(next_one, key) for key in MODEL_KEYS)

    def _in_force(self) -> Configuration:
        if self._loaded is None:
            raise EngineRefused("no configuration is loaded")
        return self._loaded

    def _run(
        self, tokens: int, speed: float, watts: float, min_seconds: float, max_seconds: float, *, cut: bool
    ) -> Run:
        """A run at ``speed`` tok/s in whole rounds of ``tokens``; ``cut`` ends it at ``max_seconds``."""
        rounds = max(1, math.ceil(min_seconds * speed / tokens))
        done = rounds * tokens
        if cut and done / speed > max_seconds:
            done = max(1, int(max_seconds * speed))
            rounds = math.ceil(done / tokens)
        seconds, started = done / speed, self.clock()
        self.clock.advance(seconds)
        self.trace.add(started, self.clock(), watts)
        return Run(done, seconds, started, self.clock(), rounds, tuple([seconds / rounds] * rounds))
