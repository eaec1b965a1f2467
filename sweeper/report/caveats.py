"""Which caveats a reader must see, and which trials each one is about."""

from __future__ import annotations

from collections import Counter

from sweeper.records import Caveat, SweepRecord, TrialRecord


def caveats_of(record: SweepRecord) -> dict[Caveat, tuple[int, ...]]:
    """Caveats of the sweep, the baseline and the front; each with the trials shown that carry it.

    An empty tuple means that it holds for the whole sweep.
    """
    shown = _shown(record)
    found: dict[Caveat, tuple[int, ...]] = {}
    for caveat in Caveat:
        carriers = tuple(t.number for t in shown if caveat in t.caveats)
        if caveat in record.caveats or (carriers and len(carriers) == len(shown)):
            found[caveat] = ()
        elif carriers:
            found[caveat] = carriers
    return found


def advice_lines(record: SweepRecord) -> list[str]:
    """One line for each caveat: its name, its advice, and the trials it is about."""
    return [
        f"{caveat.name.lower().replace('_', ' ')}: {caveat.advice}"
        + (f" ({_numbers(trials)})" if trials else "")
        for caveat, trials in caveats_of(record).items()
    ]


def failures(record: SweepRecord) -> list[tuple[str, int]]:
    """The reasons why trials do not count, most frequent first, with how often each came."""
    lost = (t for t in record.trials if t.state not in ("complete", "dominated"))
    return Counter(t.reason or f"{t.state}, no reason recorded" for t in lost).most_common()


def _shown(record: SweepRecord) -> list[TrialRecord]:
    numbers = set(record.front)
    if record.baseline is not None:
        numbers.add(record.baseline)
    return [t for t in record.trials if t.number in numbers]


def _numbers(trials: tuple[int, ...]) -> str:
    return ", ".join(f"#{number}" for number in trials)
