"""The Protocol for limit control. Every adapter passes ``tests/limits/limit_contract.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
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


class Action(Enum):
    """The result of an attempt to restore a limit."""

    RESTORED = "restored"
    AS_FOUND = "as found"
    REBOOTED = "rebooted"  # a reboot reset the limits of every device
    KEPT = "kept"  # the user decided to keep the value in force
    LEFT_ALONE = "left alone"  # another tool set it, or the device shows a value that sweeper does not know
    IN_USE = "in use"  # the sweep that set it, or its guardian, holds the device
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RestoreOutcome:
    """One limit after an attempt to restore it. Values in W or MHz; None: not locked, or not readable."""

    device: str
    limit: str
    found: float | None
    present: float | None
    action: Action
    reason: str

    @property
    def done(self) -> bool:
        """Whether nothing is left to do. The journal keeps every other limit."""
        return self.action not in (Action.LEFT_ALONE, Action.IN_USE, Action.FAILED)

    def __str__(self) -> str:
        return f"{self.limit} of {self.device}: {self.action.value} ({self.reason})"


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
    def outcomes(self) -> Sequence[RestoreOutcome]:
        """The result of restoring each limit on exit; empty before the exit."""
        ...

    def set(self, name: str, value: int | None) -> LimitInForce:
        """Set a limit; None restores the value found. Raises LimitRefused if the read-back differs."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
