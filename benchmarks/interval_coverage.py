"""How often does the 95 % interval of a final figure hold the truth? On simulated machines, and on this one.

    python benchmarks/interval_coverage.py                  # simulated machines, 200 final stages each
    python benchmarks/interval_coverage.py --real           # llama.cpp here: quiet machine, about 10 minutes

A final stage visits a few configurations three times each, in random order. `windows alone` is the interval of all
of a trial's windows as if they were independent; `with visits` is what a sweep says (sweeper/results/assemble.py).
On the simulated machines the truth is known. Here it is not: each configuration is visited many times, three of the
visits are taken for a final stage, and the median of all the others stands for the truth.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from search_landscapes import SPACES, Landscape, simulated
from search_runs import Rig
from verify_keeps_promise import write_model

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.virtual_time import PowerTrace, VirtualClock
from sweeper.measure.trial import measure, metrics_of
from sweeper.records import Configuration, Reading, SweepRecord, TrialRecord, Visit, Workload
from sweeper.results.assemble import with_finals
from sweeper.search.finals import FINAL_VISITS, visit_of, visit_stage

FINALISTS = 6
METRICS = ("tokens_per_second", "watts", "prompt_tokens_per_second")
Truth = Callable[[Configuration, str], float | None]
Counts = dict[tuple[str, str], list[tuple[bool, float]]]  # (metric, which): held, relative half-width


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", type=int, default=200, help="final stages on each simulated machine")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--visits", type=int, default=24, help="with --real, of each configuration")
    arguments = parser.parse_args()
    if arguments.real:
        show("this machine", real(arguments.visits))
        return
    for name in SPACES:
        show(name, on_simulated(simulated(name), arguments.stages))


def show(name: str, counts: Counts) -> None:
    for (metric, which), held in counts.items():
        share = statistics.fmean(h for h, _ in held)
        width = statistics.median(w for _, w in held)
        print(
            f"{name:14s} {metric:26s} {which:14s} holds the truth in {share:6.1%} of {len(held)}, ±{width:.2%}"
        )


def on_simulated(landscape: Landscape, stages: int) -> Counts:
    counts: Counts = defaultdict(list)
    points = list(landscape.all_points)
    for seed in range(stages):
        rig = Rig(landscape, seed, short=True)
        chosen = random.Random(seed).sample(points, FINALISTS)
        stage = visit_stage(landscape.workload)
        visits = [
            visit_of(number, visit, rig.measured_at(chosen[number], stage), 0.0)
            for visit in range(FINAL_VISITS)
            for number in random.Random(f"{seed}/{visit}").sample(range(FINALISTS), FINALISTS)
        ]

        def truth(configuration: Configuration, metric: str) -> float | None:
            return (landscape.truth(configuration) or {}).get(metric)

        count(counts, chosen, visits, rig.record(), truth)
    return counts


def count(
    counts: Counts,
    chosen: Sequence[Configuration],
    visits: Sequence[Visit],
    header: SweepRecord,
    truth: Truth,
) -> None:
    """Judge one final stage."""
    trials = [TrialRecord(n, "complete", c) for n, c in enumerate(chosen)]
    for trial in with_finals(trials, visits, header):
        windows = [w for v in visits if v.trial == trial.number for w in v.windows]
        alone, _ = metrics_of(windows, header.workload)
        said: Mapping[str, Mapping[str, Reading]] = {"windows alone": alone, "with visits": trial.metrics}
        for metric, which in itertools.product(METRICS, said):
            true, reading = truth(trial.configuration, metric), said[which].get(metric)
            if true is not None and reading is not None:
                half = (reading.high - reading.low) / 2 / reading.median
                counts[metric, which].append((reading.low <= true <= reading.high, half))


def real(visits: int) -> Counts:
    """Many visits here, then every three of them in turn as a final stage."""
    workload = Workload(prompt_tokens=128, generated_tokens=64, final_seconds=6.0, warmup_seconds=1.0)
    chosen = [
        Configuration(n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, flash_attn=flash)
        for threads, flash in itertools.product((1, 2), (True, False))
    ]
    stage = visit_stage(workload)
    made: list[list[Visit]] = [[] for _ in chosen]
    rig = Rig(simulated("minipc"), 0, short=True)  # for its record's form; its watts stand for none of ours
    with tempfile.TemporaryDirectory() as folder:
        path = write_model("synthetic_110m", Path(folder))
        with LlamaCppEngine({None: path}) as engine, SimulatedMeter(PowerTrace(0.0), VirtualClock()) as meter:
            for visit in range(visits):
                for number in random.Random(visit).sample(range(len(chosen)), len(chosen)):
                    result = measure(chosen[number], engine, meter, workload, stage)
                    made[number].append(visit_of(number, visit, result, 0.0))
                print(f"visit {visit + 1} of {visits}", flush=True)
    counts: Counts = defaultdict(list)
    for start in range(visits - FINAL_VISITS + 1):
        taken = range(start, start + FINAL_VISITS)

        def truth(c: Configuration, metric: str, taken: range = taken) -> float | None:
            if metric == "watts":
                return None
            others = [v for v in made[chosen.index(c)] if v.visit not in taken]
            return statistics.median(metrics_of(v.windows, workload)[0][metric].median for v in others)

        count(counts, chosen, [v for of in made for v in of if v.visit in taken], rig.record(), truth)
    return counts


if __name__ == "__main__":
    main()
