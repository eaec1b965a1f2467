"""Does a busy program beside a sweep change its recommendation?

Runs N real sweeps on a quiet machine and N beside ``disturber.py``, which keeps one core busy for half of the time in
bursts; both with the same seeds, each group under a root of its own. Then a referee measures all picks in turn on the
quiet machine, and the table compares each pick beside the disturber with the quiet pick of the same seed:

    python benchmarks/disturbed_machine.py --sweeps 10 --minutes 3 --root /tmp/disturbed

Start it on a machine that is quiet. A sweep takes at most ``--most-minutes``; one that takes longer is ended and counts
as failed. The same command goes on where an earlier run stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from sweeper.config import compose
from sweeper.errors import SweepMissingError, TrialFailed
from sweeper.measure.disturbance import Watch
from sweeper.measure.trial import measure
from sweeper.records import Configuration, SweepRecord, TrialRecord, Visit
from sweeper.report.words import disturbed as doubt
from sweeper.report.words import settings
from sweeper.results import front
from sweeper.results.assemble import assemble, with_finals
from sweeper.rig.open import open_rig
from sweeper.search.finals import visit_of, visit_stage
from sweeper.search.study import SweepStudy

DISTURBER = Path(__file__).with_name("disturber.py")
# If half of a figure's interval is wider than this, the referee was disturbed itself, and its ties mean nothing.
MOST_NOISE = 0.1
KINDS = ("quiet", "disturbed")
COLUMNS = (
    *("seed", "kind", "state", "seconds", "trials", "pick", "tok/s", "watts", "caveats", "doubt", "note"),
    *("against_quiet", "speed_change", "watts_change"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", type=int, default=10, help="of each kind")
    parser.add_argument(
        "--quiet-sweeps", type=int, default=None, help="fewer quiet sweeps, used in turn; default: as many"
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="search.minutes of each sweep")
    parser.add_argument("--most-minutes", type=float, default=15.0, help="a sweep is ended after this time")
    parser.add_argument("--referee-rounds", type=int, default=5, help="visits of the referee to each pick")
    parser.add_argument("--share", type=float, default=0.5, help="busy share of the disturber")
    parser.add_argument("--period", type=float, default=6.0, help="mean seconds of a burst and its pause")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, default=None, help="a CSV file; default: ROOT/disturbed_machine.csv"
    )
    parser.add_argument("overrides", nargs="*", default=[], help="further overrides of every sweep")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.sweeps):
        # In turn, so that a slow change of the machine hits both kinds alike.
        for kind in KINDS if seed % 2 == 0 else reversed(KINDS):
            if kind == "quiet" and seed >= quiet_sweeps(arguments):
                continue
            rows.append(sweep(kind, seed, arguments))
            print(shown(rows[-1]), flush=True)
    judge(rows, arguments)
    out = arguments.out or arguments.root / "disturbed_machine.csv"
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    summarise(rows, out)


def quiet_sweeps(arguments: argparse.Namespace) -> int:
    return min(arguments.sweeps, arguments.quiet_sweeps or arguments.sweeps)


def overrides_of(kind: str, arguments: argparse.Namespace) -> list[str]:
    return ["experiment=quick", f"root='{arguments.root / kind}'", *arguments.overrides]


def sweep(kind: str, seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Run one sweep in a process of its own, and return its row."""
    name = f"seed-{seed}"
    own = [f"name={name}", f"search.seed={seed}", "search.transfer=false"]
    own += [f"search.minutes={arguments.minutes:g}"]
    row: dict[str, object] = {"seed": seed, "kind": kind, "state": "failed"}
    record = loaded(arguments.root / kind, name)
    began = time.monotonic()
    if record is None or record.state != "complete":
        with disturber(arguments, seed) if kind == "disturbed" else contextlib.nullcontext():
            command = [sys.executable, "-m", "sweeper", "sweep", *overrides_of(kind, arguments), *own]
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    command,
                    timeout=60 * arguments.most_minutes,
                    env={**os.environ, "NO_COLOR": "1"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    print("\n".join(done.stderr.splitlines()[-3:]), file=sys.stderr)
        row["seconds"] = round(time.monotonic() - began)
        record = loaded(arguments.root / kind, name)
    if record is None or record.recommended is None:
        return row
    pick = record.trial(record.recommended)
    return row | {
        "state": record.state,
        "trials": len(record.trials),
        "record": record,
        "configuration": pick.configuration,
        "pick": settings(pick.configuration, record.baseline_configuration or Configuration()),
        "tok/s": round(pick.metrics["tokens_per_second"].median, 2),
        "watts": round(pick.metrics["watts"].median, 2),
        "caveats": " ".join(c.name.lower() for c in pick.caveats),
        "doubt": doubt(record),
        "note": "; ".join(note for note in record.notes if "processors" in note or "quiet" in note),
    }


def loaded(root: Path, name: str) -> SweepRecord | None:
    try:
        return assemble(SweepStudy.load(root, name))
    except SweepMissingError:
        return None


@contextlib.contextmanager
def disturber(arguments: argparse.Namespace, seed: int) -> Iterator[None]:
    """The disturber beside this block; it is a process of the benchmark and not of the sweep."""
    words = [f"--share={arguments.share}", f"--period={arguments.period}", f"--seed={seed}"]
    words += [f"--seconds={60 * arguments.most_minutes + 60}"]
    process = subprocess.Popen([sys.executable, str(DISTURBER), *words])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def judge(rows: Sequence[dict[str, object]], arguments: argparse.Namespace) -> None:
    """Compare the pick beside the disturber with the quiet pick of the same seed, by the referee's figures."""
    picks = {row["configuration"] for row in rows if "configuration" in row}
    if not picks:
        return
    record = next(row["record"] for row in rows if "record" in row)
    assert isinstance(record, SweepRecord)
    truth = {trial.configuration: trial for trial in referee(sorted(picks, key=str), record, arguments)}
    quiet = {row["seed"]: row.get("configuration") for row in rows if row["kind"] == "quiet"}
    for row in rows:
        ours = truth.get(row.get("configuration"))
        theirs = truth.get(quiet.get(int(str(row["seed"])) % quiet_sweeps(arguments)))
        if row["kind"] == "quiet" or ours is None or theirs is None:
            continue
        changes = {
            name: ours.metrics[metric].median / theirs.metrics[metric].median - 1
            for name, metric in (("speed_change", "tokens_per_second"), ("watts_change", "watts"))
        }
        same = ours.configuration == theirs.configuration
        tied = front.tied(ours, theirs, record.objectives)
        # Noise of the referee would make ties of everything.
        unclear = any(wide(trial, o.metric) for trial in (ours, theirs) for o in record.objectives)
        row["against_quiet"] = "same" if same else "unclear" if unclear else "tied" if tied else "different"
        row.update({name: f"{change:+.1%}" for name, change in changes.items()})


def wide(trial: TrialRecord, metric: str) -> bool:
    reading = trial.metrics[metric]
    return reading.high - reading.low > 2 * MOST_NOISE * reading.median


def referee(
    picks: Sequence[Configuration], record: SweepRecord, arguments: argparse.Namespace
) -> Sequence[TrialRecord]:
    """The picks as trials, measured in turn on the quiet machine as finalists are."""
    visits: list[Visit] = []
    with ExitStack() as held:
        rig, _, _ = open_rig(compose(overrides_of("quiet", arguments)), held, print)
        watch = (
            Watch(rig.load, rig.machine.physical_cores, elsewhere=rig.load.elsewhere) if rig.load else None
        )
        stage = visit_stage(record.workload)
        for number in range(arguments.referee_rounds):
            for trial, configuration in enumerate(picks):
                try:
                    found = measure(configuration, rig.engine, rig.meter, record.workload, stage, watch=watch)
                except TrialFailed as failure:
                    print(f"the referee could not measure {configuration}: {failure}", file=sys.stderr)
                    continue
                visits.append(visit_of(trial, number, found, 0.0))
    trials = [TrialRecord(n, "complete", configuration) for n, configuration in enumerate(picks)]
    return [trial for trial in with_finals(trials, visits, record) if trial.metrics]


def shown(row: dict[str, object]) -> str:
    parts = [f"seed {row['seed']} {row['kind']}: {row['state']}"]
    parts += [f"{name} {row[name]}" for name in COLUMNS[3:] if row.get(name) not in (None, "")]
    return ", ".join(parts)


def summarise(rows: Sequence[dict[str, object]], out: Path) -> None:
    print(
        "\n| seed | kind | s | trials | pick | tok/s | W | caveats | in doubt | against quiet | tok/s | W |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["seed"], row["kind"] != "quiet")):
        names = ("seconds", "trials", "pick", "tok/s", "watts", "caveats")
        cells = [row["seed"], row["kind"], *(row.get(name, "") for name in names)]
        cells += ["yes" if row.get("doubt") else "no"]
        cells += [row.get(name, "") for name in ("against_quiet", "speed_change", "watts_change")]
        print("| " + " | ".join(map(str, cells)) + " |")
    judged = [row["against_quiet"] for row in rows if "against_quiet" in row]
    alike = sum(word in ("same", "tied") for word in judged)
    print(f"\n{alike} of {len(judged)} picks beside the disturber are the quiet pick or tied with it.")
    if unclear := judged.count("unclear"):
        print(f"{unclear} cannot be told: the machine was not quiet while the referee measured.")
    for kind in KINDS:
        doubted = sum(bool(row.get("doubt")) for row in rows if row["kind"] == kind)
        print(f"{kind}: {doubted} of {sum(row['kind'] == kind for row in rows)} sweeps end in doubt.")
    print(f"All figures: {out}")


if __name__ == "__main__":
    main()
