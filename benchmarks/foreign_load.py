"""How much other processes change tok/s, by threads of the engine and by the cores that the others use.

The thresholds in ``sweeper/measure/disturbance.py`` rest on this table. Half of the windows run beside a busy process,
of a share that changes from window to window. Each window is sorted by the cores that others really used during it, so
the table also holds on a machine that is not quiet. Speeds are relative to the windows in which others used least:

    python benchmarks/foreign_load.py --windows 200
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from sweeper.config import compose
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.measure.disturbance import MachineLoad, between
from sweeper.model.obtain import obtain
from sweeper.records import Configuration

SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
BINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.1, 99.0)
DISTURBER = Path(__file__).with_name("disturber.py")


@contextlib.contextmanager
def disturbed(share: float, period: float) -> Iterator[None]:
    """A busy process beside this block."""
    process = subprocess.Popen(
        [sys.executable, str(DISTURBER), f"--share={share}", f"--period={period}", "--even"]
    )
    try:
        time.sleep(0.3)  # Python starts
        yield
    finally:
        process.kill()
        process.wait()


class Others(MachineLoad):
    """The load of this machine, in which the disturber counts as a process of others."""

    def follow(self) -> None:
        """Find the own processes, without the disturber."""
        super().follow()
        self._own = [process for process in self._own if DISTURBER.name not in " ".join(process.cmdline())]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=200, help="for each number of threads and phase")
    parser.add_argument("--seconds", type=float, default=0.8, help="of one window")
    parser.add_argument("--period", type=float, default=0.2, help="seconds of a burst and its pause")
    parser.add_argument("--threads", type=int, nargs="*", default=None)
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    print(
        "| threads | cores | phase | cores of others | windows | tok/s | spread |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as root:
        model = obtain(compose([f"root='{root}'"]).settings.model, Path(root))
        with LlamaCppEngine({None: Path(model.file(None).path)}) as engine:
            for threads in arguments.threads or sorted({1, max(1, cores // 2), cores}):
                engine.load(Configuration(n_ctx=1024, n_threads=threads, n_threads_batch=threads))
                engine.decode(64, 0, 2.0, 4.0)
                for phase in ("decode", "prefill"):
                    for row in table(windows(engine, phase, arguments)):
                        print(f"| {threads} | {cores} | {phase} | {row} |", flush=True)


def windows(
    engine: LlamaCppEngine, phase: str, arguments: argparse.Namespace
) -> Iterator[tuple[float, float]]:
    """The cores that others used during each window, and its speed in tok/s."""
    draw = random.Random(0)
    run = engine.decode if phase == "decode" else engine.prefill
    source = Others()
    for number in range(arguments.windows):
        beside = disturbed(draw.choice(SHARES), arguments.period) if number % 2 else contextlib.nullcontext()
        with beside:
            source.follow()
            before = source.load()
            speed = run(
                64 if phase == "decode" else 256, 0, arguments.seconds, 2 * arguments.seconds
            ).tokens_per_second
            found = between(before, source.load(), source.cores)
        if found.others_share is not None:
            yield found.share * found.cores, speed


def table(found: Iterator[tuple[float, float]]) -> Iterator[str]:
    rows = list(found)
    quiet = statistics.median(speed for _, speed in sorted(rows)[: max(3, len(rows) // 5)])
    for low, high in pairwise(BINS):
        speeds = sorted(speed / quiet - 1 for cores, speed in rows if low <= cores < high)
        if speeds:
            ends = speeds[len(speeds) // 10], speeds[-1 - len(speeds) // 10]
            yield (
                f"{low:g} to {high:g} | {len(speeds)} | {statistics.median(speeds):+.1%} | "
                f"{ends[0]:+.1%} to {ends[1]:+.1%}"
            )


if __name__ == "__main__":
    main()
