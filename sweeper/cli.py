"""The command line: words to commands, errors to exit codes. What each command does is in ``commands.py``.

Data goes to standard output, progress and errors to standard error. Whatever goes wrong on purpose is one
line and the exit code of its error; see ``sweeper/errors.py``.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper import __version__, commands
from sweeper.commands import console, say_error
from sweeper.errors import EXIT_DONE, EXIT_STOPPED, SweeperError

if TYPE_CHECKING:
    from sweeper.config import Composed
    from sweeper.records import SweepRecord
    from sweeper.sweep import StopFlag

# The names of `sweeper.apply.targets.registry`, which would cost `--help` half a second; a test holds them equal.
TARGETS = (
    "llama-server",
    "llama-cpp-python",
    "ollama",
    "llama-swap",
    "textgen",
    "compose",
    "systemd",
    "env",
    "python",
    "lm-studio",
)

_SWEEP_HELP = """\
usage: sweeper sweep [KEY=VALUE ...] [--json] [Hydra's flags]

Search the settings of llama.cpp for the most tokens per second and the fewest watts.

  sweeper sweep                                     the built-in synthetic model, on this machine
  sweeper sweep model.path=~/model.gguf             a GGUF file of yours
  sweeper sweep experiment=quick                    a first front in a few minutes
  sweeper sweep space.n_threads=4 'space.quant=[Q4_K_M,Q8_0]' search.trials=100
  sweeper sweep name=evening                        the same name goes on where it stopped
  sweeper sweep -m model=tinyllama_1b,llama_3b      one sweep after the other

  --json               the front as JSON on standard output
  --cfg job            show the composed configuration (--cfg job -p space: a part of it)
  --info defaults      show which files it is made of
  --config-dir DIR     a folder of yours, which goes before sweeper's own conf/
  --hydra-help         Hydra's own flags

Groups and their choices:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if os.environ.get("COMP_LINE"):
        return _complete()
    try:
        if arguments[:1] == ["sweep"]:
            return _sweep(arguments[1:])
        parser = _parser()
        options = parser.parse_args(arguments)
        if not hasattr(options, "run"):
            parser.print_help()
            return EXIT_DONE
        code: int = options.run(options)
    except SweeperError as error:
        say_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say_error("stopped")
        return EXIT_STOPPED
    except BrokenPipeError:  # `sweeper report | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    return code


def entry() -> None:
    """The console script."""
    sys.exit(main())


# -- sweep


def _sweep(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(_SWEEP_HELP + _groups())
        return EXIT_DONE
    as_json = "--json" in arguments
    arguments = [word for word in arguments if word != "--json"]
    from sweeper.config import run_hydra

    several = bool({"-m", "--multirun"} & set(arguments))
    words = [_with_plain_path(word, several) for word in arguments]
    return run_hydra(words, lambda composed: _run_sweep(composed, as_json))


def _with_plain_path(word: str, several: bool) -> str:
    """``model.path=~/my (1).gguf`` as Hydra reads it: with the home folder in it, and quoted.

    Shells leave a ``~`` behind an equals sign as it is, and Hydra's own grammar knows neither it nor brackets. With
    ``several`` commas separate paths.
    """
    key, equals, value = word.partition("=")
    if key.startswith("-") or not equals or not value.startswith(("~/", "/")):  # flags are no overrides
        return word
    paths = [os.path.expanduser(path) for path in (value.split(",") if several else [value])]
    # Backslashes count double before a quote only.
    escaped = [re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), path) for path in paths]
    return f"{key}=" + ",".join(f"'{path}'" for path in escaped)


