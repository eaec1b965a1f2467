"""A race between sweeper and what people would use instead, on this machine, one model and one build of llama.cpp.

    python benchmarks/race/race.py --model FILE.gguf --work FOLDER [--llama-bin FOLDER] [--runs 3] [--only NAME]

Each contestant runs ``--runs`` times. Then a judge measures every pick by the same rulers, and a table compares them.
Each result is kept in the work folder at once: the same command goes on where it was stopped. ``--only NAME`` runs one
contestant and judges nothing. docs/race.md says what is judged, and which choices could favour somebody.

Rivals are installed from the package index into environments of their own in the work folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]

import by_fituna  # noqa: E402
import by_grid  # noqa: E402
import by_llama_dyno  # noqa: E402
import by_llama_mdl  # noqa: E402
import by_llama_optimus  # noqa: E402
import by_plain_tpe  # noqa: E402
import by_sweeper  # noqa: E402
from contest import Contestant, NoAnswer, Outcome, Question, Rules, write_json  # noqa: E402
from judge import Judge, entrants_of  # noqa: E402
from programs import REPOSITORY, bench, last_line, timed, write_wrappers  # noqa: E402
from table import document, markdown  # noqa: E402

from sweeper.errors import EXIT_DONE, EXIT_MISSING, SweeperError, UsageError  # noqa: E402
from sweeper.model.header import read_header  # noqa: E402
from sweeper.model.quantise import SOURCES  # noqa: E402
from sweeper.records import to_plain  # noqa: E402

CONTESTANTS: tuple[Contestant, ...] = (
    *by_grid.CONTESTANTS,
    *by_sweeper.CONTESTANTS,
    *by_plain_tpe.CONTESTANTS,
    *by_llama_optimus.CONTESTANTS,
    *by_llama_dyno.CONTESTANTS,
    *by_llama_mdl.CONTESTANTS,
    *by_fituna.CONTESTANTS,
)
# These may change from call to call; every other rule holds for the whole work folder.
_MAY_CHANGE = ("runs", "judge_rounds", "cap_seconds")
# A user wants most of the speed that the file at hand has, and the best quality at that speed.
_SHARE_OF_SPEED = 0.95
_MAKE_SECONDS = 3600.0


def main() -> int:
    arguments = _arguments()
    for name in [name for name in os.environ if name.startswith("LLAMA_ARG_")]:
        del os.environ[name]  # it would override options silently
    try:
        rules = _rules(arguments)
        chosen = _chosen(arguments)
        if any(contestant.question == "quality" for contestant in chosen):
            rules = _with_quality(rules)
        problems = [problem for run in range(1, rules.runs + 1) for problem in _play(rules, chosen, run)]
        for problem in problems:
            _say(problem)
        if arguments.only:
            return EXIT_MISSING if problems else EXIT_DONE
        _judge(rules, chosen, arguments.json or rules.work / "race.json")
    except SweeperError as error:
        _say(f"race.py: {error}")
        return error.exit_code
    return EXIT_MISSING if problems else EXIT_DONE


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [contestant.name for contestant in CONTESTANTS]
    add = parser.add_argument
    add("--model", type=Path, required=True, help="the GGUF file, the same for all")
    add("--work", type=Path, required=True, help="where environments, runs and results are kept")
    programs = Path(sys.executable).parent
    add(
        "--llama-bin",
        type=Path,
        default=programs,
        help="the folder of llama.cpp's programs (default %(default)s)",
    )
    add("--runs", type=int, default=3, help="of each contestant (default %(default)s)")
    add("--judge-rounds", type=int, default=7, help="measurements of each pick (default %(default)s)")
    add("--only", choices=names, metavar="NAME", help=f"run this contestant alone: {', '.join(names)}")
    add("--without", choices=names, nargs="+", default=[], metavar="NAME", help="leave these out")
    add("--cap-minutes", type=float, default=60.0, help="of one run of a contestant (default %(default)s)")
    add("--grid-minutes", type=float, default=10.0, help="no pass of the grid begins that would end later")
    add("--grid-passes", type=int, default=5, help="over the grid, at most (default %(default)s)")
    add("--prompt-tokens", type=int, default=512, help="that the judge reads (default %(default)s)")
    add("--generated-tokens", type=int, default=128, help="in llama-bench (default %(default)s)")
    add("--client-tokens", type=int, default=64, help="of an answer at the client (default %(default)s)")
    add("--n-ctx", type=int, default=4096, help="context of the judge's llama-server (default %(default)s)")
    add("--depth", type=int, default=1408, help="for the question of quality (default %(default)s)")
    words = f"of that question; default: {_SHARE_OF_SPEED:.0%} of the model's speed with llama.cpp's defaults"
    add("--target-tps", type=float, help=words.replace("%", "%%"))
    add("--precise-model", type=Path, help="an F16 file for that question (default: made of --model)")
    add("--text", type=Path, help="for perplexity and KL divergence (default: the texts that sweeper brings)")
    add("--kld-chunks", type=int, default=4, help="of 512 tokens (default %(default)s)")
    add("--json", type=Path, metavar="FILE", help="where all figures go (default: WORK/race.json)")
    return parser.parse_args()


def _rules(arguments: argparse.Namespace) -> Rules:
    """The rules of the call. Raises UsageError if the work folder holds a race with others."""
    work = arguments.work.resolve()
    if not arguments.model.is_file():
        raise UsageError(f"--model {arguments.model}: there is no such file")
    for name in ("runs", "judge_rounds", "grid_passes", "kld_chunks"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')}: give at least 1")
    wrappers = work / "llama.cpp"
    write_wrappers(arguments.llama_bin.resolve(), wrappers)
    rules = Rules(
        model=arguments.model.resolve(),
        programs=arguments.llama_bin.resolve(),
        wrappers=wrappers,
        work=work,
        text=arguments.text.resolve() if arguments.text else _own_text(work),
        runs=arguments.runs,
        cap_seconds=60 * arguments.cap_minutes,
        prompt_tokens=arguments.prompt_tokens,
        generated_tokens=arguments.generated_tokens,
        client_tokens=arguments.client_tokens,
        n_ctx=arguments.n_ctx,
        depth=arguments.depth,
        judge_rounds=arguments.judge_rounds,
        grid_seconds=60 * arguments.grid_minutes,
        grid_passes=arguments.grid_passes,
        kld_chunks=arguments.kld_chunks,
        target=arguments.target_tps,
        precise_model=arguments.precise_model.resolve() if arguments.precise_model else None,
    )
    told = {k: str(v) for k, v in to_plain(rules).items() if k not in _MAY_CHANGE}
    file = work / "rules.json"
    kept = json.loads(file.read_text("utf-8")) if file.is_file() else told
    if changed := [name for name in told if kept.get(name) != told[name]]:
        raise UsageError(
            f"--work {work} holds a race with another {', '.join(changed)}: choose another folder, or repeat the "
            "arguments of that race"
        )
    write_json(file, told)
    return rules


def _own_text(work: Path) -> Path:
    """The texts in sweeper's package, joined."""
    texts = sorted((REPOSITORY / "sweeper" / "model").rglob("*.txt"))
    target = work / "text.txt"
    if not target.is_file():
        target.write_text("\n\n".join(text.read_text("utf-8") for text in texts), "utf-8")
    return target


