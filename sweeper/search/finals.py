"""The final stage: which trials are visited again, how often, and when further visits decide something.

sweeper visits every finalist in turn, in random order, so that a drift of the machine affects all equally. Further
visits go to trials that only noise keeps from being recommended, and to those that other processes disturbed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from sweeper.measure.trial import Stage
from sweeper.records import Caveat, Measurement, SweepRecord, TrialRecord, Visit, Workload
from sweeper.results import picks
from sweeper.results.provisional import FINAL_VISITS as FINAL_VISITS

# Further visits, at most, to trials that may still change the recommendation.
DECIDING_VISITS = 3


def visit_stage(workload: Workload) -> Stage:
    """The stage of one visit: its share of the windows of a final figure."""
    whole = Stage.final(workload)
    return replace(
        whole,
        repeats=max(1, -(-whole.repeats // FINAL_VISITS)),
        seconds=whole.seconds / FINAL_VISITS,
        update_periods=-(-whole.update_periods // FINAL_VISITS),
    )


def rounds(
    finalists: Sequence[int],
    done: Collection[tuple[int, int]],
    so_far: Callable[[], SweepRecord],
    seed: int,
) -> Iterator[tuple[int, list[int]]]:
    """The rounds of visits: the number of each round, and the trials to visit, in a random order from ``seed``.

    ``done`` has the (trial, visit) pairs of an earlier run. ``so_far`` returns the sweep with all visits so far; the
    function calls it before each round beyond `FINAL_VISITS`.
    """
    for visit in range(FINAL_VISITS + DECIDING_VISITS):
        order = list(finalists) if visit < FINAL_VISITS else list(_open(so_far()))
        if not order:
            return
        random.Random(f"{seed}/{visit}").shuffle(order)
        yield visit, [number for number in order if (number, visit) not in done]


def _open(record: SweepRecord) -> tuple[int, ...]:
    """The trials whose further visits pay: those that noise keeps from being the pick, and those in doubt."""
    return tuple(dict.fromkeys((*picks.undecided(record), *in_doubt(record))))


def in_doubt(record: SweepRecord) -> tuple[int, ...]:
    """The baseline, the pick and the best in the first objective, where other processes disturbed their figures.

    Every report compares these trials, and the last one sets the threshold of a pick such as ``within:5%``.
    """
    fastest = record.front[0] if record.front else None
    named = (n for n in dict.fromkeys((record.baseline, record.recommended, fastest)) if n is not None)
    return tuple(number for number in named if _is_doubtful(record.trial(number)))


def _is_doubtful(trial: TrialRecord) -> bool:
    disturbed = trial.disturbance is not None and trial.disturbance.disturbs
    return trial.remeasured and disturbed and Caveat.BUSY_MACHINE in trial.caveats


def visit_of(number: int, visit: int, measurement: Measurement, seconds: float) -> Visit:
    """The `Visit` record of a measurement of a known trial."""
    peaks = [measurement.metrics.get(name) for name in ("memory_mib", "vram_mib", "resident_watts")]
    memory_mib, vram_mib, resident_watts = (reading.median if reading else None for reading in peaks)
    # The windows of all visits together decide whether they are too short.
    caveats = tuple(c.name.lower() for c in measurement.caveats if c is not Caveat.SHORT_WINDOW)
    measured = measured_seconds(measurement)
    return Visit(
        number,
        visit,
        measurement.windows,
        caveats,
        memory_mib,
        vram_mib,
        resident_watts,
        seconds,
        measured,
        measurement.fill,
    )


def measured_seconds(measurement: Measurement) -> float:
    """The seconds of a measurement's load, warm-up and windows."""
    windows = sum(window.energy.seconds for window in measurement.windows)
    return measurement.load_seconds + measurement.warmup_seconds + windows
