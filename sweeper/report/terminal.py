"""The front as a table for a terminal: it fits the width there is, in the signs that terminal can write."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from sweeper.records import SweepRecord
from sweeper.report.caveats import advice_lines, failures
from sweeper.report.columns import Column, as_text, show, table, wrapped
from sweeper.report.front_rows import FrontRow, front_rows
from sweeper.report.picks import next_commands, picks_by_trial
from sweeper.report.words import (
    clean,
    disturbed,
    figure,
    figures,
    head,
    is_doubtful,
    machine_name,
    power_line,
    tally,
)

WIDTH = 80  # where the terminal's width is not known
NARROWEST = 24  # below this lines run over: no table is readable there


def front_table(record: SweepRecord, width: int = WIDTH) -> str:
    """The front, the baseline, the caveats and the next commands as plain text, at most ``width`` wide."""
    return as_text(_lines(record, max(width, NARROWEST)))


def show_front(record: SweepRecord, console: Console) -> None:
    """Write the same to a console, in its width, its colours and the signs it knows."""
    show(_lines(record, max(console.width, NARROWEST)), console)


def _lines(record: SweepRecord, width: int) -> list[Text]:
    return [
        *_heading(record, width),
        Text(),
        *_table(record, width),
        *([] if record.front else _why_empty(record, width)),
        Text(),
        *_picks(record, width),
        *_caveats(record, width),
        *_next(record, width),
    ]


def _heading(record: SweepRecord, width: int) -> list[Text]:
    where = clean(machine_name(record))
    front = f"{len(record.front)} on the front"
    stopped = f"stopped: {clean(record.stopped_because)}"
    ended = {"stopped": stopped, "running": f"{front}, still running"}.get(record.state, front)
    lines = [
        *wrapped(f"{clean(record.model.name)} on {where}", width, "bold"),
        *wrapped(f"sweep {clean(record.sweep)} · {tally(record)} · {ended}", width, ""),
        *wrapped(f"watts: {power_line(record.power)}", width, "yellow" if is_doubtful(record.power) else ""),
    ]
    if record.engine.simulated:
        lines += wrapped("simulated: no figure here was measured on a real machine", width, "bold yellow")
    return lines


def _table(record: SweepRecord, width: int) -> list[Text]:
    rows = front_rows(record)
    if not rows:
        return []
    styles = ["bold green" if row.recommended else "" for row in rows]
    below = [wrapped(" · ".join([*row.names, row.settings]), width, "dim", indent="    ") for row in rows]
    return table(_columns(record, rows), width, styles, below)


def _columns(record: SweepRecord, rows: Sequence[FrontRow]) -> list[Column]:
    numbers = tuple(f"{'★' if row.recommended else ' '} #{row.trial.number}" for row in rows)
    columns = [Column("  trial", numbers, right=False)]
    for place, objective in enumerate(record.objectives):
        name = objective.metric
        columns.append(Column(head(name, record.power), tuple(figures(row.trial, name) for row in rows)))
        changes = tuple(row.change(name) for row in rows)
        if any(changes):
            columns.append(Column("", changes, 2 + (place > 1)))
    shown = {objective.metric for objective in record.objectives}
    for name, gives_way in (("joules_per_token", 3), ("prompt_tokens_per_second", 4)):
        readings = [row.trial.metrics.get(name) for row in rows]
        if name not in shown and any(readings):
            cells = tuple(figure(reading.median if reading else None) for reading in readings)
            columns.append(Column(head(name, record.power), cells, gives_way))
    return columns


def _why_empty(record: SweepRecord, width: int) -> list[Text]:
    lines = wrapped("There is no front yet: no trial that counts was measured twice.", width, "bold")
    for reason, count in failures(record)[:5]:
        lines += wrapped(f"{count} × {clean(reason)}", width, "", indent="  ")
    return lines


def _picks(record: SweepRecord, width: int) -> list[Text]:
    """One line for each trial that was picked, under all its names."""
    lines = wrapped(disturbed(record), width, "bold yellow") if disturbed(record) else []
    for found in picks_by_trial(record):
        names, first = " = ".join(picked.pick for picked in found), found[0]
        words = f"{names} (#{first.trial.number}): {clean(first.words)}"
        if first.recommended:
            lines += wrapped(f"★ {words}", width, "bold green", hanging="    ")
        else:
            lines += wrapped(words, width, indent="  ", hanging="    ")
    return [*lines, Text()] if lines else []


def _caveats(record: SweepRecord, width: int) -> list[Text]:
    lines = []
    for line in (*advice_lines(record), *record.notes):
        lines += wrapped(f"! {clean(line)}", width, "yellow", hanging="  ")
    return [*lines, Text()] if lines else []


def _next(record: SweepRecord, width: int) -> list[Text]:
    lines = [Text("next:")]
    for command, purpose in next_commands(record):
        # A command is never broken: it is there to be copied. Its purpose goes below where there is no room.
        together = f"  {command}  # {purpose}"
        if cell_len(together) <= width:
            lines.append(Text(together))
        else:
            lines += [Text(f"  {command}"), *wrapped(f"# {purpose}", width, "dim", indent="    ")]
    return lines
