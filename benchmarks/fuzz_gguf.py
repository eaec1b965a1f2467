"""Does any GGUF file bring sweeper down? Thousands of broken files, each through a sweep's way to its first trial.

Each file must end in one of these ways: sweeper refuses it in one line with a documented exit code, sweeper rules the
trial out, the trial fails with a reason, or the trial runs. Anything else is a fault: another exception, a traceback
in a worker, a message that is no plain line, or more than 60 s.

The code is that of `sweeper sweep`, in this process, with its real worker processes. Only workers that survive a file
also take the next one. Every ``--whole-every``-th file is given to the whole command instead.

    python benchmarks/fuzz_gguf.py --files 2000 [--first N] [--keep FOLDER]

A file depends only on its number: ``--first N --files 1`` makes one of them again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_mutations import mutants

from sweeper import machine
from sweeper.cli import main as command_line
from sweeper.config import compose
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.errors import SweeperError, TrialFailed
from sweeper.lab.simulated_power import PowerTrace, SimulatedMeter
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.trial import Stage, measure
from sweeper.model.forecast import Forecaster
from sweeper.model.obtain import ModelConfig, obtain
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic
from sweeper.records import Workload
from sweeper.rig.llama_cpp import why_it_does_not_fit
from sweeper.rig.open import space_of
from sweeper.search.warm_start import initial_design
from sweeper.space.auto import Facts

LONGEST_SECONDS = 60
LONGEST_MESSAGE = 1_000  # letters
TOO_SLOW = "fault: too slow"
# A file may make llama.cpp ask for any amount. A fault of sweeper's must not take the memory of other programs.
MEMORY_BYTES = 10 << 30
DOCUMENTED = (0, 2, 3, 4, 5, 130)
SHORT = Workload(
    prompt_tokens=32, generated_tokens=8, warmup_seconds=0.0, screening_seconds=0.0, screening_repeats=1
)
STAGE = replace(Stage.screening(SHORT), update_periods=0)  # no watts are read
WHOLE = (
    *("experiment=quick", "search.trials=1", "search.finalists=1", "search.transfer=false", "power=estimate"),
    *("space.n_threads=1", "space.n_threads_batch=1", "workload.prompt_tokens=32", "workload.n_ctx=256"),
    *("workload.generated_tokens=8", "workload.warmup_seconds=0.0", "workload.screening_seconds=0.05"),
    *("workload.screening_repeats=1", "workload.final_seconds=0.05", "workload.final_repeats=1"),
)
DENSE = ModelShape(
    n_layer=2, embedding_length=64, feed_forward_length=128, head_count=4, head_count_kv=2, vocab_size=288
)
MIXTURE = replace(DENSE, expert_count=4, expert_used_count=2)


class Hang(BaseException):
    """A file took too long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one file ended. ``kind`` is a row of the table."""

    kind: str
    message: str = ""
    fault: bool = False
    seconds: float = 0.0


class Fuzz:
    """Gives files to sweeper, one after the other, and keeps its workers alive between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = [
            write_synthetic(shape, folder / f"{name}.gguf", quant)
            for name, shape, quant in (("dense", DENSE, "F16"), ("mixture", MIXTURE, "Q8_0"))
        ]
        self._composed = compose(["workload=chat"])
        self._machine = replace(machine.examine(), physical_cores=1, logical_cores=1, performance_cores=None)
        self._held = ExitStack()
        self._forecaster = self._held.enter_context(Forecaster())
        self._engine = self._held.enter_context(LlamaCppEngine({}))
        self._meter = self._held.enter_context(SimulatedMeter(PowerTrace(0.0), VirtualClock()))

    def __enter__(self) -> Fuzz:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def outcome(self, number: int, raw: bytes, *, whole: bool = False) -> Outcome:
        """Give a file to sweeper and say how it ended; the file is removed."""
        path = self.folder / f"file-{number}.gguf"
        path.write_bytes(raw)
        began = time.monotonic()
        try:
            with _at_most(LONGEST_SECONDS):
                found = self._whole(path, number) if whole else self._first_trial(path)
        except Hang as hang:
            where = [frame.name for frame in traceback.extract_tb(hang.__traceback__)]
            found = Outcome(
                TOO_SLOW, f"more than {LONGEST_SECONDS} s in {' > '.join(where[-8:])}", fault=True
            )
        except Exception as error:  # noqa: BLE001 - what must not happen
            found = Outcome(f"fault: {type(error).__name__}", str(error), fault=True)
        finally:
            path.unlink()
        plain = found.message.isprintable() and len(found.message) < LONGEST_MESSAGE
        if not found.fault and (not plain or "ended with exit code" in found.message):
            found = replace(found, kind="fault: a traceback, or no plain line", fault=True)
        return replace(found, seconds=time.monotonic() - began)

    def _first_trial(self, path: Path) -> Outcome:
        """What `sweeper sweep` does with a file until its first trial ends; see `sweeper.rig.llama_cpp.llama_rig`."""
        try:
            model = obtain(ModelConfig(path=str(path)), self.folder)
            self._forecaster.demand_generator(path)
            space, _ = space_of(self._composed, Facts(self._machine, model, SHORT, False))
        except SweeperError as error:
            named = path.name in str(error)
            kind = f"refused, exit code {error.exit_code} ({type(error).__name__})"
            wrong = error.exit_code not in (2, 3) or not named
            return Outcome(f"fault: {kind}, not named" if wrong else kind, str(error), fault=wrong)
        self._engine.use_files({model.base_quant: path})
        self._engine._loaded = None  # the file of this quantisation is another one now
        first = initial_design(space, space.base, 1, 0)[0]
        if why := why_it_does_not_fit(self._forecaster, self._engine, first):
            return Outcome("first trial ruled out", why)
        try:
            measure(first, self._engine, self._meter, SHORT, STAGE)
        except TrialFailed as failure:
            return Outcome(f"first trial failed ({type(failure).__name__})", str(failure))
        return Outcome("first trial ran")

    def _whole(self, path: Path, number: int) -> Outcome:
        said = io.StringIO()
        words = ["sweep", *WHOLE, f"model.path='{path}'", f"name=n{number}", f"root='{self.folder}/mlruns'"]
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = command_line(words)
        last = (said.getvalue().strip().splitlines() or [""])[-1]
        wrong = code not in DOCUMENTED or "Traceback" in said.getvalue()
        return Outcome(f"{'fault: ' * wrong}whole command, exit code {code}", last, fault=wrong)


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def hang(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _until_interrupted(files: Iterator[tuple[int, str, bytes]]) -> Iterator[tuple[int, str, bytes]]:
    """The files, until Ctrl-C; the one that is under way is still finished."""
    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
    for file in files:
        if stopped:
            return
        yield file


def main() -> int:
    """Fuzz, print each fault as it is found, then the table. Exit code 1 if there was a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--whole-every", type=int, default=100, help="0: never")
    parser.add_argument("--keep", type=Path, help="a folder for the files that showed a fault")
    parser.add_argument("--show", default="", help="print each file whose outcome contains this text")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))  # of this process and its workers
    outcomes: Counter[str] = Counter()
    faults, slowest, began = 0, (0.0, -1), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-gguf-") as name, Fuzz(Path(name)) as fuzz:
        files = mutants(fuzz.models, options.first, options.files)
        for number, changes, raw in _until_interrupted(files):
            whole = options.whole_every > 0 and number % options.whole_every == options.whole_every - 1
            found = fuzz.outcome(number, raw, whole=whole)
            if found.kind == TOO_SLOW:  # on a busy machine, this process may have waited for its turn
                print(f"file {number} ({changes}): {found.message}; once more", flush=True)
                again = fuzz.outcome(number, raw, whole=whole)
                found = replace(again, kind=f"{again.kind}, at the second try", seconds=found.seconds)
            outcomes[found.kind] += 1
            faults += found.fault
            slowest = max(slowest, (found.seconds, number))
            if found.fault or (options.show and options.show in f"{found.kind} {found.message}"):
                print(f"file {number} ({changes}): {found.kind}: {found.message[:400]!r}", flush=True)
            if found.fault and options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{number}.gguf").write_bytes(raw)
    print("\n| outcome | files |\n|---|---|")
    for kind, count in outcomes.most_common():
        print(f"| {kind} | {count} |")
    print(
        f"\n{outcomes.total()} files in {time.monotonic() - began:.0f} s, the slowest ({slowest[1]}) {slowest[0]:.1f} s"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