def _run_sweep(composed: Composed, as_json: bool) -> int:
    """One sweep, from its composed configuration to the table at the end."""
    from sweeper import prepare
    from sweeper.report.live import open_progress
    from sweeper.report.progress import Plan

    screen = console(stderr=True)

    def say(text: str) -> None:
        screen.print(text, style="dim", highlight=False, markup=False)

    def display(header: SweepRecord, plan: Any) -> Any:
        for note in header.notes:
            say(note)
        expected = Plan(prepare.finalist_measurements(plan), FINALIST_COST, plan.minutes)
        return open_progress(screen, header.objectives, header.power, expected, plan.first[0])

    try:
        with prepare.prepared(composed, display, say) as sweep:
            say(f"sweep {sweep.study.header().sweep}: {sweep.plan.total} trials at most")
            with sweep.progress as progress, _first_interrupt_concludes(sweep.stop, progress.note):  # type: ignore[attr-defined]
                record = sweep.run()
    except SweeperError as error:
        say_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say_error("stopped at once: everything finished is kept, and the same command goes on from there")
        return EXIT_STOPPED
    commands.show(record, "json" if as_json else "table")
    return EXIT_STOPPED if sweep.stop.set_by_hand else EXIT_DONE


# A visit to a finalist costs about this much of a screening trial: longer windows, the same load and warm-up.
FINALIST_COST = 1.2


