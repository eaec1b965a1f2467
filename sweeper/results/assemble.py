"""Builds the `SweepRecord`, which everything after the search reads, from the study on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from sweeper import stats
from sweeper.errors import ConfigError, NoResultError
from sweeper.measure.disturbance import is_disturbed, worst
from sweeper.measure.trial import (
    FINAL_UPDATE_PERIODS,
    caveats_of,
    exactly,
    first_token_when_full,
    metrics_of,
    possible,
)
from sweeper.metrics import FIRST_WHEN_FULL, OF_QUALITY, describe
from sweeper.parameters import LOSSY_KEYS
from sweeper.records import Caveat, Constraint, Objective, Reading, SweepRecord, TrialRecord, Visit
from sweeper.results import front as fronts
from sweeper.results import picks
from sweeper.results.ceiling import with_ceiling_caveats
from sweeper.results.contexts import default_at
from sweeper.results.depth import full_context_notes
from sweeper.results.plateau import with_cap_caveats
from sweeper.results.speculation import speculation_notes

# The error of a screening's speed, as a fraction; and how many other trials near the threshold may become the pick.
NEAR_THE_LINE = 0.03
MOST_CONTENDERS = 3
# After Ctrl-C, so many near-ties of the pick get a visit as well. Their user waits, and each visit takes seconds.
MOST_NEAR_TIES = 2
# A visit has only a few windows, so one visit in twenty has one of these caveats by chance. SPREAD_UNKNOWN of a visit
# never counts: all visits together know the spread.
OF_SPREAD = {Caveat.NOISY, Caveat.OUTLIERS, Caveat.SLOW_FIRST_RUN}
# With this many undisturbed visits, a finalist's other windows do not count. Fewer do not show the scatter of visits.
LEAST_QUIET_VISITS = 2


class Kept(Protocol):
    """A sweep on disk: `sweeper.search.study.SweepStudy`."""

    def header(self) -> SweepRecord:
        """The sweep without its trials."""

    def trials(self) -> tuple[TrialRecord, ...]:
        """Every finished trial."""

    def visits(self) -> tuple[Visit, ...]:
        """Every visit of the final stage."""


def assemble(study: Kept) -> SweepRecord:
    """The whole sweep so far: screening, final figures if there are any, Pareto front, recommendation."""
    return _assembled(study, study.visits())


def so_far(study: Kept) -> SweepRecord:
    """The sweep as its user should see it now.

    While the first round of visits runs, the figures of the screening decide. The trials that happened to be visited
    first would otherwise be the whole front.
    """
    visits = study.visits()
    in_first_round = study.header().state == "running" and all(visit.visit == 0 for visit in visits)
    return _assembled(study, () if in_first_round else visits)


def _assembled(study: Kept, visits: Sequence[Visit]) -> SweepRecord:
    header = study.header()
    trials = with_finals(study.trials(), visits, header)
    return conclude(replace(header, trials=trials, baseline=baseline_of(trials, header)))


def baseline_of(trials: Sequence[TrialRecord], header: SweepRecord) -> int | None:
    """The trial that measured the engine's default; usually 0, unless that was in flight when it was killed."""
    wanted = header.baseline_configuration
    return next((t.number for t in trials if t.configuration == wanted), None)


def conclude(record: SweepRecord) -> SweepRecord:
    """Add the front, the hypervolume and the default pick, computed from the record's trials."""
    record = replace(record, trials=with_cap_caveats(record.trials))
    record = replace(record, trials=with_ceiling_caveats(record))
    remeasured = any(t.remeasured and t.feasible for t in record.trials)
    front = fronts.front(record.trials, record.objectives, remeasured_only=remeasured)
    shares = hypervolumes(record.trials, record.objectives, front)
    concluded = replace(record, front=front, hypervolume=shares)
    caveats = tuple(c for c in Caveat if any(c in t.caveats for t in record.trials) or c in record.caveats)
    picked = _picked(concluded, record.pick, screening=False)
    concluded = replace(concluded, recommended=picked[0] if picked else None, caveats=caveats)
    notes = (*record.notes, *_not_judged(record), *full_context_notes(concluded), *speculation_notes(record))
    return replace(concluded, notes=tuple(dict.fromkeys(notes)))


