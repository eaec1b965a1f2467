"""Virtual time: a clock that only code advances, and the power that a machine drew during that time.

Simulated and replayed machines use it, so that hours of a sweep pass in seconds without sleeping.
"""

from __future__ import annotations

import bisect


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
