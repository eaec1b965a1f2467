"""Processor packages: RAPL's long- and short-term power limits under /sys/class/powercap.

sweeper sets both constraints of a package. If it set only the long-term one, the short-term one would allow
bursts of many seconds, longer than a window. sweeper writes the MSR zones (``intel-rapl:N``) and never their MMIO
twins, because the lower of the two limits applies. AMD processors show energy here but no limit.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sweeper.errors import LimitRefused, RightMissingError, SensorMissingError
from sweeper.limits.knob import KnobId
from sweeper.limits.rights import Means, Request

POWERCAP = "class/powercap"
PACKAGE_ZONE = re.compile(r"intel-rapl:\d+")
CONSTRAINTS = ("constraint_0", "constraint_1")
# Packages seldom report a lowest limit. Below this share of the value found, a package throttles so much that
# the machine's own services suffer.
LEAST_SHARE = 0.25


def packages(sysfs: Path) -> list[str]:
    """The top-level package zones, for example ``intel-rapl:0``, without ``psys``."""
    zones = sorted((sysfs / POWERCAP).glob("intel-rapl:*"))
    names = [zone.name for zone in zones if _text(zone / "name").startswith("package")]
    return [name for name in names if PACKAGE_ZONE.fullmatch(name)]


def limited_constraints(sysfs: Path, zone: str) -> list[str]:
    """The constraints of a zone that have a power limit: long term, and short term if there is one."""
    return [c for c in CONSTRAINTS if (sysfs / POWERCAP / zone / f"{c}_power_limit_uw").exists()]


def switched_off(sysfs: Path, zone: str) -> bool:
    """Whether all limits of the zone are switched off."""
    return _text(sysfs / POWERCAP / zone / "enabled") == "0"


def least(sysfs: Path, zone: str, found: int) -> int:
    """The lowest limit that sweeper sets, in µW."""
    text = _text(sysfs / POWERCAP / zone / "constraint_0_min_power_uw")
    told = int(text) if text.isdigit() else 0
    return told if 0 < told <= found else int(found * LEAST_SHARE)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""  # the file is absent or not readable on this machine


class PackageKnob:
    """One constraint of one package, in µW."""

    readable = True

    def __init__(self, sysfs: Path, zone: str, constraint: str, means: Means | None) -> None:
        self.id = KnobId("rapl", zone, constraint)
        self.path = sysfs / POWERCAP / zone / f"{constraint}_power_limit_uw"
        self._means = means

    @property
    def writable(self) -> bool:
        """Whether this process has the right to write the limit."""
        return os.access(self.path, os.W_OK)

    def read(self) -> int | None:
        """The limit in force, in µW."""
        try:
            return int(self.path.read_text(encoding="ascii").split()[0])
        except (OSError, ValueError, IndexError) as error:
            raise SensorMissingError(f"cannot read {self.path}: {error}") from error

    def write(self, raw: int | None) -> None:
        """Set the limit, in µW."""
        if raw is None:
            raise LimitRefused(f"{self.id} can be set, but not removed")
        if self._means is not None:
            self._means.carry_out(Request(("rapl", self.id.device, self.id.part, str(raw))))
            return
        try:
            _write_at_once(self.path, raw)
        except PermissionError as error:
            if os.access(self.path, os.W_OK):
                why, mend = (
                    "is locked by the firmware",
                    "allow changes of power limits in the firmware's setup",
                )
            else:
                why, mend = (
                    "may be written by root only",
                    "run `sweeper doctor` for the steps that grant you the right",
                )
            raise RightMissingError(f"{self.path} {why}", mend) from error
        except OSError as error:
            raise LimitRefused(f"{self.id} was not set: {error.strerror}") from error

    def contradiction(self, raw: int | None) -> str | None:
        """None: this knob is readable, so nothing calls this method."""
        return None


def _write_at_once(path: Path, raw: int) -> None:
    """Write the value in one call without truncation, so that a kill leaves the old value or the new one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{raw}\n".encode())
    finally:
        os.close(descriptor)
