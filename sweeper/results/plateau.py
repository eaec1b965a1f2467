"""Finds power caps that change nothing, by their effect under load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sweeper.records import Caveat, Reading, TrialRecord

# Medians closer than this count as one speed, even if three repeats happen to agree to the digit. Repeats of a decode
# window differ by about 1 % between loads of the same model.
SAME_FRACTION = 0.01


def with_cap_caveats(trials: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """The trials. Each cap is judged beside the same settings under other caps."""
    by_rest: dict[str, dict[int, TrialRecord]] = {}
    for trial in trials:
        cap = trial.configuration.power_limit_watts
        if cap is not None and {"tokens_per_second", "watts"} <= trial.metrics.keys():
            rest = trial.configuration.with_(power_limit_watts=None).digest
            by_rest.setdefault(rest, {})[int(cap)] = trial
    said: dict[int, Caveat] = {}
    for alike in by_rest.values():
        readings = {cap: (t.metrics["tokens_per_second"], t.metrics["watts"]) for cap, t in alike.items()}
        said |= {alike[cap].number: caveat for cap, caveat in cap_caveats(readings).items()}
    return tuple(
        replace(trial, caveats=tuple(c for c in Caveat if c in trial.caveats or c is said.get(trial.number)))
        for trial in trials
    )


def cap_caveats(readings: Mapping[int, tuple[Reading, Reading]]) -> dict[int, Caveat]:
    """Judge the caps of otherwise equal settings, each by its (speed, watts).

    From the highest cap downwards, the caps that change neither speed nor watts beyond noise do not bind. A lower cap
    that agrees again does so by chance, so it counts as binding. The result is empty if no cap besides the highest
    changes nothing: then it is unknown whether the highest one binds.
    """
    falling = sorted(readings, reverse=True)
    not_binding = 0
    for cap in falling:
        (top_speed, top_watts), (speed, watts) = readings[falling[0]], readings[cap]
        is_as_fast = speed.median >= top_speed.median or _indistinct(top_speed, speed)
        if not (is_as_fast and _indistinct(top_watts, watts)):
            break
        not_binding += 1
    if not_binding < 2:
        return {}
    return {
        cap: Caveat.CAP_NOT_BINDING if place < not_binding else Caveat.POWER_CAPPED
        for place, cap in enumerate(falling)
    }


def _indistinct(one: Reading, other: Reading) -> bool:
    if one.low <= other.high and other.low <= one.high:
        return True
    return abs(one.median - other.median) <= SAME_FRACTION * max(abs(one.median), abs(other.median))
