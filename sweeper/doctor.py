"""Checks the sensors and limits of this machine, how trustworthy they are, and suggests fixes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sweeper.errors import ConfigError, MissingError, ReadingFailed, RightMissingError, SweeperError
from sweeper.limits.base import LimitControl
from sweeper.limits.rights import grant_steps
from sweeper.meter.base import Sensor
from sweeper.meter.choose import TRUST_CHECKED, make_sensor
from sweeper.meter.sensors.hwmon import HwmonSensor, find_devices
from sweeper.meter.sensors.nvml import NvmlSensor, visible_devices
from sweeper.meter.sensors.rapl import RaplSensor, find_zones
from sweeper.meter.trust import FULL_SECONDS, MOST_CONFLICT, Trust, known_or_examined
from sweeper.power_settings import PowerSettings
from sweeper.records import to_plain

Status = Literal["ok", "missing", "no_right", "unusable"]

# Time between the two readings of a sensor that the doctor does not poll for a trust check.
LOOK_SECONDS = 0.5
GRANT = "an administrator grants this right once with these steps:"


@dataclass(frozen=True, slots=True)
class Finding:
    """One checked item. ``mend`` is one line that says how to fix it; None if there is nothing to fix."""

    area: str  # sensor, limit, or an area that a caller adds
    name: str
    status: Status
    detail: str
    mend: str | None = None
    steps: tuple[str, ...] = ()  # the steps that fix it, in their order


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in display order."""

    findings: tuple[Finding, ...]

    def of(self, area: str) -> tuple[Finding, ...]:
        """The findings of one area."""
        return tuple(finding for finding in self.findings if finding.area == area)

    def plus(self, more: Iterable[Finding]) -> Diagnosis:
        """A copy with further findings, for example on the machine or the engines."""
        return Diagnosis((*self.findings, *more))

    def to_plain(self) -> dict[str, Any]:
        """The findings as plain data for JSON."""
        return {"findings": [to_plain(finding) for finding in self.findings]}

    def to_text(self) -> str:
        """Plain lines for a terminal. The line with the fix follows the finding that needs it."""
        width = max((len(finding.name) for finding in self.findings), default=0)
        lines: list[str] = []
        shown: set[str] = set()  # several limits share the same steps
        for area in dict.fromkeys(finding.area for finding in self.findings):
            lines.append(f"{area}s")
            for finding in self.of(area):
                lines.append(f"  {_MARKS[finding.status]} {finding.name:<{width}}  {finding.detail}")
                if finding.mend:
                    lines.append(f"    {'':<{width}}  → {finding.mend}")
                lines += [f"    {'':<{width}}    {step}" for step in finding.steps if step not in shown]
                shown.update(finding.steps)
        return "\n".join(lines)


_MARKS: dict[Status, str] = {"ok": "✓", "missing": "–", "no_right": "✗", "unusable": "!"}


