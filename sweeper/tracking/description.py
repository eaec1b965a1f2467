"""Descriptions in MLflow: the parent's alone answers "what should I run?". Pure; markdown."""

from __future__ import annotations

import shlex

from sweeper.records import SweepRecord
from sweeper.report.markdown import escape, fence, picks_markdown
from sweeper.report.words import TRUST, clean, disturbed, power_line, tally

# Under MLflow's oldest limit for a tag (5,000), with room for the lines that mark sweeper's part.
LIMIT = 4800
CUT = "\n\n… cut here: all of it is in `report.html`, under Artifacts.\n"


def describe(record: SweepRecord) -> str:
    """The parent run's description: what to run, the next commands, the front, and how far to trust it."""
    result = "" if record.state == "running" and record.recommended is None else picks_markdown(record)
    doubt = f"**{escape(disturbed(record))}**" if result and disturbed(record) else ""
    parts = [_running(record), doubt, result.strip(), _stopped(record), _foot(record)]
    return _fit("\n\n".join(part for part in parts if part))


def describe_experiment(record: SweepRecord) -> str:
    """The experiment's description: how to read its runs."""
    return (
        f"Sweeps of {escape(record.model.name)} by sweeper: one parent run a sweep, under it one run "
        "a trial. What to run stands in the parent's description.\n\n"
        'Filters: `tags.sweeper.front = "true"` · `tags.sweeper.kind = "sweep"` · '
        '`attributes.status = "FINISHED"` leaves out failed and impossible configurations.'
    )


def _running(record: SweepRecord) -> str:
    if record.state != "running":
        return ""
    command = f"sweeper report {shlex.quote(clean(record.sweep))}  # in a terminal: the figures known so far"
    return f"**This sweep is still running**; what stands here is not its result yet.\n\n{fence(command)}"


def _stopped(record: SweepRecord) -> str:
    # After the answer: the page folds all but the first lines, and shows the run's state beside them.
    if record.state != "stopped":
        return ""
    return f"**This sweep was stopped** ({escape(record.stopped_because or 'by hand')})."


def _foot(record: SweepRecord) -> str:
    machine = " + ".join(gpu.name for gpu in record.machine.gpus) or record.machine.cpu
    return "\n".join(
        (
            f"Machine: {escape(machine)} · {escape(tally(record))}  ",
            f"Watts: {escape(power_line(record.power))}: {escape(TRUST[record.power.kind])}  ",
            "Artifacts: `report.html` has the plots, `front.csv` the figures",
        )
    )


def _fit(text: str) -> str:
    """``text`` within the limit, cut between two lines."""
    if len(text) <= LIMIT:
        return text
    return text[: text.rindex("\n", 0, LIMIT - len(CUT))] + CUT
