"""The command line: it turns arguments into commands and errors into exit codes. ``commands.py`` does the work.

Data goes to standard output; progress and errors go to standard error. An error that sweeper raises on purpose
prints one line, and its class decides the exit code; see ``sweeper/errors.py``.
"""

from __future__ import annotations

import argparse
import errno
import io
import itertools
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sweeper import __version__, commands
from sweeper.commands import console, discard, put, say_error
from sweeper.errors import EXIT_DONE, EXIT_FAULT, EXIT_MISSING, EXIT_STOPPED, SweeperError, UsageError
from sweeper.overrides import at_home, is_model_path
from sweeper.spelling import nearest, number

if TYPE_CHECKING:
    from sweeper.config import Composed
    from sweeper.records import SweepRecord
    from sweeper.sweep import SearchPlan, StopFlag

# The names in `sweeper.apply.targets.registry`. Importing it would cost `--help` half a second; a test compares both.
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
usage: sweeper sweep [KEY=VALUE ...] [--json] [--verbose] [Hydra's flags]

Search the settings of llama.cpp for the most tokens per second and the fewest watts.

  sweeper sweep                                     sweep the built-in synthetic model on this machine
  sweeper sweep model.path=~/model.gguf             sweep your own GGUF file
  sweeper sweep experiment=quick                    get a first Pareto front in a few minutes
  sweeper sweep space.n_threads=4 'space.quant=[Q4_K_M,Q8_0]' search.trials=100
                                                    fix one parameter, search two values of another
  sweeper sweep name=evening                        name a sweep; the same name resumes it
  sweeper sweep -m model=tinyllama_1b,llama_3b      run one sweep after the other

  --json               print the Pareto front as JSON on standard output
  --verbose            list every trial above the live screen
  --cfg job            print the whole configuration (--cfg job -p space: one part of it)
  --info defaults      list the files that make up the configuration
  --config-dir DIR     a folder that takes precedence over the bundled configuration
  --hydra-help         describe Hydra's own flags

Ctrl-C ends the search: sweeper finishes the current trial, measures the baseline, the pick and its closest rivals once
more, and prints the result. Press it again to stop at once. The same command resumes the sweep.

Groups and their choices (GROUP=CHOICE):
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        try:
            return _run(arguments)
        finally:
            _flush()
    except SweeperError as error:
        say_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say_error("stopped")
        return EXIT_STOPPED
    except BrokenPipeError:  # Hydra writes too: the reader of `sweeper sweep --cfg job | head` is gone
        return EXIT_DONE
    except OSError as error:
        if error.filename is None and error.errno not in DISK_ERRORS:
            return _fault(arguments, error)
        say_error(f"cannot use {error.filename or 'the output'}: {error.strerror}")
        return EXIT_MISSING
    except Exception as error:  # noqa: BLE001 - the last resort, which keeps the traceback
        return _fault(arguments, error)


# The system's refusals to write more, which may name no file.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _prepare_streams() -> None:
    """Let no letter that a terminal cannot write, and no closed output (`>&-`), end a command."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    if os.environ.get("COMP_LINE"):
        return _complete()
    if arguments[:1] == ["sweep"]:
        return _sweep(arguments[1:])
    if arguments and is_model_path(arguments[0]):  # `sweeper model.gguf`
        return _sweep(arguments)
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        if not arguments and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
            return _guided()
        parser.print_help()
        return EXIT_DONE
    code: int = options.run(options)
    return code


def _guided() -> int:
    """`sweeper` alone in a terminal: ask what to sweep, and run it."""
    from sweeper.start import ask

    answered = ask(put)
    if answered is None:
        return EXIT_DONE
    words, target = answered
    code = _sweep(words[1:])
    if code == EXIT_DONE:
        commands.note(f"to use the result: sweeper apply --to {target}")
    return code


def _fault(arguments: list[str], error: Exception) -> int:
    """Say in one line that sweeper itself is at fault, and keep the traceback in a file for a report."""
    trace = "".join(traceback.format_exception(error))
    # Without the arguments, which may hold passwords.
    about = f"sweeper {__version__}, Python {sys.version}\ncommand: {' '.join(arguments[:1])}\n\n{trace}"
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="sweeper-fault-",
            suffix=".log",
            delete=False,
            encoding="utf-8",
            errors="backslashreplace",
        ) as file:
            file.write(about)
        kept = f"please report it with the file {file.name}"
    except OSError as full:
        kept = f"please report it; its traceback could not be kept ({full.strerror})"
    cause = (str(error).splitlines() or [""])[0]
    say_error(f"a fault in sweeper itself ({type(error).__name__}: {cause}): {kept}")
    return EXIT_FAULT


def _flush() -> None:
    """Write what is left while an error can still be handled; Python itself would exit with code 120."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError:
        discard(sys.stdout)
        raise


def entry() -> None:
    """The console script."""
    sys.exit(main())


# -- sweep


def _sweep(arguments: list[str]) -> int:
    from sweeper.config import conf_folder, run_hydra

    if {"--help", "-h"} & set(arguments):
        put(_SWEEP_HELP, end="")
        for folder in sorted(p for p in conf_folder().iterdir() if p.is_dir()):
            put(f"  {folder.name}")
            for file in sorted(folder.glob("*.yaml")):
                put(f"    {file.stem:<20} {_first_comment(file)}".rstrip())
        return EXIT_DONE
    as_json, verbose = "--json" in arguments, "--verbose" in arguments
    words = _as_begun([word for word in arguments if word not in ("--json", "--verbose")])
    return run_hydra(words, lambda composed: _run_sweep(composed, as_json, verbose))


def _as_begun(words: list[str]) -> list[str]:
    """``words``, with those of the sweep's first command if they name a sweep that is there, and nothing else."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if "name" not in given or len(given) < len(words) or given.keys() - {"name", "root"}:
        return words
    from sweeper.records import TYPED
    from sweeper.report.picks import DEFAULT_ROOT
    from sweeper.search.study import SweepStudy, sweep_names

    root, name = Path(given.get("root", DEFAULT_ROOT)), given["name"]
    typed = SweepStudy.load(root, name).header().config.get(TYPED) if name in sweep_names(root) else None
    kept = [str(word) for word in typed or () if not str(word).startswith(("name=", "root="))]
    if kept:
        console(stderr=True).print(
            f"as it began: {' '.join(kept)}", style="dim", highlight=False, markup=False
        )
    return [*kept, *words]


def _first_comment(file: Path) -> str:
    """The first sentence of the comment at the head of a configuration file, for one line of a terminal."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.lstrip("# ").strip() for line in head if "@package" not in line)
    return re.split(r"(?<=\.) |; `", text)[0].rstrip(".")


def _run_sweep(composed: Composed, as_json: bool, verbose: bool) -> int:
    """Run one sweep and print its table."""
    from sweeper import prepare
    from sweeper.report.heartbeat import Aloud
    from sweeper.report.live import open_progress
    from sweeper.report.progress import Plan

    screen = console(stderr=True)

    said: set[str] = set()
    begun = False

    def show(text: str) -> None:
        said.add(text)
        screen.print(text, style="dim", highlight=False, markup=False)

    def display(header: SweepRecord, plan: Any) -> Any:
        for note in header.notes:
            if note not in said:
                show(note)
        expected = Plan(prepare.finalist_measurements(plan), FINALIST_COST, plan.minutes)
        return open_progress(screen, header, expected, verbose=verbose)

    try:
        with Aloud(show, "preparing the sweep") as say, prepare.prepared(composed, display, say) as sweep:
            say.rest()
            for line in _opening(sweep.study.header(), sweep.plan):
                show(line)
            begun = True
            with sweep.progress as progress, _first_interrupt_concludes(sweep.stop, progress.stopping):
                record = sweep.run()
    except SweeperError as error:
        say_error(str(error))
        return error.exit_code
    except prepare.AlreadyComplete as done:
        record = commands.load_record(Path(composed.settings.root), done.name)
        commands.show(record, "json" if as_json else "table")
        say(f"this sweep is complete; to measure anew, add name={done.anew}")
        return EXIT_DONE
    except KeyboardInterrupt:
        kept = "all finished trials are kept; `sweeper report` shows the pick so far, and the same command resumes"
        say_error(f"stopped at once: {kept} the sweep" if begun else "stopped before the first trial")
        return EXIT_STOPPED
    commands.show(record, "json" if as_json else "table")
    if sweep.stop.set_by_hand:
        return EXIT_STOPPED
    return EXIT_DONE if all(outcome.done for outcome in sweep.limits.outcomes) else EXIT_MISSING


def _opening(header: SweepRecord, plan: SearchPlan) -> Iterator[str]:
    """The first lines of a sweep: its name, its limits, and which contexts it tries first."""
    from sweeper.report.words import limits

    yield f"sweep {header.sweep}: {plan.total} trials at most"
    if header.constraints:
        yield f"constraints: {limits(header.constraints)}"
    if plan.ladder:
        first, last = plan.ladder[0].n_ctx, plan.ladder[-1].n_ctx
        yield f"the first trials: the default settings at {first:,} to {last:,} tokens, until one breaks a constraint"


# A visit to a finalist takes about this many times as long as a screening trial: longer windows, same load and warm-up.
FINALIST_COST = 1.2


@contextmanager
def _first_interrupt_concludes(stop: StopFlag, tell: Callable[[], None]) -> Iterator[None]:
    """After one Ctrl-C, the sweep ends its search, visits the pick and concludes. A second one stops it at once."""

    def on_interrupt(_number: int, _frame: object) -> None:
        if stop.set_by_hand:
            raise KeyboardInterrupt
        stop.set_by_hand = True
        tell()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# -- the parser

_EXIT_CODES = (
    "Exit codes: 0: the command succeeded. 2: an argument, key or value is wrong. 3: something that the command "
    "needs is missing, or a limit is not as sweeper found it. 4: the sweep ended without a valid trial. 5: verify "
    "found the server slower than promised; inconclusive results exit 0 with a warning. 70: a fault in sweeper "
    "itself. 130: you stopped the command by hand."
)
_PICKS = (
    "longest, fastest, greenest, knee, within:N%% (for example within:5%%), at-least:Ntok/s, at-most:NW or a trial's "
    "number"
)


class _Parser(argparse.ArgumentParser):
    """Says what may have been meant by a word that it does not know."""

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            message += nearest(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        elif wrong := re.match(r"unrecognized arguments: (-\S+)", message):
            own = [option for action in self._actions for option in action.option_strings]
            message += nearest(wrong[1], own)
        super().error(message)


class _Intermixed(_Parser):
    """Takes options anywhere between the other words: `sweeper record FILE --passes 2 KEY=VALUE`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._inside:  # argparse's own calls from `parse_known_intermixed_args`
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            options, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False
        if unknown:  # said here, so that the usage is that of the command
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    _inside = False


def _path(text: str) -> Path:
    """A path of the command line. Raises ConfigError if it begins with ``~`` and there is no home folder."""
    return Path(at_home("this path", text))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sweeper",
        description="Find the llama.cpp settings that give the most tokens per second for the fewest watts, "
        "and configure your server with them.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"sweeper {__version__}")
    add = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Intermixed)
    add.add_parser("sweep", help="search for the best settings; this is the main command", add_help=False)
    _add_guess(add)
    _add_report(add)
    _add_apply(add)
    rollback = _command(add, "rollback", "undo the last apply: restore files and limits")
    _flag(rollback, "--force", "roll back even if someone has edited a file since")
    _add_verify(add)
    words = "restore power and clock limits left behind by a killed run; normally this happens automatically"
    restore = _command(add, "restore", words)
    _overrides(restore, "a setting of the configuration, for example power.limits.means=helper")
    restore.add_argument(
        "--settle",
        choices=("found", "present"),
        help="for a limit that another tool set, or that the device does not take back; found: put the original value "
        "back; present: keep the current value",
    )
    doctor = _command(add, "doctor", "check sensors, limits, engine and servers, and suggest fixes")
    _overrides(doctor, "a setting of the configuration, for example power.plug.url=http://…")
    words = "set each power limit to the value in force, to see whether the driver lets sweeper set it"
    _flag(doctor, "--try-limits", words)
    _add_compare(add)
    ui = _command(add, "ui", "serve the MLflow pages on 127.0.0.1", with_json=False)
    words = "the preferred port; if it is in use, another free port is chosen (default %(default)s)"
    ui.add_argument("--port", type=_port, default=5000, help=words)
    ui.add_argument("--uri", help="the MLflow tracking URI to use instead of --root")
    _add_record(add)
    return parser


def _command(add: Any, name: str, words: str, with_json: bool = True) -> argparse.ArgumentParser:
    """Add the command of that name, whose body is the function of that name in ``commands.py``."""
    parser: argparse.ArgumentParser = add.add_parser(
        name, help=words, description=words[0].upper() + words[1:]
    )
    parser.set_defaults(run=getattr(commands, name))
    words = "the folder of all sweeps (default %(default)s)"
    parser.add_argument("--root", type=_path, default=Path("mlruns"), help=words)
    if with_json:
        _flag(parser, "--json", "print the result as JSON on standard output")
    return parser


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise UsageError(f"--port {text}: there is no such port; choose 1 to 65535")
    return int(text)


def _flag(parser: argparse.ArgumentParser, name: str, words: str) -> None:
    parser.add_argument(name, action="store_true", help=words)


def _overrides(parser: argparse.ArgumentParser, words: str) -> None:
    # Without a default, argparse would call them required if FILE is missing.
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=words)


def _format(parser: argparse.ArgumentParser) -> None:
    forms, words = ("table", "markdown", "json", "csv"), "the format to print (default %(default)s)"
    parser.add_argument("--format", choices=forms, default="table", help=words)


def _sweep_name(parser: argparse.ArgumentParser) -> None:
    words = "the name of the sweep (default: the latest)"
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help=words)


def _pick(parser: argparse.ArgumentParser) -> None:
    words = f"the pick, a rule that chooses a trial: {_PICKS} (default: the pick of the sweep)"
    parser.add_argument("--pick", metavar="P", help=words)


def _prices(parser: argparse.ArgumentParser, where: str) -> None:
    words = f"the electricity price per kWh, for example 0.30 (default: the price in {where})"
    parser.add_argument("--per-kwh", type=_number("--per-kwh", "prices.per_kwh"), metavar="MONEY", help=words)
    words = f"the hours of use per day (default: the hours in {where})"
    parser.add_argument("--hours", type=_number("--hours", "prices.hours_per_day"), metavar="H", help=words)
    parser.add_argument(
        "--currency", help=f"the currency, for example EUR (default: the currency in {where})"
    )


def _number(option: str, key: str) -> Callable[[str], float]:
    """Reads the number of an option, with a comma for its point and the units of ``key`` where the user writes them."""

    def read(text: str) -> float:
        plain = number(key, re.sub(r"(?i)\s*(€|eur|\$|usd|£|gbp)$", "", text.strip()))
        if plain is None:
            raise UsageError(f"{option} {text}: this is not a number: write it like 0.30")
        return float(plain)

    return read


def _add_guess(add: Any) -> None:
    words = (
        "compute in seconds whether models fit here, and how fast they would run; several models give a table"
    )
    guess = _command(add, "guess", words)
    words = (
        "a name in conf/model (llama2_7b), a GGUF file, OWNER/NAME/FILE.gguf on the Hugging Face hub, or a URL, of "
        "which only the header is read; and settings of the configuration, as for `sweeper sweep`"
    )
    guess.add_argument("words", nargs="*", default=[], metavar="MODEL or KEY=VALUE", help=words)


def _add_report(add: Any) -> None:
    words = "print the Pareto front as a table, and write the report as HTML, markdown and PNG"
    report = _command(add, "report", words)
    _sweep_name(report)
    _format(report)
    _prices(report, "the sweep")
    words = "the folder for the files (default: ROOT/reports/SWEEP)"
    report.add_argument("--out", type=_path, metavar="FOLDER", help=words)


def _add_apply(add: Any) -> None:
    words = "configure a server with a pick: show the changes, or write them with --write"
    apply = _command(add, "apply", words)
    _sweep_name(apply)
    _pick(apply)
    words = f"the target: {', '.join(TARGETS)} (default %(default)s)"
    apply.add_argument("--to", choices=TARGETS, default="llama-server", metavar="TARGET", help=words)
    _flag(apply, "--write", "write the files and keep a backup; without --write, only show a diff")
    _flag(
        apply,
        "--power-limit",
        "with --write, also set this machine's power limit to that of the pick, until the next boot",
    )
    _flag(apply, "--force", "apply even if machine, engine or model changed since the sweep")
    words = (
        "the model's name on the server (default: model, quantisation and a word for the pick: long, fast, green, "
        "knee, eco for within, paced for at-least, capped for at-most, tuned for a trial's number)"
    )
    apply.add_argument("--name", help=words)
    words = "the port of the server (default: its usual port, for example 8080 for llama-server)"
    apply.add_argument("--port", type=_port, help=words)
    words = "the server's main configuration file (default: its usual name in --folder, for example llama-server.ini)"
    apply.add_argument("--file", type=_path, help=words)
    words = (
        "where to write files under their usual names, for example compose.yaml (default: the current folder; for "
        "systemd, /etc/systemd/system)"
    )
    apply.add_argument("--folder", type=_path, help=words)


def _add_verify(add: Any) -> None:
    words = "find or start a server, measure it, and compare its speed with the sweep's"
    verify = _command(add, "verify", words)
    _sweep_name(verify)
    _pick(verify)
    kinds = ("auto", "llama-server", "llama-cpp-python", "ollama")
    words = "the kind of server (default %(default)s)"
    verify.add_argument("--server", choices=kinds, default="auto", help=words)
    words = "measure this server; without it, verify uses a server at its usual address or starts one"
    verify.add_argument("--url", help=words)
    verify.add_argument("--name", help="the model's name on the server (default: as in apply)")
    words = "the llama-server program to start (default: llama-server on PATH)"
    verify.add_argument("--program", type=_path, help=words)
    words = "how many times to measure each speed (default %(default)s)"
    verify.add_argument("--repeats", type=int, default=5, help=words)
    _flag(verify, "--no-watts", "compare speed only, not watts")


def _add_compare(add: Any) -> None:
    compare = _command(add, "compare", "compare sweeps side by side: speed, watts, J/token, cost")
    compare.add_argument("sweeps", nargs="*", metavar="SWEEP", help="the names of the sweeps (default: all)")
    words = "another folder of sweeps, as from another machine; may be repeated"
    compare.add_argument("--from", dest="roots", type=_path, action="append", metavar="ROOT", help=words)
    _format(compare)
    _prices(compare, "the first sweep")
    card = compare.add_argument_group(
        "a graphics card to compare with",
        "Would it pay for itself? sweeper knows the published figures of common cards and computes the rest; your own "
        "figures take precedence.",
    )
    card.add_argument("--card", metavar="NAME", help="the name of the card, for example 'RTX 3060'")
    card.add_argument(
        "--card-price", type=_number("--card-price", "price"), metavar="MONEY", help="the price of the card"
    )
    words = "the decode speed of this model on the card, as measured or published"
    card.add_argument(
        "--card-speed", type=_number("--card-speed", "tokens_per_second"), metavar="TOK/S", help=words
    )
    card.add_argument(
        "--card-watts",
        type=_number("--card-watts", "watts"),
        metavar="W",
        help="the power of the card during decode",
    )
    words = "the idle power that the card adds, in W (default: it is left out, and the answer says so)"
    card.add_argument("--card-idle", type=_number("--card-idle", "idle_watts"), metavar="W", help=words)


def _add_record(add: Any) -> None:
    words = (
        "measure every combination of a search space; later sweeps can read the table instead of measuring "
        "(engine=replay)"
    )
    record = _command(add, "record", words, with_json=False)
    words = "the file to write; the same command continues an unfinished table"
    record.add_argument("file", type=_path, metavar="FILE.csv.gz", help=words)
    words = (
        "passes over all combinations; more passes even out slow changes, such as heat (default %(default)s)"
    )
    record.add_argument("--passes", type=int, default=1, help=words)
    _overrides(record, "a setting of the configuration, as for `sweeper sweep`")


def _complete() -> int:
    """Complete `sweeper sweep …`. Hydra does not know subcommands, so this removes `sweep` from the line first."""
    line = os.environ["COMP_LINE"]
    os.environ["COMP_LINE"] = line.replace(" sweep", "", 1)
    os.environ["COMP_POINT"] = str(max(0, int(os.environ.get("COMP_POINT", len(line))) - len(" sweep")))
    from sweeper.config import run_hydra

    return run_hydra(["--shell-completion", "query=bash"], lambda _: EXIT_DONE)
