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
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import ReadingFailed, RightMissingError, SensorMissingError
from sweeper.meter.base import DeviceState, Sample
from sweeper.meter.integrate import CounterTrack
from sweeper.meter.sysfs import may_read, must_read_int, read_int, read_text
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

# Names under which the kernel shows a processor's own temperature.
_THERMAL_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "CPU-therm")
_CHIPS = ("coretemp", "k10temp", "zenpower")
_ZONE = re.compile(r"^(?P<driver>[a-z-]*rapl(?:-mmio|-msr)?):\d+$")
_PACKAGE = re.compile(r"^package-(?P<package>\d+)(?:-die-(?P<die>\d+))?$")

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

    @property
    def label(self) -> str:
        """The zone and its file, as in ``intel-rapl:0/energy_uj``."""
        return f"{self.path.name}/energy_uj"


def find_zones(sysfs_root: Path) -> tuple[Zone, ...]:
    """All top-level zones under ``sysfs_root``, MSR before MMIO; twins of MSR and MMIO count once."""
    zones: dict[str, Zone] = {}
    folder = sysfs_root / POWERCAP
    entries = sorted(folder.iterdir(), key=_msr_first) if folder.is_dir() else []
    for path in entries:
        name = read_text(path / "name")
        if not _ZONE.match(path.name) or name is None or not (path / "energy_uj").exists():
            continue
        most = read_int(path / "max_energy_range_uj")
        zones.setdefault(name, Zone(path, name, most / 1e6 if most else None))
    return tuple(zones.values())


def _msr_first(path: Path) -> tuple[bool, str]:
    return ("mmio" in path.name, path.name)


def packages(zones: tuple[Zone, ...]) -> tuple[Zone, ...]:
    """The zones of processor packages or their dies."""
    return tuple(zone for zone in zones if _PACKAGE.match(zone.name))


def without_mirrors(zones: tuple[Zone, ...]) -> tuple[Zone, ...]:
    """Leave out dies that mirror the counter of an earlier die. Reads every zone once."""
    kept: list[tuple[Zone, str, float]] = []
    for zone in zones:
        match = _PACKAGE.match(zone.name)
        package = match["package"] if match and match["die"] is not None else zone.name
        joules = must_read_int(zone.energy_file) / 1e6
        if not any(p == package and abs(j - joules) <= MIRROR_JOULES for _, p, j in kept):
            kept.append((zone, package, joules))
    return tuple(zone for zone, _, _ in kept)


class RaplSensor:
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
        self._root = sysfs_root
        self._platform = platform
        self._clock = clock
        self._caveats = caveats
        self._zones: tuple[Zone, ...] = ()
        self._tracks: dict[Zone, CounterTrack] = {}  # empty: not open
        self._interface = f"{POWERCAP}/{'psys' if platform else 'package-*'}/energy_uj"

    @property
    def source(self) -> PowerSource:
        """RAPL, in scope ``package`` or ``psys``, with the zones of the last ``open``."""
        return PowerSource(
            name="rapl",
            interface=self._interface,
            scope="psys" if self._platform else "package",
            kind="measured",
            update_period_seconds=UPDATE_PERIOD_SECONDS,
            device="+".join(zone.name for zone in self._zones) or None,
        )

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """The caveats that the constructor received."""
        return self._caveats

    def open(self) -> None:
        """Find the zones and read each counter once.

        Raises:
            SensorMissingError: this machine has no such zone.
            RightMissingError: this user may not read the counters.
        """
        found = find_zones(self._root)
        zones = tuple(z for z in found if z.name == "psys") if self._platform else packages(found)
        if not zones:
            raise _missing(self._root, self._platform)
        for zone in zones:
            if not may_read(zone.energy_file):
                raise RightMissingError(
                    f"cannot read energy_uj of {zone.name}, which is for root only since CVE-2020-8694",
                    f"an administrator grants it once with {RIGHT}; or choose power=plug",
                )
        self._zones = zones = without_mirrors(zones)
        most = MOST_WATTS_PLATFORM if self._platform else MOST_WATTS_PER_PACKAGE
        self._tracks = {zone: CounterTrack(zone.range_joules, most) for zone in zones}
        self._interface = "+".join(zone.label for zone in zones)

    def read(self) -> Sample:
        """Joules since the first reading, summed over the zones.

        Raises:
            ReadingFailed: a counter could not be read, or the sensor is not open.
        """
        if not self._tracks:
            raise ReadingFailed("the RAPL sensor is not open")
        moment = self._clock()
        total, epochs = 0.0, 0
        for zone, track in self._tracks.items():
            joules, epoch = track.advance(moment, must_read_int(zone.energy_file) / 1e6)
            total, epochs = total + joules, epochs + epoch
        return Sample(moment, energy_joules=total, epoch=epochs)

    def state(self) -> DeviceState:
        """The package's temperature, if the kernel reports one."""
        return DeviceState(temperature_celsius=package_temperature(self._root))

    def close(self) -> None:
        """Stop reading. The zones stay known."""
        self._tracks = {}


def _missing(sysfs_root: Path, platform: bool) -> SensorMissingError:
    if platform:
        return SensorMissingError(
            "no psys zone in RAPL here", "leave power.device out to read the packages, or choose power=plug"
        )
    if (sysfs_root / POWERCAP).is_dir():
        return SensorMissingError(
            "no RAPL package zone under /sys/class/powercap",
            "try `sudo modprobe intel_rapl_msr` (virtual machines and most ARM boards have none), "
            "or choose power=plug",
        )
    return SensorMissingError(
        "the kernel has no powercap interface (RAPL) here, as in most virtual machines", "choose power=plug"
    )


def package_temperature(sysfs_root: Path) -> float | None:
    """The temperature of the hottest processor package in °C, from thermal zones, else hwmon's chips, else None."""
    zones = sorted((sysfs_root / "class/thermal").glob("thermal_zone*"))
    found = [read_int(zone / "temp") for zone in zones if read_text(zone / "type") in _THERMAL_ZONES]
    if not found:
        chips = sorted((sysfs_root / "class/hwmon").glob("hwmon*"))
        found = [read_int(chip / "temp1_input") for chip in chips if read_text(chip / "name") in _CHIPS]
    return max((value / 1000 for value in found if value is not None), default=None)
