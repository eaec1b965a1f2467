"""How often does the error bar of an energy window hold the true error, and how wide is it? In virtual time.

The loads are square waves, ramps and decode traces, with steps of 5 to 80 % and periods of 20 ms to 5 s. Some
square waves run in step with the sensor: their period is a whole number of its refreshes. A third of the windows lie
inside the load; the others begin and end with it.

    python benchmarks/error_bars.py [--windows 60] [--seed 1] [--before REVISION]

``--before`` also runs the same windows with the meter of another git revision.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from energy_error import Sensor, Truth, read_window

from sweeper.meter.sensors.nvml import AVERAGE_SETTLING_SECONDS

SENSORS = (
    Sensor("energy counter, 1 ms (RAPL)", True, 0.001, 262_143.32885),
    Sensor("energy counter, 20 ms", True, 0.02),
    Sensor("energy counter, 100 ms", True, 0.1),
    Sensor("instant power, 20 ms", False, 0.02),
    Sensor("instant power, 100 ms", False, 0.1),
    Sensor("instant power, 100 ms, 10 % lost", False, 0.1, None, 0.1),
    Sensor("averaged power, 1 s", False, 1.0, settling=AVERAGE_SETTLING_SECONDS),
    Sensor("plug, 1 s", False, 1.0),
)
STEPS = (0.05, 0.2, 0.5, 0.8)
PERIODS = (0.02, 0.05, 0.1, 0.3, 0.7, 2.0, 5.0)
# In step: so many refreshes of the sensor make one period of the load.
REFRESHES = (2, 3, 7, 20)
Steps = Iterator[tuple[float, float]]
Load = Callable[[random.Random, float, float], Steps]  # rng, seconds, refresh


def steady(rng: random.Random, seconds: float, refresh: float) -> Steps:
    """Decode at one speed: each token draws the same power within 2 %."""
    moment = 0.0
    while moment < seconds:
        yield moment, rng.gauss(1.0, 0.02)
        moment += 0.03


def square(rng: random.Random, seconds: float, refresh: float, period: float | None = None) -> Steps:
    """A square wave with any duty cycle and any period."""
    step, duty = rng.choice(STEPS), rng.uniform(0.3, 0.7)
    period = period or rng.choice(PERIODS) * rng.uniform(0.8, 1.25)
    moment = -rng.uniform(0, period)
    while moment < seconds:
        yield moment, 1.0
        yield moment + duty * period, 1.0 - step
        moment += period


def in_step(rng: random.Random, seconds: float, refresh: float) -> Steps:
    """A square wave whose period is a whole number of refreshes."""
    return square(rng, seconds, refresh, refresh * rng.choice(REFRESHES))


def ramp(rng: random.Random, seconds: float, refresh: float) -> Steps:
    """Power that climbs or falls once, or again and again."""
    step, down = rng.choice(STEPS), rng.random() < 0.5
    period = rng.choice((seconds, rng.uniform(1.0, 5.0)))
    for tick in range(math.ceil(seconds / 0.005)):
        share = (tick * 0.005 % period) / period
        yield tick * 0.005, 1.0 - step * (share if down else 1.0 - share)


def decode(rng: random.Random, seconds: float, refresh: float) -> Steps:
    """Tokens of 20 to 80 ms with a pause of the GPU after each, and now and then a longer pause."""
    step, token, level, moment = rng.choice(STEPS), rng.uniform(0.02, 0.08), 1.0, 0.0
    while moment < seconds:
        length, busy = token * rng.uniform(0.9, 1.1), rng.uniform(0.7, 0.9)
        level += 0.1 * (1.0 - level) + rng.gauss(0, 0.01)
        yield moment, level
        yield moment + length * busy, level * (1.0 - step)
        moment += length + (rng.uniform(0.05, 0.5) if rng.random() < 0.02 else 0.0)


LOADS: dict[str, Load] = {
    "steady": steady,
    "square": square,
    "in step": in_step,
    "ramp": ramp,
    "decode": decode,
}


def one_window(rng: random.Random, sensor: Sensor, load: Load) -> tuple[float, float | None, bool]:
    """A window's error as a fraction of its true energy, its bar, and whether it warns of a load in step."""
    seconds = max(5.0, 50 * max(sensor.period, sensor.settling or 0.0))
    watts, rest = rng.uniform(50, 500), rng.uniform(5, 20)
    is_inside = rng.random() < 1 / 3
    begins, ends = (8.0, 11.0 + seconds) if is_inside else (10.0, 10.0 + seconds)
    refresh = 0.1 if sensor.settling else max(sensor.period, 0.02)
    steps = [(max(begins, begins + at), watts * share) for at, share in load(rng, ends - begins, refresh)]
    steps = [(0.0, rest), *(step for step in steps if step[0] < ends), (ends, rest)]
    truth = Truth(steps)
    joules = truth.joules(10.0 + seconds) - truth.joules(10.0)
    integral = read_window(rng, sensor, truth, 10.0, 10.0 + seconds)
    if integral.joules is None or integral.error_fraction is None:
        return 0.0, None, False
    return abs(integral.joules / joules - 1), integral.error_fraction, getattr(integral, "in_step", False)


