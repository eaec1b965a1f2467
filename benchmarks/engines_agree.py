"""Do both engines measure the same speed, of one model and one build of llama.cpp?

`llama_cpp` runs llama.cpp in a worker process, and `llama_server` asks a server over HTTP. Both run the same trials,
with the same configuration and threads. A second instance of each engine is the yardstick: what two equal engines show
on this machine is noise. In each repeat, all four start afresh and take turns in random order.

    python benchmarks/engines_agree.py --llama-server .venv/bin/llama-server [--model tiny_15m --repeats 2]

Wanted: prefill and decode within 3 %, as medians of at least 10 repeats. The exit code is 5 if they are not. The same
command goes on where it was stopped (8 minutes on 2 cores for each number of threads).
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

from sweeper.engine.base import Engine
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.errors import EXIT_DONE, EXIT_VERIFY
from sweeper.measure.trial import PHASES, Stage, measure
from sweeper.meter.none import NoMeter
from sweeper.records import Configuration, Reading, Workload
from sweeper.stats import median

TOLERANCE = 0.03
CPP, SERVER, AGAIN = "llama_cpp", "llama_server", " again"
SIDES = (CPP, SERVER, CPP + AGAIN, SERVER + AGAIN)
# Numerator and denominator of each comparison: the engines, and each engine with itself.
ENGINES = "llama_server ÷ llama_cpp"
PAIRS = {
    ENGINES: ((SERVER, SERVER + AGAIN), (CPP, CPP + AGAIN)),
    "llama_cpp ÷ itself": ((CPP + AGAIN,), (CPP,)),
    "llama_server ÷ itself": ((SERVER + AGAIN,), (SERVER,)),
}

Speeds = dict[str, dict[str, list[float]]]
"""The speeds of one repeat in tok/s, one for each turn, by side and phase."""


def main() -> int:
    options = _arguments()
    model = model_file(options.model, options.root)
    workload = Workload(
        prompt_tokens=options.prompt_tokens,
        generated_tokens=options.generated_tokens,
        depth=options.depth,
        warmup_seconds=2.0,
    )
    stage = Stage(options.seconds, 1, 0, workload.warmup_seconds)
    with ExitStack() as stack:
        engines: dict[str, Engine] = {
            side: stack.enter_context(
                LlamaCppEngine({None: model})
                if side.startswith(CPP)
                else LlamaServerEngine(str(options.llama_server), {None: model})
            )
            for side in SIDES
        }
        builds = builds_of(engines)
        settings = {key: vars(options)[key] for key in ("prompt_tokens", "generated_tokens", "depth")}
        settings |= {"seconds": options.seconds, "turns": options.turns}
        file = StepFile(options.out, {"model": model.name, "builds": builds} | settings)
        _say_builds(model, builds)
        for threads in options.threads:
            configuration = Configuration(
                n_ctx=workload.n_ctx_needed, n_threads=threads, n_threads_batch=threads
            )
            for repeat in range(options.repeats):
                key = f"{threads} threads, repeat {repeat + 1}"
                draw = random.Random(key)
                one = partial(one_repeat, engines, configuration, workload, stage, options.turns, draw)
                row = file.row(key, one)
                print(f"  {key}: {row.get('error', 'measured')}", flush=True)
    agree = [table(file.rows, threads) for threads in options.threads]
    return EXIT_DONE if finished(file) and all(agree) else EXIT_VERIFY


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-server", type=Path, required=True, help="of the same build as llama_cpp")
    parser.add_argument("--model", default="synthetic_110m", help="of conf/model, or a GGUF file")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--turns", type=int, default=2, help="of each engine within a repeat")
    parser.add_argument("--threads", type=int, nargs="+", default=thread_counts())
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--generated-tokens", type=int, default=128)
    parser.add_argument("--depth", type=int, default=0, help="tokens that the context holds before a window")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a decode window; prefill has half")
    parser.add_argument("--root", type=Path, default=ROOT, help="where synthetic models are kept")
    parser.add_argument("--out", type=Path, default=OUT / "engines_agree.json")
    return parser.parse_args()


def _say_builds(model: Path, builds: Mapping[str, str]) -> None:
    print(f"{model.name}; {'; '.join(builds.values())}")
    number = builds[CPP].rpartition(" ")[2]
    if number not in builds[SERVER]:
        print(
            f"this llama-server does not call itself a build of llama-cpp-python {number}: builds may differ"
        )


def one_repeat(
    engines: Mapping[str, Engine],
    configuration: Configuration,
    workload: Workload,
    stage: Stage,
    turns: int,
    draw: random.Random,
) -> dict[str, Any]:
    """The speeds of one repeat. Every engine starts afresh, because a process keeps its layout in memory."""
    meter = NoMeter("only speeds count here")
    speeds: Speeds = {side: {phase: [] for phase in PHASES} for side in engines}
    for engine in engines.values():
        engine.unload()  # type: ignore[attr-defined] # both engines have it
    for _ in range(turns):
        for side in draw.sample(list(engines), len(engines)):
            measured = measure(configuration, engines[side], meter, workload, stage)
            for window in measured.windows:
                speeds[side][window.phase].append(window.tokens / window.seconds)
    return {"threads": configuration.n_threads, "speeds": speeds}


def table(rows: Sequence[Mapping[str, Any]], threads: int) -> bool:
    """Print the table of one number of threads. True if the engines agree."""
    repeats: list[Speeds] = [row["speeds"] for row in rows if row.get("threads") == threads]
    if not repeats:
        print(f"\n{threads} threads: no repeat was measured")
        return False
    print(f"\n{threads} threads, {len(repeats)} repeats of fresh processes, tok/s:\n")
    print("| | first | second | ratio of medians (95 % interval) | |\n|---|---|---|---|---|")
    agree = True
    for phase in PHASES:
        for name, sides in PAIRS.items():
            above, below = ([_of(speeds, each, phase) for speeds in repeats] for each in sides)
            ratio = paired_ratio(above, below)
            words = _verdict(ratio) if name == ENGINES else "yardstick"
            agree &= words != "differ"
            print(
                f"| {phase}, {name} | {median(above):.1f} | {median(below):.1f} | {shown(ratio)} | {words} |"
            )
    return agree


def _of(speeds: Speeds, sides: Sequence[str], phase: str) -> float:
    return median([speed for side in sides for speed in speeds[side][phase]])


def _verdict(ratio: Reading) -> str:
    return "agree" if abs(ratio.median - 1) <= TOLERANCE else "differ"


if __name__ == "__main__":
    run(main)
