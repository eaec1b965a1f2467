"""A real search on this machine: ours beside plain TPE with a fresh process for each trial, for the same minutes.

    python benchmarks/search_for_real.py --table benchmarks/tables/cpu-110m.csv.gz --root FOLDER

Both search the table's own space on the same model and objectives, in turn. What each has measured when its
time is up is judged by the table's truth (recorded_truth.py): the share of the true front's hypervolume. Run it
on the machine that recorded the table, quiet.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import optuna
from search_landscapes import OBJECTIVES, Landscape, recorded

from sweeper.config import Composed, compose
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.errors import TrialFailed
from sweeper.measure.trial import Stage, measure
from sweeper.meter.choose import find_meter
from sweeper.model.obtain import obtain
from sweeper.model.quantise import quantised
from sweeper.records import Configuration
from sweeper.results.front import hypervolume
from sweeper.search.study import SweepStudy

COLUMNS = ("round", "method", "seconds", "trials", "share", "trials_to_95", "seconds_to_95")
# The windows of `workload=quick`; the table's own are shorter, since it goes over each point more than once.
WINDOWS = ("workload.screening_seconds=2.4", "workload.screening_repeats=3", "workload.warmup_seconds=1.5")

Found = list[tuple[float, Configuration]]  # seconds since the search began, at each measured trial's end


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="an empty folder, or one of an earlier run")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search_for_real.csv")
    arguments = parser.parse_args()
    landscape = recorded(arguments.table, OBJECTIVES)
    overrides = [
        f"root='{arguments.root}'",
        "experiment=cpu_table",
        "objectives.constraints.kl_divergence=null",
        *WINDOWS,
    ]
    rows = []
    for number in range(arguments.rounds):
        for method in ("ours", "plain TPE") if number % 2 == 0 else ("plain TPE", "ours"):
            if method == "ours":
                found = ours(
                    [*overrides, f"search.seed={number}"], arguments.root, arguments.minutes, f"real-{number}"
                )
            else:
                found = plain_tpe(compose(overrides), arguments.root, arguments.minutes, number, landscape)
            rows.append({"round": number + 1, "method": method, **judged(found, landscape)})
            print(rows[-1], flush=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def ours(overrides: Sequence[str], root: Path, minutes: float, name: str) -> Found:
    """`sweeper sweep`, as anybody would type it, without what it learned before."""
    own = [f"name={name}", f"search.minutes={minutes:g}", "search.trials=null", "search.patience=null"]
    own += ["search.finalists=1", "search.transfer=false"]
    subprocess.run(
        [sys.executable, "-m", "sweeper", "sweep", *overrides, *own],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1"},
    )
    trials = SweepStudy.load(root, name).trials()
    began = datetime.fromisoformat(trials[0].started_utc)
    return [
        ((datetime.fromisoformat(t.started_utc) - began).total_seconds() + t.seconds, t.configuration)
        for t in trials
        if t.state == "complete"
    ]


def plain_tpe(composed: Composed, root: Path, minutes: float, seed: int, landscape: Landscape) -> Found:
    """Optuna's default multi-objective sampler; each trial starts a process, loads, and runs every window."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings, space = composed.settings, landscape.space
    model = settings.model
    base = Path(obtain(model, root).file(None).path)
    files: dict[str | None, Path] = {None: base, model.quant: base}
    for quant in space.parameters["quant"].values:
        if quant not in files:
            files[quant] = Path(quantised(base, quant, root).file.path)
    workload = settings.workload_record()
    study = optuna.create_study(
        directions=["maximize" if sign > 0 else "minimize" for _, sign in OBJECTIVES],
        sampler=optuna.samplers.TPESampler(seed=seed),
    )
    meter, _ = find_meter(settings.power, root, gpu_used=False)
    found: Found = []
    with meter:
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial = study.ask(space.distributions())
            configuration = space.configuration(trial.params)
            if space.violations(configuration):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            try:
                with LlamaCppEngine(files) as engine:
                    result = measure(configuration, engine, meter, workload, Stage.screening(workload))
            except TrialFailed:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            study.tell(trial, [result.metrics[metric].median for metric, _ in OBJECTIVES])
            found.append((time.monotonic() - began, configuration))
    return found


def judged(found: Found, landscape: Landscape) -> dict[str, object]:
    """What the measured configurations are worth by the table's truth."""
    points: list[tuple[float, ...]] = []
    shares = []
    for _, configuration in found:
        points.append(landscape.all_points[configuration])
        shares.append(hypervolume(points, landscape.reference) / landscape.volume)
    reached = next((i for i, share in enumerate(shares) if share >= 0.95), None)
    return {
        "seconds": round(found[-1][0]),
        "trials": len(found),
        "share": round(shares[-1], 4),
        "trials_to_95": "" if reached is None else reached + 1,
        "seconds_to_95": "" if reached is None else round(found[reached][0]),
    }


if __name__ == "__main__":
    main()