def _not_judged(record: SweepRecord) -> Iterator[str]:
    """A note for each constraint that some complete trial lacks the metric for; it did not limit that trial.

    Without a constraint on quality, a note still says why the sweep could not measure it.
    """
    complete = [trial for trial in record.trials if trial.state == "complete"]
    changes = set(LOSSY_KEYS) & set(record.space)
    default = (
        "it could not be measured" if changes else "no searched parameter changes it, so it was not measured"
    )
    for constraint in record.constraints:
        if constraint.metric in OF_QUALITY and all(_loses_no_quality(record, trial) for trial in complete):
            continue
        without = [trial for trial in complete if constraint.metric not in trial.metrics]
        if without:
            why = without[0].missing.get(constraint.metric, default)
            yield f"{constraint} was not checked in {len(without)} of {len(complete)} trials: {why}"
    unknown = next((t.missing[picks.QUALITY] for t in complete if picks.QUALITY in t.missing), None)
    if unknown is not None and picks.QUALITY not in {c.metric for c in record.constraints}:
        yield f"the quality loss is not measured: {unknown}"


def _loses_no_quality(record: SweepRecord, trial: TrialRecord) -> bool:
    """Whether a trial runs the most precise file with an f16 cache, which is the reference itself."""
    best = max(record.model.files, key=lambda quant: record.model.files[quant].size_bytes, default=None)
    used = trial.configuration
    return (used.quant or record.model.base_quant, used.type_k, used.type_v) == (best, "f16", "f16")


def with_finals(
    trials: Sequence[TrialRecord], visits: Sequence[Visit], header: SweepRecord
) -> tuple[TrialRecord, ...]:
    """The trials, with the figures of the final stage instead of the screening's where there are any."""
    by_trial: dict[int, list[Visit]] = {}
    for visit in visits:
        by_trial.setdefault(visit.trial, []).append(visit)
    by_trial = {number: undisturbed(of) for number, of in by_trial.items()}
    medians = {number: _medians_of_visits(of, header) for number, of in by_trial.items()}
    # The usual scatter of visits to one finalist, by metric, is estimated from all finalists.
    metrics = {metric for found in medians.values() for metric in found}
    noise = {m: _noise(m, trials, medians) for m in metrics}
    return tuple(
        _with_final(trial, by_trial[trial.number], header, noise, medians[trial.number])
        if trial.number in by_trial
        else trial
        for trial in trials
    )


def _noise(
    metric: str, trials: Sequence[TrialRecord], medians: Mapping[int, Mapping[str, Sequence[float]]]
) -> stats.VisitNoise | None:
    """The usual scatter of visits; while no finalist has two, that between each one's screening and its visit.

    A screening is shorter and its choice flatters it, so the second scatter is rather too large. Without it, the
    windows of a single visit would set the interval, and these share one load of the model.
    """
    found = stats.VisitNoise.of([of[metric] for of in medians.values() if metric in of])
    if found is not None:
        return found
    pairs = [
        (t.metrics[metric].median, medians[t.number][metric][0])
        for t in trials
        if metric in medians.get(t.number, {}) and metric in t.metrics
    ]
    return stats.VisitNoise.of(pairs)


def undisturbed(visits: Sequence[Visit]) -> list[Visit]:
    """The visits without the windows that other processes disturbed; all of them if too few visits would be left.

    Disturbance decides and never speed, so the choice does not favour lucky windows.
    """
    left = [quiet for visit in visits if (quiet := _quiet_part(visit)) is not None]
    return left if len(left) >= LEAST_QUIET_VISITS else list(visits)


