"""Find the limits of this machine: devices, the range of each limit, and why a limit cannot be set.

This module only reads. Several devices form one group, and sweeper sets a limit on the whole group at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeper.errors import LimitRefused, MissingError, RightMissingError, SweeperError
from sweeper.limits import rapl
from sweeper.limits.base import LimitRange
from sweeper.limits.knob import CLOCK, PER_UNIT, POWER, Knob, KnobId
from sweeper.limits.nvml import ClockKnob, PowerKnob
from sweeper.limits.restore import MachineKnobs
from sweeper.limits.rights import HELPER_GROUP, has_admin_right
from sweeper.nvml import Card, chosen
from sweeper.power_settings import PowerSettings


@dataclass(frozen=True, slots=True)
class Group:
    """One limit of the configuration, and the knobs that set it on all its devices."""

    range: LimitRange
    knobs: tuple[Knob, ...]
    found: Mapping[KnobId, int | None]
    allowed: tuple[int, ...] = ()  # the supported clocks, lowest first; empty for power

    def raw(self, knob: KnobId, value: int | None) -> int | None:
        """The knob's raw value for ``value`` W or MHz: a supported clock, never above the value found."""
        if value is None:
            return self.found[knob]
        if self.allowed:
            return max((clock for clock in self.allowed if clock <= value), default=self.allowed[0])
        wanted = value * PER_UNIT[knob.kind]
        found = self.found[knob]
        return wanted if found is None else min(wanted, found)


@dataclass(frozen=True, slots=True)
class Found:
    """The devices of this machine, their limits, and why a limit cannot be set.

    sweeper locks the devices even if it can set no limit on them.
    """

    devices: tuple[str, ...]
    groups: Mapping[str, Group]
    refusals: Mapping[str, SweeperError]

    def knob(self, knob_id: KnobId) -> Knob:
        """The knob of that name."""
        return next(knob for group in self.groups.values() for knob in group.knobs if knob.id == knob_id)


def look(machine: MachineKnobs, settings: PowerSettings, environ: Mapping[str, str]) -> Found:
    """The limits of this machine: those of the GPUs if there are any, otherwise of the processor packages."""
    no_gpu: SweeperError = LimitRefused("with power.source=rapl, sweeper sets only the processor's limits")
    if settings.source != "rapl":
        cards, no_gpu = _cards(machine, settings, environ)
        if cards:
            return _gpu_limits(machine, cards)
    if settings.source == "nvml":
        return Found((), {}, {POWER: no_gpu, CLOCK: no_gpu})
    packages = _package_limits(machine)
    refusals = {
        CLOCK: LimitRefused(f"{no_gpu.what}; sweeper can lock only the clocks of NVIDIA GPUs"),
        **packages.refusals,
    }
    if not packages.devices:
        refusals[POWER] = LimitRefused(f"{no_gpu.what}; {refusals[POWER].what}")
    return Found(packages.devices, packages.groups, refusals)


def _cards(
    machine: MachineKnobs, settings: PowerSettings, environ: Mapping[str, str]
) -> tuple[list[Card], SweeperError]:
    try:
        cards = machine.nvml.cards()
    except MissingError as error:
        return [], error
    device = settings.device
    if settings.source != "nvml" and device and not any(card.is_named(device) for card in cards):
        device = None  # the setting names another kind of device
    found, why = chosen(cards, device, environ)
    return found, LimitRefused(why or "no NVIDIA GPU")


def _gpu_limits(machine: MachineKnobs, cards: Sequence[Card]) -> Found:
    groups: dict[str, Group] = {}
    refusals: dict[str, SweeperError] = {}
    means, missing = machine.means("nvml-power", has_admin_right())
    split = [card for card in cards if card.mig]
    for name in (POWER, CLOCK):
        try:
            if split:
                raise LimitRefused(
                    f"MIG divides {split[0].name}, and a limit would affect all its instances: "
                    "switch MIG off for a sweep"
                )
            if name == POWER:
                group = _power_group([PowerKnob(machine.nvml, card.uuid, means) for card in cards])
            else:
                group = _clock_group([ClockKnob(machine.nvml, card.uuid, means) for card in cards])
            if missing is not None:
                raise _ungranted(missing)
            groups[name] = group
        except SweeperError as error:
            refusals[name] = error
    return Found(tuple(card.uuid for card in cards), groups, refusals)


