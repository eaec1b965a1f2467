"""How many windows stay disturbed beside bursts, with the waits and spare windows that a sweep has. In virtual time.

Bursts and pauses of a process that fills one of two cores have random lengths of the given means. The speeds are those
of a simulated machine, and only the times count. No figure is measured:

    python benchmarks/waits_beside_bursts.py --mean 1 3 15
"""

from __future__ import annotations

import argparse
import bisect
import random

from sweeper.config import compose
from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.simulator import MACHINES, SimulatedEngine, default_configuration
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.disturbance import Load, Processes, Watch, is_disturbed
from sweeper.measure.trial import Stage, measure
from sweeper.records import Visit
from sweeper.results.assemble import undisturbed
from sweeper.search.finals import FINAL_VISITS, visit_of, visit_stage

FINALISTS = 5  # with the baseline
LOAD_SECONDS = 1.0  # of a trial's model


class Bursts:
    """A load source whose other process is busy in bursts."""

    cores = 2

    def __init__(self, clock: VirtualClock, draw: random.Random, mean_seconds: float) -> None:
        self._clock = clock
        self._ends, self._busy = [0.0], [0.0]
        on = False
        while self._ends[-1] < 5000:
            seconds = draw.expovariate(1 / mean_seconds)
            self._ends.append(self._ends[-1] + seconds)
            self._busy.append(self._busy[-1] + (seconds if on else 0.0))
            on = not on

    def follow(self) -> None:
        """There is only the sweep."""

    def load(self) -> Load:
        """The engine keeps one core busy in the kernel's eyes; the rest is of others."""
        now = self._clock()
        return Load(now, now + self._used(now), 0.0, None, {1: now})

    def processes(self) -> Processes:
        """The process that is busy in bursts."""
        return {(2, 0.0): ("bursts", self._used(self._clock()))}

    def _used(self, now: float) -> float:
        at = bisect.bisect(self._ends, now) - 1
        on = self._busy[at + 1] > self._busy[at]
        return self._busy[at] + (now - self._ends[at] if on else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mean", type=float, nargs="*", default=[1.0, 3.0, 15.0], help="seconds of a burst")
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--limit", type=float, default=60.0, help="search.wait_for_quiet")
    arguments = parser.parse_args()
    print("| burst | sweep | trials | disturbed trials | waited | finalists disturbed | waited | all |")
    print("|---|---|---|---|---|---|---|---|")
    for mean in arguments.mean:
        for seed in range(arguments.sweeps):
            print(f"| {mean:g} s | {seed} | {' | '.join(sweep(seed, mean, arguments.limit))} |", flush=True)


def sweep(seed: int, mean: float, limit_seconds: float) -> list[str]:
    """One sweep of ``experiment=quick`` with one configuration throughout."""
    settings = compose(["experiment=quick"]).settings
    search, workload = settings.search, settings.workload_record()
    clock = VirtualClock()
    machine = MACHINES["server"]
    engine = SimulatedEngine(machine, clock, seed=seed)
    meter = SimulatedMeter(engine.trace, clock)
    bursts = Bursts(clock, random.Random(seed), mean)
    watch = Watch(bursts, 2, limit_seconds, search.minutes, clock, clock.advance)
    configuration = default_configuration(machine).with_(n_threads=2, n_threads_batch=2)

    def trial(stage: Stage):
        clock.advance(LOAD_SECONDS)
        return measure(configuration, engine, meter, workload, stage, sleep=clock.advance, watch=watch)

    watch.wait(lambda line: None)
    screened: list[bool] = []
    while clock() < 60 * search.minutes and len(screened) < search.trials:
        screened.append(any(map(is_disturbed, trial(Stage.screening(workload)).windows)))
    waited = watch.waited_seconds
    watch.finals_begin()
    visits: dict[int, list[Visit]] = {number: [] for number in range(FINALISTS)}
    for visit in range(FINAL_VISITS):
        for number, done in visits.items():
            done.append(visit_of(number, visit, trial(visit_stage(workload)), 0.0))
    left = sum(any(is_disturbed(w) for v in undisturbed(of) for w in v.windows) for of in visits.values())
    figures = (len(screened), sum(screened), f"{waited:.0f} s", f"{left} of {FINALISTS}")
    return [*map(str, figures), f"{watch.waited_seconds - waited:.0f} s", f"{clock():.0f} s"]


if __name__ == "__main__":
    main()
