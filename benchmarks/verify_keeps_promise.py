"""Does a server give its client what the engine promised? Five rounds for each model and each kind of server.

In each round `verify` starts the server with the engine's configuration and measures it over HTTP. Before each of
verify's repeats, the engine has its turn, so that both meet the same machine. A second instance of the engine has one
as well: its ratio to the first is the ruler, because what two equal engines show is noise. Wanted: decode within 3 % in
5 of 5 (else the exit code is 5); prefill is shown beside it. One command measures the whole table, and goes on where it
was stopped (2 hours on 2 cores):

    python benchmarks/verify_keeps_promise.py --llama-server .venv/bin/llama-server

What an engine measures in a turn is what verify asks of the server, so that only the server can make the difference:

- as many tokens, at the same depth: verify's figure is the difference between a long and a short answer to one prompt,
  so its tokens lie behind prompt and short answer;
- warm caches: a difference leaves out what the first tokens of a turn cost, so a few tokens before each window do not
  count;
- the same sampling, threads, batch and context. Vocabularies of 262,144 tokens show the cost of sampling
  (``--without-sampling`` shows the promise of an engine that does not pay it).

With ``--apart``, the engine promises first, as a sweep does, and the server is measured afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from gpu_record import StepFile
from ratios import paired_ratio, ratio_of_readings, shown
from side_by_side import OUT, ROOT, builds_of, finished, model_file, run

from sweeper.apply.verify.check import verify
from sweeper.apply.verify.find import VerifyOptions
from sweeper.engine.llama_cpp import SAMPLING, LlamaCppEngine
from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.errors import EXIT_DONE, EXIT_VERIFY
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
from sweeper.stats import median, reading

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"
TOLERANCE = 0.03
CPP, SERVER = "llama_cpp", "llama_server"
# The kinds of servers, and the engines whose promise each of them must keep.
PROMISES = (("llama-cpp-python", CPP), ("llama-server", CPP), ("llama-server", SERVER))
SIDES = ("promise", "again")
PHASES = ("decode", "prefill")
CLIENT_PROMPT_TOKENS = 2  # verify's prompt for decode: a beginning-of-text token and a letter
WARM_TOKENS = 8
LONGEST_SECONDS = 600.0
HEAD = (
    "| round | engine | server | engine tok/s | client tok/s | client ÷ engine | engine ÷ itself | prefill |\n"
    "|---|---|---|---|---|---|---|---|"
)
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
    options = _arguments()
    promises = [each for each in PROMISES if each[0] in options.servers and each[1] in options.engines]
    if options.llama_server is None:
        promises = [each for each in promises if "llama-server" not in each and SERVER not in each]
        print("no --llama-server: only the server of llama-cpp-python is measured", file=sys.stderr)
    names = ("repeats", "threads", "n_ctx", "prompt_tokens", "generated_tokens", "repeat_seconds")
    settings = {name: vars(options)[name] for name in (*names, "window_seconds", "apart", "without_sampling")}
    builds = _builds(options)
    file = StepFile(options.out, {"builds": builds} | settings)
    print(f"{'; '.join(builds.values())}; {options.threads} threads, {options.repeats} repeats a round")
    kept = True
    for model in options.models:
        path = _path_of(model, options.root)
        print(f"\n{path.name}, {path.stat().st_size / 2**20:.0f} MiB\n")
        print(HEAD)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        for number in range(1, options.runs + 1):
            for server, engine in promises:
                key = f"{path.name}, {server} after {engine}, round {number}"
                row = file.row(key, partial(one_round, path, digest, server, engine, number, options))
                _show(number, server, engine, row)
        print()
        for server, engine in promises:
            kept &= _summary(file.rows, path, server, engine, options.runs)
    return EXIT_DONE if finished(file) and kept else EXIT_VERIFY


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="rounds")
    parser.add_argument("--repeats", type=int, default=40, help="of each figure in a round")
    names = f"of conf/model, GGUF files, or {', '.join(SHAPES)}"
    parser.add_argument("--models", nargs="+", default=["synthetic_110m", "vocabulary_256k"], help=names)
    parser.add_argument("--servers", nargs="+", default=[server for server, _ in PROMISES])
    parser.add_argument("--engines", nargs="+", default=[CPP, SERVER], help="whose promise is kept")
    parser.add_argument("--threads", type=int, default=1)
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
    parser.add_argument("--root", type=Path, default=ROOT, help="where synthetic models are kept")
    parser.add_argument("--out", type=Path, default=OUT / "verify_keeps_promise.json")
    return parser.parse_args()


def write_model(name: str, folder: Path) -> Path:
    if name in SHAPES:
        return write_synthetic(SHAPES[name], folder / f"{name}.gguf", "Q8_0")
    data = yaml.safe_load((CONF / f"{name}.yaml").read_text("utf-8"))
    return write_synthetic(ModelShape(**data["shape"]), folder / f"{name}.gguf", data["quant"], data["seed"])


def _path_of(model: str, root: Path) -> Path:
    if model not in SHAPES:
        return model_file(model, root)
    path = root / "models" / f"{model}.gguf"
    return path if path.exists() else write_model(model, path.parent)


def _engine(name: str, path: Path | None, options: argparse.Namespace) -> LlamaCppEngine | LlamaServerEngine:
    files = {} if path is None else {None: path}
    if name == SERVER:
        return LlamaServerEngine(str(options.llama_server), files)
    return LlamaCppEngine(files, sample=not options.without_sampling)


def _builds(options: argparse.Namespace) -> dict[str, str]:
    with _engine(CPP, None, options) as engine:
        builds = builds_of({CPP: engine})
    if options.llama_server is not None:
        builds |= builds_of({SERVER: _engine(SERVER, None, options)})
    return builds


def one_round(
    path: Path, digest: str, server: str, engine: str, number: int, options: argparse.Namespace
) -> dict[str, Any]:
    """The speeds of the engine, of the engine again, and of the server's client, in tok/s by phase."""
    workload = Workload(prompt_tokens=options.prompt_tokens, generated_tokens=options.generated_tokens)
    configuration = Configuration(
        n_ctx=options.n_ctx,
        n_batch=512,
        n_threads=options.threads,
        n_threads_batch=options.threads,
    )
    wanted = VerifyOptions(
        server=server,
        program=options.llama_server if server == "llama-server" else None,
        start=True,
        repeats=options.repeats,
        repeat_seconds=options.repeat_seconds,
    )
    turns = _Turns(engine, path, configuration, workload, options, random.Random(f"{server} {number}"))
    with turns:
        if options.apart:
            for _ in range(options.repeats):
                turns.at("decode")
                turns.at("prefill")
        record = _record(path, digest, configuration, workload)
        found = verify(record, 0, wanted, progress=(lambda _: None) if options.apart else turns.at)
    client = {phase: _plain(figure.found) for phase, figure in zip(PHASES, found.figures, strict=True)}
    own = {phase: _plain(figure.own) for phase, figure in zip(PHASES, found.figures, strict=True)}
    names = {"model": path.name, "server": server, "engine": engine}
    return {**names, "engine_speeds": turns.speeds, "client": client, "own": own}


