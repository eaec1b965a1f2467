"""A table for every kind of report, and lines of text that fit the terminal at hand and the signs it can write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

SIGNS = str.maketrans({"±": "+-", "−": "-", "–": "-", "·": "-", "★": "*", "×": "x", "…": "...", "€": "EUR"})
SIGNS |= str.maketrans(dict(zip("☆●■│┤└─┬", "*o#|++-+", strict=True)))  # of the live screen
GAP = "  "
WIDTH = 80  # where the terminal's width is not known
NARROWEST = 24  # below this lines run over: no table is readable there
CHANGES_GIVE_WAY = 1  # changes of columns that never go give way last, and those of other columns first

Facts = list[tuple[str, str]]
Cell = str | tuple[str, str]  # a figure, and its change from the baseline


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. ``kind`` is ``pick`` or ``baseline`` for those; ``below`` runs below all of its cells."""

    cells: Sequence[Cell]
    kind: str = ""
    below: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first ``words`` columns hold words and stand left; the others hold figures.

    ``gives_way`` says for each column how soon a narrow terminal drops it, 0: never. ``below`` is the head of
    the lines below the rows where a format gives them a column of their own.
    """

    heads: Sequence[str]
    rows: Sequence[Row]
    words: int = 1
    gives_way: Sequence[int] = ()
    below: str = "settings"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a terminal: its head, its cells, and how soon it goes where there is no room (0: never)."""

    head: str
    cells: tuple[str, ...]
    gives_way: int = 0
    right: bool = True

    @property
    def width(self) -> int:
        """Terminal cells that the widest entry takes."""
        return max(cell_len(text) for text in (self.head, *self.cells))


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit, dropping those that give way soonest. They may still be too wide: ask :func:`total`."""
    kept = list(columns)
    while total(kept) > width and any(column.gives_way for column in kept):
        kept.remove(max(reversed(kept), key=lambda column: column.gives_way))
    return kept


def total(columns: Sequence[Column]) -> int:
    """Terminal cells that the columns take side by side."""
    return sum(column.width for column in columns) + len(GAP) * (len(columns) - 1)


def table_lines(table: Table, width: int, beside: int = 0) -> list[Text]:
    """A line for each row, and the line below it.

    Where the columns do not fit side by side, each row becomes a few lines under its first cell. What runs below a row
    stands beside it instead where columns that stay leave it at least ``beside`` terminal cells; 0: never.
    """
    columns = fitting(_columns(table), width - (len(GAP) + beside if beside else 0))
    room = width - total(columns) - len(GAP)
    if beside and room >= beside:
        return _lines_beside(table, columns, room)
    columns = fitting(_columns(table), width)
    is_wide = total(columns) <= width
    lines = [_line(columns, [column.head for column in columns], "bold")] if is_wide else []
    for index, row in enumerate(table.rows):
        style = "bold green" if row.kind == "pick" else ""
        if is_wide:
            lines.append(_line(columns, [column.cells[index] for column in columns], style))
        else:
            first, *others = map(joined, row.cells)
            lines += wrapped(first, width, style or "bold")
            for head, cell in zip(table.heads[1:], others, strict=True):
                lines += wrapped(f"{head}: {cell}", width, indent="  ")
        lines += wrapped(row.below, width, "dim", indent="    ")
    return lines


def hidden_heads(table: Table, width: int) -> list[str]:
    """The heads of the columns that :func:`table_lines` leaves out at ``width``."""
    shown = fitting(_columns(table), width)
    heads = {column.head for column in shown}
    return [head for head in table.heads if head not in heads] if total(shown) <= width else []


def wider_shows(table: Table, width: int) -> list[Text]:
    """A line that names the columns for which there is no room; none where every column is shown."""
    hidden = hidden_heads(table, width)
    said = f"(a wider terminal also shows {', '.join(hidden)})" if hidden else ""
    return wrapped(said, width, "dim")


def _lines_beside(table: Table, columns: Sequence[Column], room: int) -> list[Text]:
    """The same with what runs below a row as a last column of ``room`` terminal cells."""
    lines = [_line(columns, [column.head for column in columns], "bold")]
    indent = " " * (total(columns) + len(GAP))
    for index, row in enumerate(table.rows):
        own = _line(
            columns, [column.cells[index] for column in columns], "bold green" if row.kind == "pick" else ""
        )
        first, *more = wrapped(row.below, room, "dim") or [Text()]
        lines += [Text.assemble(own, GAP, first), *(Text.assemble(indent, line) for line in more)]
    return lines


def joined(cell: Cell) -> str:
    """A cell as one text: ``29.8 ± 0.3 (+12 %)``."""
    if isinstance(cell, str):
        return cell
    return f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]


def _columns(table: Table) -> list[Column]:
    """A column for each of the table's, and one for its changes from the baseline where it has some."""
    found = []
    for place, head in enumerate(table.heads):
        cells = [row.cells[place] for row in table.rows]
        figures = tuple(cell if isinstance(cell, str) else cell[0] for cell in cells)
        changes = tuple("" if isinstance(cell, str) else cell[1] for cell in cells)
        rank = table.gives_way[place] if table.gives_way else 0
        found.append(Column(head, figures, rank, right=place >= table.words))
        if any(changes):
            found.append(Column("", changes, CHANGES_GIVE_WAY + (rank and max(table.gives_way)) + rank))
    return found


def _line(columns: Sequence[Column], cells: Sequence[str], style: str) -> Text:
    padded = []
    for column, cell in zip(columns, cells, strict=True):
        space = " " * (column.width - cell_len(cell))
        padded.append(space + cell if column.right else cell + space)
    return Text(GAP.join(padded), style=style)


def wrapped(
    text: str, width: int, style: str = "", indent: str = "", hanging: str | None = None
) -> list[Text]:
    """``text`` in lines of at most ``width`` terminal cells; lines after the first begin with ``hanging``."""
    if not text:
        return []
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
