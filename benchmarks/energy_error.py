"""How far joules over random windows are from the truth: thousands of windows, simulated at the sensor.

The truth is a power that rests, works in steps and rests again; a sensor shows it as a staircase with its
update period, at a random phase; the sampler looks at 10 Hz with a busy machine's jitter; counters wrap at
random moments; samples get lost and doubled.

    python benchmarks/energy_error.py [--windows 4000] [--seed 1]
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass, replace

from sweeper.power.base import Sample
from sweeper.power.integrate import CounterTrack, integrate


@dataclass(frozen=True)
class Sensor:
    """A kind of sensor: what it gives, its update period in s, and where its counter wraps."""

    name: str
    is_counter: bool
    period: float
    range_joules: float | None = None
    lose: float = 0.0
    double: float = 0.0


SENSORS = (
    Sensor("RAPL Intel, 262 kJ", True, 0.001, 262_143.32885),
    Sensor("RAPL AMD, 65 kJ", True, 0.001, 65_532.610987),
    Sensor("NVML counter, 20 ms", True, 0.02),
    Sensor("NVML counter, 100 ms", True, 0.1),
    Sensor("RAPL AMD, 10 % lost, 10 % doubled", True, 0.001, 65_532.610987, 0.1, 0.1),
    Sensor("power, 20 ms", False, 0.02),
    Sensor("power, 100 ms", False, 0.1),
    Sensor("power, 100 ms, 10 % lost", False, 0.1, None, 0.1),
    Sensor("power, 1 s (plug)", False, 1.0),
)


class Truth:
    """Steps of power in W: from each moment on."""

    def __init__(self, rng: random.Random, seconds: float) -> None:
        load, rest = rng.uniform(20, 600), rng.uniform(5, 20)
        self.steps = [(-1e3, rest), (10.0, load)]
        moment = 10.0
        while moment < 10 + seconds:
            moment += rng.uniform(0.3, 3.0)
            self.steps.append((moment, load * rng.uniform(0.8, 1.2)))
        self.steps.append((10 + seconds + 2.0, rest))
        self.steps.sort()

    def watts(self, moment: float) -> float:
        """The power in W at a moment."""
        return next(w for t, w in reversed(self.steps) if t <= moment)

    def joules(self, started: float, ended: float) -> float:
        """The exact energy in J between two moments."""
        edges = [*(t for t, _ in self.steps), math.inf]
        return sum(
            w * max(0.0, min(ended, edges[i + 1]) - max(started, t)) for i, (t, w) in enumerate(self.steps)
        )


def one_window(
    rng: random.Random, sensor: Sensor, seconds: float
) -> tuple[float, float | None, float | None]:
    """The truth in J, the answer in J, and its error bar."""
    truth = Truth(rng, seconds)
    started = 10.0 + rng.uniform(0.0, 0.3)
    ended = started + seconds
    origin = (
        (sensor.range_joules or 0.0) - rng.uniform(0, truth.joules(10.0, ended)) - truth.joules(-1e3, 10.0)
    )
    phase = rng.uniform(0, sensor.period)
    track = CounterTrack(sensor.range_joules, max_watts=1000.0)
    samples: list[Sample] = []
    moment = started - rng.uniform(0.001, 0.05)
    while True:
        is_edge = not samples or moment >= ended
        shown = math.floor((moment - phase) / sensor.period) * sensor.period + phase
        if is_edge or rng.random() >= sensor.lose:
            if sensor.is_counter:
                raw = origin + truth.joules(-1e3, shown)
                raw = raw % sensor.range_joules if sensor.range_joules else raw
                joules, epoch = track.advance(moment, raw)
                samples.append(Sample(moment, energy_joules=joules, epoch=epoch))
            else:
                samples.append(Sample(moment, power_watts=truth.watts(shown)))
            if rng.random() < sensor.double:
                samples.append(replace(samples[-1]))
        if moment >= ended:
            break
        moment = min(
            moment + 0.1 + rng.expovariate(1 / 0.003), max(ended + rng.uniform(0, 0.02), moment + 0.001)
        )
    integral = integrate(samples, started, ended, sensor.period)
    return truth.joules(started, ended), integral.joules, integral.error_fraction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    print(
        "| sensor | window | windows | median error | 99 % | worst | u/T | above u/T | above its bar | none |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for sensor in SENSORS:
        for least, periods in ((5.0, 50), (10.0, 100)):
            rng = random.Random(f"{chosen.seed} {sensor.name} {least}")
            seconds = max(least, periods * sensor.period)
            errors, above, beyond, none = [], 0, 0, 0
            for _ in range(chosen.windows):
                truth, answer, bar = one_window(rng, sensor, seconds)
                if answer is None or bar is None:
                    none += 1
                    continue
                error = abs(answer / truth - 1)
                errors.append(error)
                above += error > sensor.period / seconds
                beyond += error > bar
            errors.sort()
            print(
                f"| {sensor.name} | {seconds:g} s | {chosen.windows} | {errors[len(errors) // 2]:.3%} "
                f"| {errors[int(len(errors) * 0.99)]:.3%} | {errors[-1]:.3%} | {sensor.period / seconds:.3%} "
                f"| {above / len(errors):.1%} | {beyond / len(errors):.1%} | {none} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
