"""Columns of text that fit the width there is, and signs that the terminal at hand can write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.cells import cell_len
from rich.text import Text

SIGNS = str.maketrans({"±": "+-", "−": "-", "–": "-", "·": "-", "★": "*", "×": "x", "…": "...", "€": "EUR"})
GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its head, its cells, and how soon it goes where there is no room (0: never)."""

    head: str
    cells: tuple[str, ...]
    gives_way: int = 0
    right: bool = True

    @property
    def width(self) -> int:
        """Terminal cells that the widest entry takes."""
        return max(cell_len(text) for text in (self.head, *self.cells))


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit, dropping those that give way soonest; then intervals give way to medians.

    What is left may still be too wide: ask :func:`total`.
    """
    kept = list(columns)
    while total(kept) > width and any(column.gives_way for column in kept):
        kept.remove(max(reversed(kept), key=lambda column: column.gives_way))
    if total(kept) > width:
        kept = [_without_spread(column) for column in kept]
    return kept


def total(columns: Sequence[Column]) -> int:
    """Terminal cells that the columns take side by side."""
    return sum(column.width for column in columns) + len(GAP) * (len(columns) - 1)


def row(columns: Sequence[Column], cells: Sequence[str], style: str = "") -> Text:
    """One line of the table."""
    padded = []
    for column, cell in zip(columns, cells, strict=True):
        space = " " * (column.width - cell_len(cell))
        padded.append(space + cell if column.right else cell + space)
    return Text(GAP.join(padded), style=style)


def wrapped(
    text: str, width: int, style: str = "", indent: str = "", hanging: str | None = None
) -> list[Text]:
    """``text`` in lines of at most ``width``; lines after the first are indented by ``hanging``."""
    later = indent if hanging is None else hanging
    pieces = wrap(text, width, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False)
    return [Text(piece, style=style) for piece in pieces]


def writable(line: Text, encoding: str) -> Text:
    """``line`` (of one style) in signs that ``encoding`` can write; what has no stand-in becomes ``?``."""
    try:
        line.plain.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return Text(line.plain.translate(SIGNS).encode("ascii", "replace").decode(), style=line.style)
    return line


def _without_spread(column: Column) -> Column:
    cells = tuple(cell.split(" ± ")[0] for cell in column.cells)
    return Column(column.head, cells, column.gives_way, column.right)
