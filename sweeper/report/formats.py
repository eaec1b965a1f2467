"""The front in the form that was asked for: ``table``, ``markdown``, ``json`` or ``csv``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sweeper.errors import UsageError
from sweeper.records import Configuration, Reading, SweepRecord
from sweeper.report.documents import front_document, reading_document
from sweeper.report.markdown import markdown_report
from sweeper.report.picks import marks
from sweeper.report.sections import front_trials
from sweeper.report.tables import WIDTH
from sweeper.report.terminal import front_text

Forms = Mapping[str, Callable[[], str]]


def render(record: SweepRecord, form: str, width: int = WIDTH) -> str:
    """The front as text in ``form``, ending in a newline; ``width`` counts for the table only.

    Raises:
        UsageError: there is no such form.
    """
    forms: Forms = {
        "table": lambda: front_text(record, width),
        "markdown": lambda: markdown_report(record),
        "json": lambda: json_text(front_document(record)),
        "csv": lambda: front_csv(record),
    }
    return written(forms, form)


def written(forms: Forms, form: str) -> str:
    """The text of ``form``. Raises UsageError if it is none of ``forms``."""
    if form not in forms:
        raise UsageError(f"--format {form}: choose one of {', '.join(forms)}")
    return forms[form]()


def front_csv(record: SweepRecord) -> str:
    """One row for the baseline and for each point of the front; a figure that is missing is an empty cell."""
    trials = front_trials(record)
    keys = tuple(Configuration().to_dict())
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    head = ["trial", "role", "picks", "power_kind", "power_source", "power_scope"]
    named, power = marks(record), record.power
    rows = [
        [
            trial.number,
            "front" if trial.number in record.front else "baseline",
            " ".join(named.get(trial.number, ())),
            *(power.kind, power.name, power.scope),
            *(trial.configuration.to_dict()[key] for key in keys),
            *reading_cells(metrics, trial.metrics),
            " ".join(caveat.name.lower() for caveat in trial.caveats),
        ]
        for trial in trials
    ]
    return csv_text([*head, *keys, *reading_heads(metrics), "caveats"], rows)


def json_text(document: Any) -> str:
    """A document as indented JSON, ending in a newline."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def reading_heads(metrics: Iterable[str]) -> list[str]:
    """The heads of the columns that :func:`reading_cells` fills."""
    return [f"{name}_{part}" for name in metrics for part in ("median", "low", "high", "n")]


def reading_cells(metrics: Iterable[str], readings: Mapping[str, Reading | None]) -> Iterator[float | None]:
    """Median, low, high and n of each metric; None for a missing or unknown value."""
    for name in metrics:
        reading = readings.get(name)
        yield from (None,) * 4 if reading is None else reading_document(reading).values()


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; no spreadsheet takes a cell for a formula, for names of models and sensors are others' text."""

    def cell(item: object) -> object:
        return f"'{item}" if isinstance(item, str) and item[:1] in ("=", "+", "-", "@", "\t", "\r") else item

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([cell(item) for item in row] for row in rows)
    return text.getvalue()
