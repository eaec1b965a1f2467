"""Estimated watts, if there is no sensor: utilisation × rated power. Always labelled ``estimated``.

The model is idle + (busy − idle) × u. Here u is the share of processor time in use, from ``/proc/stat`` or, on macOS,
from psutil. The estimate is a cumulative energy, so windows need no alignment. The error comes from the two ratings,
which may be far off, not from sampling.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from sweeper.errors import ReadingFailed, SensorMissingError
from sweeper.meter.base import PLUG, DeviceState, Sample, Sensor
from sweeper.meter.sysfs import package_temperature, read_text
from sweeper.power_settings import EstimateSettings
from sweeper.records import Caveat, PowerSource

# Default ratings. A mini PC or a desktop without load draws 5 to 40 W, and a core in use 3 to 15 W. These values lie in
# the lower middle, for small machines. They are not measured.
DEFAULT_IDLE_WATTS = 10.0
DEFAULT_WATTS_PER_CPU = 5.0


class EstimateSensor(Sensor):
    """Energy estimated from the processors' utilisation."""

    def __init__(
        self,
        settings: EstimateSettings | None = None,
        procfs_root: Path = Path("/proc"),
        sysfs_root: Path = Path("/sys"),
        clock: Callable[[], float] = time.monotonic,
        gpu_used: bool = False,
        ticks_per_second: int | None = None,
    ) -> None:
        """Use the given ratings, or defaults for missing ones.

        Args:
            settings: the ratings in W.
            procfs_root: where procfs is mounted.
            sysfs_root: where sysfs is mounted, for the temperature.
            clock: stamps the samples.
            gpu_used: whether a GPU works as well; this estimate does not cover it.
            ticks_per_second: the unit of ``/proc/stat``; None asks the system.
        """
        super().__init__(clock)
        self._stat = procfs_root / "stat"
        self._sysfs = sysfs_root
        self._ticks = ticks_per_second or os.sysconf("SC_CLK_TCK")
        lines = (read_text(self._stat) or "").splitlines()
        self._cpus = sum(1 for line in lines if line.startswith("cpu") and line[3:4].isdigit())
        self._has_procfs = sys.platform == "linux" or self._cpus > 0
        if not self._has_procfs:  # macOS: psutil asks the kernel
            self._cpus = psutil.cpu_count() or 0
        self._idle_watts, self._busy_watts, note = ratings(settings or EstimateSettings(), self._cpus)
        self._origin = self._last = (0.0, 0.0)
        self.caveats = (Caveat.ESTIMATED, Caveat.MISSING_DOMAIN) if gpu_used else (Caveat.ESTIMATED,)
        self.source = PowerSource(
            name="estimate",
            interface=f"{'/proc/stat' if self._has_procfs else 'CPU times'} of {self._cpus} CPUs",
            scope="package",
            kind="estimated",
            update_period_seconds=1.0 / self._ticks,
            note=note + ("; the GPU's power is not included" if gpu_used else ""),
        )

    def _find(self) -> None:
        if not self._cpus:
            raise SensorMissingError(f"cannot estimate power, since {self._stat} lists no CPU", PLUG)
        self._origin = self._last = self._now()

    def _take(self) -> Sample:
        """Estimated joules since ``open``, and the mean power since the last reading."""
        now, before = self._now(), self._last
        seconds = now[0] - before[0]
        self._last = now
        watts = self._joules(before, now) / seconds if seconds > 0 else None
        return Sample(now[0], energy_joules=self._joules(self._origin, now), power_watts=watts)

    def state(self) -> DeviceState:
        """The processor's temperature, if available."""
        return DeviceState(temperature_celsius=package_temperature(self._sysfs))

    def _joules(self, before: tuple[float, float], after: tuple[float, float]) -> float:
        seconds = after[0] - before[0]
        # The kernel counts in ticks, so over a short time a core can seem busier than the clock allows.
        busy = min(max(0.0, after[1] - before[1]), seconds * self._cpus)
        return self._idle_watts * seconds + (self._busy_watts - self._idle_watts) * busy / self._cpus

    def _now(self) -> tuple[float, float]:
        """The moment, and the busy seconds of all CPUs since boot."""
        moment = self._clock()
        if not self._has_procfs:
            times = psutil.cpu_times()
            return moment, times.user + times.nice + times.system
        try:
            with self._stat.open(encoding="utf-8") as lines:
                values = [int(word) for word in lines.readline().split()[1:]]
        except (OSError, ValueError) as error:
            raise ReadingFailed(f"cannot read {self._stat}: {error}") from error
        # user nice system idle iowait irq softirq steal guest guest_nice: user and nice include the guests, and stolen
        # time is the work of other machines.
        user, nice, system, _idle, _iowait, irq, softirq = values[:7]
        return moment, (user + nice + system + irq + softirq) / self._ticks


def ratings(settings: EstimateSettings, cpus: int) -> tuple[float, float, str]:
    """Idle and busy watts, and a note about their origin."""
    idle, busy = settings.idle_watts, settings.busy_watts
    guessed = [name for name, watts in (("idle_watts", idle), ("busy_watts", busy)) if watts is None]
    if idle is None:
        idle = DEFAULT_IDLE_WATTS if busy is None else min(DEFAULT_IDLE_WATTS, busy / 2)
    if busy is None:
        busy = idle + DEFAULT_WATTS_PER_CPU * max(1, cpus)
    watts = f"{idle:g} W when idle and {busy:g} W with all {cpus} CPUs busy"
    note = f"watts follow from CPU use: {watts}"
    if guessed:
        keys = " and ".join(f"power.estimate.{name}" for name in guessed)
        note = f"watts follow from CPU use, and this assumes {watts}; set {keys} to your own"
    return idle, busy, note
