"""How fast searches find the front: trials and virtual time to 90, 95 and 99 % of its hypervolume.

    python benchmarks/search.py                     # everything, 20 seeds; goes on where it stopped
    python benchmarks/search.py --seeds 5 --landscape simulated-minipc --sampler gp_front --sampler tpe
    python benchmarks/search.py --summarise         # tables and plot from what was run

Every search measures through sweeper's own `measure`, in virtual time, with noise, loads and out-of-memory.
What is counted is the *true* hypervolume of the configurations that a search has measured, over that of the
true front. Writes ``results/search.csv`` (one row a search), ``results/search_summary.csv`` and
``results/search.png``.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from search_landscapes import landscapes
from search_runs import Picked, Search, run

RESULTS = Path(__file__).parent / "results"
# Ours, then what others do: every window of every trial, as a benchmark run for each trial measures.
SAMPLERS = (
    "gp_front",
    "tpe multivariate + corners",
    "tpe, full trials",
    "nsga2, full trials",
    "random, full trials",
    "grid order, full trials",
    "llama-optimus, full trials",
    "gp told, full trials",
)
SHARES = (0.90, 0.95, 0.99)
CURVE_AT = (5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120)
COLUMNS = (
    "landscape",
    "sampler",
    "seed",
    "trials",
    "seconds",
    *(f"trials_to_{s * 100:.0f}" for s in SHARES),
    *(f"seconds_to_{s * 100:.0f}" for s in SHARES),
    "share",
    "regret",
    "picked",
    "picked_tokens_per_second",
    "picked_watts",
    "picked_speed_noise",
    "picked_watts_noise",
    "visits",
    "sampler_seconds_per_trial",
    *(f"share_at_{n}" for n in CURVE_AT),
    "picked_over_fit",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--landscape", action="append", help="only these; may be given more than once")
    parser.add_argument("--sampler", action="append", help="only these; may be given more than once")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--summarise", action="store_true", help="only the tables and the plot")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.summarise:
        run_all(arguments)
    rows = read(arguments.out / "search.csv")
    summary = summarise(rows)
    write(arguments.out / "search_summary.csv", summary)
    draw(rows, arguments.out / "search.png")
    show(summary)


def run_all(arguments: argparse.Namespace) -> None:
    path = arguments.out / "search.csv"
    done = {(r["landscape"], r["sampler"], int(r["seed"])) for r in read(path)}
    samplers = [
        s
        for s in arguments.sampler or SAMPLERS
        if not s.startswith(("gp ", "gp,")) or importlib.util.find_spec("torch")
    ]
    if len(samplers) < len(arguments.sampler or SAMPLERS):
        print("gp (Optuna's own) is left out: it needs torch, which is not installed")
    compared = landscapes(arguments.landscape)
    for landscape in compared:
        print(
            f"{landscape.name}: {len(landscape.all_points)} of {landscape.space.size} points run", flush=True
        )
    for seed in range(arguments.seeds):  # outermost, so that a run cut short compares the same seeds
        for landscape in compared:
            for sampler in samplers:
                if (landscape.name, sampler, seed) not in done:
                    append(path, row_of(run(landscape, sampler, seed, arguments.trials)))
        print(f"seed {seed} done", flush=True)


def row_of(search: Search) -> dict[str, object]:
    steps = search.steps
    row: dict[str, object] = {
        "landscape": search.landscape,
        "sampler": search.sampler,
        "seed": search.seed,
        "trials": len(steps),
        "seconds": round(steps[-1].seconds, 1),
        "share": round(steps[-1].share, 5),
        **_row_of_pick(search.picked),
        "sampler_seconds_per_trial": round(statistics.fmean(s.sampler_seconds for s in steps), 4),
    }
    for share in SHARES:
        reached = next((s for s in steps if s.share >= share), None)
        row[f"trials_to_{share * 100:.0f}"] = reached.trial if reached else ""
        row[f"seconds_to_{share * 100:.0f}"] = round(reached.seconds, 1) if reached else ""
    for n in CURVE_AT:
        row[f"share_at_{n}"] = round(steps[n - 1].share, 5) if n <= len(steps) else ""
    return row


def _row_of_pick(picked: Picked | None) -> dict[str, object]:
    if picked is None:
        return {}
    return {
        "regret": round(picked.regret, 5),
        "picked": picked.configuration.digest,
        "picked_tokens_per_second": round(picked.tokens_per_second, 3),
        "picked_watts": round(picked.watts, 3),
        "picked_speed_noise": round(picked.noise[0], 5),
        "picked_watts_noise": round(picked.noise[1], 5),
        "visits": picked.visits,
        "picked_over_fit": "" if picked.over_fit is None else round(picked.over_fit, 4),
    }


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def quartiles(values: Iterable[str]) -> tuple[str, str, str]:
    """Lower quartile, median, upper quartile; what was never reached counts as infinitely late."""
    numbers = sorted(float(v) if v else math.inf for v in values)
    picked = [numbers[round(q * (len(numbers) - 1))] for q in (0.25, 0.5, 0.75)]
    low, middle, high = ("never" if math.isinf(v) else f"{v:g}" for v in picked)
    return low, middle, high


def summarise(rows: Sequence[dict[str, str]]) -> list[dict[str, object]]:
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["landscape"], row["sampler"]].append(row)
    return [
        {"landscape": key[0], "sampler": key[1], "seeds": len(of), **_figures(of)}
        for key, of in groups.items()
    ]


def _figures(rows: Sequence[dict[str, str]]) -> dict[str, object]:
    figures: dict[str, object] = {}
    for what in ("trials", "seconds"):
        for share in ("90", "95", "99"):
            low, middle, high = quartiles(r[f"{what}_to_{share}"] for r in rows)
            figures[f"{what}_to_{share}"] = f"{middle} ({low} to {high})"
    figures["share_at_end"] = f"{statistics.median(float(r['share']) for r in rows):.4f}"
    regrets = sorted(float(r["regret"]) for r in rows if r["regret"])
    figures["regret_median"] = f"{statistics.median(regrets):.4f}" if regrets else ""
    figures["regret_of_9_in_10"] = f"{regrets[math.ceil(0.9 * len(regrets)) - 1]:.4f}" if regrets else ""
    figures["seeds_within_2_percent"] = (
        f"{sum(r <= 0.02 for r in regrets)} of {len(regrets)}" if regrets else ""
    )
    figures["seeds_with_one_winner"] = f"{one_winner(rows)} of {len(regrets)}" if regrets else ""
    times = [float(r["sampler_seconds_per_trial"]) for r in rows]
    figures["sampler_seconds_per_trial"] = f"{statistics.median(times):.3f}"
    return figures


def one_winner(rows: Sequence[dict[str, str]]) -> int:
    """How many seeds recommend one and the same thing, or what its own final figures could not tell from it."""
    names = ("picked_tokens_per_second", "picked_speed_noise", "picked_watts", "picked_watts_noise")
    picks = [[float(r[name] or 0.0) for name in names] for r in rows if r["regret"]]

    def tied(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(abs(a[i] - b[i]) <= math.hypot(a[i + 1], b[i + 1]) * max(a[i], b[i]) for i in (0, 2))

    return max((sum(tied(one, other) for other in picks) for one in picks), default=0)


def show(summary: Sequence[dict[str, object]]) -> None:
    for row in summary:
        print(
            f"{row['landscape']:20s} {row['sampler']:28s} n={row['seeds']:<3} "
            f"90: {row['trials_to_90']:22s} 95: {row['trials_to_95']:22s} 99: {row['trials_to_99']:22s} "
            f"regret {row['regret_median']}; at most 2 % in {row['seeds_within_2_percent']}; "
            f"one winner in {row['seeds_with_one_winner']}"
        )


def draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Median share of the front's hypervolume over trials, with quartiles, a panel a landscape."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(r["landscape"] for r in rows))
    if not names:
        return
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        for index, sampler in enumerate(s for s in SAMPLERS if any(r["sampler"] == s for r in rows)):
            of = [r for r in rows if r["landscape"] == name and r["sampler"] == sampler]
            _curve(axis, of, sampler, f"C{index}")
        axis.set(title=name, xlabel="trials", ylim=(0.5, 1.005))
        axis.axhline(0.95, color="grey", linewidth=0.6, linestyle=":")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("share of the true front's hypervolume")
    axes[0][-1].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def _curve(axis: Any, rows: Sequence[dict[str, str]], label: str, colour: str) -> None:
    at = [n for n in CURVE_AT if rows and all(r[f"share_at_{n}"] for r in rows)]
    columns = [sorted(float(r[f"share_at_{n}"]) for r in rows) for n in at]
    quarter = [(c[round(0.25 * (len(c) - 1))], c[round(0.75 * (len(c) - 1))]) for c in columns]
    width = 2.4 if label == "gp_front" else 1.2
    axis.plot(at, [statistics.median(c) for c in columns], label=label, color=colour, linewidth=width)
    axis.fill_between(at, [a for a, _ in quarter], [b for _, b in quarter], color=colour, alpha=0.12)


if __name__ == "__main__":
    main()
