"""Recorded tables: a whole grid, measured by the same `measure` as a sweep, with raw values in a compact file.

During the recording, a journal of JSON lines beside the table holds the rows. Each row is flushed to disk, so that
a killed recording can resume. A complete table is one gzipped CSV. Its first line is ``# {JSON header}`` with the
machine's fingerprint, the model, the workload and the power source. Then follows one row per configuration with
every repeat. The `replay` engine takes the results of trials from the table.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cattrs

from sweeper import files
from sweeper.engine.base import Engine
from sweeper.errors import ConfigError, TrialFailed
from sweeper.limits.base import LimitControl
from sweeper.measure.trial import Stage, measure
from sweeper.meter.base import PowerMeter
from sweeper.parameters import CONTEXT_KEYS, LIMIT_KEYS, MODEL_KEYS
from sweeper.records import (
    Configuration,
    EngineRecord,
    MachineRecord,
    ModelRecord,
    Phase,
    PowerSource,
    Workload,
    from_plain,
    to_plain,
)
from sweeper.space.space import Parameter, SearchSpace, Traits

TABLE_SCHEMA = 1
DIGITS = 5  # significant digits of a figure, finer than all noise seen so far
JOURNAL_ENDING = ".journal"
_LISTS = ("prompt_tokens_per_second", "prompt_watts", "tokens_per_second", "watts")


@dataclass(frozen=True, slots=True)
class TableHeader:
    """The machine, engine, model and workload of a table, and the space that it covers."""

    name: str
    machine: MachineRecord
    engine: EngineRecord
    model: ModelRecord
    workload: Workload
    power: PowerSource
    base: Configuration
    parameters: Mapping[str, tuple[Any, ...]]
    ordinal: tuple[str, ...]
    range_steps: Mapping[str, int]  # the steps of evenly spaced ranges
    traits: Traits = field(default_factory=Traits)
    stage_seconds: float = 0.0
    repeats: int = 0  # the repeats in each pass
    passes: int = 1
    recorded_utc: str = ""
    idle_watts: float | None = None
    note: str = ""
    schema: int = TABLE_SCHEMA

    @property
    def space(self) -> SearchSpace:
        """The space that the table covers."""
        return SearchSpace(
            {
                name: Parameter(name, values, name in self.ordinal, self.range_steps.get(name))
                for name, values in self.parameters.items()
            },
            self.base,
            self.traits,
        )


@dataclass(frozen=True, slots=True)
class TableRow:
    """The measured values of one configuration, one per repeat, in tok/s and W; watts are None without a reading."""

    configuration: Configuration
    state: Literal["complete", "failed", "out_of_memory"]
    reason: str | None = None
    reloaded: bool = False
    load_seconds: float = 0.0
    warmup_seconds: float = 0.0
    memory_mib: float | None = None
    vram_mib: float | None = None
    prompt_tokens_per_second: tuple[float, ...] = ()
    prompt_watts: tuple[float, ...] | None = None
    tokens_per_second: tuple[float, ...] = ()
    watts: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A recorded grid."""

    header: TableHeader
    rows: tuple[TableRow, ...]


# Recording


def header_of(
    name: str,
    space: SearchSpace,
    machine: MachineRecord,
    engine: EngineRecord,
    model: ModelRecord,
    workload: Workload,
    power: PowerSource,
    stage: Stage,
    **more: Any,
) -> TableHeader:
    """The header of a table over ``space``; ``more`` are its optional fields. It keeps file names, not folders."""
    files = {quant: replace(file, path=Path(file.path).name) for quant, file in model.files.items()}
    return TableHeader(
        name=name,
        machine=machine,
        engine=engine,
        # Users share tables, and a folder means nothing on another machine.
        model=replace(model, files=files),
        workload=workload,
        power=power,
        base=space.base,
        parameters={p.name: tuple(p.values) for p in space.parameters.values()},
        ordinal=tuple(p.name for p in space.parameters.values() if p.ordinal),
        range_steps={p.name: p.range_step for p in space.parameters.values() if p.range_step},
        traits=space.traits,
        stage_seconds=stage.seconds,
        repeats=stage.repeats,
        **more,
    )


