"""Does a server give its client what the engine promised? Five rounds for each model and each kind of server.

In each round `verify` starts the server with the engine's configuration and measures it over HTTP. The engine decodes
a window before each of verify's repeats: measured in turns, both meet the same machine. The ratio is kept/promised.
Wanted: decode within 3 % in 5 of 5. With ``--apart``, the engine promises decode and prefill first, as a sweep does,
and the server is measured afterwards.

    python benchmarks/verify_keeps_promise.py --llama-server PATH    # without PATH: the one on PATH, or none

The vocabularies of 262,144 tokens show the cost of sampling, which the engine pays as the servers do
(``--without-sampling`` shows the promise of an engine that does not).
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
from sweeper.engine.llama_cpp import SAMPLING, LlamaCppEngine
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
TOLERANCE = 0.03
# Vocabularies as large as Gemma's: one in two small layers, where sampling costs most, and one in a real model's shape.
SHAPES = {
    "vocabulary_256k_tiny": ModelShape(
        n_layer=2,
        embedding_length=256,
        feed_forward_length=512,
        head_count=4,
        head_count_kv=4,
        vocab_size=262_144,
        tied_embeddings=True,
    ),
    "vocabulary_256k": ModelShape(
        n_layer=18,
        embedding_length=640,
        feed_forward_length=2048,
        head_count=4,
        head_count_kv=1,
        vocab_size=262_144,
        n_ctx_train=32_768,
        tied_embeddings=True,
    ),
}


def main() -> int:
    arguments = _arguments()
    kinds: list[tuple[str, Path | None]] = [("llama-cpp-python", None)]
    program = arguments.llama_server or shutil.which("llama-server")
    if program:
        kinds.append(("llama-server", Path(program)))
    else:
        print("no llama-server: only the server of llama-cpp-python is measured", file=sys.stderr)
    configuration = Configuration(
        n_ctx=arguments.n_ctx,
        n_batch=512,
        n_threads=arguments.threads,
        n_threads_batch=arguments.threads,
    )
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        for model in [str(arguments.gguf)] if arguments.gguf else arguments.models:
            path = arguments.gguf or write_model(model, Path(folder))
            print(f"{model}, {path.stat().st_size / 2**20:.0f} MiB")
            kept &= _runs(path, configuration, kinds, arguments)
    return 0 if kept else 5


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=20, help="of each figure in a run")
    names = f"of conf/model, or {', '.join(SHAPES)}"
    parser.add_argument("--models", nargs="+", default=["synthetic_110m", "vocabulary_256k"], help=names)
    parser.add_argument("--gguf", type=Path, help="a model file instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n-ctx", type=int, default=1024)
    # Short turns: a drift of the machine then hits both sides alike.
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--generated-tokens", type=int, default=48)
    parser.add_argument(
        "--repeat-seconds", type=float, default=0.5, help="of one repeat of verify's, at least"
    )
    parser.add_argument("--window-seconds", type=float, default=0.5, help="of one repeat of the promise")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--apart", action="store_true", help="measure the promise first, then the server")
    parser.add_argument("--without-sampling", action="store_true", help="an engine that samples no tokens")
    return parser.parse_args()


def write_model(name: str, folder: Path) -> Path:
    if name in SHAPES:
        return write_synthetic(SHAPES[name], folder / f"{name}.gguf", "Q8_0")
    data = yaml.safe_load((CONF / f"{name}.yaml").read_text("utf-8"))
    return write_synthetic(ModelShape(**data["shape"]), folder / f"{name}.gguf", data["quant"], data["seed"])


def _runs(
    path: Path,
    configuration: Configuration,
    kinds: list[tuple[str, Path | None]],
    arguments: argparse.Namespace,
) -> bool:
    """Whether every round of every kind of server keeps the promise."""
    workload = Workload(prompt_tokens=arguments.prompt_tokens, generated_tokens=arguments.generated_tokens)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    width = max(len(kind) for kind, _ in kinds)
    head = f"{'run':>3}  {'server':<{width}}  {'promised tok/s':>22}  {'found':>22}"
    print(f"{head}  {'kept/promised':>13}  {'own':>7}  prefill")
    kept = dict.fromkeys((kind for kind, _ in kinds), 0)
    for run in range(1, arguments.runs + 1):
        promise = _promise(path, configuration, workload, arguments) if arguments.apart else None
        for kind, program in kinds:
            options = VerifyOptions(
                server=kind,
                program=program,
                start=True,
                repeats=arguments.repeats,
                repeat_seconds=arguments.repeat_seconds,
            )
            record = _record(path, digest, configuration, workload, promise)
            with _Beside(path, configuration, workload, arguments) as beside:
                found = verify(record, 0, options, progress=beside.at)
            first, second = found.figures
            assert first.found is not None
            promised = promise[0] if promise else beside.reading()
            ratio = first.found.median / promised.median
            kept[kind] += abs(ratio - 1) <= TOLERANCE
            own = f"{first.own.median:.1f}" if first.own else "-"
            change = "-" if second.change is None else f"{100 * second.change:+.1f} %"
            print(
                f"{run:>3}  {kind:<{width}}  {_shown(promised):>22}  {_shown(first.found):>22}  "
                f"{ratio:>13.3f}  {own:>7}  {change}",
                flush=True,
            )
    for kind, count in kept.items():
        print(
            f"{kind}: decode within {100 * TOLERANCE:g} % of the promise in {count} of {arguments.runs} runs"
        )
    return all(count == arguments.runs for count in kept.values())


class _Beside:
    """The engine's own decode, one window before each repeat that verify measures; nothing with ``--apart``.

    A machine whose speed drifts by 10 % from minute to minute breaks every promise made minutes ago, and
    that is true but says nothing of verify: measured in turn, both meet the same machine.
    """

    def __init__(
        self, path: Path, configuration: Configuration, workload: Workload, arguments: argparse.Namespace
    ) -> None:
        self._engine = LlamaCppEngine({None: path}, sample=not arguments.without_sampling)
        self._configuration, self._workload, self._arguments = configuration, workload, arguments
        self._speeds: list[float] = []

    def at(self, said: str) -> None:
        if not self._arguments.apart and said.startswith("decode"):
            seconds = self._arguments.window_seconds
            run = self._engine.decode(self._workload.generated_tokens, 0, seconds, 10 * seconds)
            self._speeds.append(run.tokens_per_second)

    def reading(self) -> Reading:
        return _reading(self._speeds)

    def __enter__(self) -> _Beside:
        if not self._arguments.apart:
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
    with LlamaCppEngine({None: path}, sample=not arguments.without_sampling) as engine:
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
    promise: tuple[Reading, Reading] | None,
) -> SweepRecord:
    file = ModelFile("F16", str(path), digest, path.stat().st_size)
    names = ("tokens_per_second", "prompt_tokens_per_second")
    metrics = dict(zip(names, promise, strict=True)) if promise else {}
    return SweepRecord(
        sweep="benchmark",
        state="complete",
        machine=MachineRecord("", "", 0, 0, 0, ""),
        engine=EngineRecord("llama_cpp", "", sampling=SAMPLING),
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
