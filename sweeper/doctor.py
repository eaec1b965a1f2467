"""Checks machine, engine, servers, sensors and limits, how trustworthy they are, and suggests fixes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sweeper import machine
from sweeper.client.found import PROGRAMS, installed, running
from sweeper.control_groups import memory_limit_mib
from sweeper.engine.server_dialect import build_of
from sweeper.errors import (
    ConfigError,
    EngineMissingError,
    MissingError,
    ReadingFailed,
    RightMissingError,
    SweeperError,
)
from sweeper.limits.base import LimitControl
from sweeper.limits.rights import grant_steps
from sweeper.meter.base import ANOTHER, PLUG, Sensor
from sweeper.meter.choose import TRUST_CHECKED, make_sensor
from sweeper.meter.sensors.hwmon import HwmonSensor, find_devices
from sweeper.meter.sensors.nvml import NvmlSensor, visible_devices
from sweeper.meter.sensors.rapl import RaplSensor, find_zones
from sweeper.meter.trust import FULL_SECONDS, MOST_CONFLICT, Trust, first_sample, known_or_examined
from sweeper.power_settings import PowerSettings
from sweeper.records import EngineRecord, to_plain
from sweeper.system import lockable_memory_mib

Status = Literal["ok", "missing", "no_right", "unusable"]

# Time between the two readings of a sensor that the doctor does not poll for a trust check.
LOOK_SECONDS = 0.5
# The one line that installs a build of llama-cpp-python for NVIDIA GPUs.
GPU_BUILD = (
    'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-deps --no-cache-dir '
    "--no-binary llama-cpp-python llama-cpp-python   (in a clone: make install CUDA=1)"
)
RAISE_LOCKED = (
    "raise it with `ulimit -l unlimited`, LimitMEMLOCK=infinity (systemd) or --ulimit memlock=-1 (docker)"
)
# Without a card, there is nothing to mend; with one, the driver is what is missing.
NO_CARD = (
    "if you have an NVIDIA card, install its driver and check that `nvidia-smi` runs (in a container, start it with "
    "--gpus all); if you have none, ignore this line"
)
MOST_MODELS = 3  # of a running server, in one line
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
            for finding in (finding for finding in self.findings if finding.area == area):
                lines.append(f"  {_MARKS[finding.status]} {finding.name:<{width}}  {finding.detail}")
                if finding.mend:
                    lines.append(f"    {'':<{width}}  → {finding.mend}")
                lines += [f"    {'':<{width}}    {step}" for step in finding.steps if step not in shown]
                shown.update(finding.steps)
        seen = {finding.status for finding in self.findings}
        lines.append("   ".join(f"{_MARKS[each]} {words}" for each, words in _LEGEND.items() if each in seen))
        return "\n".join(lines)


_MARKS: dict[Status, str] = {"ok": "✓", "missing": "–", "no_right": "✗", "unusable": "!"}
_LEGEND: dict[Status, str] = {
    "ok": "works",
    "missing": "not here, or not set up",
    "no_right": "no permission",
    "unusable": "there, but does not work",
}


def examine(
    root: Path,
    settings: PowerSettings,
    limits: LimitControl | None = None,
    tried: bool = False,
    seconds: float = FULL_SECONDS,
) -> Iterator[Finding]:
    """Check every sensor and every limit.

    Args:
        root: the folder that keeps the trust of sensors. A shorter earlier check is repeated.
        settings: the paths of sysfs and procfs, and the plug or command.
        limits: the source of ranges and refusals; None skips the limits.
        tried: whether the caller has set each power limit to the value in force.
        seconds: how long to poll each sensor, unless an earlier check took at least as long.
    """
    for name, make in _sensors(settings):
        yield _of_sensor(name, make, root, seconds)
    if not settings.plug.url:
        yield Finding(
            "sensor",
            "plug",
            "missing",
            "no network plug is configured",
            f"{PLUG}; for Tasmota, add power.plug.kind=tasmota",
        )
    if not settings.command.argv:
        mend = "set power=command power.command.argv=[/path/to/meter]"
        yield Finding("sensor", "command", "missing", "no command is configured", mend)
    if limits is not None:
        yield from _of_limits(limits, tried)


def machine_findings() -> Iterator[Finding]:
    """The processor, its memory and the GPUs."""
    here = machine.examine()
    cores = f"{here.physical_cores} cores, {here.logical_cores} threads"
    if here.performance_cores:
        cores += f", {here.performance_cores} of the cores are performance cores"
    if here.cpu_quota is not None:
        cores += f"; a control group limits processor time to {here.cpu_quota:g} CPUs (quota)"
    yield Finding("machine", "cpu", "ok", f"{here.cpu}: {cores}")
    bandwidth = machine.measure_bandwidth_gb_per_second()
    limit = memory_limit_mib()
    limited = "" if limit is None else f", of which a control group allows {limit / 1024:.1f} GiB"
    memory = (
        f"{here.memory_mib / 1024:.1f} GiB{limited}; read bandwidth up to {bandwidth:.1f} GB/s (measured now): "
        "decode is no faster than reading the weights"
    )
    yield Finding("machine", "memory", "ok", memory)
    lockable = lockable_memory_mib()
    if lockable is not None:
        locked = f"this user may lock {lockable:.3g} MiB in memory, so use_mlock cannot lock a larger model"
        yield Finding("machine", "locked memory", "ok", locked, RAISE_LOCKED)
    for gpu in here.gpus:
        detail = f"{gpu.name}, {gpu.memory_mib} MiB, driver {gpu.driver}"
        yield Finding("machine", f"gpu {gpu.index}", "ok", detail)
    for index, error in machine.faulty_gpus().items():
        status: Status = "no_right" if isinstance(error, RightMissingError) else "unusable"
        yield Finding("machine", f"gpu {index}", status, error.what, error.mend)


def folder_findings(root: Path) -> tuple[Finding, ...]:
    """The finding that sweeps cannot be written to ``root``, whose folder this makes; empty if they can."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return ()
    except OSError as error:
        words = f"cannot write in {root}: {error.strerror}"
        mend = "choose another folder: doctor --root FOLDER, and sweep root=FOLDER"
        return (Finding("machine", "folder", "no_right", words, mend),)