def cheapest_order(configurations: Iterable[Configuration], seed: int = 0) -> tuple[Configuration, ...]:
    """An order that loads each model once and makes each context once; limits change innermost.

    At each level the order is shuffled (seeded). A drift of the machine then spreads over all values of a parameter
    and does not look like an effect of the parameter.
    """
    rng = random.Random(seed)
    models: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Configuration]]] = {}
    for c in configurations:
        model = tuple(getattr(c, key) for key in MODEL_KEYS)
        context = tuple(getattr(c, key) for key in CONTEXT_KEYS)
        models.setdefault(model, {}).setdefault(context, []).append(c)

    def shuffled(items: list[Any]) -> list[Any]:
        return rng.sample(items, len(items))

    ordered: list[Configuration] = []
    for contexts in shuffled(list(models.values())):
        for limits in shuffled(list(contexts.values())):
            ordered += shuffled(limits)
    return tuple(ordered)


def record_table(
    path: Path,
    header: TableHeader,
    engine: Engine,
    meter: PowerMeter,
    stage: Stage,
    *,
    limits: LimitControl | None = None,
    progress: Callable[[int, int, TableRow], None] | None = None,
) -> Table:
    """Measure every configuration of ``header.space`` and write the table to ``path`` (``*.csv.gz``).

    The recording makes ``header.passes`` passes over the grid, each in another order. If the machine is slower for
    some minutes, this then shows as noise and not as a worse configuration.

    The recording skips visits that an earlier call left in the journal. A failed trial is a row with its state and
    reason. Any other exception, such as Ctrl-C, leaves the journal in place. ``limits`` may be None if no
    configuration has a limit. ``progress`` gets the number of visits done, of all visits, and the row just measured.

    Raises:
        ConfigError: there is a journal of another space, engine, model, machine or workload.
    """
    grid = tuple(header.space.grid())
    visits = [c for number in range(header.passes) for c in cheapest_order(grid, number)]
    journal = path.with_name(path.name + JOURNAL_ENDING)
    done: dict[str, list[TableRow]] = {}
    for row in _open_journal(journal, header):
        done.setdefault(row.configuration.digest, []).append(row)
    left = Counter({digest: len(rows) for digest, rows in done.items()})
    with journal.open("a", encoding="utf-8") as file:
        for number, configuration in enumerate(visits, 1):
            if left[configuration.digest] > 0:  # measured by an earlier call
                left[configuration.digest] -= 1
                continue
            row = _row(configuration, header, engine, meter, stage, limits)
            done.setdefault(configuration.digest, []).append(row)
            _append(file, to_plain(row))
            if progress is not None:
                progress(number, len(visits), row)
    table = Table(header, tuple(merged(done[c.digest]) for c in cheapest_order(grid)))
    write_table(table, path)
    journal.unlink()
    return table


def merged(visits: Sequence[TableRow]) -> TableRow:
    """The visits of one configuration as one row, with the load of the first complete visit.

    If only some visits were complete, the row is complete, and its reason says why the others failed.
    """
    complete = [row for row in visits if row.state == "complete"]
    if not complete:
        return visits[0]

    def joined(lists: Sequence[tuple[float, ...] | None]) -> tuple[float, ...] | None:
        return None if None in lists else tuple(value for values in lists for value in values or ())

    failed = [row for row in visits if row.state != "complete"]
    return replace(
        complete[0],
        reason=f"{len(failed)} of {len(visits)} visits failed: {failed[0].reason}" if failed else None,
        prompt_tokens_per_second=joined([row.prompt_tokens_per_second for row in complete]) or (),
        prompt_watts=joined([row.prompt_watts for row in complete]),
        tokens_per_second=joined([row.tokens_per_second for row in complete]) or (),
        watts=joined([row.watts for row in complete]),
    )


