"""Chooses a sensor: the one that the user named, or the most trustworthy one on this machine.

``auto`` takes the GPU's own sensor if layers can go to a GPU, else the processor's (RAPL), else an estimate. It never
takes a battery, because batteries smooth their readings over seconds and work only unplugged. It never takes a plug
or a command, because only the user knows their addresses. The notes list the skipped sources and the reasons.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from sweeper import stats
from sweeper.errors import ConfigError, MissingError, ReadingFailed, SensorMissingError
from sweeper.meter.base import ANOTHER, PLUG, PowerMeter, Sensor
from sweeper.meter.composite import TrustedSensor
from sweeper.meter.sampling import SampledMeter
from sweeper.meter.sensors.battery import BatterySensor
from sweeper.meter.sensors.command import CommandSensor
from sweeper.meter.sensors.estimate import EstimateSensor
from sweeper.meter.sensors.hwmon import RAIL_CHIP, HwmonSensor
from sweeper.meter.sensors.nvml import gpu_sensor
from sweeper.meter.sensors.plug import PlugSensor
from sweeper.meter.sensors.rapl import RaplSensor
from sweeper.meter.trust import SHORT_SECONDS, first_sample, known_or_examined
from sweeper.power_settings import PowerSettings, check_settings
from sweeper.records import Caveat, Reading

Clock = Callable[[], float]

# Sensors that can be polled every 5 ms. A plug, a command and a battery are too slow, and their periods are known. An
# estimate has nothing to check.
TRUST_CHECKED = ("nvml", "rapl", "hwmon")
IDLE_WINDOWS = 5
# A board whose rails also cover the processor. The configuration has no word for it; only `auto` tries it.
RAILS = "rails"


def find_meter(
    settings: PowerSettings,
    root: Path,
    gpu_used: bool,
    clock: Clock = time.monotonic,
    trust_seconds: float = SHORT_SECONDS,
) -> tuple[PowerMeter, tuple[str, ...]]:
    """The meter that ``settings`` ask for, not yet entered, and notes about the choice.

    Args:
        settings: the group ``power``.
        root: the folder that keeps the results of sensor checks.
        gpu_used: whether layers can be offloaded to a GPU.
        clock: stamps samples.
        trust_seconds: how long to poll a new device.

    Raises:
        ConfigError: ``settings`` contain a word or value that cannot work.
        SensorMissingError: the named source does not exist, or gives no reading.
        RightMissingError: the named source exists, but this user may not read it.
    """
    check_settings(settings)

    def tried(name: str) -> Sensor:
        return proven(make_sensor(name, settings, gpu_used, clock), root, clock, trust_seconds)

    is_auto = settings.source == "auto"
    sensor, notes = _best(tried, gpu_used) if is_auto else (tried(settings.source), [])
    beside = [tried(name) for name in settings.beside]
    on_gpu = sensor.source.name in ("nvml", "hwmon")
    if is_auto and on_gpu and "rapl" not in settings.beside:
        with contextlib.suppress(MissingError):
            beside.append(tried("rapl"))
    meter = SampledMeter(sensor, beside=beside, hz=settings.sample_hz, clock=clock)
    note = sensor.source.note
    return meter, (*notes, *([note] if note else []))


def _best(tried: Callable[[str], Sensor], gpu_used: bool) -> tuple[Sensor, list[str]]:
    """The first candidate that works, and a note for each one that did not."""
    notes: list[str] = []
    for name in ("nvml", "hwmon", "rapl") if gpu_used else ("rapl", RAILS):
        try:
            return tried(name), notes
        except MissingError as error:
            if name != RAILS:  # users without such a board need no note about its rails
                notes.append(f"{name}: {error}")
    return tried("estimate"), notes


def measure_idle(
    meter: PowerMeter,
    seconds: float,
    windows: int = IDLE_WINDOWS,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Reading | None:
    """Power in W of an idle machine, with its spread over ``windows`` stretches; None if one of them gave nothing.

    The caller decides whether the machine is at rest or holds a loaded model. The stretches take ``seconds``
    together, but each one takes at least an update period of the entered meter.
    """
    each = max(seconds / windows, meter.update_period_seconds)
    found: list[float] = []
    for _ in range(windows):
        with meter.window() as window:
            started = clock()
            sleep(each)
            ended = clock()
        watts = window.reading(started, ended).watts
        if watts is None:
            return None
        found.append(watts)
    return stats.reading(found)


def make_sensor(name: str, settings: PowerSettings, gpu_used: bool, clock: Clock = time.monotonic) -> Sensor:
    """The sensor of that name, not yet open. Raises SensorMissingError with the fix if there is none."""
    sysfs, procfs = Path(settings.sysfs_root), Path(settings.procfs_root)
    if name == "rapl":
        platform = settings.device == "psys"
        # A discrete GPU is outside the package and an integrated one is inside; RAPL cannot show which.
        caveats = (Caveat.MISSING_DOMAIN,) if gpu_used and not platform else ()
        return RaplSensor(sysfs, platform=platform, clock=clock, caveats=caveats)
    if name == "estimate":
        return EstimateSensor(settings.estimate, procfs, sysfs, clock, gpu_used=gpu_used)
    if name == "nvml":
        return gpu_sensor(settings.device, clock)
    if name in (RAILS, "hwmon"):
        return HwmonSensor(sysfs, RAIL_CHIP if name == RAILS else settings.device, clock)
    if name == "battery":
        return BatterySensor(sysfs, clock)
    if name == "plug":
        return PlugSensor(settings.plug, clock)
    if name == "command":
        return CommandSensor(settings.command, clock)
    raise ConfigError(f"power.source={name} is not known")


def proven(sensor: Sensor, root: Path, clock: Clock, seconds: float) -> Sensor:
    """Open, read and close the sensor, and combine it with the result of its trust check."""
    sensor.open()
    try:
        sample = first_sample(sensor)
        if sensor.source.name not in TRUST_CHECKED:
            return sensor
        trust = known_or_examined(sensor, root, seconds, clock)
        if trust.counter_stands_still and not sample.power_watts:
            raise SensorMissingError(
                f"{sensor.source.interface} stands still, as in some virtual machines", PLUG
            )
        return TrustedSensor(sensor, trust)
    except ReadingFailed as error:
        raise SensorMissingError(f"{sensor.source.name} gives no reading: {error}", ANOTHER) from error
    finally:
        sensor.close()
