"""Graphics cards and boards whose drivers report power through ``/sys/class/hwmon``.

amdgpu gives ``power1_average`` or ``power1_input`` (newer cards only the latter), in µW. xe and i915 give
``energy*_input`` in µJ, from a register of 32 bits. On Jetson boards, ina3221 chips measure the rails of the module.
hwmon's numbers change from boot to boot, so sweeper finds devices by PCI address or chip.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sweeper.errors import ReadingFailed, RightMissingError, SensorMissingError
from sweeper.meter.base import PLUG, DeviceState, Sample, Sensor
from sweeper.meter.integrate import CounterTrack
from sweeper.meter.sensors.nvml import MOST_WATTS
from sweeper.meter.sysfs import may_read, must_read_int, read_int, read_text
from sweeper.records import PowerSource

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


def find_devices(sysfs_root: Path) -> tuple[HwmonDevice, ...]:
    """All readable devices, cards before boards."""
    chips = [(p, read_text(p / "name")) for p in sorted((sysfs_root / "class/hwmon").glob("hwmon*"))]
    cards = [_card(path, chip) for path, chip in chips if chip in GPU_CHIPS]
    board = _board([path for path, chip in chips if chip == RAIL_CHIP])
    return tuple(device for device in (*cards, board) if device is not None)


def _card(path: Path, chip: str) -> HwmonDevice | None:
    device = path / "device"
    resolved = device.resolve() if device.exists() else path.resolve()
    address = next((part.lower() for part in reversed(resolved.parts) if _PCI.match(part)), resolved.name)
    counters = sorted(path.glob("energy*_input"))
    if counters:  # the counter of the whole card, or of the package if there is none
        labels = {read_text(f.with_name(f.name.replace("_input", "_label"))): f for f in reversed(counters)}
        energy = labels.get("card") or labels.get("pkg") or counters[0]
        return HwmonDevice(path, chip, address, "energy", (energy,))
    files = [path / name for name in ("power1_average", "power1_input") if (path / name).exists()]
    files = [file for file in files if read_int(file) not in _NO_VALUE]
    # Some kernels show both files, and only one of them has values.
    file = next((file for file in files if read_int(file)), files[0] if files else None)
    return HwmonDevice(path, chip, address, "power", (file,)) if file else None


def _board(chips: list[Path]) -> HwmonDevice | None:
    """One device for all rails of a module, across its chips."""
    by_label: dict[str, tuple[Path, Path]] = {}
    for path in chips:
        for label_file in sorted(path.glob("in*_label")):
            label = read_text(label_file)
            volts = label_file.with_name(label_file.name.replace("_label", "_input"))
            amps = volts.with_name(volts.name.replace("in", "curr", 1))
            if label and amps.exists():
                by_label[label] = (volts, amps)
    for rails in _MODULE_RAILS:
        if all(rail in by_label for rail in rails):
            files = tuple(file for rail in rails for file in by_label[rail])
            return HwmonDevice(chips[0], RAIL_CHIP, "+".join(rails), "rails", files)
    return None


class HwmonSensor(Sensor):
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
        super().__init__(clock)
        self._root = sysfs_root
        self._wanted = device
        self._device: HwmonDevice | None = None
        self._track: CounterTrack | None = None
        self.source = PowerSource("hwmon", "/sys/class/hwmon", "gpu", "measured", device=device)

    def _find(self) -> None:
        device = self._choose(find_devices(self._root))
        for file in device.files:
            if not may_read(file):
                raise RightMissingError(
                    f"cannot read {file.name} of {device.chip} at {device.address}",
                    f"run `sudo chmod a+r {file}` after each boot, or {PLUG}",
                )
        self._device = device
        self._track = CounterTrack(INTEL_RANGE_JOULES, MOST_WATTS) if device.kind == "energy" else None
        is_board = device.kind == "rails"
        self.source = replace(
            self.source,
            interface=f"{device.chip} {device.address if is_board else device.files[0].name}",
            scope="module" if is_board else "gpu",
            update_period_seconds=PERIOD_SECONDS[device.chip],
            device=device.address,
        )

    def _take(self) -> Sample:
        """Energy or power, as the device reports it."""
        device = self._device
        assert device is not None
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
        self._demand_open()
        assert self._device is not None
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

    def _choose(self, found: tuple[HwmonDevice, ...]) -> HwmonDevice:
        wanted = self._wanted
        if wanted is not None:
            found = tuple(d for d in found if wanted.lower() in (d.address.lower(), d.chip))
        if not found:
            where = f" at {wanted}" if wanted else ""
            raise SensorMissingError(
                f"no amdgpu, xe or i915 card and no ina3221 rails{where} under /sys/class/hwmon",
                f"check with `sensors`, or {PLUG}",
            )
        cards = [d for d in found if d.kind != "rails"]
        if len(cards) > 1 and wanted is None:
            named = ", ".join(f"{d.address} ({d.chip})" for d in cards)
            raise SensorMissingError(f"several cards ({named})", "name one with power.device=ADDRESS")
        return found[0]