def engine_finding(record: Callable[[], EngineRecord]) -> Finding:
    """Whether llama.cpp runs here, and on the GPU if there is one. ``record`` starts it."""
    name = "llama-cpp-python"
    try:
        engine = record()
    except EngineMissingError as error:
        return Finding("engine", name, "missing", error.what, error.mend)
    if engine.gpu_offload:
        return Finding("engine", name, "ok", f"{engine.version}; layers can go to the GPU")
    detail = f"{engine.version}; this build of llama.cpp runs on the CPU only"
    if not machine.nvidia_gpus():
        return Finding("engine", name, "ok", detail)
    return Finding("engine", name, "unusable", f"{detail}, but there is an NVIDIA GPU", GPU_BUILD)


def server_findings() -> Iterator[Finding]:
    """The servers that are installed here, llama-server with its build, and those that run."""
    programs, runs = installed(), list(running())
    for name, path in programs.items():
        yield _of_program(name, path)
    for one in runs:
        status: Status = "no_right" if isinstance(one.error, RightMissingError) else "unusable"
        if one.error is not None:
            yield Finding("server", one.kind, status, f"listens at {one.url}, but: {one.error}")
            continue
        shown = ", ".join(one.models[:MOST_MODELS])
        more = f" and {len(one.models) - MOST_MODELS} more" if len(one.models) > MOST_MODELS else ""
        yield Finding("server", one.kind, "ok", f"runs at {one.url} and offers {shown or 'no model'}{more}")
    if not programs and not runs:
        known = ", ".join(PROGRAMS)
        none = f"none of {known} is on the PATH, and none runs; a sweep needs none"
        yield Finding("server", "servers", "missing", none)


def _of_program(name: str, path: str) -> Finding:
    """A server that is installed; a llama-server is asked for its build."""
    if name != "llama-server":
        return Finding("server", name, "ok", f"{path} is installed")
    try:
        build = build_of((path,), dict(os.environ))
    except EngineMissingError as error:
        return Finding("server", name, "unusable", str(error).removeprefix("engine.binary: "))
    return Finding("server", name, "ok", f"{path}, version {build}: engine=llama_server tunes it")


