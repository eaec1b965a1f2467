"""Columns of text that fit the width there is, and signs that the terminal at hand can write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
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

    The result may still be too wide: ask :func:`total`.
    """
    kept = list(columns)
    while total(kept) > width and any(column.gives_way for column in kept):
        kept.remove(max(reversed(kept), key=lambda column: column.gives_way))
    if total(kept) > width:
        kept = [replace(c, cells=tuple(cell.split(" ± ")[0] for cell in c.cells)) for c in kept]
    return kept


def total(columns: Sequence[Column]) -> int:
    """Terminal cells that the columns take side by side."""
    return sum(column.width for column in columns) + len(GAP) * (len(columns) - 1)


def table(
    columns: Sequence[Column], width: int, styles: Sequence[str], below: Sequence[list[Text]]
) -> list[Text]:
    """A line for each row, in its style, and the lines that stand below it.

    Where not even the medians fit side by side, each row becomes a few lines under its first cell.
    """
    kept = fitting(columns, width)
    is_wide = total(kept) <= width
    lines = [_row(kept, [column.head for column in kept], "bold")] if is_wide else []
    for index, (style, after) in enumerate(zip(styles, below, strict=True)):
        if is_wide:
            lines.append(_row(kept, [column.cells[index] for column in kept], style))
        else:
            lines += wrapped(columns[0].cells[index], width, style or "bold")
            for column in columns[1:]:
                if column.head:
                    lines += wrapped(f"{column.head}: {column.cells[index]}", width, indent="  ")
        lines += after
    return lines


def _row(columns: Sequence[Column], cells: Sequence[str], style: str) -> Text:
    padded = []
    for column, cell in zip(columns, cells, strict=True):
        space = " " * (column.width - cell_len(cell))
        padded.append(space + cell if column.right else cell + space)
    return Text(GAP.join(padded), style=style)


def wrapped(
    text: str, width: int, style: str = "", indent: str = "", hanging: str | None = None
) -> list[Text]:
    """``text`` in lines of at most ``width`` terminal cells; lines after the first begin with ``hanging``."""
    later = indent if hanging is None else hanging
    lines = Text(" ".join(text.split())).wrap(Console(), width - max(len(indent), len(later)))
    return [
        Text((later if place else indent) + line.plain.rstrip(), style=style)
        for place, line in enumerate(lines)
    ]


def as_text(lines: Sequence[Text]) -> str:
    """The lines without their styles, ending in a newline."""
    return "\n".join(line.plain.rstrip() for line in lines) + "\n"


def show(lines: Sequence[Text], console: Console) -> None:
    """Write the lines to a console, in its colours and the signs it knows."""
    for line in lines:
        console.print(writable(line, console.encoding), soft_wrap=True, highlight=False)


def writable(line: Text, encoding: str) -> Text:
    """``line`` (of one style) in signs that ``encoding`` can write; a sign without a substitute becomes ``?``."""
    try:
        line.plain.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return Text(line.plain.translate(SIGNS).encode("ascii", "replace").decode(), style=line.style)
    return line
