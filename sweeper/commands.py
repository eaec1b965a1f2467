"""The body of each command, a thin layer over the library. Only this module and ``cli.py`` print."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from sweeper.errors import EXIT_DONE, EXIT_MISSING, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from sweeper.apply.journal import Entry
    from sweeper.config import Composed
    from sweeper.limits.standing_limit import StandingLimit
    from sweeper.power_settings import PowerSettings
    from sweeper.records import EngineRecord, Prices, SweepRecord


def load_record(
    root: Path, sweep: str | None, *, real: bool = False, to_look_at: bool = False
) -> SweepRecord:
    """The sweep of that name. Without a name, the latest sweep.

    ``real`` prefers the latest sweep that is not simulated. ``to_look_at`` gives a running sweep as its live screen
    shows it. Raises SweepMissingError or StoreError.
    """
    from sweeper.errors import SweepMissingError
    from sweeper.results.assemble import assemble, so_far
    from sweeper.search.study import SweepStudy, sweep_names

    def load(name: str) -> SweepRecord:
        study = SweepStudy.load(root, name)
        found = so_far(study) if to_look_at else assemble(study)
        # The folder may have moved since, and the next commands name it.
        return replace(found, config={**found.config, "root": str(root)})

    if sweep is not None:
        return load(sweep)
    names = sweep_names(root)
    if not names:
        raise SweepMissingError(f"there is no sweep in {root}: run `sweeper sweep` first, or give --root")
    records = map(load, reversed(names))
    latest = next(records)
    if not real or not latest.engine.simulated:
        return latest
    return next((record for record in records if not record.engine.simulated), latest)


# -- see ---------------------------------------------------------------------------------------------------


def show(record: SweepRecord, form: str) -> None:
    """Print the Pareto front on standard output, as ``table``, ``markdown``, ``json`` or ``csv``."""
    if form == "table":
        from sweeper.report.terminal import show_front

        show_front(record, console())
        return
    from sweeper.report.formats import render

    put(render(record, form), end="")


def report(options: argparse.Namespace) -> int:
    """`sweeper report`."""
    from sweeper import locks
    from sweeper.apply.base import unfinished
    from sweeper.report.files import write_report
    from sweeper.report.sections import why_no_month

    record = load_record(options.root, options.sweep, to_look_at=True)
    record = replace(record, prices=_prices(options, record))
    show(record, "json" if options.json else options.format)
    if state := unfinished(record, options.root):
        note(state)
    asks_for_cost = any(given is not None for given in (options.hours, options.per_kwh, options.currency))
    is_running = locks.is_held(locks.of_sweep(options.root, record.sweep))
    if asks_for_cost and (why := why_no_month(record, is_running)):
        note(why)
    folder = options.out or options.root / "reports" / record.sweep
    files = write_report(record, folder)
    note(f"wrote {', '.join(sorted(files))} to {folder}")
    return EXIT_DONE


def guess(options: argparse.Namespace) -> int:
    """`sweeper guess`."""
    from sweeper.guess.locate import split_words
    from sweeper.guess.run import guess_models
    from sweeper.guess.text import plain, text

    models, overrides = split_words(options.words)
    guesses = guess_models(models, overrides, options.root)
    _answer(options, plain(guesses), text(guesses))
    return EXIT_DONE


def compare(options: argparse.Namespace) -> int:
    """`sweeper compare`. Without names, it compares all sweeps in ``--root`` and every ``--from`` folder."""
    from sweeper.errors import SweepMissingError
    from sweeper.report.compare import compare as set_side_by_side
    from sweeper.report.compare_formats import render_comparison, show_comparison
    from sweeper.search.study import sweep_names

    roots = [options.root, *(options.roots or [])]
    there = [(root, name) for root in roots for name in sweep_names(root)]
    names = list(dict.fromkeys(name for _, name in there))
    wanted = options.sweeps or names
    if not wanted:
        raise UsageError("nothing to compare: name the sweeps, for example `sweeper compare A B`")
    for name in wanted:
        if name not in names:
            raise SweepMissingError(
                f"there is no sweep {name!r}; the sweeps are: {', '.join(names) or 'none'}"
            )
    records = [load_record(root, name) for word in wanted for root, name in there if name == word]
    prices = _prices(options, records[0])
    comparison = set_side_by_side(records, prices, _card(options, records[0]))
    form = "json" if options.json else options.format
    if form == "table":
        show_comparison(comparison, console())
    else:
        put(render_comparison(comparison, form), end="")
    return EXIT_DONE


def _prices(options: argparse.Namespace, record: SweepRecord) -> Prices:
    """The sweep's prices, with those of the command line in their place."""
    from sweeper.results.price import repriced

    return repriced(record.prices, options.per_kwh, options.hours, options.currency)


