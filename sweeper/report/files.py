"""The report's files, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from sweeper.errors import StoreError
from sweeper.files import replace
from sweeper.records import SweepRecord
from sweeper.report.documents import recommendation_document
from sweeper.report.formats import render
from sweeper.report.html import html_report
from sweeper.report.plots import pareto_png

_WRITERS: dict[str, Callable[[SweepRecord], bytes]] = {
    "report.html": lambda record: html_report(record).encode(),
    "report.md": lambda record: render(record, "markdown").encode(),
    "pareto.png": pareto_png,
    "front.json": lambda record: render(record, "json").encode(),
    "front.csv": lambda record: render(record, "csv").encode(),
    "recommendation.yaml": lambda record: recommendation_yaml(record).encode(),
}


def write_report(record: SweepRecord, folder: Path) -> dict[str, Path]:
    """Write every file of the report into ``folder`` and return them by name.

    Raises:
        StoreError: the folder cannot be written; files that were there before are as they were.
    """
    made = {name: write(record) for name, write in _WRITERS.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in made.items():
            replace(folder / name, data)
    except OSError as error:
        raise StoreError(
            f"cannot write the report to {folder}: {error.strerror}; choose another folder"
        ) from error
    return {name: folder / name for name in made}


def recommendation_yaml(record: SweepRecord) -> str:
    """``recommendation.yaml`` as text, in plain YAML that any reader loads safely."""
    return yaml.safe_dump(recommendation_document(record), sort_keys=False, allow_unicode=True, width=110)
