"""The front as a table for a terminal: it fits the width there is, in the signs that terminal can write."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.caveats import advice_lines, failures
from sweeper.report.columns import Column, fitting, row, total, wrapped, writable
from sweeper.report.picks import is_recommended, marks, next_commands, picks
from sweeper.report.words import (
    baseline_of,
    change,
    clean,
    disturbed,
    figure,
    figures,
    head,
    is_doubtful,
    machine_name,
    own_settings,
    power_line,
    tally,
)

WIDTH = 80  # where nobody says how wide the terminal is
NARROWEST = 24  # below this lines run over: no table is readable there


def front_table(record: SweepRecord, width: int = WIDTH) -> str:
    """The front, the baseline, the caveats and the next commands as plain text, at most ``width`` wide."""
    return "\n".join(line.plain.rstrip() for line in _lines(record, max(width, NARROWEST))) + "\n"


def show_front(record: SweepRecord, console: Console) -> None:
    """Write the same to a console, in its width, its colours and the signs it knows."""
    for line in _lines(record, max(console.width, NARROWEST)):
        console.print(writable(line, console.encoding), soft_wrap=True, highlight=False)


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


def _rows(record: SweepRecord) -> list[TrialRecord]:
    """The baseline first, then the front."""
    rows = list(record.on_front())
    if record.baseline is not None and record.baseline not in record.front:
        baseline = record.trial(record.baseline)
        return [baseline, *rows] if baseline.metrics else rows
    return rows


def _table(record: SweepRecord, width: int) -> list[Text]:
    rows = _rows(record)
    if not rows:
        return []
    columns = fitting(_columns(record, rows), width)
    if total(columns) > width:
        return _cards(record, rows, width)
    named = marks(record)
    base = baseline_of(record)
    lines = [row(columns, [column.head for column in columns], "bold")]
    for index, trial in enumerate(rows):
        is_pick = is_recommended(record, trial)
        lines.append(row(columns, [c.cells[index] for c in columns], "bold green" if is_pick else ""))
        lines += wrapped(_about(record, trial, base, named), width, "dim", indent="    ")
    return lines


def _about(
    record: SweepRecord, trial: TrialRecord, base: TrialRecord | None, named: dict[int, tuple[str, ...]]
) -> str:
    if base is not None and trial.number == base.number:
        who = ("baseline", *named.get(trial.number, ()))
        return " · ".join([*who, "the engine's default"])
    own = own_settings(record, trial)
    return " · ".join([*named.get(trial.number, ()), own])


def _columns(record: SweepRecord, rows: Sequence[TrialRecord]) -> list[Column]:
    base = baseline_of(record)
    star = tuple("★" if is_recommended(record, t) else " " for t in rows)
    columns = [
        Column("", star, 0, right=False),
        Column("trial", tuple(f"#{t.number}" for t in rows), 0),
    ]
    for place, objective in enumerate(record.objectives):
        name = objective.metric
        columns.append(Column(head(name, record.power), tuple(figures(t, name) for t in rows), 0))
        if base is not None:
            changes = tuple(
                "" if t.number == base.number else change(t.metrics.get(name), base.metrics.get(name))
                for t in rows
            )
            if any(changes):
                columns.append(Column("", changes, 2 + (place > 1)))
    shown = {objective.metric for objective in record.objectives}
    for name, gives_way in (("joules_per_token", 3), ("prompt_tokens_per_second", 4)):
        if name not in shown and any(name in t.metrics for t in rows):
            cells = tuple(figure(r.median) if (r := t.metrics.get(name)) else figure(None) for t in rows)
            columns.append(Column(head(name, record.power), cells, gives_way))
    return columns


def _cards(record: SweepRecord, rows: Sequence[TrialRecord], width: int) -> list[Text]:
    """The same where not even the medians fit side by side: a few lines for each trial."""
    named = marks(record)
    base = baseline_of(record)
    lines = []
    for trial in rows:
        is_pick = is_recommended(record, trial)
        style = "bold green" if is_pick else "bold"
        lines += wrapped(f"{'★ ' if is_pick else ''}#{trial.number}", width, style)
        for objective in record.objectives:
            name = objective.metric
            text = f"{head(name, record.power)}: {figures(trial, name)}"
            lines += wrapped(text, width, "", indent="  ")
        lines += wrapped(_about(record, trial, base, named), width, "dim", indent="    ")
    return lines


def _why_empty(record: SweepRecord, width: int) -> list[Text]:
    lines = wrapped("There is no front yet: no trial that counts was measured twice.", width, "bold")
    for reason, count in failures(record)[:5]:
        lines += wrapped(f"{count} × {clean(reason)}", width, "", indent="  ")
    return lines


def _picks(record: SweepRecord, width: int) -> list[Text]:
    """One line for each trial that was picked, under all its names."""
    lines = wrapped(disturbed(record), width, "bold yellow") if disturbed(record) else []
    named = marks(record)
    for picked in picks(record):
        names = named.pop(picked.trial.number, None)
        if names is None:
            continue
        star = "★ " if picked.recommended else ""
        words = f"{star}{' = '.join(names)} (#{picked.trial.number}): {clean(picked.words)}"
        style, indent = ("bold green", "") if picked.recommended else ("", "  ")
        lines += wrapped(words, width, style, indent, hanging="    ")
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