def _card(options: argparse.Namespace, record: SweepRecord) -> Any:
    from sweeper.report.cards import Card, find_card

    if options.card is None:
        return None
    own = (options.card_price, options.card_speed, options.card_watts)
    facts = find_card(options.card) if None in own else None
    return Card(
        name=options.card,
        price=options.card_price,
        tokens_per_second=options.card_speed,
        watts=options.card_watts,
        scope=record.power.scope,
        kind=record.power.kind,
        idle_watts_more=options.card_idle,
        facts=facts,
    )


def ui(options: argparse.Namespace) -> int:
    """`sweeper ui`."""
    from sweeper.tracking.ui import MlflowUi

    note("starting the MLflow pages; this takes about 15 s …")
    with MlflowUi(options.uri, options.root, options.port) as pages:
        put(pages.pages().best)
        note("press Ctrl-C to stop the server")
        try:
            pages.wait()
        except KeyboardInterrupt:
            return EXIT_DONE  # Ctrl-C is the normal way to stop the server
    return EXIT_DONE


# -- apply -------------------------------------------------------------------------------------------


def apply(options: argparse.Namespace) -> int:
    """`sweeper apply`."""
    from sweeper import machine
    from sweeper.apply.run import Options, run
    from sweeper.apply.text import outcome_to_plain, render_outcome
    from sweeper.limits.standing_limit import own_bench, standing_limit

    record = load_record(options.root, options.sweep, real=True)
    # A simulated sweep is applied as if its machine were this one.
    now_machine = record.machine if record.engine.simulated else machine.examine()
    now_engine = record.engine if record.engine.simulated else _engine_record(record.config)
    with ExitStack() as held:
        limit: StandingLimit | None = None
        if options.power_limit:
            bench = held.enter_context(own_bench(_power_of(record)))
            limit = standing_limit(bench, record.gpu or "package")
        outcome = run(
            record,
            pick_of(options, record),
            options.to,
            Options(name=options.name, port=options.port, file=options.file, folder=options.folder),
            root=options.root,
            machine=now_machine,
            engine=now_engine,
            write=options.write,
            force=options.force,
            limit=limit,
        )
    _answer(options, outcome_to_plain(outcome), render_outcome(outcome))
    return EXIT_DONE


def rollback(options: argparse.Namespace) -> int:
    """`sweeper rollback`."""
    from sweeper.apply import journal
    from sweeper.apply.text import render_undone, undone_to_plain
    from sweeper.errors import StoreError, SweepMissingError
    from sweeper.limits.standing_limit import own_bench, standing_limit
    from sweeper.power_settings import PowerSettings

    last = journal.last_to_undo(options.root)
    power = PowerSettings()
    if last is not None:
        with suppress(StoreError, SweepMissingError):  # if the sweep is gone, the defaults apply
            power = _power_of(load_record(options.root, last.sweep))
    with own_bench(power) as bench:
        limit = standing_limit(bench, last.limit.device) if last and last.limit else None
        undone = journal.rollback(options.root, limit, force=options.force)
    _answer(options, undone_to_plain(undone), render_undone(undone))
    return EXIT_DONE


