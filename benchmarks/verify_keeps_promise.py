"""Does `sweeper verify` find at a real server what the engine promised? Five runs for each kind of server.

Each run measures the promise with sweeper's own engine (decode and prefill, as in a trial), then lets verify
start the server with the same configuration and measure it over HTTP. Wanted: decode within 5 % in 5 of 5.

    python benchmarks/verify_keeps_promise.py --llama-server PATH    # without PATH: the one on PATH, or none
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import yaml

from sweeper.apply.verify.check import verify
from sweeper.apply.verify.find import VerifyOptions
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic
from sweeper.records import (
    Configuration,
    EngineRecord,
    MachineRecord,
    ModelFile,
    ModelRecord,
    PowerSource,
    Reading,
    SweepRecord,
    TrialRecord,
    Workload,
)
from sweeper.stats import interval, median

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"
TOLERANCE = 0.05


def main() -> int:
    arguments = _arguments()
    kinds: list[tuple[str, Path | None]] = [("llama-cpp-python", None)]
    program = arguments.llama_server or shutil.which("llama-server")
    if program:
        kinds.append(("llama-server", Path(program)))
    else:
        print("no llama-server: only the server of llama-cpp-python is measured", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.gguf or write_model(arguments.model, Path(folder))
        configuration = Configuration(
            n_ctx=arguments.n_ctx,
            n_batch=512,
            n_threads=arguments.threads,
            n_threads_batch=arguments.threads,
        )
        return _runs(path, configuration, kinds, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="of each figure in a run")
    parser.add_argument("--model", default="synthetic_110m", help="of conf/model")
    parser.add_argument("--gguf", type=Path, help="a model file instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n-ctx", type=int, default=1024)
    parser.add_argument("--prompt-tokens", type=int, default=Workload().prompt_tokens)
    parser.add_argument("--generated-tokens", type=int, default=Workload().generated_tokens)
    parser.add_argument(
        "--repeat-seconds", type=float, default=1.0, help="of one repeat of verify's, at least"
    )
    parser.add_argument("--window-seconds", type=float, default=2.0, help="of one repeat of the promise")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--interleaved", action="store_true", help="measure promise and server in turn")
    return parser.parse_args()


def write_model(name: str, folder: Path) -> Path:
    data = yaml.safe_load((CONF / f"{name}.yaml").read_text("utf-8"))
    return write_synthetic(ModelShape(**data["shape"]), folder / f"{name}.gguf", data["quant"], data["seed"])


def _runs(
    path: Path,
    configuration: Configuration,
    kinds: list[tuple[str, Path | None]],
    arguments: argparse.Namespace,
) -> int:
    workload = Workload(prompt_tokens=arguments.prompt_tokens, generated_tokens=arguments.generated_tokens)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    width = max(len(kind) for kind, _ in kinds)
    head = f"{'run':>3}  {'server':<{width}}  {'promised tok/s':>22}  {'found':>22}"
    print(f"{head}  {'change':>7}  {'own':>7}  prefill")
    kept = dict.fromkeys((kind for kind, _ in kinds), 0)
    for run in range(1, arguments.runs + 1):
        decode, prefill = _promise(path, configuration, workload, arguments)
        for kind, program in kinds:
            options = VerifyOptions(
                server=kind,
                program=program,
                start=True,
                repeats=arguments.repeats,
                repeat_seconds=arguments.repeat_seconds,
            )
            record = _record(path, digest, configuration, workload, decode, prefill)
            with _Beside(path, configuration, workload, arguments) as beside:
                found = verify(record, 0, options, progress=beside.at)
            first, second = found.figures
            assert first.found is not None
            promised = beside.reading() if arguments.interleaved else decode
            moved = first.found.median / promised.median - 1
            kept[kind] += abs(moved) <= TOLERANCE
            own = f"{first.own.median:.1f}" if first.own else "-"
            change = "-" if second.change is None else f"{100 * second.change:+.1f} %"
            print(
                f"{run:>3}  {kind:<{width}}  {_shown(promised):>22}  {_shown(first.found):>22}  "
                f"{100 * moved:+6.1f}%  {own:>7}  {change}",
                flush=True,
            )
    for kind, count in kept.items():
        print(
            f"{kind}: decode within {100 * TOLERANCE:g} % of the promise in {count} of {arguments.runs} runs"
        )
    return 0 if all(count == arguments.runs for count in kept.values()) else 5


class _Beside:
    """With ``--interleaved``: the engine's own decode, one window before each repeat that verify measures.

    A machine whose speed drifts by 10 % from minute to minute breaks every promise made minutes ago, and
    that is true but says nothing of verify: measured in turn, both meet the same machine.
    """

    def __init__(
        self, path: Path, configuration: Configuration, workload: Workload, arguments: argparse.Namespace
    ) -> None:
        self._engine = LlamaCppEngine({None: path})
        self._configuration, self._workload, self._arguments = configuration, workload, arguments
        self._speeds: list[float] = []

    def at(self, said: str) -> None:
        if self._arguments.interleaved and said.startswith("decode"):
            seconds = self._arguments.window_seconds
            run = self._engine.decode(self._workload.generated_tokens, 0, seconds, 10 * seconds)
            self._speeds.append(run.tokens_per_second)

    def reading(self) -> Reading:
        return _reading(self._speeds)

    def __enter__(self) -> _Beside:
        if self._arguments.interleaved:
            self._engine.load(self._configuration)
            self._engine.decode(self._workload.generated_tokens, 0, 1.0, 10.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()


def _promise(
    path: Path, configuration: Configuration, workload: Workload, arguments: argparse.Namespace
) -> tuple[Reading, Reading]:
    """Decode and prefill in tok/s by sweeper's engine, warmed up, in alternating windows."""
    seconds = arguments.window_seconds
    with LlamaCppEngine({None: path}) as engine:
        engine.load(configuration)

        def decode() -> float:
            return engine.decode(workload.generated_tokens, 0, seconds, 10 * seconds).tokens_per_second

        def prefill() -> float:
            return engine.prefill(workload.prompt_tokens, 0, seconds, 10 * seconds).tokens_per_second

        decode(), prefill()
        pairs = [(decode(), prefill()) for _ in range(arguments.repeats)]
    return _reading([d for d, _ in pairs]), _reading([p for _, p in pairs])


def _reading(values: list[float]) -> Reading:
    low, high = interval(values)
    return Reading(median(values), low, high, len(values))


def _shown(reading: Reading) -> str:
    return f"{reading.median:.1f} [{reading.low:.1f} {reading.high:.1f}]"


def _record(
    path: Path,
    digest: str,
    configuration: Configuration,
    workload: Workload,
    decode: Reading,
    prefill: Reading,
) -> SweepRecord:
    file = ModelFile("F16", str(path), digest, path.stat().st_size)
    metrics = {"tokens_per_second": decode, "prompt_tokens_per_second": prefill}
    return SweepRecord(
        sweep="benchmark",
        state="complete",
        machine=MachineRecord("", "", 0, 0, 0, ""),
        engine=EngineRecord("llama_cpp", ""),
        model=ModelRecord("benchmark", "llama", 0, 0, 0, "synthetic", "F16", {"F16": file}),
        workload=workload,
        objectives=(),
        constraints=(),
        power=PowerSource("none", "", "custom", "estimated"),
        space={},
        trials=(TrialRecord(0, "complete", configuration, metrics, remeasured=True),),
        front=(0,),
        baseline=0,
        recommended=0,
    )


if __name__ == "__main__":
    sys.exit(main())
