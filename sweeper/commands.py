"""The body of each command, a thin layer over the library. Only this module and ``cli.py`` print."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import EXIT_DONE, EXIT_MISSING, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from sweeper.apply.journal import PowerLimit
    from sweeper.doctor import Finding
    from sweeper.power_settings import PowerSettings
    from sweeper.records import EngineRecord, MachineRecord, SweepRecord

CPU_BUILD = "this build of llama.cpp runs on the CPU only"


def load_record(root: Path, sweep: str | None, *, real: bool = False) -> SweepRecord:
    """The sweep of that name. Without a name, the latest sweep.

    ``real`` prefers the latest sweep that is not simulated. Raises SweepMissingError or StoreError.
    """
    from sweeper.errors import SweepMissingError
    from sweeper.results.assemble import assemble
    from sweeper.search.study import SweepStudy, sweep_names

    if sweep is None:
        names = sweep_names(root)
        if not names:
            raise SweepMissingError(f"there is no sweep in {root}: run `sweeper sweep` first, or give --root")
        records = (assemble(SweepStudy.load(root, name)) for name in reversed(names))
        latest = next(records)
        if not real or not latest.engine.simulated:
            return latest
        return next((record for record in records if not record.engine.simulated), latest)
    return assemble(SweepStudy.load(root, sweep))


# -- see ---------------------------------------------------------------------------------------------------


def show(record: SweepRecord, form: str) -> None:
    """Print the Pareto front on standard output, as ``table``, ``markdown``, ``json`` or ``csv``."""
    if form == "table":
        from sweeper.report.terminal import show_front

        show_front(record, console())
        return
    from sweeper.report.formats import render

    print(render(record, form), end="")


def report(options: argparse.Namespace) -> int:
    """`sweeper report`."""
    from sweeper.report.files import write_report

    record = load_record(options.root, options.sweep)
    show(record, "json" if options.json else options.format)
    folder = options.out or options.root / "reports" / record.sweep
    files = write_report(record, folder)
    print(f"wrote {', '.join(sorted(files))} to {folder}", file=sys.stderr)
    return EXIT_DONE


def compare(options: argparse.Namespace) -> int:
    """`sweeper compare`."""
    from sweeper.report.compare import compare as set_side_by_side
    from sweeper.report.compare_formats import render_comparison, show_comparison

    records = _records_to_compare(options)
    prices = records[0].prices if records else None
    if prices is None:
        raise UsageError("nothing to compare: name the sweeps, for example `sweeper compare A B`")
    given = {"per_kwh": options.per_kwh, "hours_per_day": options.hours, "currency": options.currency}
    prices = replace(prices, **{key: value for key, value in given.items() if value is not None})
    comparison = set_side_by_side(records, prices, _card(options, records[0]))
    form = "json" if options.json else options.format
    if form == "table":
        show_comparison(comparison, console())
    else:
        print(render_comparison(comparison, form), end="")
    return EXIT_DONE


def _records_to_compare(options: argparse.Namespace) -> list[SweepRecord]:
    """The named sweeps in ``--root`` and every ``--from`` folder. Without a name, all sweeps there."""
    from sweeper.errors import SweepMissingError
    from sweeper.search.study import sweep_names

    roots = [options.root, *(options.roots or [])]
    there = [(root, name) for root in roots for name in sweep_names(root)]
    wanted = options.sweeps or list(dict.fromkeys(name for _, name in there))
    missing = [name for name in wanted if name not in {n for _, n in there}]
    if missing:
        names = ", ".join(name for _, name in there) or "none"
        raise SweepMissingError(f"there is no sweep {missing[0]!r}; the sweeps are: {names}")
    return [load_record(root, name) for name in wanted for r, n in there if n == name for root in [r]]


def _card(options: argparse.Namespace, record: SweepRecord) -> Any:
    from sweeper.report.compare import Card

    if options.card is None:
        return None
    figures = {
        "--card-price": options.card_price,
        "--card-speed": options.card_speed,
        "--card-watts": options.card_watts,
    }
    absent = [name for name, value in figures.items() if value is None]
    if absent:
        raise UsageError(f"--card {options.card}: also give {' and '.join(absent)}")
    return Card(
        name=options.card,
        price=options.card_price,
        tokens_per_second=options.card_speed,
        watts=options.card_watts,
        scope=record.power.scope,
        kind=record.power.kind,
        idle_watts_more=options.card_idle,
    )


def ui(options: argparse.Namespace) -> int:
    """`sweeper ui`."""
    from sweeper.tracking.ui import MlflowUi

    print("starting the MLflow pages; this takes about 15 s …", file=sys.stderr)
    with MlflowUi(options.uri, options.root, options.port) as pages:
        print(pages.pages().best, flush=True)
        print("press Ctrl-C to stop the server", file=sys.stderr)
        try:
            pages.wait()
        except KeyboardInterrupt:
            return EXIT_DONE  # Ctrl-C is the normal way to stop the server
    return EXIT_DONE


# -- apply -------------------------------------------------------------------------------------------


def apply(options: argparse.Namespace) -> int:
    """`sweeper apply`."""
    from sweeper.apply.run import Options, run
    from sweeper.apply.text import outcome_to_plain, render_outcome

    record = load_record(options.root, options.sweep, real=True)
    now_machine, now_engine = _now(record)
    with ExitStack() as held:
        limit = _limit(record, held) if options.power_limit else None
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
    from sweeper.limits.standing_limit import own_bench, standing_limit
    from sweeper.power_settings import PowerSettings

    last = journal.last_to_undo(options.root)
    with own_bench(_power_of(options.root, last.sweep) if last else PowerSettings()) as bench:
        limit = (
            standing_limit(bench, last.limit.device) if last is not None and last.limit is not None else None
        )
        undone = journal.rollback(options.root, limit, force=options.force)
    _answer(options, undone_to_plain(undone), render_undone(undone))
    return EXIT_DONE


def verify(options: argparse.Namespace) -> int:
    """`sweeper verify`. It prints the table first. Raises VerifyError if the server misses the promise."""
    from sweeper.apply.verify.check import verify as check
    from sweeper.apply.verify.engine_now import speeds_of_engine
    from sweeper.apply.verify.find import VerifyOptions
    from sweeper.apply.verify.text import render_verification, verification_to_plain

    record = load_record(options.root, options.sweep, real=True)
    wanted = VerifyOptions(
        server=options.server,
        url=options.url,
        name=options.name,
        program=options.program,
        repeats=options.repeats,
    )
    with ExitStack() as held:
        meter = None if options.no_watts or record.engine.simulated else _meter_of(record, options.root, held)
        found = check(
            record,
            pick_of(options, record),
            wanted,
            meter=meter,
            speeds_now=lambda trial: speeds_of_engine(record, trial),
            progress=lambda line: print(line, file=sys.stderr),
        )
    _answer(options, verification_to_plain(found), render_verification(found))
    found.demand()
    return EXIT_DONE


def pick_of(options: argparse.Namespace, record: SweepRecord) -> str | int:
    """The requested pick: a trial's number or a rule. Without one, the pick of the sweep."""
    text = options.pick
    return int(text) if text is not None and text.isdigit() else text or record.pick