def _chosen(arguments: argparse.Namespace) -> list[Contestant]:
    """The contestants of this call."""
    if arguments.only:
        return [c for c in CONTESTANTS if c.name == arguments.only]
    done = arguments.work.resolve() / "runs"
    # An optional contestant that ran with --only is judged with the others.
    return [
        c
        for c in CONTESTANTS
        if c.name not in arguments.without and (not c.optional or (done / f"{c.name}-1.json").is_file())
    ]


def _with_quality(rules: Rules) -> Rules:
    """The rules with an F16 file and a target speed, both made once."""
    model = rules.precise_model
    if model is None:
        is_precise = read_header(rules.model).file_type in SOURCES
        model = rules.model if is_precise else rules.work / f"{rules.model.stem}-F16.gguf"
    if not model.is_file():
        _say(f"making {model.name}")
        partial = model.with_suffix(".part")
        words = [
            str(rules.wrappers / "llama-quantize"),
            "--allow-requantize",
            str(rules.model),
            str(partial),
            "F16",
        ]
        ran = timed(words, rules.work / "quantise.log", {}, _MAKE_SECONDS)
        if ran.exit_code != 0:
            raise NoAnswer(f"cannot make {model.name}: {last_line(ran.output)}")
        partial.replace(model)
    file = rules.work / "target.json"
    target = rules.target or (json.loads(file.read_text("utf-8")) if file.is_file() else None)
    if target is None:
        _say("measuring the target speed")
        speeds = [
            bench(
                rules.programs / "llama-bench",
                str(rules.model),
                {},
                generated=rules.generated_tokens,
                depth=depth,
            )
            for depth in (rules.depth,) * 3
        ]
        target = _SHARE_OF_SPEED * sorted(speeds)[1]
    write_json(file, target)
    return replace(rules, target=target, precise_model=model)


def _play(rules: Rules, chosen: list[Contestant], run: int) -> list[str]:
    """Run every contestant once, in random order, unless its outcome is there. Returns what went wrong."""
    order = list(chosen)
    random.Random(run).shuffle(order)
    order.sort(key=lambda contestant: len(contestant.needs))  # after those that it needs
    problems = []
    for contestant in order:
        if (contestant.once and run > 1) or rules.outcome(contestant.name, run):
            continue
        _say(f"{contestant.name}, run {run} of {1 if contestant.once else rules.runs}")
        folder = rules.folder(contestant.name, run)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        for part in ("home", "tmp"):
            (folder / part).mkdir(parents=True)
        _read_once(rules.model)
        load = os.getloadavg()[0]
        try:
            outcome = contestant.play(rules, folder, run)
        except SweeperError as error:
            problems.append(f"{contestant.name} has no run {run}: {error}")
            continue
        rules.keep(replace(outcome, load_before=load))
        _say(f"  {outcome.state} after {outcome.seconds:.0f} s {outcome.reason}")
    return problems


def _read_once(model: Path) -> None:
    """Read the file into the page cache, so that nobody pays for the first read."""
    with model.open("rb") as file:
        while file.read(1 << 24):
            pass


def _judge(rules: Rules, chosen: list[Contestant], file: Path) -> None:
    outcomes: list[tuple[Outcome, Question]] = [
        (outcome, contestant.question)
        for contestant in chosen
        for run in range(1, rules.runs + 1)
        if (outcome := rules.outcome(contestant.name, run))
    ]
    judge = Judge.here(rules, _say)
    entrants = entrants_of(judge, outcomes)
    rounds = judge.rounds(entrants)
    divergences = {key: judge.kl_divergence(entrant) for key, entrant in entrants.items()}
    starts = {outcome.command: judge.starts(outcome.command) for outcome, _ in outcomes}
    found = document(judge, outcomes, rounds, divergences, starts)
    write_json(file, found)
    print(markdown(found))
    _say(f"wrote {file}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