@contextmanager
def _first_interrupt_concludes(stop: StopFlag, note: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C once: the trial in flight is finished, then the sweep concludes. Twice: it stops now."""

    def on_interrupt(_number: int, _frame: object) -> None:
        if stop.set_by_hand:
            raise KeyboardInterrupt
        stop.set_by_hand = True
        note("stopping after the trial in flight; Ctrl-C again stops now")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _groups() -> str:
    """The groups of conf/ with their choices."""
    from sweeper.config import conf_folder

    lines = []
    for folder in sorted(p for p in conf_folder().iterdir() if p.is_dir()):
        choices = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        lines.append(f"  {folder.name:<12} {choices}")
    return "\n".join(lines)


# -- the parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sweeper",
        description="Finds the llama.cpp settings with the most tokens per second for the fewest watts, "
        "and puts them to work.",
        epilog="Exit codes: 0 done; 2 a wrong word or value; 3 something is missing; 4 no trial counts; "
        "5 a promise is not kept; 130 stopped by hand.",
    )
    parser.add_argument("--version", action="version", version=f"sweeper {__version__}")
    add = parser.add_subparsers(title="commands", metavar="COMMAND")
    add.add_parser("sweep", help="search: the main job", add_help=False)
    _add_report(add)
    _add_apply(add)
    rollback = _command(add, "rollback", commands.rollback, "undo the last apply, files and limits")
    rollback.add_argument("--force", action="store_true", help="also where a file was changed since")
    _add_verify(add)
    restore = _command(add, "restore", commands.restore, "give back limits that a killed run left")
    restore.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="for example power.limits.zeusd_socket=PATH"
    )
    doctor = _command(
        add, "doctor", commands.doctor, "what this machine can measure and set, and what mends the rest"
    )
    doctor.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="for example power.plug.url=http://…"
    )
    _add_compare(add)
    ui = _command(add, "ui", commands.ui, "the MLflow UI on 127.0.0.1", with_json=False)
    ui.add_argument("--port", type=int, default=5000, help="the port wished for (default %(default)s)")
    ui.add_argument("--uri", help="an MLflow store elsewhere (tracking.uri)")
    record = _command(
        add, "record", commands.record, "measure a whole grid into a table for engine=replay", False
    )
    record.add_argument("file", type=Path, metavar="FILE.csv.gz", help="the table; cut short, it goes on")
    record.add_argument(
        "--passes", type=int, default=1, help="go over the grid so often: a drift shows as noise (default 1)"
    )
    record.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for `sweeper sweep`")
    return parser


def _command(
    add: Any, name: str, run: Callable[[argparse.Namespace], int], words: str, with_json: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = add.add_parser(
        name, help=words, description=words[0].upper() + words[1:]
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--root", type=Path, default=Path("mlruns"), help="where runs are (default %(default)s)"
    )
    if with_json:
        parser.add_argument("--json", action="store_true", help="answer as JSON on standard output")
    return parser


def _add_report(add: Any) -> None:
    report = _command(add, "report", commands.report, "the front as a table; writes HTML, markdown and PNG")
    report.add_argument("sweep", nargs="?", metavar="SWEEP", help="its name (default: the latest)")
    report.add_argument("--format", choices=("table", "markdown", "json", "csv"), default="table")
    report.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go")


def _add_pick(parser: argparse.ArgumentParser) -> None:
    picks = "fastest, greenest, knee, within:5%%, at-least:20tok/s, at-most:60W, or a trial's number"
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="its name (default: the latest)")
    parser.add_argument("--pick", metavar="P", help=f"{picks} (default: the sweep's own)")


def _add_apply(add: Any) -> None:
    apply = _command(
        add, "apply", commands.apply, "show what a pick would change in a server's files, or write it"
    )
    _add_pick(apply)
    words = f"one of {', '.join(TARGETS)} (default %(default)s)"
    apply.add_argument("--to", choices=TARGETS, default="llama-server", metavar="TARGET", help=words)
    apply.add_argument("--write", action="store_true", help="write it, with a backup; without, only the diff")
    apply.add_argument("--power-limit", action="store_true", help="set the configuration's power limit too")
    apply.add_argument("--force", action="store_true", help="although machine, engine or model changed since")
    apply.add_argument("--name", help="the name that the server gives the model")
    apply.add_argument("--port", type=int, help="the server's port")
    apply.add_argument("--file", type=Path, help="the target's main file")
    apply.add_argument("--folder", type=Path, help="where files go that the target names itself")


def _add_verify(add: Any) -> None:
    verify = _command(add, "verify", commands.verify, "measure a pick in force against what was promised")
    _add_pick(verify)
    verify.add_argument(
        "--server", choices=("auto", "llama-server", "llama-cpp-python", "ollama"), default="auto"
    )
    verify.add_argument("--url", help="a running server (default: its usual address, else one is started)")
    verify.add_argument("--name", help="the model's name there")
    verify.add_argument("--program", type=Path, help="the llama-server to start")
    verify.add_argument("--repeats", type=int, default=5)
    verify.add_argument("--no-watts", action="store_true", help="compare speed only")


def _add_compare(add: Any) -> None:
    compare = _command(
        add, "compare", commands.compare, "several sweeps side by side: speed, watts, J/token, cost"
    )
    compare.add_argument(
        "sweeps", nargs="*", metavar="SWEEP", help="their names, or front folders' roots with --from"
    )
    compare.add_argument("--from", dest="roots", type=Path, action="append", metavar="ROOT",
                         help="another mlruns folder, as from another machine; may be given again")  # fmt: skip
    compare.add_argument("--format", choices=("table", "markdown", "json", "csv"), default="table")
    compare.add_argument("--per-kwh", type=float, help="price of a kWh (default: the first sweep's)")
    compare.add_argument("--hours", type=float, help="hours of use a day (default: the first sweep's)")
    compare.add_argument("--currency", help="for example EUR")
    card = compare.add_argument_group("would a card pay?")
    card.add_argument("--card", metavar="NAME", help="its name, for example 'RTX 2080'")
    card.add_argument("--card-price", type=float, metavar="MONEY")
    card.add_argument(
        "--card-speed", type=float, metavar="TOK/S", help="as measured or published for this model"
    )
    card.add_argument("--card-watts", type=float, metavar="W", help="in decode")
    card.add_argument("--card-idle", type=float, default=0.0, metavar="W", help="more at rest with it")


def _complete() -> int:
    """Complete `sweeper sweep …`: Hydra completes what stands behind a program's name, and no subcommand."""
    line = os.environ["COMP_LINE"]
    os.environ["COMP_LINE"] = line.replace(" sweep", "", 1)
    os.environ["COMP_POINT"] = str(max(0, int(os.environ.get("COMP_POINT", len(line))) - len(" sweep")))
    from sweeper.config import run_hydra

    return run_hydra(["--shell-completion", "query=bash"], lambda _: EXIT_DONE)