def verify(options: argparse.Namespace) -> int:
    """`sweeper verify`. It prints the table first. Raises VerifyError if the server misses the promise."""
    from sweeper.apply.verify.check import speeds_of_engine
    from sweeper.apply.verify.check import verify as check
    from sweeper.apply.verify.find import VerifyOptions
    from sweeper.apply.verify.text import render_verification, verification_to_plain
    from sweeper.report.heartbeat import Aloud

    applied = _applied(options)
    record = load_record(options.root, options.sweep if applied is None else applied.sweep, real=True)
    server = options.server
    if applied is not None and server == "auto" and not options.url:
        server = SERVER_OF_TARGET.get(applied.target, "auto")
    wanted = VerifyOptions(
        server=server,
        url=options.url,
        name=options.name or (applied.name if applied is not None else "") or None,
        program=options.program,
        repeats=options.repeats,
        port=None if applied is None else applied.port,
    )
    with ExitStack() as held:
        meter = None if options.no_watts or record.engine.simulated else _meter_of(record, options.root, held)
        found = check(
            record,
            pick_of(options, record) if applied is None else applied.trial,
            wanted,
            meter=meter,
            speeds_now=lambda trial: speeds_of_engine(record, trial),
            progress=held.enter_context(Aloud(note, "checking the server")),
            root=options.root,
        )
    _answer(options, verification_to_plain(found), render_verification(found))
    found.demand()
    return EXIT_DONE


# The kind of server behind each target of `sweeper apply`.
SERVER_OF_TARGET: dict[str, Literal["llama-server", "llama-cpp-python", "ollama"]] = {
    **dict.fromkeys(("llama-server", "llama-swap", "compose", "systemd", "env"), "llama-server"),
    **dict.fromkeys(("llama-cpp-python", "python"), "llama-cpp-python"),
    "ollama": "ollama",
}


def _applied(options: argparse.Namespace) -> Entry | None:
    """The apply that `sweeper verify` checks, if the user named neither a sweep nor a pick."""
    from sweeper.apply import journal

    if options.sweep is not None or options.pick is not None:
        return None
    last = journal.last_to_undo(options.root)
    if last is None:
        undone = journal.last(options.root)
        how = "no configuration was applied" if undone is None else "the last apply was rolled back"
        note(f"nothing is applied ({how}): checking the pick of the latest sweep")
        return None
    note(f"checking what was applied last: trial #{last.trial} of sweep {last.sweep}, to {last.target}")
    if last.state == "prepared":
        note("that apply was cut short: `sweeper rollback` undoes it")
    return last


def pick_of(options: argparse.Namespace, record: SweepRecord) -> str | int:
    """The requested pick: a trial's number or a rule. Without one, the pick of the sweep."""
    text = options.pick
    return int(text) if text is not None and text.isdigit() else text or record.pick


def _power_of(record: SweepRecord) -> PowerSettings:
    """The sweep's own power settings, so that sensor, scope and means of setting limits are the same."""
    from sweeper.config import power_settings

    return power_settings(record.config.get("power", {}))


def _meter_of(record: SweepRecord, root: Path, held: ExitStack) -> Any:
    from sweeper.apply.base import environment_of
    from sweeper.meter.choose import find_meter
    from sweeper.nvml import cuda_variables

    held.enter_context(cuda_variables(environment_of(record)))
    meter, notes = find_meter(_power_of(record), root, record.engine.gpu_offload)
    for line in notes:
        if line not in record.notes:  # the sweep said which sensors this machine lacks
            note(line)
    return held.enter_context(meter)


def _engine_record(config: Mapping[str, Any]) -> EngineRecord:
    """The engine that the configuration of a sweep names, as it is now."""
    from sweeper.engine.of_record import engine_of

    with engine_of(config.get("engine") or {}, {}, {}) as engine:
        return engine.record


# -- the machine -------------------------------------------------------------------------------------------