def examine(
    root: Path,
    settings: PowerSettings | None = None,
    limits: LimitControl | None = None,
    seconds: float = FULL_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Diagnosis:
    """Check every sensor and every limit.

    Args:
        root: the folder that keeps the trust of sensors. A shorter earlier check is repeated.
        settings: the paths of sysfs and procfs, and the plug or command; None for the defaults.
        limits: the source of ranges and refusals; None skips the limits.
        seconds: how long to poll each sensor, unless an earlier check took at least as long.
        clock: the clock that stamps the samples.
        sleep: the function that waits.
    """
    settings = settings or PowerSettings()
    found = [
        *(_of_sensor(name, make, root, seconds, clock, sleep) for name, make in _sensors(settings, clock)),
        *_of_unset(settings),
        *(_of_limits(limits) if limits is not None else ()),
    ]
    return Diagnosis(tuple(found))


def _sensors(
    settings: PowerSettings, clock: Callable[[], float]
) -> Iterator[tuple[str, Callable[[], Sensor]]]:
    """Each sensor to check, by name. Each GPU is a sensor of its own; psys is left out if there is none."""
    sysfs = Path(settings.sysfs_root)
    named = partial(make_sensor, settings=settings, gpu_used=False, clock=clock)
    try:
        for uuid in visible_devices():
            yield f"nvml {uuid[:12]}", partial(NvmlSensor, uuid, clock)
    except MissingError:
        yield "nvml", partial(named, "nvml")
    yield "rapl", partial(RaplSensor, sysfs, clock=clock)
    if any(zone.name == "psys" for zone in find_zones(sysfs)):
        yield "rapl psys", partial(RaplSensor, sysfs, platform=True, clock=clock)
    for device in find_devices(sysfs):
        wanted = device.chip if device.kind == "rails" else device.address
        yield f"hwmon {wanted}", partial(HwmonSensor, sysfs, wanted, clock)
    names = [] if find_devices(sysfs) else ["hwmon"]
    names += ["battery"]
    names += ["plug"] if settings.plug.url else []
    names += ["command"] if settings.command.argv else []
    for name in (*names, "estimate"):
        yield name, partial(named, name)


def _of_sensor(
    name: str,
    make: Callable[[], Sensor],
    root: Path,
    seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Finding:
    try:
        sensor = make()
        sensor.open()
    except RightMissingError as error:
        return Finding("sensor", name, "no_right", error.what, error.mend)
    except (MissingError, ConfigError) as error:
        return Finding("sensor", name, "missing", error.what, error.mend)
    try:
        sensor.read()
        if sensor.source.name in TRUST_CHECKED:
            return _of_trust(name, sensor, known_or_examined(sensor, root, seconds, clock, sleep))
        sleep(min(LOOK_SECONDS, seconds))
        watts = sensor.read().power_watts
        shown = "" if watts is None else f", {watts:.1f} W now"
        note = f"; {sensor.source.note}" if sensor.source.note else ""
        return Finding("sensor", name, "ok", f"{_described(sensor)}{shown}{note}")
    except ReadingFailed as error:
        return Finding("sensor", name, "unusable", str(error))
    finally:
        sensor.close()


def _of_trust(name: str, sensor: Sensor, trust: Trust) -> Finding:
    period = trust.period_seconds
    words = [_described(sensor)]
    words.append("update period unknown" if period is None else f"refreshes every {period * 1000:.0f} ms")
    if trust.conflict_fraction is not None:
        words.append(f"counter and power differ by {trust.conflict_fraction:.1%}")
    if sensor.source.note:
        words.append(sensor.source.note)
    detail = ", ".join(words)
    if trust.counter_stands_still and trust.power_period_seconds is None:
        return Finding("sensor", name, "unusable", f"{detail}; its counter stands still", "choose power=plug")
    if trust.counter_stands_still:
        detail += "; its counter stands still, so sweeper reads its power instead"
    if trust.in_conflict:
        return Finding(
            "sensor",
            name,
            "ok",
            detail,
            f"counter and power differ by more than {MOST_CONFLICT:.0%}: "
            "compare with a wall meter (power.beside=[plug])",
        )
    return Finding("sensor", name, "ok", detail)


def _described(sensor: Sensor) -> str:
    source = sensor.source
    return f"{source.kind}, scope {source.scope}, {source.interface}"


def _of_unset(settings: PowerSettings) -> Iterator[Finding]:
    if not settings.plug.url:
        yield Finding(
            "sensor",
            "plug",
            "missing",
            "no network plug is configured",
            "set power=plug power.plug.kind=shelly power.plug.url=http://ADDRESS (Shelly Gen2+ or Tasmota)",
        )
    if not settings.command.argv:
        yield Finding(
            "sensor",
            "command",
            "missing",
            "no command is configured",
            "set power=command power.command.argv=[/path/to/meter]",
        )


def _of_limits(limits: LimitControl) -> Iterator[Finding]:
    try:
        ranges, refusals = limits.ranges(), limits.refusals()
    except SweeperError as error:
        yield Finding("limit", "limits", "unusable", str(error))
        return
    for name, span in ranges.items():
        if name not in refusals:
            found = "not set" if span.found is None else f"{span.found}"
            yield Finding(
                "limit", name, "ok", f"{span.low} to {span.high} on {span.device}, present value {found}"
            )
    for name, refusal in refusals.items():
        if isinstance(refusal, RightMissingError):
            yield Finding("limit", name, "no_right", refusal.what, GRANT, grant_steps())
        else:
            yield Finding("limit", name, "missing", refusal.what, refusal.mend)
