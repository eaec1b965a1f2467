"""The Protocol of limit control. Adapters pass ``sweeper.lab.contracts.LimitControlContract``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from sweeper.errors import SweeperError


@dataclass(frozen=True, slots=True)
class LimitRange:
    """What a limit may be set to on this device, never above ``found``; in W or MHz as its name says."""

    name: str  # power_limit_watts, clock_limit_mhz
    device: str
    low: int
    high: int
    found: int | None  # as it was before the sweep; None: not locked
    step: int = 1


@dataclass(frozen=True, slots=True)
class LimitInForce:
    """A limit as asked for and as the device reads it back."""

    name: str
    requested: int | None
    enforced: int | None


class LimitControl(Protocol):
    """Sets limits and gives back what was found, however the sweep ends. Enter it around a whole sweep.

    ``__exit__`` restores. Nothing is journalled and no guardian started before the first ``set``.
    """

    def ranges(self) -> Mapping[str, LimitRange]:
        """The limits that can be set here by name; empty on a machine without any."""
        ...

    def refusals(self) -> Mapping[str, SweeperError]:
        """For each limit that cannot be set: why; a RightMissingError where an administrator can grant it."""
        ...

    @property
    def outcomes(self) -> Sequence[object]:
        """What leaving did to each limit that was set, as words by ``str``; empty before."""
        ...

    def set(self, name: str, value: int | None) -> LimitInForce:
        """Set a limit, None for what was found. Raises LimitRefused where the read-back differs."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
