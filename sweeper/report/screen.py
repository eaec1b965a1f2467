"""The live screen of a running sweep: the current pick, the front with its settings, and a small plot."""

from __future__ import annotations

from dataclasses import replace

from rich.text import Text

from sweeper.records import SweepRecord
from sweeper.report.picks import current, sureness
from sweeper.report.sections import front_table
from sweeper.report.tables import NARROWEST, Table, table_lines, wrapped
from sweeper.report.text_plot import PICK_STYLE, text_plot

# Below this width, the plot beside the front would break its table.
LEAST_WIDTH_BESIDE = 96
PLOT_WIDTHS = (56, 46, 36)
PLOT_ROWS = (10, 16)
# The least width of a column of settings beside the figures: a narrow one saves rows where settings are few, and for
# a wide one the figures that are no objectives give way.
SETTINGS_WIDTHS = (38, 90)
GAP = 3


def screen(record: SweepRecord, width: int, rows: int) -> list[Text]:
    """At most ``rows`` rows of at most ``width`` cells; empty while no trial has a figure.

    Where there is no room, the plot is left out first, then points of the front that are neither pick nor baseline.
    """
    width = max(width, NARROWEST)
    table = front_table(record)
    if table is None:
        return []
    pick = _pick(record, width)
    room = max(0, rows - len(pick))
    return [*pick, *_front(record, table, width, room)][:rows]


def _pick(record: SweepRecord, width: int) -> list[Text]:
    """The current pick and how sure it is; then an empty row."""
    best = current(record)
    if best is None:
        return [*wrapped("no trial counts yet", width), Text()]
    words = f"current pick: {best.sign} #{best.trial.number} ({best.label}); {sureness(record, best)}"
    return [*wrapped(words, width, PICK_STYLE), Text()]


def _front(record: SweepRecord, table: Table, width: int, rows: int) -> list[Text]:
    """The front in at most ``rows`` rows, with the plot where there is room beside or below."""
    least, most = PLOT_ROWS
    for plot_width in PLOT_WIDTHS if width >= LEAST_WIDTH_BESIDE and rows >= least else ():
        left = _table(table, width - plot_width - GAP)
        if len(left) <= rows:
            return _side_by_side(left, text_plot(record, plot_width, min(most, rows)), width - plot_width)
    lines = _table(table, width)
    spare = min(rows - len(lines) - 1, most)
    if spare >= least:
        return [*lines, Text(), *text_plot(record, min(width, PLOT_WIDTHS[0]), spare)]
    return _shortened(table, width, rows)


def _table(table: Table, width: int) -> list[Text]:
    """The table with settings below its rows or beside them, whichever takes fewer rows."""
    return min((table_lines(table, width, beside) for beside in (0, *SETTINGS_WIDTHS)), key=len)


def _shortened(table: Table, width: int, rows: int) -> list[Text]:
    """The rows of the front that fit, and how many do not. The pick and the baseline stay longest."""
    kept = list(table.rows)
    lines = _table(table, width)
    while len(lines) > rows and any(not row.kind for row in kept):
        kept.remove(next(row for row in reversed(kept) if not row.kind))
        hidden = len(table.rows) - len(kept)
        more = f"and {hidden} more {'point' if hidden == 1 else 'points'}, which `sweeper report` shows"
        lines = [*_table(replace(table, rows=kept), width), *wrapped(more, width, "dim")]
    return lines


def _side_by_side(left: list[Text], right: list[Text], at: int) -> list[Text]:
    """The lines of both, those of ``right`` from column ``at`` on."""
    rows = []
    for place in range(max(len(left), len(right))):
        line = left[place].copy() if place < len(left) else Text()
        if place < len(right):
            line = Text.assemble(line, " " * max(0, at - line.cell_len), right[place])
        rows.append(line)
    return rows
