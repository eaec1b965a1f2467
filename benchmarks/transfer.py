"""Does a second sweep on a machine, of another model, find its front sooner for what the first one found?

    python benchmarks/transfer.py --seeds 20

On each simulated machine one model is swept, then another, with all the ways of starting side by side and the same
noise: anew; from the first one's best points (measured after the default); from those and a model that all its
trials have joined (sweeper/search/prior.py). Writes
``results/transfer.csv``: trials and virtual seconds to 90, 95 and 99 % of the second front's hypervolume.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from search import RESULTS, SHARES, quartiles
from search_landscapes import Landscape, simulated
from search_runs import Rig, ask_and_tell, objectives_of

from sweeper.lab.simulated_hardware import SimulatedModel
from sweeper.records import Configuration
from sweeper.results.assemble import conclude
from sweeper.results.picks import DEFAULT_PICK, line_of
from sweeper.search.gp_front import GpFrontSampler
from sweeper.search.transfer import Earlier, handed_on
from sweeper.search.warm_start import initial_design

# What is swept second: larger on the mini PC and the server, smaller on the PC with a small card.
SECOND = {
    "minipc": SimulatedModel("simulated-13b", 13.0e9, 40, 5120, 40, 5120),
    "gpu_pc": SimulatedModel("simulated-8b", 8.0e9, 32, 4096, 32, 1024),
    "server": SimulatedModel("simulated-70b", 70.0e9, 80, 8192, 64, 1024),
}
WAYS = ("anew", "points", "points and model")
COLUMNS = (
    "machine",
    "way",
    "seed",
    *(f"trials_to_{s * 100:.0f}" for s in SHARES),
    *(f"seconds_to_{s * 100:.0f}" for s in SHARES),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS / "transfer.csv")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name, model in SECOND.items():
        first, second = simulated(name), simulated(name, model)
        for seed in range(arguments.seeds):
            rig = Rig(first, seed, short=True)
            ask_and_tell(rig, sampler(first, seed), (), arguments.trials)
            earlier = handed_on(conclude(rig.record()), second.space)
            rows += [row(name, second, way, seed, earlier, arguments.trials) for way in WAYS]
        show(name, rows)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def sampler(landscape: Landscape, seed: int, earlier: Earlier | None = None) -> GpFrontSampler:
    return GpFrontSampler(
        landscape.space,
        seed,
        baseline=landscape.baseline,
        allowed=landscape.forecast,
        line=line_of(objectives_of(landscape), DEFAULT_PICK),
        metrics=[metric for metric, _ in landscape.objectives],
        earlier=earlier.measured if earlier else (),
    )


def row(
    machine: str, landscape: Landscape, way: str, seed: int, earlier: Earlier, trials: int
) -> dict[str, object]:
    """One search of the second model."""
    corners = initial_design(landscape.space, landscape.baseline, 6, seed)
    firsts: Sequence[Configuration] = corners
    if "points" in way:
        firsts = tuple(dict.fromkeys((corners[0], *earlier.configurations, *corners[1:])))
    rig = Rig(landscape, 1000 + seed, short=True)
    ask_and_tell(rig, sampler(landscape, seed, earlier if "model" in way else None), firsts, trials)
    found: dict[str, object] = {"machine": machine, "way": way, "seed": seed}
    for share in SHARES:
        reached = next((s for s in rig.steps if s.share >= share), None)
        found[f"trials_to_{share * 100:.0f}"] = reached.trial if reached else ""
        found[f"seconds_to_{share * 100:.0f}"] = round(reached.seconds, 1) if reached else ""
    return found


def show(machine: str, rows: Sequence[Mapping[str, object]]) -> None:
    for way in WAYS:
        of = [r for r in rows if r["machine"] == machine and r["way"] == way]
        figures = []
        for what in ("trials_to_90", "trials_to_95", "trials_to_99", "seconds_to_95"):
            low, middle, high = quartiles(str(r[what]) for r in of)
            figures.append(f"{what} {middle} ({low} to {high})")
        print(f"{machine:8s} {way:30s} n={len(of)}  " + "  ".join(figures), flush=True)


if __name__ == "__main__":
    main()