def doctor(options: argparse.Namespace) -> int:
    """`sweeper doctor`."""
    from sweeper.doctor import (
        Diagnosis,
        engine_finding,
        examine,
        folder_findings,
        machine_findings,
        server_findings,
    )
    from sweeper.limits.control import find_limits

    composed = _composed(options)
    settings = composed.settings
    note("checking each sensor; this takes a few seconds …")
    root = Path(settings.root)
    folder = folder_findings(root)
    limits = find_limits(root, settings.power)  # not entered, because a sweep may hold the devices
    if options.try_limits:
        limits.try_out()
    sensors_and_limits = tuple(examine(root, settings.power, limits, options.try_limits))
    engine = engine_finding(lambda: _engine_record(composed.plain))
    diagnosis = Diagnosis((*machine_findings(), *folder, engine, *server_findings(), *sensors_and_limits))
    _answer(options, diagnosis.to_plain(), diagnosis.to_text())
    return EXIT_DONE


def restore(options: argparse.Namespace) -> int:
    """`sweeper restore`."""
    from sweeper.limits.guardian import read_log
    from sweeper.limits.restore import MachineKnobs
    from sweeper.limits.restore import restore as give_back
    from sweeper.limits.rights import MeansSettings
    from sweeper.records import to_plain

    settings = _composed(options).settings
    root, power = Path(settings.root), settings.power
    means, sysfs = MeansSettings.of(power.limits), Path(power.sysfs_root)
    outcomes = give_back(root, means, sysfs, settle=options.settle)
    with MachineKnobs(means, sysfs) as machine:
        present = machine.in_force()
    guardians = list(read_log(root))
    lines = [*(f"earlier, a guardian: {line}" for line in guardians), *map(str, outcomes)]
    lines += [] if outcomes else ["nothing to restore: no record of a limit that a run left"]
    lines += ["in force now:", *(f"  {line}" for line in present)]
    plain = {
        "restored": [to_plain(outcome) for outcome in outcomes],
        "guardians": guardians,
        "in_force": present,
    }
    _answer(options, plain, "\n".join(lines))
    return EXIT_DONE if all(outcome.done for outcome in outcomes) else EXIT_MISSING


def record(options: argparse.Namespace) -> int:
    """`sweeper record`."""
    if not options.file.name.endswith(".csv.gz"):
        raise UsageError(f"{options.file}: the name of a table must end in .csv.gz")
    if options.passes < 1:
        raise UsageError(f"--passes {options.passes}: give at least 1")
    # Loaded by name, so that the product does not import the lab.
    lab = importlib.import_module("sweeper.lab.rigs")
    table = lab.record_grid(_composed(options), options.file, options.passes, note)
    put(f"{len(table.rows)} configurations in {options.file}")
    return EXIT_DONE


def _composed(options: argparse.Namespace) -> Composed:
    """The configuration of a command that takes ``--root`` and overrides."""
    from sweeper.config import compose
    from sweeper.overrides import literal

    return compose([f"root={literal(str(options.root))}", *options.overrides])


# -- the terminal ------------------------------------------------------------------------------------------


def console(stderr: bool = False) -> Console:
    """A console on standard output or standard error."""
    from rich.console import Console

    class Patient(Console):
        """Goes on without a reader, where rich would exit with code 1."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            discard(sys.stderr if stderr else sys.stdout)

    return Patient(stderr=stderr, soft_wrap=True)


def put(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print on standard output, or on ``stream``. The command goes on if the reader is gone (`… | head`)."""
    stream = stream or sys.stdout
    try:
        print(text, end=end, file=stream, flush=True)
    except BrokenPipeError:
        discard(stream)


def note(text: str) -> None:
    """Print one line on standard error."""
    put(text, stream=sys.stderr)


def say_error(text: str) -> None:
    """Print one line on standard error, with the program's name."""
    note(f"sweeper: {text}")


def discard(stream: TextIO) -> None:
    """Send what else is written to ``stream`` nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _answer(options: argparse.Namespace, plain: Any, text: str) -> None:
    if options.json:
        put(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        put(text)
