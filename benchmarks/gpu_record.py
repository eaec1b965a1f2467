"""What a step of `gpu.py` found, on disk after every row, and the time that it may take."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.errors import SweeperError, UsageError
from sweeper.files import replace


class OutOfTime(Exception):
    """The step's time is over; what is missing is measured by the next run of the same command."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock by which a step is to end."""

    ends: float

    @classmethod
    def after(cls, seconds: float, overall: Deadline | None = None) -> Deadline:
        """So many seconds from now, and no later than ``overall``."""
        ends = time.monotonic() + seconds
        return cls(min(ends, overall.ends) if overall else ends)

    @property
    def left_seconds(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.ends - time.monotonic())

    def demand(self, seconds: float) -> None:
        """Raise OutOfTime where fewer seconds than that are left."""
        if self.left_seconds < seconds:
            raise OutOfTime(
                f"{self.left_seconds:.0f} s were left, and the next row needs about {seconds:.0f} s"
            )


class StepFile:
    """One step's JSON: ``state``, ``reason`` and rows, each with a ``key``. Written whole at every change."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        """Go on with the file at ``path``, or begin it.

        Raises:
            UsageError: the file is of another machine, build or form of the benchmark.
        """
        self.path = path
        self.data: dict[str, Any] = {"step": path.stem, "state": "begun", "reason": None} | dict(head)
        self.data["rows"] = []
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            for key, value in head.items():
                if before.get(key) != json.loads(json.dumps(value)):
                    raise UsageError(f"{path} was measured with another {key}: choose another --out")
            self.data = before

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far."""
        rows: list[dict[str, Any]] = self.data["rows"]
        return rows

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be done."""
        return bool(self.data["state"] == "complete")

    def has(self, key: str) -> bool:
        """Whether the row of that key was measured, and without an error."""
        return any(row["key"] == key and "error" not in row for row in self.rows)

    def row(self, key: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Measure one row, unless it is there; what fails is kept with its reason, and tried again next time."""
        if self.has(key):
            return next(row for row in self.rows if row["key"] == key)
        began = time.monotonic()
        try:
            found = dict(measure())
        except (SweeperError, OSError) as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        rest = [row for row in self.rows if row["key"] != key]
        row = {"key": key, **found, "took_seconds": time.monotonic() - began}
        self.data["rows"] = [*rest, row]
        self.save()
        return row

    def finish(self, state: str, reason: str | None = None) -> None:
        """Say how the step ended: complete, cut (of time), failed or skipped."""
        failed = [row["key"] for row in self.rows if "error" in row]
        if state == "complete" and failed:
            state, reason = "incomplete", f"failed: {', '.join(failed)}"
        self.data |= {"state": state, "reason": reason}
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        replace(self.path, json.dumps(self.data, indent=1) + "\n")
