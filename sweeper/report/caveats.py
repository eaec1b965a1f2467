"""Which caveats a reader must see, and which trials each one is about."""

from __future__ import annotations

from collections import Counter

from sweeper.metrics import SPEEDS, describe
from sweeper.records import Caveat, SweepRecord, TrialRecord
from sweeper.report.words import STATES, broken_constraints, outcome

# How the notes begin that `meter.choose` and `space.auto` make of what a machine lacks.
_OF_SENSORS = (
    *(f"{sensor}: " for sensor in ("nvml", "hwmon", "rapl")),
    *(f"{limit} is not searched: " for limit in ("power_limit_watts", "clock_limit_mhz")),
)
CAP_WITHOUT_EFFECT = "power limit without effect"


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
                which = "trial that is" if others == 1 else "trials that are"
                shown.append(f"{others} {which} not on the Pareto front")
            found[caveat] = ", and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
        elif carriers or caveat in record.caveats:
            found[caveat] = ""
    return found


def caveat_name(caveat: Caveat) -> str:
    """``stopped early`` and the like."""
    return CAP_WITHOUT_EFFECT if caveat is Caveat.CAP_NOT_BINDING else caveat.name.lower().replace("_", " ")


def advice_lines(record: SweepRecord, *, sensors: bool = True) -> list[str]:
    """One line for each caveat: its name, its advice, and the trials it is about; then the sweep's notes.

    Without ``sensors``, the lines about sensors and limits that this machine lacks are left out: the sweep said them
    when it began, and ``report.html`` keeps them.
    """
    found = caveats_of(record)
    if not sensors and not found.get(Caveat.ESTIMATED, "some"):
        del found[Caveat.ESTIMATED]  # the head says it
    lines = [f"{caveat_name(caveat)}: {_advice(record, caveat, on)}" for caveat, on in found.items()]
    # The head of every report says that a machine is simulated: neither the caveat nor the sweep's note repeats it.
    lines += [note for note in record.notes if sensors or not about_sensors(record, note)]
    return [x for x in lines if not (record.engine.simulated and "simulated" in x and "figure" in x)]


def about_sensors(record: SweepRecord, note: str) -> bool:
    """Whether a note says which sensor or limit the machine lacks, or what an estimate is made of."""
    return note == record.power.note or note.startswith(_OF_SENSORS)


def _advice(record: SweepRecord, caveat: Caveat, carriers: str) -> str:
    """The advice of a caveat with the trials or the figures that it is about."""
    own = [trial for trial in record.trials if caveat in trial.caveats]
    if caveat is Caveat.STOPPED_EARLY and own:
        return f"{len(own)} {'trial was' if len(own) == 1 else 'trials were'} {caveat.advice}"
    if caveat is Caveat.SPREAD_UNKNOWN and own:
        once = dict.fromkeys(m for t in own for m in SPEEDS if m in t.metrics and t.metrics[m].n == 1)
        named = " and ".join(describe(metric).title for metric in once) or "a figure"
        return f"{named} of {carriers or 'every trial'} was measured only once, so its spread is unknown"
    return caveat.advice + (f" ({carriers})" if carriers else "")


def failures(record: SweepRecord) -> list[tuple[str, int]]:
    """The reasons why trials do not count, most frequent first, with how often each came."""
    return Counter(reason(trial) for trial in lost_trials(record)).most_common()


def lost_trials(record: SweepRecord) -> list[TrialRecord]:
    """The trials that do not count: failed, or break a constraint."""
    return [t for t in record.trials if outcome(t) not in ("complete", "dominated")]


def reason(trial: TrialRecord) -> str:
    """Why a trial does not count."""
    broken = broken_constraints(trial)
    if trial.state == "complete" and broken:
        return f"breaks {', '.join(broken)}"
    return trial.reason or f"{STATES[trial.state]}, no reason recorded"


def why_nothing(record: SweepRecord) -> str:
    """Why a sweep recommends nothing, in words."""
    if any(trial.feasible for trial in record.trials):
        return "no trial that counts was measured twice"
    broken = Counter(name for trial in record.trials for name in broken_constraints(trial)).most_common(1)
    if broken:
        return (
            f"no trial keeps the constraints; most often broken: {broken[0][0]}. Loosen it and use a new name"
        )
    reasons = [trial.reason for trial in record.trials if trial.reason]
    return (
        f"no trial succeeded; the reason of the last one: {reasons[-1]}" if reasons else "no trial finished"
    )
