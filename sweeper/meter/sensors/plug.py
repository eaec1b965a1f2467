"""Network plugs between the wall and the machine: Shelly (Gen2 and later) and Tasmota.

sweeper integrates power. It also compares the plug's own total, because some totals drift. If the two differ by more
than 5 % over two minutes or more, every reading has a caveat.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sweeper.errors import ReadingFailed, SensorMissingError
from sweeper.meter.base import Sample, Sensor
from sweeper.meter.trust import MOST_CONFLICT
from sweeper.power_settings import PlugSettings
from sweeper.records import Caveat, PowerSource

# A plug in the same network answers within 50 ms; after this time, it is considered missing.
TIMEOUT_SECONDS = 2.0
# Both kinds refresh about once a second. With 1.2 s, a final window of 100 periods spans two minutes.
UPDATE_PERIOD_SECONDS = 1.2
# An answer has a few hundred bytes; a device that sends more is not a plug.
MOST_BYTES = 65536
# The total moves in steps, so sweeper compares it after this many of them.
COMPARED_STEPS = 50
COMPARED_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class _Kind:
    """Where a kind of plug tells its power in W and its total, and the unit and the step of that total in J."""

    path: str
    power: tuple[str, ...]
    total: tuple[str, ...]
    unit_joules: float
    step_joules: float


_KINDS = {
    "shelly": _Kind("/rpc/Switch.GetStatus?id=0", ("apower",), ("aenergy", "total"), 3600.0, 3.6),
    "tasmota": _Kind(
        "/cm?cmnd=Status%2010",
        ("StatusSNS", "ENERGY", "Power"),
        ("StatusSNS", "ENERGY", "Total"),
        3_600_000.0,
        3600.0,
    ),
}


class PlugSensor(Sensor):
    """A network plug. It covers the whole machine, including the losses of its power supply."""

    def __init__(
        self,
        settings: PlugSettings,
        clock: Callable[[], float] = time.monotonic,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Send no request yet. ``settings.url`` must be given."""
        super().__init__(clock)
        self._name = settings.kind
        self._kind = _KINDS[settings.kind]
        self._base = (settings.url or "").rstrip("/")
        self._timeout = timeout_seconds
        self._first: tuple[float, float] | None = None  # moment and total in J
        self._last = (0.0, 0.0)  # moment and W
        self._joules = 0.0  # integrated power since the first reading
        self.source = PowerSource(
            name="plug",
            interface=f"{settings.kind} {self._kind.path}",
            scope="wall",
            kind="measured",
            update_period_seconds=UPDATE_PERIOD_SECONDS,
            device=urlsplit(self._base).hostname,
        )

    def _find(self) -> None:
        try:
            self._ask()
        except ReadingFailed as error:
            raise SensorMissingError(
                f"no {self._name} plug at {self._base} ({error})", "check power.plug.url and power.plug.kind"
            ) from error

    def _take(self) -> Sample:
        before = self._clock()
        watts, total_joules = self._ask()
        moment = (before + self._clock()) / 2
        if total_joules is not None:
            self._compare(moment, watts, total_joules)
        return Sample(moment, power_watts=watts)

    def _ask(self) -> tuple[float, float | None]:
        """Power in W, and the total in J if the plug keeps one."""
        url = self._base + self._kind.path
        try:
            with urllib.request.urlopen(url, timeout=self._timeout) as answer:  # noqa: S310 (http only, checked)
                data = json.loads(answer.read(MOST_BYTES))
        except (OSError, ValueError) as error:
            raise ReadingFailed(f"{url}: {error}") from error
        watts, total = _number(data, self._kind.power), _number(data, self._kind.total)
        if watts is None or watts < 0:
            raise ReadingFailed(f"{url} answered without a power in W")
        return watts, None if total is None else total * self._kind.unit_joules

    def _compare(self, moment: float, watts: float, total_joules: float) -> None:
        """Compare the plug's total with its integrated power since the first reading."""
        if self._first is None:
            self._first = (moment, total_joules)
        else:
            self._joules += (moment - self._last[0]) * (watts + self._last[1]) / 2
        self._last = (moment, watts)
        seconds, counted = moment - self._first[0], total_joules - self._first[1]
        if seconds >= COMPARED_SECONDS and self._joules >= COMPARED_STEPS * self._kind.step_joules:
            has_parted = abs(counted - self._joules) > MOST_CONFLICT * self._joules
            self.caveats = (Caveat.SENSOR_CONFLICT,) if has_parted else ()


def _number(data: Any, keys: tuple[str, ...]) -> float | None:
    """The number under these keys, or None."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return float(data) if isinstance(data, (int, float)) and not isinstance(data, bool) else None