def _meter_of(record: SweepRecord, root: Path, held: ExitStack) -> Any:
    """A meter from the sweep's own settings, so that sensor and scope are the same."""
    from sweeper.apply.run import environment_of
    from sweeper.config import power_settings
    from sweeper.meter.choose import find_meter
    from sweeper.nvml import cuda_variables

    kept = record.config.get("power", {})
    held.enter_context(cuda_variables(environment_of(record)))
    meter, notes = find_meter(power_settings(kept), root, record.engine.gpu_offload)
    for note in notes:
        print(note, file=sys.stderr)
    return held.enter_context(meter)


def _limit(record: SweepRecord, held: ExitStack) -> PowerLimit:
    from sweeper.config import power_settings
    from sweeper.limits.standing_limit import own_bench, standing_limit

    settings = power_settings(record.config.get("power", {}))
    return standing_limit(held.enter_context(own_bench(settings)), record.gpu or "package")


def _power_of(root: Path, sweep: str) -> PowerSettings:
    """The sweep's own power settings, with the means of setting limits; the defaults if the sweep is gone."""
    from sweeper.config import power_settings
    from sweeper.errors import StoreError, SweepMissingError
    from sweeper.power_settings import PowerSettings

    try:
        return power_settings(load_record(root, sweep).config.get("power", {}))
    except (StoreError, SweepMissingError):
        return PowerSettings()


def _now(record: SweepRecord) -> tuple[MachineRecord, EngineRecord]:
    """The present machine and engine. For a simulated sweep, the recorded ones."""
    if record.engine.simulated:
        return record.machine, record.engine
    from sweeper import machine

    return machine.examine(), _engine_record()


def _engine_record() -> EngineRecord:
    from sweeper.engine.llama_cpp import LlamaCppEngine

    with LlamaCppEngine({}) as engine:
        return engine.record


# -- the machine -------------------------------------------------------------------------------------------


