"""The final stage: who is visited again, how often, and what further visits would decide.

Every finalist is visited in turn, in random order, so that a drift of the machine hits all alike. After that
repeats go where they decide something: to those that noise alone keeps from being recommended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from sweeper.measure.trial import Stage
from sweeper.records import Caveat, Measurement, SweepRecord, Visit, Workload
from sweeper.results import picks

# Each finalist is visited this often, in random order, so that a drift of the machine hits all alike.
FINAL_VISITS = 3
# ... and those that may yet change the recommendation as often again, at most.
DECIDING_VISITS = 3


def visit_stage(workload: Workload) -> Stage:
    """What one of the `FINAL_VISITS` visits measures: its share of a final figure."""
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
    """The rounds of visits: the number of each, and which trials it visits, in their order.

    Args:
        finalists: trial numbers.
        done: (trial, visit) that an earlier run has made already.
        so_far: the sweep with all visits made until now; asked before each round beyond `FINAL_VISITS`.
        seed: of the order.
    """
    for visit in range(FINAL_VISITS + DECIDING_VISITS):
        order = list(finalists) if visit < FINAL_VISITS else list(picks.undecided(so_far()))
        if not order:
            return
        random.Random(f"{seed}/{visit}").shuffle(order)
        yield visit, [number for number in order if (number, visit) not in done]


def visit_of(number: int, visit: int, measurement: Measurement, seconds: float) -> Visit:
    """A measurement of a known trial, as it is kept."""
    peaks = [measurement.metrics.get(name) for name in ("memory_mib", "vram_mib", "resident_watts")]
    memory_mib, vram_mib, resident_watts = (reading.median if reading else None for reading in peaks)
    # A visit's windows are judged for length together with those of the other visits.
    caveats = tuple(c.name.lower() for c in measurement.caveats if c is not Caveat.SHORT_WINDOW)
    measured = measured_seconds(measurement)
    return Visit(
        number, visit, measurement.windows, caveats, memory_mib, vram_mib, resident_watts, seconds, measured
    )


def measured_seconds(measurement: Measurement) -> float:
    """What a measurement took of its own: load, warm-up and windows."""
    windows = sum(window.energy.seconds for window in measurement.windows)
    return measurement.load_seconds + measurement.warmup_seconds + windows
