"""Can the answer of a sweep of two minutes be trusted? N sweeps from nothing, each followed by `sweeper verify`.

    python benchmarks/short_answers.py --model FILE --root /tmp/short [--sweeps 10] [--minutes 2] [-- WORDS OF verify]

Each sweep has a folder of its own, so nothing is kept from the one before, and another seed. A promise is broken if
verify says so: more than 5 % slower, with intervals that do not touch. Run it on a quiet machine. The same command goes
on where an earlier run stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sweeper.records import Configuration
from sweeper.report.words import settings
from sweeper.results.assemble import assemble
from sweeper.search.study import SweepStudy

SWEEPER = (sys.executable, "-m", "sweeper")
NAME = "short"
COLUMNS = ("seed", "seconds", "trials", "visits", "pick", "promised", "found", "change", "verdict")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the built-in synthetic model")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("verify", nargs="*", default=[], help="further words of `sweeper verify`")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.sweeps):
        rows.append(row(seed, arguments))
        print(json.dumps(rows[-1]), flush=True)
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for each in rows:
        print("| " + " | ".join(str(each.get(name, "")) for name in COLUMNS) + " |")
    broken = sum(each.get("verdict") == "missed" for each in rows)
    answered = sum("verdict" in each for each in rows)
    print(
        f"\n{answered} of {len(rows)} sweeps recommended what could be verified; {broken} promises were broken."
    )


def row(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One sweep and its verification; what an earlier run kept is read."""
    folder = arguments.root / str(seed)
    kept = folder / "row.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    folder.mkdir(parents=True, exist_ok=True)
    words = ["experiment=quick", f"minutes={arguments.minutes:g}", f"search.seed={seed}", f"name={NAME}"]
    words += [f"root='{folder}'"]
    words += [f"model.path='{arguments.model.absolute()}'"] if arguments.model else []
    began = time.monotonic()
    swept = subprocess.run([*SWEEPER, "sweep", *words], capture_output=True, text=True, check=False)
    found = {"seed": seed, "seconds": round(time.monotonic() - began), "code": swept.returncode}
    (folder / "log").write_text(swept.stderr + swept.stdout, encoding="utf-8")
    if swept.returncode == 0:
        found |= promise(folder) | verified(folder, arguments.verify)
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def promise(folder: Path) -> dict[str, Any]:
    """The number of trials, and the settings of the recommended one beside the baseline's."""
    record = assemble(SweepStudy.load(folder, NAME))
    if record.recommended is None:
        return {"trials": len(record.trials), "pick": ""}
    pick = record.trial(record.recommended)
    own = settings(pick.configuration, record.baseline_configuration or Configuration())
    return {"trials": len(record.trials), "pick": own, "visits": pick.visits}


def verified(folder: Path, words: list[str]) -> dict[str, Any]:
    """What verify says of decode speed; empty if there is nothing to verify."""
    command = [*SWEEPER, "verify", NAME, "--root", str(folder), "--json", "--no-watts", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / "verify.json").write_text(done.stdout, encoding="utf-8")
    if not done.stdout:
        return {"note": done.stderr.strip().splitlines()[-1:]}
    figures = {figure["metric"]: figure for figure in json.loads(done.stdout)["figures"]}
    decode = figures["tokens_per_second"]
    shown = {name: reading(decode[name]) for name in ("promised", "found")}
    change = decode["found"]["median"] / decode["promised"]["median"] - 1
    return {**shown, "change": f"{change:+.1%}", "verdict": decode["verdict"]}


def reading(of: dict[str, float]) -> str:
    return f"{of['median']:.1f} ({of['low']:.1f} to {of['high']:.1f})"


if __name__ == "__main__":
    main()
