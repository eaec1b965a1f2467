"""The meter of a machine whose power sweeper cannot read, such as that of a server elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sweeper.meter.base import PowerWindow
from sweeper.records import EnergyReading, PowerSource


@dataclass(frozen=True, slots=True)
class _NoWindow:
    source: PowerSource
    reason: str

    def reading(self, started: float, ended: float) -> EnergyReading:
        """No joules, with the reason."""
        return EnergyReading(self.source, ended - started, None, self.reason)


class NoMeter:
    """A `PowerMeter` without a sensor. Every reading has ``reason`` in place of joules."""

    update_period_seconds = 0.0

    def __init__(self, reason: str) -> None:
        self.source = PowerSource("none", "no sensor", "custom", "none", note=reason)
        self._reason = reason

    @contextmanager
    def window(self) -> Iterator[PowerWindow]:
        """A window without samples."""
        yield _NoWindow(self.source, self._reason)

    def watts_now(self) -> float | None:
        """None: there is no sensor."""
        return None

    def temperature_celsius(self) -> float | None:
        """None: there is no sensor."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is nothing to close."""
