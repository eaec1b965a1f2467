"""The front as a table for a terminal: it fits the width there is, in the signs that terminal can write."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from sweeper.records import SweepRecord
from sweeper.report.caveats import advice_lines, failures, why_nothing
from sweeper.report.contexts import LEGEND, TITLE, contexts_table, summary
from sweeper.report.picks import (
    current_words,
    meanings,
    next_commands,
    picks_by_trial,
    recommended,
    title,
)
from sweeper.report.sections import front_table, legend, month
from sweeper.report.tables import (
    NARROWEST,
    WIDTH,
    as_text,
    hidden_heads,
    joined,
    show,
    table_lines,
    wider_shows,
    wrapped,
)
from sweeper.report.why import MOST_ROWS, why_not, why_table
from sweeper.report.words import clean, machine_name, power_line, tally, warnings


def front_text(record: SweepRecord, width: int = WIDTH) -> str:
    """The front, the baseline, the caveats and the next commands as plain text, at most ``width`` wide."""
    return as_text(_lines(record, max(width, NARROWEST)))


def show_front(record: SweepRecord, console: Console) -> None:
    """Write the same to a console, in its width, its colours and the signs it knows."""
    show(_lines(record, max(console.width, NARROWEST)), console)


def _lines(record: SweepRecord, width: int) -> list[Text]:
    sweep = f"sweep {clean(record.sweep)} · {tally(record)} · {len(record.front)} on the Pareto front"
    lines = [
        *wrapped(f"{clean(record.model.name)} on {clean(machine_name(record))}", width, "bold"),
        *wrapped(sweep, width),
        *wrapped(f"watts: {power_line(record.power)}", width),
    ]
    for warning in warnings(record):
        lines += wrapped(warning, width, "bold yellow")
    lines.append(Text())
    if contexts := contexts_table(record):
        said = f"{summary(record)} {LEGEND}"
        lines += [
            *wrapped(TITLE, width, "bold"),
            *table_lines(contexts, width),
            *wider_shows(contexts, width),
            Text(),
        ]
        lines += [*wrapped(said, width), Text()]
    if table := front_table(record):
        said = legend(record, hidden_heads(table, width))
        lines += [*table_lines(table, width), *wider_shows(table, width), Text()]
        lines += [*wrapped(said, width, "dim"), Text()]
    if recommended(record) is None:
        lines += wrapped(f"No recommendation: {clean(why_nothing(record))}.", width, "bold")
        lines += wrapped(current_words(record), width, indent="  ")
        for reason, count in failures(record)[:5]:
            lines += wrapped(f"{count} × {clean(reason)}", width, indent="  ")
        lines.append(Text())
    for found in picks_by_trial(record):
        is_best = found[0].recommended and not found[0].nearest
        words = f"{'★ ' if is_best else ''}{title(record, found)}"
        lines += wrapped(words, width, "bold green" if is_best else "bold")
        lines += wrapped(clean(found[0].words), width, "green" if is_best else "", indent="  ")
        if found[0].recommended:
            lines += wrapped(month(record), width, indent="  ")
        lines += wrapped(meanings(record, found), width, "dim", indent="  ")
        if found[0].recommended:
            lines += _why(record, width)
        lines.append(Text())
    advice = advice_lines(record, sensors=False)
    caveats = [wrapped(f"! {clean(line)}", width, "yellow", hanging="  ") for line in advice]
    for caveat in [*caveats, [Text()] if caveats else []]:
        lines += caveat
    return [*lines, *_next(record, width)]


def _why(record: SweepRecord, width: int) -> list[Text]:
    """What each setting of the recommended trial gave, a line each."""
    table = why_table(record, MOST_ROWS)
    if table is None:
        return wrapped(why_not(record), width, "dim", indent="  ")
    lines = table_lines(table, width - 2)
    if len(lines) == len(table.rows) + 1:
        return [Text(f"  {line.plain.rstrip()}", style=line.style) for line in lines]
    lines = wrapped(str(table.heads[0]), width, "bold", indent="  ")
    for row in table.rows:
        name, *cells = map(joined, row.cells)
        said = ", ".join(f"{head} {cell}" for cell, head in zip(cells, table.heads[1:], strict=True) if cell)
        lines += wrapped(f"{name}: {said}" if said else name, width, indent="  ", hanging="    ")
    return lines


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
