"""A comparison as ``table``, ``markdown``, ``json`` or ``csv``."""

from __future__ import annotations

import csv
import io
import json

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from sweeper.errors import UsageError
from sweeper.records import SCHEMA, to_plain
from sweeper.report.columns import Column, as_text, show, table, wrapped
from sweeper.report.compare import Comparison, Group, Row
from sweeper.report.formats import FORMATS, cell, reading_cells
from sweeper.report.markdown import escape, markdown_table
from sweeper.report.terminal import NARROWEST, WIDTH
from sweeper.report.words import MISSING, clean, figure, spread
from sweeper.results.price import money

LONGEST_NAME = 28  # of a model or machine in a table; the rest is cut, the differences below have it whole


def render_comparison(comparison: Comparison, form: str, width: int = WIDTH) -> str:
    """The comparison as text in ``form``, ending in a newline; ``width`` counts for the table only.

    Raises:
        UsageError: there is no such form.
    """
    if form == "table":
        return as_text(_lines(comparison, max(width, NARROWEST)))
    if form == "markdown":
        return _markdown(comparison)
    if form == "json":
        document = {"schema": SCHEMA, **to_plain(comparison)}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if form == "csv":
        return _csv(comparison)
    raise UsageError(f"--format {form}: choose one of {', '.join(FORMATS)}")


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Write the table to a console, in its width, its colours and the signs it knows."""
    show(_lines(comparison, max(console.width, NARROWEST)), console)


def _heads(group: Group) -> list[str]:
    kind = "" if group.kind == "measured" else f" {group.kind}"
    return ["model", "sweep", "machine", "date", "tok/s", f"W{kind}", "J/tok", "per Mtok", "per hour"]


# How soon each of these columns goes where there is no room, 0: never.
_GIVES_WAY = (0, 4, 3, 6, 0, 0, 2, 5, 1)
_WORDS = 4  # so many of them hold words
_SWEEP = 1  # the place of the sweep's name


def _cells(comparison: Comparison, entry: Row) -> list[str]:
    prices = comparison.prices
    per_million, hourly = entry.price_per_million_tokens, entry.price_per_hour
    joules = entry.joules_per_token
    return [
        clean(entry.model + (f" {entry.quant}" if entry.quant else "")),
        clean(entry.sweep),
        clean(entry.machine),
        entry.date,
        spread(entry.tokens_per_second),
        spread(entry.watts),
        figure(None if joules is None else joules.median),
        MISSING if per_million is None else money(per_million, prices),
        MISSING if hourly is None else money(hourly, prices),
    ]


def _lines(comparison: Comparison, width: int) -> list[Text]:
    lines: list[Text] = []
    for group in comparison.groups:
        lines += [*wrapped(group.title, width, "bold"), *_table(comparison, group, width), Text()]
    for sentence in comparison.sentences:
        lines += [*wrapped(sentence, width), Text()]
    return [*lines, *_differences(comparison, width)]


def _table(comparison: Comparison, group: Group, width: int) -> list[Text]:
    entries = [comparison.rows[index] for index in group.rows]
    cells = [_cells(comparison, entry) for entry in entries]
    models_tell = len({line[0] for line in cells}) == len(cells)  # else the sweeps' names tell rows apart
    columns = [
        Column(
            head,
            tuple(_cut(line[place]) if place < _WORDS else line[place] for line in cells),
            0 if place == _SWEEP and not models_tell else _GIVES_WAY[place],
            right=place >= _WORDS,
        )
        for place, head in enumerate(_heads(group))
    ]
    reasons = [wrapped(clean(e.reason), width, "yellow", indent="  ") if e.reason else [] for e in entries]
    return table(columns, width, [""] * len(entries), reasons)


def _cut(name: str) -> str:
    if cell_len(name) <= LONGEST_NAME:
        return name
    return name[: LONGEST_NAME - 1] + "…"


def _differences(comparison: Comparison, width: int) -> list[Text]:
    if not comparison.differences:
        return []
    lines = [Text("what differs:", style="bold")]
    for name, values in comparison.differences.items():
        for item in dict.fromkeys(values):
            sweeps = [clean(r.sweep) for r, own in zip(comparison.rows, values, strict=True) if own == item]
            lines += wrapped(f"{name}: {item} ({', '.join(sweeps)})", width, indent="  ", hanging="    ")
    return lines


def _markdown(comparison: Comparison) -> str:
    blocks = ["# Sweeps side by side"]
    for group in comparison.groups:
        rows = [[escape(item) for item in _cells(comparison, comparison.rows[index])] for index in group.rows]
        blocks += [
            f"**{escape(group.title)}**",
            markdown_table(_heads(group), rows, left=range(_WORDS)),
        ]
    reasons = [f"- {escape(r.sweep)}: {escape(r.reason)}" for r in comparison.rows if r.reason]
    if reasons:
        blocks.append("\n".join(reasons))
    if comparison.sentences:
        blocks.append("\n".join(f"- {escape(sentence)}" for sentence in comparison.sentences))
    if comparison.differences:
        heads = ["what differs", *(escape(entry.sweep) for entry in comparison.rows)]
        rows = [[name, *map(escape, values)] for name, values in comparison.differences.items()]
        blocks.append(markdown_table(heads, rows, left=range(len(heads))))
    return "\n\n".join(blocks) + "\n"


def _csv(comparison: Comparison) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    readings = ("tokens_per_second", "prompt_tokens_per_second", "watts", "joules_per_token")
    spreads = [f"{name}_{part}" for name in readings for part in ("median", "low", "high", "n")]
    plain = ("sweep", "model", "parameters", "quant", "machine", "date", "trial")
    prices = ("price_per_million_tokens", "price_per_hour")
    writer.writerow(["group", "power", *plain, *spreads, *prices, "reason"])
    for entry in comparison.rows:
        figures: list[object] = []
        for name in readings:
            figures += reading_cells(getattr(entry, name))
        about = [cell(getattr(entry, name)) for name in plain]
        costs = [cell(getattr(entry, name)) for name in prices]
        title = comparison.groups[entry.group].title
        writer.writerow([entry.group, cell(title), *about, *figures, *costs, cell(entry.reason)])
    return text.getvalue()
