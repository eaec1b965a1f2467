"""Choosing a sensor: the one that was named, or by trust the best that this machine has.

``auto`` takes the GPU's own sensor where layers can go to a GPU, else the processor's (RAPL), else an
estimate. It never takes a battery (its readings are smoothed over seconds and exist only unplugged), nor a
plug or a command, whose addresses only the user knows. What it passed over, and why, is in the notes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sweeper import stats
from sweeper.errors import ConfigError, MissingError, ReadingFailed, SensorMissingError
from sweeper.meter.base import PowerMeter, Sensor
from sweeper.meter.composite import TrustedSensor
from sweeper.meter.sampling import SampledMeter
from sweeper.meter.sensors.battery import BatterySensor
from sweeper.meter.sensors.command import CommandSensor
from sweeper.meter.sensors.estimate import EstimateSensor
from sweeper.meter.sensors.hwmon import RAIL_CHIP, HwmonSensor
from sweeper.meter.sensors.nvml import gpu_sensor
from sweeper.meter.sensors.plug import PlugSensor
from sweeper.meter.sensors.rapl import RaplSensor
from sweeper.meter.trust import SHORT_SECONDS, known_or_examined
from sweeper.power_settings import PowerSettings, check_settings
from sweeper.records import Caveat, Reading

Clock = Callable[[], float]

# Sensors that can be polled every 5 ms. A plug, a command and a battery are too slow for that, and their
# periods are known; an estimate has nothing to be trusted.
TRUST_CHECKED = ("nvml", "rapl", "hwmon")
IDLE_WINDOWS = 5
# Not a word of the configuration: a board whose rails cover the processor too, tried by `auto` alone.
RAILS = "rails"


def find_meter(
    settings: PowerSettings,
    root: Path,
    gpu_used: bool,
    clock: Clock = time.monotonic,
    trust_seconds: float = SHORT_SECONDS,
) -> tuple[PowerMeter, tuple[str, ...]]:
    """The meter that ``settings`` ask for, not yet entered, and what to say about the choice.

    A device seen for the first time is polled for ``trust_seconds``; what that found is kept under ``root``.

    Args:
        settings: the group ``power``.
        root: folder in which what was found out about sensors is kept.
        gpu_used: whether layers can be offloaded to a GPU.
        clock: stamps samples.
        trust_seconds: how long to poll a new device.

    Raises:
        ConfigError: a word or value in ``settings`` that cannot work.
        SensorMissingError: the named source is not there, or gives nothing.
        RightMissingError: it is there, and this user may not read it.
    """
    check_settings(settings)
    finder = _Finder(settings, root, gpu_used, clock, trust_seconds)
    sensor, notes = finder.best() if settings.source == "auto" else (finder.tried(settings.source), [])
    beside = [finder.tried(name) for name in settings.beside]
    if settings.source == "auto" and "rapl" not in settings.beside:
        beside += finder.processor_beside(sensor)
    meter = SampledMeter(sensor, beside=beside, hz=settings.sample_hz, clock=clock)
    note = sensor.source.note
    return meter, (*notes, *([note] if note else []))


def measure_idle(
    meter: PowerMeter,
    seconds: float,
    windows: int = IDLE_WINDOWS,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Reading | None:
    """Power in W of a machine left alone for ``seconds``, with its spread over ``windows`` stretches.

    Whether the machine rests, or holds a loaded model, is up to the caller.

    Args:
        meter: entered.
        seconds: in all; each stretch is at least one update period long.
        windows: number of stretches.
        clock: as the meter's.
        sleep: blocks.

    Returns:
        The reading, or None where the meter gave nothing in one of the stretches.
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
    """The sensor of that name, not yet open.

    Raises:
        SensorMissingError: there is none, with the line that mends it.
    """
    sysfs, procfs = Path(settings.sysfs_root), Path(settings.procfs_root)
    if name == "rapl":
        platform = settings.device == "psys"
        # A discrete GPU is outside the package; an integrated one is inside: that cannot be told here.
        caveats = (Caveat.MISSING_DOMAIN,) if gpu_used and not platform else ()
        return RaplSensor(sysfs, platform=platform, clock=clock, caveats=caveats)
    if name == "estimate":
        return EstimateSensor(settings.estimate, procfs, sysfs, clock, gpu_used=gpu_used)
    if name == "nvml":
        return gpu_sensor(settings.device, clock)
    if name == RAILS:
        return HwmonSensor(sysfs, RAIL_CHIP, clock)
    if name == "hwmon":
        return HwmonSensor(sysfs, settings.device, clock)
    if name == "battery":
        return BatterySensor(sysfs, clock)
    if name == "plug":
        return PlugSensor(settings.plug, clock)
    if name == "command":
        return CommandSensor(settings.command, clock)
    raise ConfigError(f"power.source={name} is not known")


def proven(sensor: Sensor, root: Path, clock: Clock, seconds: float) -> Sensor:
    """The sensor after it was opened and read, closed again, together with what its trust check found.

    Raises:
        SensorMissingError: it gives nothing that can be used.
        RightMissingError: this user may not read it.
    """
    sensor.open()
    try:
        sample = sensor.read()
        if sensor.source.name not in TRUST_CHECKED:
            return sensor
        trust = known_or_examined(sensor, root, seconds, clock)
        if trust.counter_stands_still and sample.power_watts is None:
            raise SensorMissingError(
                f"{sensor.source.interface} stands still, as in some virtual machines", "choose power=plug"
            )
        return TrustedSensor(sensor, trust)
    except ReadingFailed as error:
        raise SensorMissingError(f"{sensor.source.name} gives no reading: {error}") from error
    finally:
        sensor.close()


class _Finder:
    """One search for sensors, under one set of settings."""

    def __init__(
        self, settings: PowerSettings, root: Path, gpu_used: bool, clock: Clock, trust_seconds: float
    ) -> None:
        self._settings = settings
        self._root = root
        self._gpu_used = gpu_used
        self._clock = clock
        self._trust_seconds = trust_seconds

    def tried(self, name: str) -> Sensor:
        sensor = make_sensor(name, self._settings, self._gpu_used, self._clock)
        return proven(sensor, self._root, self._clock, self._trust_seconds)

    def best(self) -> tuple[Sensor, list[str]]:
        """The first candidate that works, and a line for each that did not."""
        notes: list[str] = []
        for name in ("nvml", "hwmon", "rapl") if self._gpu_used else ("rapl", RAILS):
            try:
                return self.tried(name), notes
            except MissingError as error:
                if name != RAILS:  # nobody without such a board needs to hear of its rails
                    notes.append(f"{name}: {error}")
        return self.tried("estimate"), notes

    def processor_beside(self, ranking: Sensor) -> list[Sensor]:
        """The processor beside a GPU: worth recording without being asked, where it can be read."""
        if ranking.source.name not in ("nvml", "hwmon"):
            return []
        try:
            return [self.tried("rapl")]
        except MissingError:
            return []