def doctor(options: argparse.Namespace) -> int:
    """`sweeper doctor`."""
    from sweeper.config import compose
    from sweeper.doctor import examine
    from sweeper.limits.control import find_limits

    print("checking each sensor; this takes a few seconds …", file=sys.stderr)
    options.root.mkdir(parents=True, exist_ok=True)
    settings = compose(options.overrides).settings.power
    limits = find_limits(options.root, settings)  # not entered, because a sweep may hold the devices
    diagnosis = examine(options.root, settings, limits)
    diagnosis = type(diagnosis)((*_machine_findings(), *_engine_findings())).plus(diagnosis.findings)
    _answer(options, diagnosis.to_plain(), diagnosis.to_text())
    return EXIT_DONE


def _machine_findings() -> list[Finding]:
    from sweeper import machine
    from sweeper.doctor import Finding

    here = machine.examine()
    cores = f"{here.physical_cores} cores, {here.logical_cores} threads"
    if here.performance_cores:
        cores += f", {here.performance_cores} of the cores are performance cores"
    bandwidth = machine.measure_bandwidth_gb_per_second()
    found = [
        Finding("machine", "cpu", "ok", f"{here.cpu}: {cores}"),
        Finding(
            "machine",
            "memory",
            "ok",
            f"{here.memory_mib / 1024:.1f} GiB; read bandwidth up to {bandwidth:.1f} GB/s (measured now): "
            "decode is no faster than reading the weights",
        ),
    ]
    return found + [
        Finding("machine", f"gpu {gpu.index}", "ok", f"{gpu.name}, {gpu.memory_mib} MiB, driver {gpu.driver}")
        for gpu in here.gpus
    ]


def _engine_findings() -> list[Finding]:
    from sweeper import machine
    from sweeper.doctor import Finding
    from sweeper.errors import EngineMissingError

    try:
        engine = _engine_record()
    except EngineMissingError as error:
        return [Finding("engine", "llama-cpp-python", "missing", error.what, error.mend)]
    if engine.gpu_offload:
        return [Finding("engine", "llama-cpp-python", "ok", f"{engine.version}; layers can go to the GPU")]
    detail = f"{engine.version}; {CPU_BUILD}"
    if not machine.nvidia_gpus():
        return [Finding("engine", "llama-cpp-python", "ok", detail)]
    return [
        Finding("engine", "llama-cpp-python", "unusable", f"{detail}, but there is an NVIDIA GPU", gpu_line())
    ]


def gpu_line() -> str:
    """The one line that installs a build of llama-cpp-python for NVIDIA GPUs."""
    return (
        'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-deps --no-cache-dir '
        "--no-binary llama-cpp-python llama-cpp-python   (in a clone: make install CUDA=1)"
    )


def restore(options: argparse.Namespace) -> int:
    """`sweeper restore`."""
    from sweeper.config import compose
    from sweeper.limits.guardian import read_log
    from sweeper.limits.restore import Action
    from sweeper.limits.restore import restore as give_back
    from sweeper.limits.rights import MeansSettings
    from sweeper.records import to_plain

    settings = compose(options.overrides).settings.power
    outcomes = give_back(options.root, MeansSettings.of(settings.limits), Path(settings.sysfs_root))
    guardians = [f"earlier, a guardian: {line}" for line in read_log(options.root)]
    text = "\n".join([*guardians, *(str(outcome) for outcome in outcomes)]) or "no run left a limit behind"
    plain = {
        "restored": [to_plain(outcome) for outcome in outcomes],
        "guardians": list(read_log(options.root)),
    }
    _answer(options, plain, text)
    return EXIT_MISSING if any(outcome.action is Action.FAILED for outcome in outcomes) else EXIT_DONE


def record(options: argparse.Namespace) -> int:
    """`sweeper record`."""
    from sweeper.config import compose

    if not options.file.name.endswith(".csv.gz"):
        raise UsageError(f"{options.file}: the name of a table must end in .csv.gz")
    overrides = [f"root='{options.root}'", *options.overrides]
    if options.passes < 1:
        raise UsageError(f"--passes {options.passes}: give at least 1")
    # Loaded by name, so that the product does not import the lab.
    lab = importlib.import_module("sweeper.lab.rigs")
    table = lab.record_grid(
        compose(overrides), options.file, options.passes, lambda line: print(line, file=sys.stderr)
    )
    print(f"{len(table.rows)} configurations in {options.file}")
    return EXIT_DONE


# -- the terminal ------------------------------------------------------------------------------------------


def console(stderr: bool = False) -> Console:
    """A console on standard output or standard error."""
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True)


def say_error(text: str) -> None:
    """Print one line on standard error."""
    print(f"sweeper: {text}", file=sys.stderr)


def _answer(options: argparse.Namespace, plain: Any, text: str) -> None:
    if options.json:
        print(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        print(text)
