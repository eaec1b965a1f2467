"""Graphics cards and boards whose drivers report power through ``/sys/class/hwmon``.

amdgpu gives ``power1_average`` or ``power1_input`` (newer cards only the latter), in µW. xe and i915 give
``energy*_input`` in µJ, from a register of 32 bits. On Jetson boards, ina3221 chips measure the rails of the module.
hwmon's numbers change from boot to boot, so sweeper finds devices by PCI address or chip.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sweeper.errors import ReadingFailed, RightMissingError, SensorMissingError
from sweeper.meter.base import DeviceState, Sample
from sweeper.meter.integrate import CounterTrack
from sweeper.meter.sensors.nvml import MOST_WATTS
from sweeper.meter.sysfs import may_read, must_read_int, read_int, read_text
from sweeper.records import Caveat, PowerSource, Scope

GPU_CHIPS = ("amdgpu", "xe", "i915")
RAIL_CHIP = "ina3221"
# The register counts 2^-14 J in 32 bits (i915_hwmon.c and xe_hwmon.c). The driver adds up at each reading, and detects
# one wrap between two readings.
INTEL_RANGE_JOULES = 2.0**32 / 2.0**14
# Firmware writes all ones if it has no value, in the register's or the driver's unit.
_NO_VALUE = frozenset((0xFFFF, 0xFFFFFFFF, 0xFFFF * 1_000_000, 0xFFFFFFFF * 1_000_000))
# Jetson's rails that together are the module's input, one entry for each kind of board (NVIDIA, Jetson Linux Developer
# Guide, "Jetson Orin … Power Monitor"). These rails feed the other rails, which would count twice.
_MODULE_RAILS = (
    ("VDD_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
# Update periods before the trust check. amdgpu's firmware averages over a few ms to 1 s, depending on the card. ina3221
# converts its channels one after the other within some 10 ms. Intel's register moves about once a millisecond.
PERIOD_SECONDS = {"amdgpu": 0.1, "xe": 0.01, "i915": 0.01, RAIL_CHIP: 0.05}

_PCI = re.compile(r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HwmonDevice:
    """One chip that reports power or energy."""

    path: Path
    chip: str
    address: str  # PCI address, or the bus address of a chip that is not on PCI
    kind: Literal["energy", "power", "rails"]
    files: tuple[Path, ...]  # energy or power: one file; rails: voltage, current, voltage, current, …

    @property
    def scope(self) -> Scope:
        """A graphics card, or a whole module."""
        return "module" if self.kind == "rails" else "gpu"


def find_devices(sysfs_root: Path) -> tuple[HwmonDevice, ...]:
    """All readable devices, cards before boards."""
    cards: list[HwmonDevice] = []
    rails: list[Path] = []
    for path in sorted((sysfs_root / "class/hwmon").glob("hwmon*")):
        chip = read_text(path / "name")
        if chip == RAIL_CHIP:
            rails.append(path)
        elif chip in GPU_CHIPS:
            device = _card(path, chip)
            if device is not None:
                cards.append(device)
    return (*cards, *_boards(rails))


def _card(path: Path, chip: str) -> HwmonDevice | None:
    address = _address(path)
    energy = _energy_file(path)
    if energy is not None:
        return HwmonDevice(path, chip, address, "energy", (energy,))
    for name in ("power1_average", "power1_input"):
        # Some kernels show both files, and only one of them has values.
        if (path / name).exists() and read_int(path / name) not in _NO_VALUE:
            return HwmonDevice(path, chip, address, "power", (path / name,))
    return None


def _energy_file(path: Path) -> Path | None:
    """The counter of the whole card, or of the package if there is none."""
    found = sorted(path.glob("energy*_input"))
    for wanted in ("card", "pkg"):
        for file in found:
            if read_text(file.with_name(file.name.replace("_input", "_label"))) == wanted:
                return file
    return found[0] if found else None


def _boards(paths: list[Path]) -> tuple[HwmonDevice, ...]:
    """One device for all rails of a module, across its chips."""
    by_label: dict[str, tuple[Path, Path]] = {}
    for path in paths:
        for label_file in sorted(path.glob("in*_label")):
            label = read_text(label_file)
            volts = label_file.with_name(label_file.name.replace("_label", "_input"))
            amps = volts.with_name(volts.name.replace("in", "curr", 1))
            if label and amps.exists():
                by_label[label] = (volts, amps)
    for rails in _MODULE_RAILS:
        if all(rail in by_label for rail in rails):
            files = tuple(file for rail in rails for file in by_label[rail])
            return (HwmonDevice(paths[0], RAIL_CHIP, "+".join(rails), "rails", files),)
    return ()


def _address(path: Path) -> str:
    """The PCI address of a chip, from the target of its ``device`` link."""
    device = path / "device"
    resolved = device.resolve() if device.exists() else path.resolve()
    for part in reversed(resolved.parts):
        if _PCI.match(part):
            return part.lower()
    return resolved.name


class HwmonSensor:
    """A graphics card or a board."""

    def __init__(
        self,
        sysfs_root: Path = Path("/sys"),
        device: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read nothing yet.

        Args:
            sysfs_root: where sysfs is mounted.
            device: PCI address or chip; None takes the only device.
            clock: stamps the samples.
        """
        self._root = sysfs_root
        self._wanted = device
        self._clock = clock
        self._device: HwmonDevice | None = None
        self._track: CounterTrack | None = None
        self._is_open = False

    @property
    def source(self) -> PowerSource:
        """hwmon, with the chip and its files as of the last ``open``."""
        device = self._device
        return PowerSource(
            name="hwmon",
            interface="/sys/class/hwmon" if device is None else f"{device.chip} {_files(device)}",
            scope="gpu" if device is None else device.scope,
            kind="measured",
            update_period_seconds=None if device is None else PERIOD_SECONDS[device.chip],
            device=self._wanted if device is None else device.address,
        )

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """None; the trust check adds its own."""
        return ()

    def open(self) -> None:
        """Find the device and read it once.

        Raises:
            SensorMissingError: there is no such device, or there are several and none is named.
            RightMissingError: this user may not read the device.
        """
        device = self._choose(find_devices(self._root))
        for file in device.files:
            if not may_read(file):
                raise RightMissingError(
                    f"cannot read {file.name} of {device.chip} at {device.address}",
                    f"run `sudo chmod a+r {file}` after each boot, or choose power=plug",
                )
        self._device = device
        self._is_open = True
        self._track = CounterTrack(INTEL_RANGE_JOULES, MOST_WATTS) if device.kind == "energy" else None

    def read(self) -> Sample:
        """Energy or power, as the device reports it.

        Raises:
            ReadingFailed: a file could not be read, or contained the mark for "no value".
        """
        device = self._device
        if device is None or not self._is_open:
            raise ReadingFailed("the hwmon sensor is not open")
        moment = self._clock()
        values = [must_read_int(file) for file in device.files]
        if any(value in _NO_VALUE for value in values):
            raise ReadingFailed(f"{device.chip} at {device.address} marks its value as missing (all ones)")
        if self._track is not None:
            joules, epoch = self._track.advance(moment, values[0] / 1e6)
            return Sample(moment, energy_joules=joules, epoch=epoch)
        if device.kind == "rails":
            watts = sum(v * a for v, a in zip(values[::2], values[1::2], strict=True)) / 1e6  # mV × mA
        else:
            watts = values[0] / 1e6
        if watts < 0:
            raise ReadingFailed(f"{device.chip} at {device.address} gave {watts:g} W")
        return Sample(moment, power_watts=watts)

    def state(self) -> DeviceState:
        """Temperature, clock and cap, if the driver reports them."""
        if self._device is None or not self._is_open:
            raise ReadingFailed("the hwmon sensor is not open")
        path = self._device.path
        hertz = read_int(path / "freq1_input")
        cap = read_int(path / "power1_cap") or read_int(path / "power1_max")
        degrees = [read_int(file) for file in sorted(path.glob("temp*_input"))]
        known = [value / 1000 for value in degrees if value is not None]
        return DeviceState(
            temperature_celsius=known[0] if known else None,
            clock_mhz=None if hertz is None else hertz / 1e6,
            enforced_limit_watts=cap / 1e6 if cap else None,
        )

    def close(self) -> None:
        """Stop reading. The device stays known."""
        self._is_open = False

    def _choose(self, found: tuple[HwmonDevice, ...]) -> HwmonDevice:
        wanted = self._wanted
        if wanted is not None:
            found = tuple(d for d in found if wanted.lower() in (d.address.lower(), d.chip))
        if not found:
            where = f" at {wanted}" if wanted else ""
            raise SensorMissingError(
                f"no amdgpu, xe or i915 card and no ina3221 rails{where} under /sys/class/hwmon",
                "check with `sensors`, or choose power=plug",
            )
        if len(found) > 1 and wanted is None and found[0].kind != "rails":
            cards = [d for d in found if d.kind != "rails"]
            if len(cards) > 1:
                named = ", ".join(f"{d.address} ({d.chip})" for d in cards)
                raise SensorMissingError(f"several cards ({named})", "name one with power.device=ADDRESS")
        return found[0]


def _files(device: HwmonDevice) -> str:
    return device.address if device.kind == "rails" else device.files[0].name
