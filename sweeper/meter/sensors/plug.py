"""Network plugs between the wall and the machine: Shelly (Gen2 and later) and Tasmota.

sweeper integrates power. It also compares the plug's own total, because some totals drift. If the two differ by more
than 5 % over two minutes or more, every reading has a caveat.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from sweeper.errors import ReadingFailed, SensorMissingError
from sweeper.meter.base import DeviceState, Sample
from sweeper.meter.trust import MOST_CONFLICT
from sweeper.power_settings import PlugSettings
from sweeper.records import Caveat, PowerSource

# A plug in the same network answers within 50 ms; after this time, it is considered missing.
TIMEOUT_SECONDS = 2.0
# Both kinds refresh about once a second. With 1.2 s, a final window of 100 periods spans two minutes.
UPDATE_PERIOD_SECONDS = 1.2
# An answer has a few hundred bytes; a device that sends more is not a plug.
MOST_BYTES = 65536
# A total moves in steps of up to 0.001 kWh = 3600 J (Tasmota), so sweeper compares it after this many steps.
TOTAL_STEP_JOULES = {"shelly": 3.6, "tasmota": 3600.0}
COMPARED_STEPS = 50
COMPARED_SECONDS = 120.0

_PATHS = {"shelly": "/rpc/Switch.GetStatus?id=0", "tasmota": "/cm?cmnd=Status%2010"}


class PlugSensor:
    """A network plug. It covers the whole machine, including the losses of its power supply."""

    def __init__(
        self,
        settings: PlugSettings,
        clock: Callable[[], float] = time.monotonic,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Send no request yet. ``settings.url`` must be given."""
        self._kind = settings.kind
        self._base = (settings.url or "").rstrip("/")
        self._clock = clock
        self._timeout = timeout_seconds
        self._is_open = False
        self._drift = _Drift(TOTAL_STEP_JOULES[settings.kind] * COMPARED_STEPS)

    @property
    def source(self) -> PowerSource:
        """The plug, named by its host."""
        return PowerSource(
            name="plug",
            interface=f"{self._kind} {_PATHS[self._kind]}",
            scope="wall",
            kind="measured",
            update_period_seconds=UPDATE_PERIOD_SECONDS,
            device=urlsplit(self._base).hostname,
        )

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """A conflict if the plug's total and its power disagree."""
        return (Caveat.SENSOR_CONFLICT,) if self._drift.has_parted else ()

    def open(self) -> None:
        """Request one reading.

        Raises:
            SensorMissingError: the device does not answer, or is not such a plug.
        """
        try:
            self._ask()
        except ReadingFailed as error:
            raise SensorMissingError(
                f"no {self._kind} plug at {self._base} ({error})", "check power.plug.url and power.plug.kind"
            ) from error
        self._is_open = True

    def read(self) -> Sample:
        """Power in W, stamped halfway between request and answer.

        Raises:
            ReadingFailed: the plug did not answer in time, or its answer contains no power.
        """
        if not self._is_open:
            raise ReadingFailed("the plug is not open")
        before = self._clock()
        watts, total_joules = self._ask()
        moment = (before + self._clock()) / 2
        self._drift.add(moment, watts, total_joules)
        return Sample(moment, power_watts=watts)

    def state(self) -> DeviceState:
        """An empty state: a plug knows nothing about the machine."""
        return DeviceState()

    def close(self) -> None:
        """Close the sensor. No connection stays open between requests."""
        self._is_open = False

    def _ask(self) -> tuple[float, float | None]:
        """Power in W, and the total in J if the plug keeps one."""
        url = self._base + _PATHS[self._kind]
        try:
            with urllib.request.urlopen(url, timeout=self._timeout) as answer:  # noqa: S310 (http only, checked)
                data = json.loads(answer.read(MOST_BYTES))
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise ReadingFailed(f"{url}: {error}") from error
        watts, total_wh = _shelly(data) if self._kind == "shelly" else _tasmota(data)
        if watts is None or watts < 0:
            raise ReadingFailed(f"{url} answered without a power in W")
        return watts, None if total_wh is None else total_wh * 3600


class _Drift:
    """Compares a plug's total with its integrated power, from the first reading on."""

    def __init__(self, least_joules: float) -> None:
        self._least_joules = least_joules
        self._first: tuple[float, float] | None = None
        self._last: tuple[float, float] | None = None
        self._joules = 0.0
        self.has_parted = False

    def add(self, moment: float, watts: float, total_joules: float | None) -> None:
        if total_joules is None:
            return
        if self._first is None or self._last is None:
            self._first, self._last = (moment, total_joules), (moment, watts)
            return
        self._joules += (moment - self._last[0]) * (watts + self._last[1]) / 2
        self._last = (moment, watts)
        counted = total_joules - self._first[1]
        if moment - self._first[0] >= COMPARED_SECONDS and self._joules >= self._least_joules:
            self.has_parted = abs(counted - self._joules) > MOST_CONFLICT * self._joules


def _shelly(data: Any) -> tuple[float | None, float | None]:
    """``apower`` in W and ``aenergy.total`` in Wh of Switch.GetStatus."""
    if not isinstance(data, dict):
        return None, None
    energy = data.get("aenergy")
    return _number(data.get("apower")), _number(energy.get("total")) if isinstance(energy, dict) else None


def _tasmota(data: Any) -> tuple[float | None, float | None]:
    """``StatusSNS.ENERGY``: ``Power`` in W and ``Total`` in kWh, given here in Wh."""
    status = data.get("StatusSNS") if isinstance(data, dict) else None
    energy = status.get("ENERGY") if isinstance(status, dict) else None
    if not isinstance(energy, dict):
        return None, None
    total = _number(energy.get("Total"))
    return _number(energy.get("Power")), None if total is None else total * 1000


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