def _quiet_part(visit: Visit) -> Visit | None:
    """A visit without its disturbed windows; None if no decode window at the workload's depth is left.

    The caveats about its spread are those of the windows that are left.
    """
    depth = min((window.depth for window in visit.windows), default=0)  # other windows fill the context
    calm = {w.phase for w in visit.windows if w.depth == depth and not is_disturbed(w)}
    if "decode" not in calm:
        return None
    # Without one calm prompt, all prompts stay, with their caveat: prompts decide less, and a visit has few of them.
    windows = tuple(
        w for w in visit.windows if not is_disturbed(w) or (w.phase == "prefill" and w.phase not in calm)
    )
    if len(windows) == len(visit.windows):
        return visit
    spread = {c.name.lower() for c in OF_SPREAD}
    caveats = {c.name.lower() for c in caveats_of(windows, 0)} & spread
    return replace(
        visit, windows=windows, caveats=tuple(c for c in visit.caveats if c not in spread or c in caveats)
    )


def _medians_of_visits(visits: Sequence[Visit], header: SweepRecord) -> dict[str, list[float]]:
    """The median of each visit, by metric."""
    found: dict[str, list[float]] = {}
    for visit in visits:
        for metric, reading in metrics_of(visit.windows, header.workload)[0].items():
            found.setdefault(metric, []).append(reading.median)
    return found


def _with_final(
    trial: TrialRecord,
    visits: Sequence[Visit],
    header: SweepRecord,
    noise: Mapping[str, stats.VisitNoise | None],
    medians: Mapping[str, Sequence[float]],
) -> TrialRecord:
    """Replace a finalist's figures. Only final windows count, because the screening that selected it flatters it."""
    windows = [window for visit in visits for window in visit.windows]
    found, missing = metrics_of(windows, header.workload)
    widened = {
        m: possible(m, scatter.widened(r, medians[m])) if (scatter := noise.get(m)) else r
        for m, r in found.items()
    }
    metrics = dict(trial.metrics) | widened
    for name in ("memory_mib", "vram_mib"):
        peaks = [peak for visit in visits if (peak := getattr(visit, name)) is not None]
        if peaks:
            metrics[name] = exactly(max(peaks))
    first = [first_token_when_full(visit.fill, visit.windows, header.workload) for visit in visits]
    if known := [seconds for seconds in first if seconds is not None]:
        metrics[FIRST_WHEN_FULL] = stats.reading(known)
    resident = [visit.resident_watts for visit in visits if visit.resident_watts is not None]
    if resident:
        metrics["resident_watts"] = Reading(
            sorted(resident)[len(resident) // 2], min(resident), max(resident), len(resident)
        )
    caveats = set(caveats_of(windows, FINAL_UPDATE_PERIODS)) - {Caveat.SLOW_FIRST_RUN} | _of_visits(visits)
    caveats |= set(trial.caveats) & {Caveat.SYNTHETIC_QUALITY}
    return replace(
        trial,
        metrics=metrics,
        missing={k: v for k, v in trial.missing.items() if k not in metrics} | missing,
        violations=violations_of(metrics, header.constraints),
        caveats=tuple(c for c in Caveat if c in caveats),
        disturbance=worst(windows),
        remeasured=True,
        visits=len(visits),
    )


def _of_visits(visits: Sequence[Visit]) -> set[Caveat]:
    """The caveats of all visits. A caveat about spread counts only if at least half of the visits have it."""
    said = [Caveat[name.upper()] for visit in visits for name in set(visit.caveats)]
    kept = {c for c in said if c not in OF_SPREAD or said.count(c) >= len(visits) / 2}
    # The windows that count say themselves whether others disturbed them.
    return kept - {Caveat.SPREAD_UNKNOWN, Caveat.BUSY_MACHINE}


def violations_of(metrics: dict[str, Reading], constraints: Sequence[Constraint]) -> dict[str, float]:
    """How far each constraint is exceeded; 0 or less if the trial keeps it.

    A constraint whose metric is missing counts as kept. The sweep reports once that it was not checked.
    """
    return {
        str(c): c.violation(metrics[c.metric].median) if c.metric in metrics else 0.0 for c in constraints
    }


def may_keep(metrics: Mapping[str, Reading], constraints: Sequence[Constraint], *, disturbed: bool) -> bool:
    """Whether a trial breaks constraints, and noise or other programs may be the only reason.

    That is so if the interval of each figure in question reaches its bound, or if other programs ``disturbed`` the
    trial and its time decides the figure.
    """
    broken = [c for c in constraints if c.metric in metrics and c.violation(metrics[c.metric].median) > 0]

    def in_doubt(constraint: Constraint) -> bool:
        reading = metrics[constraint.metric]
        best = reading.low if constraint.op == "<=" else reading.high
        return not describe(constraint.metric).exact and (disturbed or constraint.violation(best) <= 0)

    return bool(broken) and all(map(in_doubt, broken))


def hypervolumes(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], front: Sequence[int]
) -> tuple[float, ...]:
    """For each trial, in order: the hypervolume of all trials up to it, as a share of the final hypervolume."""
    usable = {t.number: fronts.oriented(t, objectives) for t in trials if _counts(t, objectives)}
    best = [usable[n] for n in front if n in usable]
    if not best:
        return tuple(0.0 for _ in trials)
    reference = fronts.reference_point(best)
    whole = fronts.hypervolume(list(usable.values()), reference)
    shares: list[float] = []
    so_far: list[fronts.Point] = []
    for trial in trials:
        point = usable.get(trial.number)
        if point is None or any(all(a >= b for a, b in zip(other, point, strict=True)) for other in so_far):
            shares.append(shares[-1] if shares else 0.0)  # it adds nothing
            continue
        so_far = [*so_far, point]
        so_far = [so_far[index] for index in fronts.undominated(so_far)]
        shares.append(fronts.hypervolume(so_far, reference) / whole if whole > 0 else 0.0)
    return tuple(shares)