@dataclass(frozen=True)
class Coverage:
    """How the bars of one sensor do: shares of windows, and medians as fractions of the energy."""

    held: dict[str, float]  # by load: the windows whose bar holds the error
    held_or_warned: float  # of all loads: these, and windows that warn of a load in step
    error: float  # of steady loads
    bar: float
    held_by_twice: float  # the share of steady windows that a bar of twice the median error would hold

    @property
    def all_held(self) -> float:
        """The share over all loads."""
        return statistics.fmean(self.held.values())


def coverage(sensor: Sensor, windows: int, seed: int = 1) -> Coverage:
    """Measure so many windows of each load."""
    held: dict[str, float] = {}
    good: list[bool] = []
    errors: list[float] = []
    bars: list[float] = []
    for name, load in LOADS.items():
        rng = random.Random(f"{seed} {sensor.name} {name}")
        found = [one_window(rng, sensor, load) for _ in range(windows)]
        held[name] = statistics.fmean(bar is not None and error <= bar for error, bar, _ in found)
        good += [warns or (bar is not None and error <= bar) for error, bar, warns in found]
        if name == "steady":
            errors = [error for error, bar, _ in found if bar is not None]
            bars = [bar for _, bar, _ in found if bar is not None]
    median = statistics.median(errors)
    twice = statistics.fmean(error <= 2 * median for error in errors)
    return Coverage(held, statistics.fmean(good), median, statistics.median(bars), twice)


def table(windows: int, seed: int) -> None:
    heads = [*LOADS, "all", "or warned", "error, steady", "bar, steady", "bar / error", "held by 2 errors"]
    print(f"| sensor | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 1) + "|")
    for sensor in SENSORS:
        found = coverage(sensor, windows, seed)
        cells = [f"{share:.0%}" for share in found.held.values()]
        cells += [f"{found.all_held:.1%}", f"{found.held_or_warned:.1%}"]
        cells += [f"{found.error:.3%}", f"{found.bar:.3%}"]
        cells += [f"{found.bar / found.error:.1f}", f"{found.held_by_twice:.0%}"]
        print(f"| {sensor.name} | {' | '.join(cells)} |", flush=True)


def table_of(revision: str, windows: int, seed: int) -> None:
    """The same table with the meter of another revision."""
    here = Path(__file__).resolve()
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "tree.tar"
        subprocess.run(
            ["git", "archive", "-o", archive, revision, "sweeper"], cwd=here.parent.parent, check=True
        )
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        command = [sys.executable, here, "--windows", str(windows), "--seed", str(seed)]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": folder}, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=60, help="of each load and sensor")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--before", metavar="REVISION")
    chosen = parser.parse_args()
    if chosen.before:
        print(f"before ({chosen.before}):")
        table_of(chosen.before, chosen.windows, chosen.seed)
        print("now:")
    table(chosen.windows, chosen.seed)


if __name__ == "__main__":
    main()