def _ungranted(missing: str) -> RightMissingError:
    return RightMissingError(
        f"setting this limit needs root, CAP_SYS_ADMIN or a helper ({missing})",
        f"`sweeper doctor` prints the steps that install the helper for the group {HELPER_GROUP!r}",
    )


def _power_group(knobs: Sequence[PowerKnob]) -> Group:
    found = {knob.id: knob.read() for knob in knobs}
    per = PER_UNIT["nvml_power"]
    highest = min(raw for raw in found.values() if raw is not None)
    low = -(-max(knob.constraints()[0] for knob in knobs) // per)
    high = min(highest, *(knob.constraints()[1] for knob in knobs)) // per
    if low >= high:
        raise LimitRefused(
            f"the device needs at least {low} W, and the limit found is {high} W: there is no range to search"
        )
    devices = ", ".join(knob.id.device for knob in knobs)
    # The found value is rounded down to whole watts, so that the range never exceeds the limit in force.
    return Group(LimitRange(POWER, devices, low, high, highest // per), tuple(knobs), found)


def _clock_group(knobs: Sequence[ClockKnob]) -> Group:
    supported = sorted(set.intersection(*(set(knob.supported) for knob in knobs)))
    if len(supported) < 2:
        raise LimitRefused("the device lists fewer than two clocks, so there is none to choose")
    held = [knob for knob in knobs if knob.held_by_another()]
    if held:
        raise LimitRefused(
            f"another tool limits the clocks of {held[0].id.device}, and NVML does not show which setting: "
            "reset them with `nvidia-smi --reset-gpu-clocks` and `--reset-applications-clocks`"
        )
    steps = [high - low for low, high in itertools.pairwise(supported)]
    step = max(set(steps), key=steps.count)
    devices = ", ".join(knob.id.device for knob in knobs)
    limits = LimitRange(CLOCK, devices, supported[0], supported[-1], None, step)
    return Group(limits, tuple(knobs), {knob.id: None for knob in knobs}, tuple(supported))


def _package_limits(machine: MachineKnobs) -> Found:
    sysfs = machine.sysfs
    zones = [zone for zone in rapl.packages(sysfs) if rapl.limited_constraints(sysfs, zone)]
    if not zones:
        nothing = LimitRefused(f"no processor package with a power limit in {sysfs}/class/powercap")
        return Found((), {}, {POWER: nothing})
    try:
        return Found(tuple(zones), {POWER: _package_group(machine, zones)}, {})
    except SweeperError as error:
        return Found(tuple(zones), {}, {POWER: error})


def _package_group(machine: MachineKnobs, zones: Sequence[str]) -> Group:
    sysfs, per = machine.sysfs, PER_UNIT["rapl"]
    off = [zone for zone in zones if rapl.switched_off(sysfs, zone)]
    if off:
        raise LimitRefused(
            f"the firmware, or the zone's file `enabled`, has switched off the limits of {off[0]}"
        )
    names = [(zone, part) for zone in zones for part in rapl.limited_constraints(sysfs, zone)]
    direct = all(rapl.PackageKnob(sysfs, *name, None).writable for name in names)
    means, missing = machine.means("rapl", direct)
    if missing is not None:
        raise _ungranted(missing)
    knobs = tuple(rapl.PackageKnob(sysfs, *name, means) for name in names)
    found = {knob.id: knob.read() for knob in knobs}
    long_term = [raw for name, raw in found.items() if name.part == rapl.CONSTRAINTS[0] and raw is not None]
    if not long_term:
        raise LimitRefused(f"the kernel shows no long-term power limit of {zones[0]}")
    highest = min(long_term)
    low = -(-max(rapl.least(sysfs, zone, highest) for zone in zones) // per)
    if low >= highest // per:
        raise LimitRefused(f"the limit found is {highest / per:g} W: there is no range below it to search")
    limits = LimitRange(POWER, ", ".join(zones), max(1, low), highest // per, highest // per)
    return Group(limits, knobs, found)