def growth(trials: Sequence[TrialRecord], objectives: Sequence[Objective], last: int) -> float:
    """The share of the present hypervolume that the ``last`` trials added; 0 where no trial counts."""
    usable = [t for t in trials if _counts(t, objectives)]
    best = fronts.undominated([fronts.oriented(t, objectives) for t in usable])
    shares = hypervolumes(trials, objectives, [usable[index].number for index in best])
    return shares[-1] - shares[-1 - last]


def _counts(trial: TrialRecord, objectives: Sequence[Objective]) -> bool:
    return trial.feasible and all(o.metric in trial.metrics for o in objectives)


def choose_finalists(
    record: SweepRecord, most: int, as_measured: SweepRecord | None = None
) -> tuple[int, ...]:
    """Choose the trials to measure again: baselines, the pick, the ends of the front, other picks, the largest volumes.

    Args:
        record: the sweep, as measured, or with the means of a model of all trials (``smoothed``).
        most: the number of finalists, without the baseline.
        as_measured: the same sweep as measured. A model smooths a kink such as that of a power cap, so trials that are
            near the pick's threshold in either record are considered.

    Returns:
        Trial numbers without duplicates. The baseline comes first and does not count towards ``most``, nor do the
        default settings at the context of the pick, if the sweep looks for the longest context.
    """
    points = {t.number: fronts.oriented(t, record.objectives) for t in _front_of(record)}
    chosen: list[int] = []
    if points:
        numbers, columns = list(points), zip(*points.values(), strict=True)
        # The pick comes first, for the case that time allows few; the baseline is visited anyway.
        chosen = [number for number in _picked(record, record.pick) if number != record.baseline]
        chosen += [numbers[column.index(max(column))] for column in columns]  # the ends
        chosen += _picked(record, record.pick) + _contenders(record, as_measured or record)
        chosen += [number for name in ("longest", "knee", "greenest") for number in _picked(record, name)]
        chosen = list(dict.fromkeys(chosen))[:most]
        chosen += _by_volume(points, chosen, most - len(chosen))
    return _after_baseline(record, chosen)


