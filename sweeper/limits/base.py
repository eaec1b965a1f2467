"""The Protocol for limit control. Every adapter passes ``tests/limits/limit_contract.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from sweeper.errors import SweeperError


@dataclass(frozen=True, slots=True)
class LimitRange:
    """The range in which sweeper may set a limit on this device, in W or MHz; never above ``found``."""

    name: str  # power_limit_watts, clock_limit_mhz
    device: str
    low: int
    high: int
    found: int | None  # the value before the sweep; None: not locked
    step: int = 1


@dataclass(frozen=True, slots=True)
class LimitInForce:
    """A limit as requested, and the value that the device reads back."""

    name: str
    requested: int | None
    enforced: int | None


class LimitControl(Protocol):
    """Sets limits and restores the values found, however the sweep ends. Enter it around a whole sweep.

    ``__exit__`` restores the limits. The first ``set`` creates the journal and starts the guardian.
    """

    def ranges(self) -> Mapping[str, LimitRange]:
        """The limits that sweeper can set on this machine, by name; empty if there are none."""
        ...

    def refusals(self) -> Mapping[str, SweeperError]:
        """The reason for each limit that cannot be set.

        The reason is a RightMissingError if an administrator can grant the right.
        """
        ...

    @property
    def outcomes(self) -> Sequence[object]:
        """The result of restoring each limit on exit, readable through ``str``; empty before the exit."""
        ...

    def set(self, name: str, value: int | None) -> LimitInForce:
        """Set a limit; None restores the value found. Raises LimitRefused if the read-back differs."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
