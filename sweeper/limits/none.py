"""The limits of a machine that sweeper must not touch, such as that of a server elsewhere: none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from sweeper.errors import LimitRefused, SweeperError
from sweeper.limits.base import LimitInForce, LimitRange, RestoreOutcome
from sweeper.parameters import LIMIT_KEYS


class NoLimits:
    """A `LimitControl` that sets nothing. ``reason`` says why."""

    outcomes: Sequence[RestoreOutcome] = ()

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def ranges(self) -> Mapping[str, LimitRange]:
        """Empty: no limit can be set."""
        return {}

    def refusals(self) -> Mapping[str, SweeperError]:
        """The same reason for every limit."""
        return {name: LimitRefused(self._reason) for name in LIMIT_KEYS}

    def set(self, name: str, value: int | None) -> LimitInForce:
        """Refuse every value; None asks for nothing."""
        if value is not None:
            raise LimitRefused(f"{name}={value} cannot be set: {self._reason}")
        return LimitInForce(name, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: no limit was set."""
