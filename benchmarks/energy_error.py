"""How far joules over random windows are from the truth: thousands of windows, simulated at the sensor.

The truth is a power that rests, works in steps and rests again. A third of the windows lie inside the load; a third
begin and end with it, as a trial's do; and a third besides follow a heavier load at once, as decode follows prefill. A
sensor shows the truth as a staircase with its update period, at a random phase; the sampler looks as often as the
meter does, with a busy machine's jitter; counters wrap at random moments; samples get lost and doubled.

    python benchmarks/energy_error.py [--windows 4000] [--seed 1]
"""

from __future__ import annotations

import argparse
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from sweeper.meter.base import Sample
from sweeper.meter.integrate import CounterTrack, Integral, integrate
from sweeper.meter.sampling import MOST_BUSY_SHARE, look_seconds
from sweeper.meter.sensors.nvml import AVERAGE_SETTLING_SECONDS

try:
    from sweeper.meter.sampling import next_pause
except ImportError:  # versions before jittered sampling, which `error_bars.py --before` runs

    def next_pause(pause: float, period: float | None, rng: random.Random) -> float:  # type: ignore[misc]
        """Sampling at even intervals."""
        return pause


HZ = 10.0  # the default of power.sample_hz
# Processor time of one look at NVML on a busy machine (sampler_cost.py): the budget may slow the looks down.
LOOK_COST_SECONDS = 0.00026
JITTER_SECONDS = 0.003
MEAN_REFRESH_SECONDS = 0.1  # a mean of the last second is refreshed as often as other power


@dataclass(frozen=True)
class Sensor:
    """A kind of sensor: what it gives, its update period in s, and where its counter wraps."""

    name: str
    is_counter: bool
    period: float
    range_joules: float | None = None
    lose: float = 0.0
    double: float = 0.0
    settling: float | None = None  # of power that is the mean of the last second


SENSORS = (
    Sensor("RAPL Intel, 262 kJ", True, 0.001, 262_143.32885),
    Sensor("RAPL AMD, 65 kJ", True, 0.001, 65_532.610987),
    Sensor("NVML counter, 20 ms", True, 0.02),
    Sensor("NVML counter, 100 ms", True, 0.1),
    Sensor("RAPL AMD, 10 % lost, 10 % doubled", True, 0.001, 65_532.610987, 0.1, 0.1),
    Sensor("power, 20 ms", False, 0.02),
    Sensor("power, 100 ms", False, 0.1),
    Sensor("power, 100 ms, 10 % lost", False, 0.1, None, 0.1),
    Sensor("power, mean of 1 s", False, 1.0, settling=AVERAGE_SETTLING_SECONDS),
    Sensor("power, 1 s (plug)", False, 1.0),
)


class Truth:
    """A power in W that steps, with its exact energy."""

    def __init__(self, steps: Sequence[tuple[float, float]]) -> None:
        """Take the steps: from each moment on, so many watts."""
        self._moments = [moment for moment, _ in steps]
        self._watts = [watts for _, watts in steps]
        lasting = [later - earlier for earlier, later in pairwise(self._moments)]
        self._joules = [0.0, *accumulate(w * s for w, s in zip(self._watts, lasting, strict=False))]

    def watts(self, moment: float) -> float:
        """The power in W at a moment."""
        return self._watts[bisect_right(self._moments, moment) - 1]

    def joules(self, moment: float) -> float:
        """The exact energy in J until a moment."""
        step = bisect_right(self._moments, moment) - 1
        return self._joules[step] + self._watts[step] * (moment - self._moments[step])


def wandering(
    rng: random.Random, seconds: float, before: float, after: float, follows_prefill: bool
) -> Truth:
    """A load that steps by up to 40 %. It begins ``before`` and ends ``after`` the window, which starts at 10 s."""
    load, rest = rng.uniform(20, 600), rng.uniform(5, 20)
    steps = [(0.0, rest), (10.0, load)]
    if follows_prefill:
        prefill = (6.0, load * rng.uniform(1.2, 2.0))
        steps[1:1] = [prefill, (10.0 - rng.uniform(0.001, 0.05), rest)]
    moment, end = 10.0 + rng.uniform(0.3, 3.0), 10.0 + before + seconds + after
    while moment < end:
        steps.append((moment, load * rng.uniform(0.8, 1.2)))
        moment += rng.uniform(0.3, 3.0)
    return Truth([*steps, (end, rest)])


