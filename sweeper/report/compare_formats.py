"""A comparison as ``table``, ``markdown``, ``json`` or ``csv``."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from sweeper.records import SCHEMA, to_plain
from sweeper.report.compare import Comparison, Entry, Group
from sweeper.report.formats import Forms, csv_text, json_text, reading_cells, reading_heads, written
from sweeper.report.markdown import escape, markdown_table
from sweeper.report.tables import (
    NARROWEST,
    WIDTH,
    Row,
    Table,
    as_text,
    show,
    table_lines,
    wider_shows,
    wrapped,
)
from sweeper.report.words import MISSING, clean, figure, spread
from sweeper.results.price import money

# How soon each column goes where there is no room, 0: never.
GIVES_WAY = (0, 0, 3, 6, 0, 0, 2, 5, 1)


def render_comparison(comparison: Comparison, form: str, width: int = WIDTH) -> str:
    """The comparison as text in ``form``, ending in a newline; ``width`` counts for the table only.

    Raises:
        UsageError: there is no such form.
    """
    forms: Forms = {
        "table": lambda: as_text(_lines(comparison, max(width, NARROWEST))),
        "markdown": lambda: _markdown(comparison),
        "json": lambda: json_text({"schema": SCHEMA, **to_plain(comparison)}),
        "csv": lambda: _csv(comparison),
    }
    return written(forms, form)


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Write the table to a console, in its width, its colours and the signs it knows."""
    show(_lines(comparison, max(console.width, NARROWEST)), console)


def _lines(comparison: Comparison, width: int) -> list[Text]:
    lines: list[Text] = []
    for group in comparison.groups:
        table = _table(comparison, group)
        lines += [*wrapped(group.title, width, "bold"), *table_lines(table, width)]
        lines += [*wider_shows(table, width), Text()]
    for sentence in comparison.sentences:
        lines += [*wrapped(sentence, width), Text()]
    if comparison.differences:
        lines.append(Text("what differs:", style="bold"))
    for name, values in comparison.differences.items():
        told = []
        for item in dict.fromkeys(values):
            sweeps = [clean(r.sweep) for r, own in zip(comparison.rows, values, strict=True) if own == item]
            told.append(f"{item} ({', '.join(sweeps)})")
        lines += wrapped(f"{name}: {'; '.join(told)}", width, indent="  ", hanging="    ")
    return lines if lines[-1].plain else lines[:-1]


def _markdown(comparison: Comparison) -> str:
    blocks = ["# Sweeps side by side"]
    for group in comparison.groups:
        blocks += [f"**{escape(group.title)}**", markdown_table(_table(comparison, group))]
    blocks.append("\n".join(f"- {escape(sentence)}" for sentence in comparison.sentences))
    if comparison.differences:
        heads = ["what differs", *(entry.sweep for entry in comparison.rows)]
        rows = [Row([name, *values]) for name, values in comparison.differences.items()]
        blocks.append(markdown_table(Table(heads, rows, words=len(heads))))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _table(comparison: Comparison, group: Group) -> Table:
    kind = "" if group.kind in ("measured", "none") else f" {group.kind}"
    heads = [
        "model",
        "sweep",
        "machine",
        "date",
        "tok/s",
        f"W{kind}",
        "J/tok",
        "per Mtok",
        "electricity per hour",
    ]

    def price(amount: float | None) -> str:
        return MISSING if amount is None else money(amount, comparison.prices)

    def row(entry: Entry) -> Row:
        joules = entry.joules_per_token
        cells = [
            clean(entry.model + (f" {entry.quant}" if entry.quant else "")),
            clean(entry.sweep),
            clean(entry.machine),
            entry.date,
            spread(entry.tokens_per_second),
            spread(entry.watts),
            figure(None if joules is None else joules.median),
            price(entry.price_per_million_tokens),
            price(entry.price_per_hour),
        ]
        remark = entry.reason or entry.provisional
        return Row(cells, below=clean(f"sweep {entry.sweep}: {remark}" if remark else ""))

    rows = [row(comparison.rows[index]) for index in group.rows]
    return Table(heads, rows, words=4, gives_way=GIVES_WAY, below="remark")


def _csv(comparison: Comparison) -> str:
    readings = ("tokens_per_second", "prompt_tokens_per_second", "watts", "joules_per_token")
    plain = ("sweep", "model", "parameters", "quant", "machine", "date", "trial")
    prices = ("price_per_million_tokens", "price_per_hour")
    rows = [
        [
            entry.group,
            comparison.groups[entry.group].title,
            *(getattr(entry, name) for name in plain),
            *reading_cells(readings, {name: getattr(entry, name) for name in readings}),
            *(getattr(entry, name) for name in prices),
            entry.reason,
            entry.provisional,
        ]
        for entry in comparison.rows
    ]
    return csv_text(
        ["group", "power", *plain, *reading_heads(readings), *prices, "reason", "provisional"], rows
    )