def choose_to_confirm(record: SweepRecord) -> tuple[int, ...]:
    """Choose the trials that need one visit each, so that a sweep that its user stopped can recommend one.

    Args:
        record: the sweep, with the figures of its screening.

    Returns:
        The baseline, the pick, the fastest trial if it sets the pick's threshold, and the near-ties that the pick would
        choose next. Empty if no trial counts.
    """
    chosen = _picked(record, record.pick) or list(record.front[:1])
    if not chosen:
        return ()
    pick, line = record.trial(chosen[0]), picks.line_of(record.objectives, record.pick)
    if line is not None and line.share is not None:
        speed = record.objectives[line.bounded].metric
        chosen.append(max(_front_of(record), key=lambda t: t.metrics[speed].median).number)
    for _ in range(MOST_NEAR_TIES):
        rest = tuple(trial for trial in record.trials if trial.number not in chosen)
        following = _picked(replace(record, trials=rest, baseline=None), record.pick)
        if not following or not fronts.tied(pick, record.trial(following[0]), record.objectives):
            break
        chosen += following
    return _after_baseline(record, chosen)


def _after_baseline(record: SweepRecord, chosen: Sequence[int]) -> tuple[int, ...]:
    compared = [record.baseline, *(_default_of(record, number) for number in _picked(record, record.pick))]
    head = [number for number in compared if number is not None and record.trial(number).feasible]
    return tuple(dict.fromkeys([*head, *chosen]))


def _default_of(record: SweepRecord, number: int) -> int | None:
    """The trial that a pick is compared with: on a ladder of contexts, the default settings at its own context."""
    default = default_at(record, record.trial(number))
    return None if default is None else default.number


def _front_of(record: SweepRecord) -> list[TrialRecord]:
    return [t for t in record.on_front() if _counts(t, record.objectives)]


def _picked(record: SweepRecord, pick: str, *, screening: bool = True) -> list[int]:
    """The trial that a pick would choose now; empty if none fits, or the pick does not work with the objectives.

    Of a ``screening``, it is the best rival of the baseline.
    """
    try:
        chosen = picks.choose(record, pick, allow_screening=screening, prefer_baseline=not screening)
    except (NoResultError, ConfigError):
        return []
    return [chosen.trial.number]


def _contenders(record: SweepRecord, other: SweepRecord) -> list[int]:
    """For the pick ``within:N%``: the cheapest trials that reach its threshold, or miss it by no more than noise.

    The final stage decides on which side of the threshold they are.
    """
    line = picks.line_of(record.objectives, record.pick)
    if line is None or line.share is None:
        return []
    speed, cost = record.objectives[line.bounded].metric, record.objectives[line.improved].metric
    front = _front_of(record)
    least = (1 - NEAR_THE_LINE) * line.share * max(t.metrics[speed].median for t in front)
    near = [t for t in (*front, *_front_of(other)) if t.metrics[speed].median >= least]
    cheapest = sorted(near, key=lambda t: t.metrics[cost].median)
    return list(dict.fromkeys(t.number for t in cheapest))[:MOST_CONTENDERS]


def _by_volume(points: Mapping[int, fronts.Point], chosen: Sequence[int], most: int) -> list[int]:
    """Trials of the front, each chosen because it adds most to the volume of the trials chosen before it."""
    reference = fronts.reference_point(list(points.values()))
    taken = [points[n] for n in chosen if n in points]
    added: list[int] = []
    rest = [n for n in points if n not in chosen]
    while rest and len(added) < most:
        best = max(rest, key=lambda n: fronts.hypervolume([*taken, points[n]], reference))
        rest.remove(best)
        taken.append(points[best])
        added.append(best)
    return added
