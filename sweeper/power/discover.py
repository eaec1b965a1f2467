"""Choosing a sensor: the one that was named, or by trust the best that this machine has.

``auto`` takes the GPU's own sensor where layers can go to a GPU, else the processor's (RAPL), else an
estimate. It never takes a battery (its readings are smoothed over seconds and exist only unplugged), nor a
plug or a command, whose addresses only the user knows. What it passed over, and why, is in the notes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeper.errors import ConfigError, MissingError
from sweeper.power.base import PowerMeter, Sensor
from sweeper.power.estimate import EstimateSensor
from sweeper.power.meter import SampledMeter
from sweeper.power.rapl import RaplSensor
from sweeper.power.settings import PowerSettings, check_settings
from sweeper.records import Caveat

Clock = Callable[[], float]


def find_meter(
    settings: PowerSettings, root: Path, gpu_used: bool, clock: Clock = time.monotonic
) -> tuple[PowerMeter, tuple[str, ...]]:
    """The meter that ``settings`` ask for, not yet entered, and what to say about the choice.

    Args:
        settings: the group ``power``.
        root: folder in which what was found out about sensors is kept.
        gpu_used: whether layers can be offloaded to a GPU.
        clock: stamps samples.

    Raises:
        ConfigError: a word or value in ``settings`` that cannot work.
        SensorMissingError: the named source is not there.
        RightMissingError: it is there, and this user may not read it.
    """
    check_settings(settings)
    if settings.source == "auto":
        sensor, notes = _best(settings, gpu_used, clock)
        beside = _beside_auto(settings, sensor, gpu_used, clock)
    else:
        sensor, notes, beside = _opened(make_sensor(settings.source, settings, gpu_used, clock)), [], []
    beside += [_opened(make_sensor(name, settings, gpu_used, clock)) for name in settings.beside]
    meter = SampledMeter(sensor, beside=beside, hz=settings.sample_hz, clock=clock)
    if sensor.source.note:
        notes.append(sensor.source.note)
    return meter, tuple(notes)


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
    raise ConfigError(f"power.source={name} is not known")


def _opened(sensor: Sensor) -> Sensor:
    """The sensor, after it proved once that it can be opened and read; closed again."""
    with _trial_opening(sensor):
        sensor.read()
    return sensor


@contextmanager
def _trial_opening(sensor: Sensor) -> Iterator[Sensor]:
    sensor.open()
    try:
        yield sensor
    finally:
        sensor.close()


def _candidates(gpu_used: bool) -> tuple[str, ...]:
    return ("rapl",)


def _best(settings: PowerSettings, gpu_used: bool, clock: Clock) -> tuple[Sensor, list[str]]:
    """The first candidate that works, and a line for each that did not."""
    notes: list[str] = []
    for name in _candidates(gpu_used):
        try:
            return _opened(make_sensor(name, settings, gpu_used, clock)), notes
        except MissingError as error:
            notes.append(f"{name}: {error}")
    return _opened(make_sensor("estimate", settings, gpu_used, clock)), notes


def _beside_auto(settings: PowerSettings, ranking: Sensor, gpu_used: bool, clock: Clock) -> list[Sensor]:
    """What is worth recording beside the choice without being asked: the processor beside a GPU."""
    if ranking.source.scope not in ("gpu", "module") or "rapl" in settings.beside:
        return []
    try:
        return [_opened(make_sensor("rapl", settings, gpu_used, clock))]
    except MissingError:
        return []
