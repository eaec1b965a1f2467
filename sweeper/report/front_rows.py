"""The rows of every table of the front: what each trial is called, and what it sets."""

from __future__ import annotations

from dataclasses import dataclass

from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.picks import marks, recommended
from sweeper.report.words import baseline_of, change, own_settings


@dataclass(frozen=True, slots=True)
class FrontRow:
    """A trial of the front, or the baseline. ``names`` are ``baseline`` and the picks that chose the trial.

    ``base`` is the baseline that the trial is compared with; the baseline itself has none.
    """

    trial: TrialRecord
    names: tuple[str, ...]
    settings: str
    recommended: bool
    is_baseline: bool
    base: TrialRecord | None

    def change(self, metric: str) -> str:
        """The change from the baseline; empty for the baseline itself."""
        if self.base is None:
            return ""
        return change(self.trial.metrics.get(metric), self.base.metrics.get(metric))


def front_rows(record: SweepRecord) -> list[FrontRow]:
    """The front in its order; a measured baseline that is not on the front comes first."""
    base = baseline_of(record)
    trials = list(record.on_front())
    if base is not None and base.metrics and base.number not in record.front:
        trials.insert(0, base)
    named, best = marks(record), recommended(record)
    rows = []
    for trial in trials:
        is_base = base is not None and trial.number == base.number
        names = (*(("baseline",) if is_base else ()), *named.get(trial.number, ()))
        own = "the engine's default" if is_base else own_settings(record, trial)
        rows.append(
            FrontRow(
                trial,
                names,
                own,
                best is not None and trial.number == best.trial.number,
                is_base,
                None if is_base else base,
            )
        )
    return rows
