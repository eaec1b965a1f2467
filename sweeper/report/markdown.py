"""The report as markdown, for pasting into a forum, an issue or MLflow's description."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sweeper.records import SweepRecord
from sweeper.report.caveats import advice_lines, failures, why_nothing
from sweeper.report.contexts import LEGEND, TITLE, contexts_table, summary
from sweeper.report.picks import (
    current_words,
    heading,
    meaning,
    meanings,
    next_commands,
    picks_by_trial,
    recommended,
    title,
)
from sweeper.report.sections import costs, front_table, legend, month, origin, phases, setting
from sweeper.report.tables import Facts, Table, joined
from sweeper.report.why import why_not, why_table
from sweeper.report.words import clean, machine_name, own_settings, warnings

# Signs that markdown would interpret; `<` and `&` keep HTML out of MLflow's rendered description.
_MEANT = str.maketrans(
    {sign: f"\\{sign}" for sign in "\\`*_[]|#~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


def markdown_report(record: SweepRecord) -> str:
    """The whole report: the recommendation, then the front, the picks, the costs and the caveats."""
    prices = record.prices
    lost = [f"{count} × {reason}" for reason, count in failures(record)[:10]]
    blocks = [
        f"# {escape(record.model.name)} on {escape(machine_name(record))}",
        *(f"**{escape(warning)}**" for warning in warnings(record)),
        _answer(record),
        _contexts(record),
        _front(record),
        *(
            f"**{escape(title(record, found))}**: {escape(found[0].words)}"
            + (f" _({escape(said)})_" if (said := meanings(record, found)) else "")
            for found in picks_by_trial(record)
        ),
        *(markdown_table(table) for table in phases(record)),
        _section(f"Energy costs, at {prices.per_kwh:g} {prices.currency} per kWh", _told(costs(record))),
        _section("Caveats", advice_lines(record)),
        _section("Trials that failed or break a constraint", lost),
        _section("How it was measured", _told(setting(record) + origin(record))),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def picks_markdown(record: SweepRecord) -> str:
    """The same answer for the description of a run in MLflow, whose page folds all but its first lines.

    The command comes first, then its effect: MLflow 3.17 shows 100 pixels without a click.
    """
    caveats = _section("Caveats", advice_lines(record, sensors=False))
    blocks = (_command_first(record), _front(record), caveats)
    return "\n\n".join(filter(None, blocks)) + "\n"


def escape(text: object) -> str:
    """Others' text that markdown shows as it is."""
    return clean(text).translate(_MEANT)


def code(text: object) -> str:
    """Others' text as code, fenced by more backticks than it holds in a row."""
    plain = clean(text)
    if "`" not in plain:
        return f"`{plain}`"
    ticks = "`" * (1 + _longest_run(plain))
    return f"{ticks} {plain} {ticks}"


def fence(text: str) -> str:
    """Lines of a shell as a block of code."""
    ticks = "`" * max(3, 1 + _longest_run(text))  # so that no name can end the block
    return f"{ticks}sh\n{text}\n{ticks}"


def markdown_table(table: Table) -> str:
    """A table; what stands below a row elsewhere is its last column here."""
    words = list(range(table.words))
    heads, rows = list(table.heads), [list(map(joined, row.cells)) for row in table.rows]
    if any(row.below for row in table.rows):
        words.append(len(heads))
        heads.append(table.below)
        rows = [[*cells, row.below] for cells, row in zip(rows, table.rows, strict=True)]
    rule = ["---" if place in words else "---:" for place in range(len(heads))]
    lines = [[escape(cell).strip() for cell in cells] for cells in (heads, *rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (lines[0], rule, *lines[1:]))


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _section(heading: str, lines: Iterable[str]) -> str:
    told = "\n".join(f"- {escape(line)}" for line in lines)
    return f"## {escape(heading)}\n\n{told}" if told else ""


def _told(facts: Facts) -> list[str]:
    return [f"{name}: {fact}" for name, fact in facts]


def _answer(record: SweepRecord) -> str:
    best = recommended(record)
    commands = "\n".join(f"{command}  # {purpose}" for command, purpose in next_commands(record))
    if best is None:
        why = f"**Nothing can be recommended yet**: {escape(why_nothing(record))}."
        return "\n\n".join(filter(None, (why, escape(current_words(record)), fence(commands))))
    own = own_settings(record, best.trial)
    head = f"**{heading(record, best)}** ({escape(best.pick)}):"
    table = why_table(record)
    reasons = markdown_table(table) if table else escape(why_not(record))
    said = (head, fence(commands), escape(best.words), escape(month(record)), code(own), reasons)
    return "\n\n".join(filter(None, said))


# At 1,300 pixels with its assistant open, MLflow 3.17 puts a description without a line of some 65 signs of
# code below the list of all children, and shows 93 signs of a longer one.
_WIDE_ENOUGH = 72


def _command_first(record: SweepRecord) -> str:
    best = recommended(record)
    if best is None:
        return _answer(record)
    commands = list(next_commands(record))
    # The command that writes; of a simulated or disturbed sweep, the next sweep.
    write, written = commands.pop(1 if commands[0][0] == best.apply_command else 0)
    first = write if len(write) >= _WIDE_ENOUGH else f"{write}  # {written}"
    rest = "\n".join(f"- {code(command)} {purpose}" for command, purpose in commands)
    words = f"**{heading(record, best)}** ({escape(best.pick)}): {escape(best.words)}"
    own = f"{escape(best.pick)} asks for {escape(meaning(record, best.pick))}: " + code(
        own_settings(record, best.trial)
    )
    return f"{fence(first)}\n" + "\n\n".join(filter(None, (words, escape(month(record)), own, rest)))


def _contexts(record: SweepRecord) -> str:
    table = contexts_table(record)
    if table is None:
        return ""
    return f"## {TITLE}\n\n{escape(summary(record))}\n\n{markdown_table(table)}\n\n{escape(LEGEND)}"


def _front(record: SweepRecord) -> str:
    table = front_table(record)
    return f"{markdown_table(table)}\n\n{escape(legend(record))}" if table else ""
