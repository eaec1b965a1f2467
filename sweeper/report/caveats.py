"""Which caveats a reader must see, and which trials each one is about."""

from __future__ import annotations

from collections import Counter

from sweeper.records import Caveat, SweepRecord, TrialRecord
from sweeper.report.words import STATES, outcome


def caveats_of(record: SweepRecord) -> dict[Caveat, str]:
    """Every caveat of the sweep and of its trials with figures, each with the trials that carry it, in words.

    The words are empty where a caveat holds for the whole sweep.
    """
    measured = [t for t in record.trials if t.metrics]
    named = {*record.front, record.baseline}
    found = {}
    for caveat in Caveat:
        carriers = [t.number for t in measured if caveat in t.caveats]
        if carriers and len(carriers) < len(measured):
            shown = [f"#{number}" for number in carriers if number in named]
            if others := len(carriers) - len(shown):
                shown.append(f"{others} {'trial' if others == 1 else 'trials'} not on the Pareto front")
            found[caveat] = " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
        elif carriers or caveat in record.caveats:
            found[caveat] = ""
    return found


def caveat_name(caveat: Caveat) -> str:
    """``stopped early`` and the like."""
    return caveat.name.lower().replace("_", " ")


def advice_lines(record: SweepRecord) -> list[str]:
    """One line for each caveat: its name, its advice, and the trials it is about; then the sweep's notes."""
    lines = [
        f"{caveat_name(caveat)}: {caveat.advice}" + (f" ({carriers})" if carriers else "")
        for caveat, carriers in caveats_of(record).items()
        # The head of every report names a simulated machine, and the sweep's own note repeats it.
        if caveat is not Caveat.SIMULATED or not (record.engine.simulated and record.notes)
    ]
    return [*lines, *record.notes]


def failures(record: SweepRecord) -> list[tuple[str, int]]:
    """The reasons why trials do not count, most frequent first, with how often each came."""
    return Counter(reason(trial) for trial in lost_trials(record)).most_common()


def lost_trials(record: SweepRecord) -> list[TrialRecord]:
    """The trials that do not count: failed, ruled out, or measured and outside a constraint."""
    return [t for t in record.trials if outcome(t) not in ("complete", "dominated")]


def reason(trial: TrialRecord) -> str:
    """Why a trial does not count."""
    broken = [constraint for constraint, distance in trial.violations.items() if distance > 0]
    if trial.state == "complete" and broken:
        return f"measured, but outside {', '.join(broken)}"
    return trial.reason or f"{STATES[trial.state]}, no reason recorded"
