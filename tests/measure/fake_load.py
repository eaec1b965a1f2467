"""A machine whose other programs use what a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sweeper.measure.disturbance import Load, Processes


class FakeLoad:
    """Between two snapshots others use the next of ``foreign`` cores; after the last one, ``then`` cores."""

    elsewhere = "other processes"

    def __init__(
        self,
        clock: Callable[[], float],
        foreign: Iterable[float] = (),
        then: float = 0.0,
        cores: int = 2,
        name: str = "cc1plus",
    ) -> None:
        self.cores, self._clock, self._foreign, self._then, self._name = (
            cores,
            clock,
            list(foreign),
            then,
            name,
        )
        self._second = False
        self._since = clock()
        self._now = 0.0
        self.busy = self.own = self.used = 0.0
        self.pairs = 0

    def follow(self) -> None:
        pass

    def load(self) -> Load:
        if self._second:
            seconds = self._clock() - self._since
            self.pairs += 1
            self._now = self._foreign.pop(0) if self._foreign else self._then
            self.used += self._now * seconds
            self.own += seconds
            self.busy += (1 + self._now) * seconds
        self._second, self._since = not self._second, self._clock()
        return Load(self._clock(), self.busy, 0.0, None, {1: self.own})

    def processes(self) -> Processes:
        return {(7, 0.0): (self._name, self.used), (8, 0.0): ("sleeper", 3.0)}
