"""The front in the form that was asked for: ``table``, ``markdown``, ``json`` or ``csv``."""

from __future__ import annotations

import csv
import io
import json
from typing import Literal, get_args

from sweeper.errors import UsageError
from sweeper.records import Reading, SweepRecord
from sweeper.report.documents import CONFIGURATION_KEYS, front_document
from sweeper.report.markdown import markdown_report
from sweeper.report.picks import marks
from sweeper.report.terminal import WIDTH, front_table
from sweeper.report.words import half_width

Format = Literal["table", "markdown", "json", "csv"]
FORMATS: tuple[str, ...] = get_args(Format)


def render(record: SweepRecord, form: str, width: int = WIDTH) -> str:
    """The front as text in ``form``, ending in a newline; ``width`` counts for the table only.

    Raises:
        UsageError: there is no such form.
    """
    if form == "table":
        return front_table(record, width)
    if form == "markdown":
        return markdown_report(record)
    if form == "json":
        return json.dumps(front_document(record), indent=2, ensure_ascii=False) + "\n"
    if form == "csv":
        return front_csv(record)
    raise UsageError(f"--format {form}: choose one of {', '.join(FORMATS)}")


def front_csv(record: SweepRecord) -> str:
    """One row for the baseline and for each point of the front; a figure that is missing is an empty cell."""
    rows = list(record.on_front())
    if record.baseline is not None and record.baseline not in record.front:
        rows.insert(0, record.trial(record.baseline))
    metrics = list(dict.fromkeys(name for trial in rows for name in trial.metrics))
    spreads = [f"{name}_{part}" for name in metrics for part in ("median", "low", "high", "n")]
    head = ["trial", "role", "picks", "power_kind", "power_source", "power_scope"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *CONFIGURATION_KEYS, *spreads, "caveats"])
    named = marks(record)
    for trial in rows:
        writer.writerow(
            [
                trial.number,
                "front" if trial.number in record.front else "baseline",
                " ".join(named.get(trial.number, ())),
                record.power.kind,
                cell(record.power.name),
                record.power.scope,
                *(cell(trial.configuration.to_dict()[key]) for key in CONFIGURATION_KEYS),
                *(figure for name in metrics for figure in reading_cells(trial.metrics.get(name))),
                " ".join(caveat.name.lower() for caveat in trial.caveats),
            ]
        )
    return text.getvalue()


def reading_cells(reading: Reading | None) -> list[float | int | str]:
    """Median, low, high and n; a missing or unknown value is an empty cell."""
    if reading is None:
        return ["", "", "", ""]
    if half_width(reading) is None:
        return [reading.median, "", "", reading.n]
    return [reading.median, reading.low, reading.high, reading.n]


def cell(item: object) -> object:
    """A cell that no spreadsheet takes for a formula: names of models and sensors are others' text."""
    if isinstance(item, str) and item[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + item
    return "" if item is None else item