def read_window(rng: random.Random, sensor: Sensor, truth: Truth, started: float, ended: float) -> Integral:
    """The window's energy, as the meter reads it through this sensor."""
    origin = (sensor.range_joules or 0.0) - rng.uniform(truth.joules(started), truth.joules(ended))
    pause = look_seconds(sensor.period, sensor.is_counter, HZ, LOOK_COST_SECONDS, MOST_BUSY_SHARE)
    refresh = MEAN_REFRESH_SECONDS if sensor.settling else sensor.period
    phase = rng.uniform(0, refresh)
    track = CounterTrack(sensor.range_joules, max_watts=1500.0)
    samples: list[Sample] = []
    moment = started - rng.uniform(0.001, 0.05)
    while True:
        is_edge = not samples or moment >= ended
        shown = math.floor((moment - phase) / refresh) * refresh + phase
        if is_edge or rng.random() >= sensor.lose:
            if sensor.is_counter:
                raw = origin + truth.joules(shown)
                raw = raw % sensor.range_joules if sensor.range_joules else raw
                joules, epoch = track.advance(moment, raw)
                samples.append(Sample(moment, energy_joules=joules, epoch=epoch))
            elif sensor.settling:
                mean = truth.joules(shown) - truth.joules(shown - 1.0)
                samples.append(Sample(moment, power_watts=mean))
            else:
                samples.append(Sample(moment, power_watts=truth.watts(shown)))
            if rng.random() < sensor.double:
                samples.append(replace(samples[-1]))
        if moment >= ended:
            break
        wait = pause if sensor.is_counter else next_pause(pause, sensor.period, rng)
        moment = min(
            moment + wait + rng.expovariate(1 / JITTER_SECONDS),
            max(ended + rng.uniform(0, 0.02), moment + 0.001),
        )
    return integrate(samples, started, ended, sensor.period, sensor.settling)


def one_window(
    rng: random.Random, sensor: Sensor, seconds: float
) -> tuple[float, float | None, float | None]:
    """The truth in J, the answer in J, and its error bar."""
    kind = rng.choice(("inside", "alone", "after prefill"))
    before, after = (rng.uniform(0.0, 0.3), 2.0) if kind == "inside" else (0.0, 0.0)
    truth = wandering(rng, seconds, before, after, kind == "after prefill")
    started = 10.0 + before
    ended = started + seconds
    integral = read_window(rng, sensor, truth, started, ended)
    return truth.joules(ended) - truth.joules(started), integral.joules, integral.error_fraction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    print(
        "| sensor | window | windows | median error | 99 % | worst | u/T | above u/T | bar | above its bar | none |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for sensor in SENSORS:
        for least, periods in ((5.0, 50), (10.0, 100)):
            rng = random.Random(f"{chosen.seed} {sensor.name} {least}")
            seconds = max(least, periods * max(sensor.period, sensor.settling or 0.0))
            errors, bars, above, beyond, none = [], [], 0, 0, 0
            for _ in range(chosen.windows):
                truth, answer, bar = one_window(rng, sensor, seconds)
                if answer is None or bar is None:
                    none += 1
                    continue
                error = abs(answer / truth - 1)
                errors.append(error)
                bars.append(bar)
                above += error > sensor.period / seconds
                beyond += error > bar
            errors.sort()
            bars.sort()
            print(
                f"| {sensor.name} | {seconds:g} s | {chosen.windows} | {errors[len(errors) // 2]:.3%} "
                f"| {errors[int(len(errors) * 0.99)]:.3%} | {errors[-1]:.3%} | {sensor.period / seconds:.3%} "
                f"| {above / len(errors):.1%} | {bars[len(bars) // 2]:.2%} | {beyond / len(errors):.1%} | {none} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
