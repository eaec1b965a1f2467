"""A laptop's battery. It covers the whole machine, but only while the machine runs on battery.

The gauge smooths over about 8 s, so windows are long. Use it for finalists only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sweeper.errors import ReadingFailed, SensorMissingError
from sweeper.meter.base import PLUG, DeviceState, Sample, Sensor
from sweeper.meter.sysfs import must_read_int, package_temperature, read_int, read_text
from sweeper.records import PowerSource

SUPPLIES = "class/power_supply"
# Smart batteries smooth over about this time, however often the gauge refreshes.
UPDATE_PERIOD_SECONDS = 8.0


class BatterySensor(Sensor):
    """Power drawn from all discharging batteries."""

    def __init__(self, sysfs_root: Path = Path("/sys"), clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._root = sysfs_root
        self._batteries: tuple[Path, ...] = ()
        self.source = PowerSource(
            name="battery",
            interface=f"{SUPPLIES}/BAT*",
            scope="battery",
            kind="measured",
            update_period_seconds=UPDATE_PERIOD_SECONDS,
            note="the battery's gauge smooths over about 8 s, so windows are long; leave the charger unplugged",
        )

    def _find(self) -> None:
        found = sorted((self._root / SUPPLIES).glob("*"))
        batteries = tuple(
            p for p in found if read_text(p / "type") == "Battery" and read_text(p / "scope") != "Device"
        )
        if not batteries:
            raise SensorMissingError("no battery under /sys/class/power_supply", PLUG)
        if not any(_is_discharging(path) for path in batteries):
            raise SensorMissingError(
                "the battery is not discharging",
                "unplug the charger for power=battery, or set power=auto",
            )
        self._batteries = batteries
        names = "+".join(path.name for path in batteries)
        self.source = replace(self.source, interface=f"{SUPPLIES}/{names}", device=names)

    def _take(self) -> Sample:
        moment = self._clock()
        draining = [path for path in self._batteries if _is_discharging(path)]
        if not draining:
            raise ReadingFailed("the battery stopped discharging: was the charger plugged in?")
        return Sample(moment, power_watts=sum(_watts(path) for path in draining))

    def state(self) -> DeviceState:
        """The processor's temperature, if available."""
        return DeviceState(temperature_celsius=package_temperature(self._root))


def _is_discharging(path: Path) -> bool:
    return read_text(path / "status") == "Discharging"


def _watts(path: Path) -> float:
    """Power in W, from ``power_now`` (µW) or current (µA) times voltage (µV).

    Some drivers show a sign, and some show a power of 0 beside a current.
    """
    power = read_int(path / "power_now")
    if power or (power == 0 and read_int(path / "current_now") is None):
        return abs(power) / 1e6
    return abs(must_read_int(path / "current_now")) * must_read_int(path / "voltage_now") / 1e12