def _row(
    configuration: Configuration,
    header: TableHeader,
    engine: Engine,
    meter: PowerMeter,
    stage: Stage,
    limits: LimitControl | None,
) -> TableRow:
    """Measure a configuration: the raw repeats, rounded to ``DIGITS`` significant digits, or the failure."""
    try:
        if limits is not None:
            for name in LIMIT_KEYS:
                value = getattr(configuration, name)
                if name in header.parameters or value is not None:
                    limits.set(name, value)  # None restores the value found
        m = measure(configuration, engine, meter, header.workload, stage)
    except TrialFailed as failure:
        state: Any = "out_of_memory" if failure.state == "out_of_memory" else "failed"
        return TableRow(configuration, state, str(failure))

    def speeds(phase: Phase) -> tuple[float, ...]:
        return tuple(_rounded(w.tokens / w.seconds) for w in m.windows if w.phase == phase)

    def watts(phase: Phase) -> tuple[float, ...] | None:
        found = [w.energy.watts for w in m.windows if w.phase == phase]
        return tuple(_rounded(v) for v in found if v is not None) if None not in found else None

    memory, vram = m.metrics.get("memory_mib"), m.metrics.get("vram_mib")
    return TableRow(
        configuration=m.configuration,
        state="complete",
        reloaded=m.reloaded,
        load_seconds=_rounded(m.load_seconds),
        warmup_seconds=_rounded(m.warmup_seconds),
        memory_mib=_rounded(memory.median) if memory else None,
        vram_mib=_rounded(vram.median) if vram else None,
        prompt_tokens_per_second=speeds("prefill"),
        prompt_watts=watts("prefill"),
        tokens_per_second=speeds("decode"),
        watts=watts("decode"),
    )


def _open_journal(journal: Path, header: TableHeader) -> Iterator[TableRow]:
    """The rows of an earlier run; if there is no journal, this starts one."""
    same = to_plain(replace(header, recorded_utc="", idle_watts=None, note="", passes=1))
    if not journal.exists():
        with journal.open("w", encoding="utf-8") as file:
            _append(file, same)
        return
    lines = journal.read_text(encoding="utf-8").split("\n")
    whole = [line for line in lines[:-1] if line]  # after a kill, an incomplete line has no line break
    if not whole or json.loads(whole[0]) != json.loads(json.dumps(same)):
        raise ConfigError(
            f"{journal} was started with another space, engine, model, machine or workload: "
            "give this table another name, or remove that file"
        )
    if lines[-1]:
        with journal.open("w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in whole))
    for line in whole[1:]:
        yield from_plain(json.loads(line), TableRow)


def _append(file: io.TextIOBase | Any, data: Any) -> None:
    file.write(json.dumps(data) + "\n")
    file.flush()
    os.fsync(file.fileno())


# The file


def write_table(table: Table, path: Path) -> None:
    """Write a table; the same table always produces the same bytes."""
    text = io.StringIO()
    text.write("# " + json.dumps(to_plain(table.header)) + "\n")
    names = list(table.header.parameters)
    columns = [*names, *_COLUMNS]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in table.rows:
        plain = to_plain(row)
        cells = [json.dumps(plain["configuration"][name]) for name in names]
        writer.writerow([*cells, *(_cell(plain[column], column) for column in _COLUMNS)])
    files.replace(path, gzip.compress(text.getvalue().encode(), mtime=0))


def read_table(path: Path) -> Table:
    """Read a table. Raises ConfigError if the file is not a table."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            first = file.readline()
            header = from_plain(json.loads(first.removeprefix("# ")), TableHeader)
            rows = tuple(_row_of_cells(cells, header) for cells in csv.DictReader(file))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: record a table with `sweeper record`") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, cattrs.BaseValidationError) as error:
        raise ConfigError(f"{path} is not a table that sweeper recorded: {_first_line(error)}") from error
    return Table(header, rows)


_COLUMNS = (
    "state",
    "reason",
    "reloaded",
    "load_seconds",
    "warmup_seconds",
    "memory_mib",
    "vram_mib",
    *_LISTS,
)


def _cell(value: Any, column: str) -> str:
    if column in _LISTS:
        return "" if value is None else " ".join(f"{v:.{DIGITS}g}" for v in value)
    return "" if value is None else json.dumps(value) if not isinstance(value, str) else value


def _row_of_cells(cells: Mapping[str, str], header: TableHeader) -> TableRow:
    params = {name: json.loads(cells[name]) for name in header.parameters}
    plain: dict[str, Any] = {"configuration": to_plain(header.base.with_(**params))}
    for column in _COLUMNS:
        text = cells[column]
        if column in _LISTS:
            plain[column] = [float(v) for v in text.split()] if text or "watts" not in column else None
        elif column in ("state", "reason"):
            plain[column] = text or None
        else:
            plain[column] = json.loads(text) if text else None
    return from_plain(plain, TableRow)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
