"""Descriptions in MLflow: the parent's alone answers "what should I run?". Pure; markdown."""

from __future__ import annotations

from sweeper.records import SweepRecord
from sweeper.report.markdown import escape, picks_markdown
from sweeper.report.words import TRUST, power_line, tally

# Under MLflow's oldest limit for a tag (5,000), with room for the lines that mark sweeper's part.
LIMIT = 4800
CUT = "\n\n… cut here: all of it is in `report.html`, under Artifacts.\n"


def describe(record: SweepRecord) -> str:
    """The parent run's description: what to run, the next commands, the front, and how far to trust it."""
    result = "" if record.state == "running" and record.recommended is None else picks_markdown(record)
    return _fit("\n\n".join(part for part in (_progress(record), result.strip(), _foot(record)) if part))


def describe_experiment(record: SweepRecord) -> str:
    """The experiment's description: how to read its runs."""
    return (
        f"Sweeps of {escape(record.model.name)} by sweeper: one parent run a sweep, under it one run "
        "a trial. What to run stands in the parent's description.\n\n"
        'Filters: `tags.sweeper.front = "true"` · `tags.sweeper.kind = "sweep"` · '
        '`attributes.status = "FINISHED"` leaves out failed and impossible configurations.'
    )


def _progress(record: SweepRecord) -> str:
    if record.state == "running":
        return "**This sweep is still running**; what stands here is not its result yet."
    if record.state == "stopped":
        return f"**This sweep was stopped** ({escape(record.stopped_because or 'by hand')})."
    return ""


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
