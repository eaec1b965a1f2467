"""Small pieces of HTML, each of which escapes what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest

from sweeper.report.words import clean


def text(item: object) -> str:
    """Others' text as HTML text or as an attribute's value."""
    return escape(clean(item), quote=True)


def section(name: str, title: str, body: str) -> str:
    """A section with its heading; ``body`` is HTML."""
    return f'<section id="{name}">\n<h2>{text(title)}</h2>\n{body}\n</section>' if body else ""


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def command(line: str, purpose: str = "") -> str:
    """A command to copy, with what it does."""
    note = f'<span class="purpose">{text(purpose)}</span>' if purpose else ""
    return f'<div class="command"><code>{text(line)}</code>{note}</div>'


def items(lines: Iterable[str]) -> str:
    """A list of plain lines."""
    body = "".join(f"<li>{text(entry)}</li>" for entry in lines)
    return f"<ul>{body}</ul>" if body else ""


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names with what they are."""
    body = "".join(f"<dt>{text(name)}</dt><dd>{text(what)}</dd>" for name, what in rows)
    return f"<dl>{body}</dl>" if body else ""


Cell = str | tuple[str, str]


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    kinds: Sequence[str] = (),
    below: Sequence[str] = (),
) -> str:
    """A table; a cell of two texts has the second in small below. ``kinds`` are the rows' classes.

    Columns of words stand left, columns of figures right; a table that is too wide scrolls by itself.
    ``below`` is a line for each row that runs under all of its cells, and stays in sight when they scroll.
    """
    body = list(rows)
    sides = [_side([row[column] for row in body]) for column in range(len(heads))]
    head = "".join(f'<th class="{side}">{text(name)}</th>' for name, side in zip(heads, sides, strict=True))
    lines = "".join(
        f'<tr class="{kind}{" over" if under else ""}">'
        + "".join(f'<td class="{side}">{_cell(cell)}</td>' for cell, side in zip(cells, sides, strict=True))
        + "</tr>"
        + (_below(under, kind, len(heads)) if under else "")
        for cells, kind, under in zip_longest(body, kinds, below, fillvalue="")
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return text(cell)
    return text(cell[0]) + (f"<small>{text(cell[1])}</small>" if cell[1] else "")


def _side(cells: Sequence[Cell]) -> str:
    """``number`` where every entry begins with a digit or is missing, else ``words``."""
    firsts = [cell if isinstance(cell, str) else cell[0] for cell in cells]
    money_signs = "€$£"
    is_figures = all(not entry or entry[0].isdigit() or entry[0] in money_signs + "–−" for entry in firsts)
    return "number" if is_figures else "words"


def _below(words: str, kind: str, columns: int) -> str:
    return f'<tr class="{kind}"><td class="below" colspan="{columns}"><div>{text(words)}</div></td></tr>'


def fold(summary: str, body: str, kind: str = "paper") -> str:
    """What a reader opens when they want it; on paper it is open (page.js sees to that), but kind ``screen``."""
    opened = f'<details class="{kind}"><summary>{text(summary)}</summary>{body}</details>'
    return opened if body else ""