class _Turns:
    """Two instances of the engine. Each has a turn before each repeat of verify's, in random order.

    A machine whose speed drifts by 10 % from minute to minute breaks every promise made minutes ago, and that is true
    but says nothing of verify: measured in turn, all meet the same machine.
    """

    def __init__(
        self,
        engine: str,
        path: Path,
        configuration: Configuration,
        workload: Workload,
        options: argparse.Namespace,
        draw: random.Random,
    ) -> None:
        self._engines = {side: _engine(engine, path, options) for side in SIDES}
        self._configuration, self._workload, self._draw = configuration, workload, draw
        self._seconds = options.window_seconds
        # verify's short answer has a quarter of the tokens, at most 16; those of its figure come behind it.
        self._depth = CLIENT_PROMPT_TOKENS + max(1, min(16, workload.generated_tokens // 4))
        self.speeds: dict[str, dict[str, list[float]]] = {phase: {s: [] for s in SIDES} for phase in PHASES}

    def at(self, said: str) -> None:
        """Give both engines their turn in the phase that ``said`` begins with."""
        phase = said.partition(" ")[0]
        if phase not in PHASES:
            return
        for side in self._draw.sample(SIDES, len(SIDES)):
            engine = self._engines[side]
            engine.decode(WARM_TOKENS, self._depth, 0.0, LONGEST_SECONDS)
            if phase == "decode":
                run = engine.decode(
                    self._workload.generated_tokens, self._depth, self._seconds, LONGEST_SECONDS
                )
            else:
                run = engine.prefill(self._workload.prompt_tokens, 0, self._seconds, LONGEST_SECONDS)
            self.speeds[phase][side].append(run.tokens_per_second)

    def __enter__(self) -> _Turns:
        for engine in self._engines.values():
            engine.load(self._configuration)
            engine.decode(self._workload.generated_tokens, self._depth, 1.0, LONGEST_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self._engines.values():
            engine.close()


def _plain(figure: Reading | None) -> list[float] | None:
    return None if figure is None else [figure.median, figure.low, figure.high, figure.n]


def _ratios(row: dict[str, Any], phase: str) -> tuple[Reading | None, Reading]:
    """The client beside the engine, and the engine beside itself."""
    speeds, client = row["engine_speeds"][phase], row["client"][phase]
    promise, again = (speeds[side] for side in SIDES)
    kept = None if client is None else ratio_of_readings(Reading(*client), reading(promise))
    return kept, paired_ratio(again, promise)


def _show(number: int, server: str, engine: str, row: dict[str, Any]) -> None:
    head = f"| {number} | {engine} | {server} |"
    if "error" in row:
        print(f"{head} {row['error']} |", flush=True)
        return
    decode, itself = _ratios(row, "decode")
    prefill, prefill_itself = _ratios(row, "prefill")
    assert decode is not None  # verify ends with an error where it cannot measure decode
    promised, found = median(row["engine_speeds"]["decode"]["promise"]), row["client"]["decode"][0]
    beside = "-" if prefill is None else f"{prefill.median:.3f}, itself {prefill_itself.median:.3f}"
    print(f"{head} {promised:.1f} | {found:.1f} | {shown(decode)} | {shown(itself)} | {beside} |", flush=True)


def _summary(rows: Sequence[dict[str, Any]], path: Path, server: str, engine: str, runs: int) -> bool:
    """Print in how many rounds a server kept an engine's promise. True if in all."""
    wanted = (path.name, server, engine)
    some = [row for row in rows if (row.get("model"), row.get("server"), row.get("engine")) == wanted]
    if not some:
        print(f"{server} after {engine}: no round was measured")
        return False
    words, in_all = [], {}
    for phase in PHASES:
        both = [_ratios(row, phase) for row in some]
        kept = [ratio.median for ratio, _ in both if ratio is not None]
        itself = [ratio.median for _, ratio in both]
        in_all[phase] = _within(kept) == max(len(some), runs)
        middle = f"median {median(kept):.3f}" if kept else "not measured"
        words.append(
            f"{phase} within {TOLERANCE:.0%} in {_within(kept)} of {len(some)} ({middle}; the engine itself in "
            f"{_within(itself)}, median {median(itself):.3f})"
        )
    print(f"{server} after {engine}: {'; '.join(words)}")
    return in_all["decode"]


def _within(ratios: Sequence[float]) -> int:
    return sum(abs(ratio - 1) <= TOLERANCE for ratio in ratios)


def _record(path: Path, digest: str, configuration: Configuration, workload: Workload) -> SweepRecord:
    """A sweep of this one configuration. It promises nothing, since the promise is measured in turns."""
    file = ModelFile("F16", str(path.absolute()), digest, path.stat().st_size)
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
        trials=(TrialRecord(0, "complete", configuration, {}, remeasured=True),),
        front=(0,),
        baseline=0,
        recommended=0,
    )


if __name__ == "__main__":
    run(main)
