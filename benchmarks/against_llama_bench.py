"""The worker's speed beside llama-bench, on the same model and parameters, interleaved.

llama-bench is built from the llama.cpp that llama-cpp-python vendors (``--llama-bench PATH`` takes one that is
built already; its build number is printed). llama-bench runs against itself as the yardstick of noise: the
ratio of its odd runs to its even runs is what two equal things look like on this machine at this time.
llama-bench samples no tokens, so the worker samples none here either.

    python benchmarks/against_llama_bench.py --llama-bench PATH [--repeats 12] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from ratios import ratio_of

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.model.obtain import obtain
from sweeper.records import Configuration


def llama_bench(program: Path, model: Path, threads: int, prompt: int, generated: int) -> tuple[float, float]:
    """One run of llama-bench: tok/s of prefill and of decode."""
    command = [str(program), "-m", str(model), "-p", str(prompt), "-n", str(generated), "-t", str(threads)]
    command += ["-b", "2048", "-ub", "512", "-fa", "1", "-r", "1", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    by_kind = {"prefill" if row["n_prompt"] else "decode": row["avg_ts"] for row in rows}
    return by_kind["prefill"], by_kind["decode"]


def ours(model: Path, threads: int, prompt: int, generated: int) -> tuple[float, float]:
    """One round of the worker in a fresh process, warmed up as llama-bench warms up."""
    configuration = Configuration(
        n_ctx=prompt + generated, n_batch=2048, n_ubatch=512, n_threads=threads, n_threads_batch=threads
    )
    with LlamaCppEngine({None: model}, sample=False) as engine:
        engine.load(configuration)
        engine.prefill(prompt, 0, 0.0, 60.0)  # llama-bench runs the whole prompt once before it counts
        prefill = engine.prefill(prompt, 0, 0.0, 60.0)
        engine.decode(1, 0, 0.0, 60.0)
        decode = engine.decode(generated, 0, 0.0, 600.0)
    return prefill.tokens_per_second, decode.tokens_per_second


def line(name: str, a: Sequence[float], b: Sequence[float]) -> str:
    """A row of the table: two medians and the ratio with its bootstrap interval."""
    ratio = ratio_of(a, b)
    return f"| {name} | {median(a):.1f} | {median(b):.1f} | {ratio.median:.3f} | {ratio.low:.3f} to {ratio.high:.3f} |"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    # Short runs turn faster, so that a drift of the machine hits all sides alike.
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generated", type=int, default=128)
    parser.add_argument("--root", type=Path, default=Path("mlruns"))
    options = parser.parse_args()
    from sweeper.config import compose

    wanted = compose([]).settings.model
    model = Path(obtain(wanted, options.root).file(None).path)
    lengths = (options.prompt, options.generated)
    print(f"{model.name}, pp{lengths[0]} and tg{lengths[1]}, {options.repeats} interleaved repeats\n")
    print("| | sweeper tok/s | llama-bench tok/s | ratio of medians | 95 % interval |\n|---|---|---|---|---|")
    for threads in options.threads:
        mine, theirs, again = interleaved(model, options.llama_bench, threads, options.repeats, lengths)
        for index, kind in enumerate(("prefill", "decode")):
            a, b, c = ([run[index] for run in runs] for runs in (mine, theirs, again))
            print(line(f"{kind}, {threads} thread(s)", a, b + c))
            print(line(f"… llama-bench against itself, {threads} thread(s)", b, c), flush=True)


Runs = list[tuple[float, float]]


def interleaved(
    model: Path, program: Path, threads: int, repeats: int, lengths: tuple[int, int]
) -> tuple[Runs, Runs, Runs]:
    """Runs of ours, of llama-bench, and of llama-bench again; the order turns with each repeat."""
    runs: tuple[Runs, Runs, Runs] = ([], [], [])
    for repeat in range(repeats):
        for turn in range(3):
            side = (repeat + turn) % 3
            one = (
                ours(model, threads, *lengths)
                if side == 0
                else llama_bench(program, model, threads, *lengths)
            )
            runs[side].append(one)
    return runs


if __name__ == "__main__":
    main()
