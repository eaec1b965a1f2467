"""Does the range of `sweeper guess` hold the decode speed that the engine then measures?

For each model, at Q8_0 and Q4_K_M, with one thread and with all cores: first the guess, from the header alone and
without earlier sweeps, then decode windows of the engine, as short screening windows, and the guess once more, so that
a machine whose speed moved in between can be told from a wrong guess. Synthetic models are written to a temporary
folder and deleted after use. Run it on a quiet machine.

    python benchmarks/guess_holds.py [MODEL …] [--minutes 20] [--seconds 2] [--best] [--json FILE]

MODEL is a name in conf/model or a GGUF file; a file keeps its quantisation. The default is every shape up to 3B.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from sweeper import machine  # noqa: E402
from sweeper.config import compose  # noqa: E402
from sweeper.engine.llama_cpp import LlamaCppEngine  # noqa: E402
from sweeper.guess.records import Figure, Guess  # noqa: E402
from sweeper.guess.run import guess_models  # noqa: E402
from sweeper.model.obtain import obtain  # noqa: E402

SHAPES = ("tiny_15m", "tiny_moe", "synthetic_110m", "tinyllama_1b", "llama_3b")
QUANTS = ("Q8_0", "Q4_K_M")
WORKLOAD = ("workload.prompt_tokens=512", "workload.generated_tokens=64", "workload.n_ctx=1024")


def guessed(model: str, words: list[str], threads: int, folder: Path) -> tuple[Guess, float]:
    """The guess without earlier sweeps, and the seconds that it took."""
    began = time.perf_counter()
    fixed = [*words, f"space.n_threads={threads}", f"space.n_threads_batch={threads}", *WORKLOAD]
    found = guess_models([model], fixed, folder / "no sweeps")[0]
    return found, time.perf_counter() - began


def measured(path: Path, guess: Guess, seconds: float, best: bool) -> tuple[float, float]:
    """The decode speed in tok/s at an empty context and at the guess's depth, from windows of the engine.

    ``best`` takes the fastest round of 2 tokens: on a busy machine, the one that others disturbed least.
    """
    with LlamaCppEngine({None: path, guess.quant: path}) as engine:
        engine.load(guess.configuration)
        speeds = []
        for depth in (0, guess.depth):
            engine.decode(32, depth, 0.3, 60.0)  # warms up
            run = engine.decode(2 if best else 32, depth, seconds, 60.0)
            fastest = run.tokens / run.rounds / min(run.round_seconds)
            speeds.append(fastest if best else run.tokens_per_second)
    return speeds[0], speeds[1]


def verdict(before: Figure | None, after: Figure | None, speed: float) -> str:
    if before is None or after is None:
        return "no guess"
    if before.low <= speed <= before.high:
        return "holds"
    # Where the range moved with the machine, the second guess tells.
    return "holds afterwards" if after.low <= speed <= after.high else "misses"


def cases(models: list[str]) -> list[tuple[str, list[str]]]:
    """Model and words of each case; a file has one quantisation."""
    return [
        (model, [] if quant is None else [f"model.quant={quant}"])
        for model in models
        for quant in ((None,) if Path(model).is_file() else QUANTS)
    ]


def rows_of(
    model: str, path: Path, words: list[str], threads: int, folder: Path, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The rows of one model file with so many threads, one for each depth; each is printed."""
    before, took = guessed(model, words, threads, folder)
    at_start, deep = measured(path, before, options.seconds, options.best)
    after, _ = guessed(model, words, threads, folder)
    for depth, first, second, speed in (
        (0, before.tokens_per_second, after.tokens_per_second, at_start),
        (before.depth, before.tokens_per_second_at_depth, after.tokens_per_second_at_depth, deep),
    ):
        said = verdict(first, second, speed)
        span = "–" if first is None else f"{first.low:.1f} to {first.high:.1f}"
        ratio = float("nan") if first is None else speed / first.expected
        print(
            f"{model[-16:]:16} {before.quant:7} {threads:3} {depth:5} {span:>17} {speed:9.1f} "
            f"{ratio:6.2f} {took:8.1f}  {said}",
            flush=True,
        )
        yield {
            "model": model,
            "quant": before.quant,
            "threads": threads,
            "depth": depth,
            "low": first and first.low,
            "expected": first and first.expected,
            "high": first and first.high,
            "measured": speed,
            "verdict": said,
            "notes": before.notes,
            "guess_seconds": took,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(SHAPES))
    parser.add_argument("--minutes", type=float, default=20.0, help="stop after this many")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a decode window")
    parser.add_argument("--best", action="store_true", help="the fastest round, for a busy machine")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    cores = machine.examine().physical_cores
    rows: list[dict[str, Any]] = []
    print(f"{'model':16} {'quant':7} thr depth {'guess tok/s':>17} {'measured':>9}  ratio  seconds  verdict")
    with tempfile.TemporaryDirectory(prefix="guess-holds-") as name:
        folder = Path(name)
        for model, words in cases(options.models):
            if time.monotonic() > until:
                print(f"{options.minutes:g} minutes are over: {model} {words} and later cases are left out")
                break
            is_file = Path(model).is_file()
            chosen = [f"model.path={model}" if is_file else f"model={model}", *words]
            path = Path(obtain(compose(chosen).settings.model, folder).file(None).path)
            for threads in dict.fromkeys((1, cores)):
                rows += rows_of(model, path, words, threads, folder, options)
            if not is_file:
                path.unlink()
    start = [row for row in rows if row["depth"] == 0]
    for which, some in (("empty context", start), ("all", rows)):
        held = sum(row["verdict"] == "holds" for row in some)
        later = sum(row["verdict"] == "holds afterwards" for row in some)
        print(
            f"{which}: {held} of {len(some)} ranges hold, {later} more with the second guess; goal: 9 of 10"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
