"""Do several slots of llama-server beat one slot, when several users send requests at the same time?

A server with 4 slots and a server with 1 slot get the same load: 4 users who send one request after another, with new
prompts each time. Users of one slot wait for each other. In each repeat, all servers start afresh and are measured in
random order. A second server with 1 slot is the yardstick of noise.

    python benchmarks/slots.py --llama-server .venv/bin/llama-server [--model tiny_15m --repeats 2 --seconds 2]

Wanted: 4 slots beat 1 in the tok/s of all users together, beyond the interval. The exit code is 5 if they do not. The
same command goes on where it was stopped (10 minutes on 2 cores).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from gpu_record import StepFile
from ratios import paired_ratio, shown
from side_by_side import OUT, ROOT, builds_of, finished, model_file, run, thread_counts

from sweeper import stats
from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.errors import EXIT_DONE, EXIT_VERIFY
from sweeper.measure.trial import Stage, measure
from sweeper.measure.users import P95
from sweeper.meter.none import NoMeter
from sweeper.records import Configuration, Reading, Workload

ONE, AGAIN = "1", "1 again"


def main() -> int:
    options = _arguments()
    model = model_file(options.model, options.root)
    workload = Workload(
        prompt_tokens=options.prompt_tokens,
        generated_tokens=options.generated_tokens,
        warmup_seconds=1.0,
        users=options.users,
    )
    # No prefill windows: they have one user, and only what several users get counts here.
    stage = Stage(options.seconds, 1, 0, workload.warmup_seconds, prefill_repeats=0, least_prefill=0)
    base = Configuration(
        n_ctx=workload.n_ctx_needed, n_threads=options.threads, n_threads_batch=options.threads
    )
    slots = sorted({*options.slots} - {1})
    sides = {ONE: base, AGAIN: base} | {str(count): base.with_(n_parallel=count) for count in slots}
    with ExitStack() as stack:
        engines = {
            side: stack.enter_context(LlamaServerEngine(str(options.llama_server), {None: model}))
            for side in sides
        }
        builds = builds_of(engines)
        names = ("users", "threads", "prompt_tokens", "generated_tokens", "seconds", "slots")
        settings = {name: vars(options)[name] for name in names}
        file = StepFile(options.out, {"model": model.name, "builds": builds} | settings)
        print(f"{model.name}; {'; '.join(builds.values())}; {options.users} users, {options.threads} threads")
        for repeat in range(options.repeats):
            key = f"repeat {repeat + 1}"
            row = file.row(
                key, partial(one_repeat, engines, sides, workload, stage, random.Random(f"slots {key}"))
            )
            print(f"  {key}: {row.get('error', 'measured')}", flush=True)
    better = table([row for row in file.rows if "error" not in row], list(sides), options.users)
    return EXIT_DONE if finished(file) and better else EXIT_VERIFY


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--model", default="synthetic_110m", help="of conf/model, or a GGUF file")
    parser.add_argument("--slots", type=int, nargs="+", default=[4], help="numbers of slots beside 1")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=thread_counts()[-1])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--generated-tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the steady part, at least")
    parser.add_argument("--root", type=Path, default=ROOT, help="where synthetic models are kept")
    parser.add_argument("--out", type=Path, default=OUT / "slots.json")
    return parser.parse_args()


def one_repeat(
    engines: Mapping[str, LlamaServerEngine],
    sides: Mapping[str, Configuration],
    workload: Workload,
    stage: Stage,
    draw: random.Random,
) -> dict[str, Any]:
    """The tok/s of all users together, and the times of their requests in s, by side."""
    found: dict[str, Any] = {}
    for engine in engines.values():
        engine.unload()
    for side in draw.sample(list(sides), len(sides)):
        measured = measure(sides[side], engines[side], NoMeter("only speeds count here"), workload, stage)
        window = next(w for w in measured.windows if w.served is not None)
        assert window.served is not None
        found[side] = {
            "tokens_per_second": window.tokens / window.seconds,
            "first_token_seconds": window.served.first_token_seconds,
            "requests": window.served.requests,
        }
        engines[side].unload()  # the next one has the machine alone
    return {"sides": found}


def table(rows: Sequence[Mapping[str, Any]], sides: Sequence[str], users: int) -> bool:
    """Print a row for each number of slots. True if each beats 1 slot beyond the interval."""
    if not rows:
        print("no repeat was measured")
        return False
    print(f"\n{len(rows)} repeats; first token: time until it arrives at its user\n")
    print(
        "| slots | all users tok/s | per user tok/s | first token s | p95 s | requests | all users ÷ 1 slot |"
    )
    print("|---|---|---|---|---|---|---|")
    better = True
    one = _speeds(rows, ONE)
    for side in sides:
        speeds = _speeds(rows, side)
        ratio = paired_ratio(speeds, one)
        firsts = [seconds for row in rows for seconds in row["sides"][side]["first_token_seconds"]]
        first, late = (
            (f"{stats.median(firsts):.2f}", _span(stats.percentile(firsts, P95))) if firsts else ("-", "-")
        )
        count = sum(row["sides"][side]["requests"] for row in rows)
        speed = stats.median(speeds)
        print(
            f"| {side} | {speed:.1f} | {speed / users:.1f} | {first} | {late} | {count} | "
            f"{'' if side == ONE else shown(ratio)} |"
        )
        better &= side in (ONE, AGAIN) or ratio.low > 1
    return better


def _speeds(rows: Sequence[Mapping[str, Any]], side: str) -> list[float]:
    return [row["sides"][side]["tokens_per_second"] for row in rows]


def _span(reading: Reading) -> str:
    return f"{reading.median:.2f} ({reading.low:.2f} to {reading.high:.2f})"


if __name__ == "__main__":
    run(main)