def _sensors(settings: PowerSettings) -> Iterator[tuple[str, Callable[[], Sensor]]]:
    """Each sensor to check, by name. Each GPU is a sensor of its own; psys is left out if there is none."""
    sysfs = Path(settings.sysfs_root)
    named = partial(make_sensor, settings=settings, gpu_used=False)
    try:
        for uuid in visible_devices():
            yield f"nvml {uuid[:12]}", partial(NvmlSensor, uuid)
    except MissingError:
        yield "nvml", partial(named, "nvml")
    yield "rapl", partial(RaplSensor, sysfs)
    if any(zone.name == "psys" for zone in find_zones(sysfs)):
        yield "rapl psys", partial(RaplSensor, sysfs, platform=True)
    devices = find_devices(sysfs)
    for device in devices:
        wanted = device.chip if device.kind == "rails" else device.address
        yield f"hwmon {wanted}", partial(HwmonSensor, sysfs, wanted)
    if not devices:
        yield "hwmon", partial(named, "hwmon")
    yield "battery", partial(named, "battery")
    if settings.plug.url:
        yield "plug", partial(named, "plug")
    if settings.command.argv:
        yield "command", partial(named, "command")
    yield "estimate", partial(named, "estimate")


def _of_sensor(
    name: str,
    make: Callable[[], Sensor],
    root: Path,
    seconds: float,
) -> Finding:
    try:
        sensor = make()
        sensor.open()
    except RightMissingError as error:
        return Finding("sensor", name, "no_right", error.what, error.mend)
    except (MissingError, ConfigError) as error:
        status: Status = "unusable" if isinstance(error.__cause__, ReadingFailed) else "missing"
        return Finding("sensor", name, status, error.what, NO_CARD if name == "nvml" else error.mend)
    try:
        first_sample(sensor)
        if sensor.source.name in TRUST_CHECKED:
            return _of_trust(name, sensor, known_or_examined(sensor, root, seconds))
        time.sleep(min(LOOK_SECONDS, seconds))
        watts = sensor.read().power_watts
        shown = "" if watts is None else f", {watts:.1f} W now"
        note = f"; {sensor.source.note}" if sensor.source.note else ""
        if sensor.source.kind == "estimated":
            return Finding("sensor", name, "ok", f"estimated{shown} (processor only){note}")
        return Finding("sensor", name, "ok", f"{_described(sensor)}{shown}{note}")
    except ReadingFailed as error:
        return Finding("sensor", name, "unusable", str(error), ANOTHER)
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
    if trust.counter_stands_still:
        if trust.power_period_seconds is None:
            stands = f"{detail}; its counter stands still"
            return Finding("sensor", name, "unusable", stands, PLUG)
        detail += "; its counter stands still, so sweeper reads its power instead"
    mend = (
        f"counter and power differ by more than {MOST_CONFLICT:.0%}: "
        "compare with a wall meter (power.beside=[plug])"
        if trust.in_conflict
        else None
    )
    return Finding("sensor", name, "ok", detail, mend)


def _described(sensor: Sensor) -> str:
    source = sensor.source
    return f"{source.kind}, scope {source.scope}, {source.interface}"


def _of_limits(limits: LimitControl, tried: bool) -> Iterator[Finding]:
    try:
        ranges, refusals = limits.ranges(), limits.refusals()
    except SweeperError as error:
        yield Finding("limit", "limits", "unusable", str(error))
        return
    for name, span in ranges.items():
        if name not in refusals:
            found = "not set" if span.found is None else span.found
            detail = f"{span.low} to {span.high} on {span.device}, present value {found}"
            if name == "power_limit_watts":
                detail += "; setting it works" if tried else "; `sweeper doctor --try-limits` tries to set it"
            yield Finding("limit", name, "ok", detail)
    for name, refusal in refusals.items():
        if isinstance(refusal, RightMissingError):
            yield Finding("limit", name, "no_right", refusal.what, GRANT, grant_steps())
        else:
            yield Finding("limit", name, "missing", refusal.what, refusal.mend)
