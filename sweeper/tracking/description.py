"""Descriptions in MLflow, in markdown. The parent run's description shows the recommended commands."""

from __future__ import annotations

import shlex

from sweeper.records import SweepRecord
from sweeper.report.markdown import escape, fence, picks_markdown
from sweeper.report.words import TRUST, clean, disturbed, power_line, tally

# MLflow's oldest limit for a tag is 5,000. This leaves room for the lines that mark sweeper's part.
LIMIT = 4800
CUT = "\n\n… cut here: all of it is in `report.html`, under Artifacts.\n"


def describe(record: SweepRecord) -> str:
    """The parent run's description: the recommended commands, the next steps, the front, and how far to trust it."""
    parts = []
    if record.state == "running":
        command = (
            f"sweeper report {shlex.quote(clean(record.sweep))}  # in a terminal: the figures known so far"
        )
        parts.append(f"**This sweep has not ended**; this is not its result yet.\n\n{fence(command)}")
    if record.state != "running" or record.recommended is not None:
        result = picks_markdown(record).strip()
        doubt = disturbed(record)
        parts += [f"**{escape(doubt)}**" if result and doubt else "", result]
    if record.state == "stopped":
        # This follows the result, because the page folds all but the first lines and shows the state beside them.
        parts.append(f"**This sweep was stopped** ({escape(record.stopped_because or 'by hand')}).")
    machine = " + ".join(gpu.name for gpu in record.machine.gpus) or record.machine.cpu
    parts.append(
        f"Machine: {escape(machine)} · {escape(tally(record))}  \n"
        f"Watts: {escape(power_line(record.power))}: {escape(TRUST[record.power.kind])}  \n"
        "Artifacts: `report.html` has the plots, `front.csv` the figures"
    )
    text = "\n\n".join(part for part in parts if part)
    return text if len(text) <= LIMIT else text[: text.rindex("\n", 0, LIMIT - len(CUT))] + CUT


def describe_experiment(record: SweepRecord) -> str:
    """The experiment's description: how to read its runs."""
    return (
        f"sweeper's sweeps of {escape(record.model.name)}: each sweep is a parent run, and each of its trials is a "
        "run below it. The description of the parent run shows the recommended commands.\n\n"
        'Filters: `tags.sweeper.front = "true"` · `tags.sweeper.kind = "sweep"` · '
        '`attributes.status = "FINISHED"` leaves out failed and impossible configurations.'
    )
