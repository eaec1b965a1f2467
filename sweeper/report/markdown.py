"""The report as markdown, for pasting into a forum, an issue or MLflow's description."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sweeper.metrics import describe
from sweeper.records import SweepRecord
from sweeper.report.caveats import advice_lines, failures
from sweeper.report.front_rows import front_rows
from sweeper.report.picks import meaning, next_commands, picks, recommended
from sweeper.report.sections import costs
from sweeper.report.words import (
    SCOPES,
    TRUST,
    clean,
    disturbed,
    figures,
    head,
    is_doubtful,
    machine_name,
    model_line,
    own_settings,
    power_line,
    spread,
    tally,
    unfinished,
)
from sweeper.results.price import money, per_million_tokens

# Signs that markdown would interpret; `<` and `&` keep HTML out of MLflow's rendered description.
_MEANT = str.maketrans(
    {sign: f"\\{sign}" for sign in "\\`*_[]|#~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


def markdown_report(record: SweepRecord) -> str:
    """The whole report: the recommendation, then the front, the picks, the costs and the caveats."""
    return "\n\n".join(block for block in _blocks(record) if block) + "\n"


def picks_markdown(record: SweepRecord) -> str:
    """The same answer for the description of a run in MLflow, whose page folds all but its first lines.

    The command comes first, then its effect: MLflow 3.17 shows 100 pixels without a click.
    """
    blocks = (_command_first(record), _front(record), _caveats(record))
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: object) -> str:
    """Others' text that markdown shows as it is."""
    return clean(text).translate(_MEANT)


def code(text: object) -> str:
    """Others' text as code, fenced by more backticks than it holds in a row."""
    plain = clean(text)
    if "`" not in plain:
        return f"`{plain}`"
    ticks = "`" * (1 + max(len(run) for run in re.findall("`+", plain)))
    return f"{ticks} {plain} {ticks}"


def _blocks(record: SweepRecord) -> Iterable[str]:
    yield f"# {escape(record.model.name)} on {escape(machine_name(record))}"
    yield f"**{escape(unfinished(record))}**" if unfinished(record) else ""
    yield f"**{escape(disturbed(record))}**" if disturbed(record) else ""
    yield _answer(record)
    yield _front(record)
    yield _picks(record)
    yield _price(record)
    yield _caveats(record)
    yield _lost(record)
    yield _setting(record)


def _answer(record: SweepRecord) -> str:
    best = recommended(record)
    commands = "\n".join(f"{command}  # {purpose}" for command, purpose in next_commands(record))
    if best is None:
        why = "no trial that counts was measured twice"
        return f"**Nothing can be recommended yet**: {why}.\n\n{fence(commands)}"
    own = own_settings(record, best.trial)
    return f"**Run this** ({escape(best.pick)}): {escape(best.words)}\n\n{code(own)}\n\n{fence(commands)}"


# At 1,300 pixels with its assistant open, MLflow 3.17 puts a description without a line of some 65 signs of
# code below the list of all children, and shows 93 signs of a longer one.
_WIDE_ENOUGH = 72


def _command_first(record: SweepRecord) -> str:
    best = recommended(record)
    if best is None:
        return _answer(record)
    (look, seen), (write, written), *others = next_commands(record)
    first = write if len(write) >= _WIDE_ENOUGH else f"{write}  # {written}"
    rest = "\n".join(f"- {code(command)} {purpose}" for command, purpose in ((look, seen), *others))
    words = f"**Run this** ({escape(best.pick)}): {escape(best.words)}"
    own = f"{escape(best.pick)} is {escape(meaning(record, best.pick))}: " + code(
        own_settings(record, best.trial)
    )
    return f"{fence(first)}\n{words}\n\n{own}\n\n{rest}"


def _front(record: SweepRecord) -> str:
    rows = front_rows(record)
    if not rows:
        return ""
    metrics = [objective.metric for objective in record.objectives]
    extra = [m for m in ("joules_per_token", "prompt_tokens_per_second") if m not in metrics]
    metrics += [m for m in extra if any(m in row.trial.metrics for row in rows)]
    body = [
        [f"#{row.trial.number}", ", ".join(row.names)]
        + [figures(row.trial, m) + (f" ({against})" if (against := row.change(m)) else "") for m in metrics]
        + [row.settings if row.is_baseline else code(row.settings).replace("|", "\\|")]
        for row in rows
    ]
    heads = ["trial", "pick", *(head(metric, record.power) for metric in metrics), "settings"]
    return markdown_table(heads, body, left=(0, 1, len(heads) - 1))


def _picks(record: SweepRecord) -> str:
    return "\n".join(
        f"- **{escape(picked.pick)}** (#{picked.trial.number}): {escape(picked.words)} "
        f"_({escape(meaning(record, picked.pick))})_"
        for picked in picks(record)
    )


def _price(record: SweepRecord) -> str:
    best, prices = recommended(record), record.prices
    if best is None:
        return ""
    kind = f" ({record.power.kind})" if is_doubtful(record.power) else ""
    lines = []
    for metric, tokens in (("joules_per_token", "generated"), ("prompt_joules_per_token", "prompt")):
        if reading := best.trial.metrics.get(metric):
            price = money(per_million_tokens(reading.median, prices), prices)
            lines.append(
                f"{best.pick}, a million {tokens} tokens: {price}{kind}, at {spread(reading)} J/token"
            )
    lines += [f"{name}: {cost}" for name, cost in costs(record)]
    if not lines:
        return ""
    return f"## Energy costs, at {prices.per_kwh:g} {escape(prices.currency)} per kWh\n\n" + "\n".join(
        f"- {escape(line)}" for line in lines
    )


def _caveats(record: SweepRecord) -> str:
    lines = [*advice_lines(record), *record.notes]
    return "## Caveats\n\n" + "\n".join(f"- {escape(line)}" for line in lines) if lines else ""


def _lost(record: SweepRecord) -> str:
    lines = [f"- {count} × {escape(reason)}" for reason, count in failures(record)[:10]]
    return "## Trials that do not count\n\n" + "\n".join(lines) if lines else ""


def _setting(record: SweepRecord) -> str:
    machine = record.machine
    objectives = ", ".join(f"{o.direction} {describe(o.metric).title}" for o in record.objectives)
    rows = [
        ("machine", f"{machine.cpu}, {machine.physical_cores} cores, kernel {machine.kernel}"),
        *(("GPU", f"{gpu.name}, driver {gpu.driver}") for gpu in machine.gpus),
        ("fingerprint", machine.fingerprint),
        ("model", model_line(record)),
        ("engine", f"{record.engine.name} {record.engine.version}"),
        ("watts", power_line(record.power)),
        ("trust", TRUST[record.power.kind]),
        ("scope", SCOPES[record.power.scope]),
        ("objectives", objectives),
        ("trials", tally(record)),
        ("sweep", f"{record.sweep}, {record.updated_utc}, sweeper {record.sweeper_version}"),
    ]
    table = markdown_table(["", ""], [(name, escape(item)) for name, item in rows], left=(0, 1))
    return f"## How it was measured\n\n{table}"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int]) -> str:
    """A markdown table of cells that are markdown already; the columns ``left`` stand left."""
    rule = ["---" if index in left else "---:" for index in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


def fence(text: str) -> str:
    """Lines of a shell as a block of code."""
    # Longer than any run of backticks in it, so that no name can end the block.
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}sh\n{text}\n{ticks}"
