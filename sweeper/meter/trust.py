"""The trust check of a sensor. It runs once for each device, driver and kernel, and sweeper keeps the result.

A short burst of polling shows how often a sensor refreshes its value, whether its counter moves at all, and whether
counter and power agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cattrs

from sweeper.errors import ReadingFailed
from sweeper.files import replace
from sweeper.meter.base import Sample, Sensor
from sweeper.records import from_plain, to_plain

# Fast enough to see the shortest published update period of NVML (20 ms) several times.
POLL_SECONDS = 0.005
# Long enough to see a period of 100 ms a hundred times.
FULL_SECONDS = 10.0
# The time that a sweep spends on a new device.
SHORT_SECONDS = 2.0
# A sensor that shows 0 W gets this long to take its first value.
FIRST_VALUE_SECONDS = 0.2
# If counter and power differ by more than this, they disagree (docs/measuring.md).
MOST_CONFLICT = 0.05
# With fewer refreshes, the period would be a guess.
LEAST_CHANGES = 5
SCHEMA = 2  # schema 1 treated the sum of several devices as one device


@dataclass(frozen=True, slots=True)
class Trust:
    """The result of polling a sensor. A period is None if there were too few changes."""

    polls: int
    seconds: float
    counter_period_seconds: float | None = None
    power_period_seconds: float | None = None
    counter_stands_still: bool = False
    conflict_fraction: float | None = None  # |counter slope − mean power| over mean power
    schema: int = SCHEMA

    @property
    def period_seconds(self) -> float | None:
        """The period of the value in use: the counter if it moves, else power."""
        if self.counter_period_seconds is not None and not self.counter_stands_still:
            return self.counter_period_seconds
        return self.power_period_seconds

    @property
    def in_conflict(self) -> bool:
        """Whether counter and power disagree."""
        return self.conflict_fraction is not None and self.conflict_fraction > MOST_CONFLICT


def judge(samples: Sequence[Sample]) -> Trust:
    """Judge a sensor by a burst of samples, in order. The function is pure."""
    seconds = samples[-1].monotonic_seconds - samples[0].monotonic_seconds if samples else 0.0
    devices = len(samples[0].parts) if samples else 0
    # Devices refresh at different moments, so their sum changes more often than each of them.
    streams = [[s.parts[device] for s in samples] for device in range(devices)] or [list(samples)]
    counters, powers, conflicts, stills = [], [], [], []
    for stream in streams:
        counted = [(s.monotonic_seconds, s.energy_joules) for s in stream if s.energy_joules is not None]
        drawn = [(s.monotonic_seconds, s.power_watts) for s in stream if s.power_watts is not None]
        counters.append(_period(counted))
        powers.append(_period(drawn))
        conflicts.append(_conflict(counted, drawn))
        stills.append(len(counted) > 1 and counted[0][1] == counted[-1][1])
    still = any(stills)
    return Trust(  # a sum of devices is as slow, and as far off, as the worst device
        polls=len(samples),
        seconds=seconds,
        counter_period_seconds=None if still else _longest(counters),
        power_period_seconds=_longest(powers),
        counter_stands_still=still,
        conflict_fraction=None if still else max((c for c in conflicts if c is not None), default=None),
    )


def _longest(periods: Sequence[float | None]) -> float | None:
    """The longest period, or None if one of them is unknown."""
    known = [period for period in periods if period is not None]
    return max(known) if len(known) == len(periods) else None


def examine_sensor(
    sensor: Sensor,
    seconds: float = FULL_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    poll_seconds: float = POLL_SECONDS,
) -> Trust:
    """Poll an open sensor for ``seconds`` and judge it. Raises ReadingFailed if it gave no reading at all."""
    samples: list[Sample] = []
    failure: ReadingFailed | None = None
    until = clock() + seconds
    while clock() < until:
        try:
            samples.append(sensor.read())
        except ReadingFailed as error:
            failure = error
        sleep(poll_seconds)
    if not samples:
        raise failure or ReadingFailed("the sensor was polled for no time")
    return judge(samples)


def first_sample(sensor: Sensor, sleep: Callable[[float], None] = time.sleep) -> Sample:
    """The first sample of an open sensor. Raises ReadingFailed if it gives none, or shows 0 W.

    Nothing that is switched on draws 0 W. Some drivers show it for ever, for example amdgpu on some kernels.
    """
    for pause in (FIRST_VALUE_SECONDS, 0.0):
        sample = sensor.read()
        parts = sample.parts or (sample,)
        if not any(part.power_watts == 0 and part.energy_joules is None for part in parts):
            return sample
        sleep(pause)
    raise ReadingFailed(f"{sensor.source.interface} shows 0 W, which no running device draws")


def known_or_examined(
    sensor: Sensor,
    root: Path,
    seconds: float = SHORT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Trust:
    """The stored trust of this open sensor under ``root``, or a new one, which is then stored."""
    path = cache_path(sensor, root)
    known = _load(path)
    if known is not None and known.seconds >= seconds * 0.9:
        return known
    trust = examine_sensor(sensor, seconds, clock, sleep)
    if trust.in_conflict:
        # Falling power also looks like a conflict, and the result is stored, so check a second time.
        trust = examine_sensor(sensor, seconds, clock, sleep)
    if not trust.counter_stands_still:  # a counter may start to move later, and this is quick to check again
        stored = {"valid_for": identity(sensor), "trust": to_plain(trust)}
        with contextlib.suppress(OSError):  # a folder that cannot be written only costs another check
            replace(path, json.dumps(stored, indent=1) + "\n")
    return trust


def identity(sensor: Sensor) -> dict[str, Any]:
    """The device, interface, driver and kernel that a trust is valid for."""
    source = sensor.source
    return {
        "name": source.name,
        "device": source.device,
        "interface": source.interface,
        "driver": sensor.driver,
        "kernel": platform.release(),
    }


def cache_path(sensor: Sensor, root: Path) -> Path:
    """The file with the stored trust of this open sensor."""
    key = hashlib.sha256(json.dumps(identity(sensor), sort_keys=True).encode()).hexdigest()[:16]
    return root / "trust" / f"{sensor.source.name}-{key}.json"


def _period(values: Sequence[tuple[float, float]]) -> float | None:
    """Median time between refreshes in s; None if there were too few."""
    changes = [moment for (_, before), (moment, after) in pairwise(values) if after != before]
    if len(changes) < LEAST_CHANGES:
        return None
    return statistics.median(after - before for before, after in pairwise(changes))


def _conflict(counted: Sequence[tuple[float, float]], powers: Sequence[tuple[float, float]]) -> float | None:
    if len(counted) < 2 or not powers or counted[-1][0] <= counted[0][0]:
        return None
    slope = (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0])
    mean = statistics.fmean(watts for _, watts in powers)
    return abs(slope - mean) / mean if mean > 0 else None


def _load(path: Path) -> Trust | None:
    """A stored trust; None if there is none, or another version wrote it."""
    try:
        trust = from_plain(json.loads(path.read_text(encoding="utf-8"))["trust"], Trust)
    except (OSError, ValueError, LookupError, TypeError, cattrs.BaseValidationError):
        return None
    return trust if trust.schema == SCHEMA else None
