"""The processor's own energy counters (RAPL), through ``/sys/class/powercap``.

The sensor sums the top-level ``package-*`` zones. ``psys`` (the whole platform) is a scope of its own and is never
added to packages. The same package can appear twice, through MSR (``intel-rapl``) and through MMIO
(``intel-rapl-mmio``). Some processors mirror one package's counter in each of its dies. The sensor counts such twins
and mirrors once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sweeper.errors import RightMissingError, SensorMissingError
from sweeper.meter.base import PLUG, DeviceState, Sample, Sensor
from sweeper.meter.integrate import CounterTrack
from sweeper.meter.sysfs import may_read, must_read_int, package_temperature, read_int, read_text
from sweeper.records import Caveat, PowerSource

POWERCAP = "class/powercap"
# RAPL refreshes its counters about once a millisecond (Intel SDM vol. 3B, 15.10.3).
UPDATE_PERIOD_SECONDS = 0.001
# No socket draws more: the largest server processors are rated at 500 W, and twice that covers bursts.
MOST_WATTS_PER_PACKAGE = 1000.0
# A whole laptop or workstation stays below this on psys.
MOST_WATTS_PLATFORM = 2000.0
# If the counters of two dies (up to 262 kJ since boot) agree within a joule, they are the same counter.
MIRROR_JOULES = 1.0

_ZONE = re.compile(r"^[a-z-]*rapl(?:-mmio|-msr)?:\d+$")
_PACKAGE = re.compile(r"^(?P<package>package-\d+)(?:-die-\d+)?$")

RIGHT = (
    "sudo groupadd -f power && sudo usermod -aG power $USER && "
    """echo 'SUBSYSTEM=="powercap", KERNEL=="intel-rapl*:*", RUN+="/bin/chgrp power /sys%p/energy_uj", """
    """RUN+="/bin/chmod g+r /sys%p/energy_uj"' | sudo tee /etc/udev/rules.d/70-sweeper-rapl.rules && """
    "sudo udevadm control --reload && sudo udevadm trigger -s powercap -c change, then log in again"
)


@dataclass(frozen=True, slots=True)
class Zone:
    """One top-level RAPL zone."""

    path: Path
    name: str  # package-0, package-0-die-1, psys
    range_joules: float | None

    @property
    def energy_file(self) -> Path:
        """The counter, in µJ."""
        return self.path / "energy_uj"


def find_zones(sysfs_root: Path) -> tuple[Zone, ...]:
    """All top-level zones under ``sysfs_root``, MSR before MMIO; twins of MSR and MMIO count once."""
    zones: dict[str, Zone] = {}
    entries = (sysfs_root / POWERCAP).glob("*")
    for path in sorted(entries, key=lambda path: ("mmio" in path.name, path.name)):
        name = read_text(path / "name")
        if not _ZONE.match(path.name) or name is None or not (path / "energy_uj").exists():
            continue
        most = read_int(path / "max_energy_range_uj")
        zones.setdefault(name, Zone(path, name, most / 1e6 if most else None))
    return tuple(zones.values())


def packages(zones: tuple[Zone, ...]) -> tuple[Zone, ...]:
    """The zones of processor packages or their dies."""
    return tuple(zone for zone in zones if _PACKAGE.match(zone.name))


def without_mirrors(zones: tuple[Zone, ...]) -> tuple[Zone, ...]:
    """Leave out dies that mirror the counter of an earlier die. Reads every zone once."""
    kept: list[tuple[Zone, str, float]] = []
    for zone in zones:
        match = _PACKAGE.match(zone.name)
        package = match["package"] if match else zone.name
        joules = must_read_int(zone.energy_file) / 1e6
        if not any(p == package and abs(j - joules) <= MIRROR_JOULES for _, p, j in kept):
            kept.append((zone, package, joules))
    return tuple(zone for zone, _, _ in kept)


class RaplSensor(Sensor):
    """The sum of the processor packages' energy counters, or the platform's counter (``psys``)."""

    def __init__(
        self,
        sysfs_root: Path = Path("/sys"),
        platform: bool = False,
        clock: Callable[[], float] = time.monotonic,
        caveats: tuple[Caveat, ...] = (),
    ) -> None:
        """Read nothing yet.

        Args:
            sysfs_root: where sysfs is mounted.
            platform: read ``psys`` instead of the packages.
            clock: stamps the samples.
            caveats: known problems of this sensor.
        """
        super().__init__(clock)
        self._root = sysfs_root
        self._platform = platform
        self._tracks: dict[Zone, CounterTrack] = {}
        self.caveats = caveats
        self.source = PowerSource(
            name="rapl",
            interface=f"{POWERCAP}/{'psys' if platform else 'package-*'}/energy_uj",
            scope="psys" if platform else "package",
            kind="measured",
            update_period_seconds=UPDATE_PERIOD_SECONDS,
        )

    def _find(self) -> None:
        found = find_zones(self._root)
        zones = tuple(z for z in found if z.name == "psys") if self._platform else packages(found)
        if not zones:
            raise _missing(self._root, self._platform)
        for zone in zones:
            if not may_read(zone.energy_file):
                raise RightMissingError(
                    f"cannot read energy_uj of {zone.name}, which is for root only since CVE-2020-8694",
                    f"an administrator grants it once with {RIGHT}; or {PLUG}",
                )
        zones = without_mirrors(zones)
        most = MOST_WATTS_PLATFORM if self._platform else MOST_WATTS_PER_PACKAGE
        self._tracks = {zone: CounterTrack(zone.range_joules, most) for zone in zones}
        self.source = replace(
            self.source,
            interface="+".join(f"{zone.path.name}/energy_uj" for zone in zones),
            device="+".join(zone.name for zone in zones),
        )

    def _take(self) -> Sample:
        """Joules since the first reading, summed over the zones."""
        moment = self._clock()
        total, epochs = 0.0, 0
        for zone, track in self._tracks.items():
            joules, epoch = track.advance(moment, must_read_int(zone.energy_file) / 1e6)
            total, epochs = total + joules, epochs + epoch
        return Sample(moment, energy_joules=total, epoch=epochs)

    def state(self) -> DeviceState:
        """The package's temperature, if the kernel reports one."""
        return DeviceState(temperature_celsius=package_temperature(self._root))


def _missing(sysfs_root: Path, platform: bool) -> SensorMissingError:
    if platform:
        return SensorMissingError(
            "no psys zone in RAPL here", f"leave power.device out to read the packages, or {PLUG}"
        )
    if (sysfs_root / POWERCAP).is_dir():
        return SensorMissingError(
            "no RAPL package zone under /sys/class/powercap",
            f"try `sudo modprobe intel_rapl_msr` (virtual machines and most ARM boards have none), or {PLUG}",
        )
    return SensorMissingError(
        "the kernel has no powercap interface (RAPL) here, as in most virtual machines", PLUG
    )
