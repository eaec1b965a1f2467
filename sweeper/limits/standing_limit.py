"""A power limit that outlives this process. `sweeper apply --power-limit` sets it, `sweeper rollback` undoes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import LimitRefused, SensorMissingError
from sweeper.limits.knob import PER_UNIT, Knob, KnobId, in_units, in_words, refusal
from sweeper.limits.rapl import limited_constraints, packages
from sweeper.limits.restore import MachineKnobs
from sweeper.limits.rights import MeansSettings
from sweeper.power_settings import PowerSettings


@dataclass(frozen=True, slots=True)
class StandingLimit:
    """The power limit of one GPU or one processor package, in W."""

    device: str  # the UUID of the GPU or the name of the zone
    _knob: Knob

    def read(self) -> float | None:
        """The limit in force; None if the device does not report it."""
        return in_units(self._knob.id.kind, self._knob.read())

    def set(self, watts: float) -> float:
        """Set the limit and return the value read back. Raises LimitRefused or RightMissingError."""
        raw = round(watts * PER_UNIT[self._knob.id.kind])
        self._knob.write(raw)
        why = refusal(self._knob, raw)
        if why is not None:
            raise LimitRefused(f"{self._knob.id} did not accept {in_words(self._knob.id, raw)}: {why}")
        present = self.read()
        return watts if present is None else present


def standing_limit(machine: MachineKnobs, device: str, sysfs: Path = Path("/sys")) -> StandingLimit:
    """The standing limit of ``device``, as the record of the sweep names it: a GPU's UUID, or a RAPL zone.

    Raises SensorMissingError if there is no such device, or if it has several limits.
    """
    found = power_limits(device, sysfs)
    if not found:
        raise SensorMissingError("this machine has no power limit that sweeper can set")
    if len(found) > 1:
        raise SensorMissingError(
            f"{device} has {len(found)} power limits, and sweeper sets a lasting limit only if there is one: "
            "set them with powercap-set"
        )
    return StandingLimit(found[0].device, machine.knob(found[0]))


def power_limits(device: str, sysfs: Path = Path("/sys")) -> list[KnobId]:
    """The power limits of ``device``, named as in `standing_limit`. GPUs are not asked."""
    if device.startswith("GPU-"):
        return [KnobId("nvml_power", device)]
    zones = [zone for zone in packages(sysfs) if device in (zone, "package", "packages")]
    return [KnobId("rapl", zone, part) for zone in zones for part in limited_constraints(sysfs, zone)]


def own_bench(settings: PowerSettings) -> MachineKnobs:
    """The knobs of this machine, with the means from ``power.limits``."""
    return MachineKnobs(MeansSettings.of(settings.limits), Path(settings.sysfs_root))
