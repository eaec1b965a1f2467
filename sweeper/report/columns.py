"""Columns of text that fit the width there is, and signs that the terminal at hand can write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
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
    """``text`` in lines of at most ``width`` terminal cells; lines after the first begin with ``hanging``.

    Unlike textwrap it counts cells, so that names in Chinese or Japanese fit as well.
    """
    later = indent if hanging is None else hanging
    lines, line = [], indent
    for word in text.split():
        for piece in _pieces(word, width - max(len(indent), len(later))):
            together = line + piece if line in (indent, later) else f"{line} {piece}"
            if cell_len(together) <= width:
                line = together
            else:
                lines.append(line)
                line = later + piece
    return [Text(one, style=style) for one in [*lines, line]]


def _pieces(word: str, width: int) -> list[str]:
    """A word that is wider than a line, cut into pieces that are not."""
    return [word] if cell_len(word) <= width else chop_cells(word, width)


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
