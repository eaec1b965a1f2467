"""Picks: rules that choose one trial of a Pareto front."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sweeper.errors import ConfigError, NoResultError
from sweeper.metrics import POWERS, SPEEDS, describe
from sweeper.records import Objective, SweepRecord, TrialRecord
from sweeper.results.contexts import CONTEXT, DECODE, default_at
from sweeper.results.front import clearly_better, orient, overlap, undominated, within_noise
from sweeper.results.objectives import amount_words, cost_metric, first_of, speed_metric
from sweeper.results.price import price_in_words

# A trial that misses a threshold by less than this, and by less than noise, counts as reaching it. No repeat settles
# so small a difference.
LEAST_TOLD_APART = 0.01
GRAMMAR = "longest, fastest, greenest, knee, within:N% (for example within:5%), at-least:Ntok/s or at-most:NW"
DEFAULT_PICK = "within:5%"
PROMPTS = "prompt_tokens_per_second"
QUALITY = "kl_divergence"
BASELINE_TIES = "this is the baseline: nothing measured better beyond noise"
DEFAULT_TIES = "these are the default settings: nothing measured better beyond noise"
KEEP_DEFAULT = "keep the default settings: nothing measured better beyond noise"
ONLY_DEFAULT = "only the default settings have been measured so far"
_PLAIN = ("longest", "fastest", "greenest", "knee")
# The pick `longest` takes the fewest watts within so many percent of the best speed at the longest context.
LONGEST_WITHIN = 5.0
# The unit of each kind's amount, and what a user may write for it.
_UNITS = {"within": ("%", "%?"), "at-least": ("tok/s", "(?:tok/s|t/s)?"), "at-most": ("W", "(?:w|watts)?")}


@dataclass(frozen=True, slots=True)
class Pick:
    """A rule that picks one point of a front. ``amount`` is in %, tok/s or W; None for the first four kinds."""

    kind: str  # longest, fastest, greenest, knee, within, at-least or at-most
    amount: float | None = None

    def __str__(self) -> str:
        return self.kind if self.amount is None else f"{self.kind}:{self.amount:g}{_UNITS[self.kind][0]}"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The trial that a pick chose, and its price in words.

    ``nearest`` is None if the trial meets the pick's bound. Otherwise no trial does, ``trial`` is the nearest one, and
    ``nearest`` says so. `apply` must report that before it applies the trial.
    """

    trial: TrialRecord
    pick: str
    words: str
    nearest: str | None = None


def parse_pick(text: str) -> Pick:
    """Parse a pick. Raises ConfigError with the grammar, or with the range of the amount, if ``text`` is not a pick."""
    word = text.strip().lower()
    if word in _PLAIN:
        return Pick(word)
    for kind, (_, unit) in _UNITS.items():
        match = re.fullmatch(rf"{kind}:\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*{unit}", word)
        if match:
            amount = float(match[1])
            if kind == "within" and amount >= 100:
                raise ConfigError(f"pick={text!r}: give less than 100 %, for example within:5%")
            if kind != "within" and not amount:
                raise ConfigError(f"pick={text!r}: give an amount above 0")
            return Pick(kind, amount)
    raise ConfigError(f"pick={text!r} is not a pick: choose {GRAMMAR}; --pick also takes a trial's number")


def choose(
    record: SweepRecord,
    pick: str = DEFAULT_PICK,
    *,
    allow_screening: bool = False,
    prefer_baseline: bool = True,
) -> Recommendation:
    """The trial of ``record`` that ``pick`` chooses, and its price compared with the baseline, in words.

    docs/reading-a-report.md defines each pick and the rules for near-ties. Speed and cost are those of
    `speed_metric` and `cost_metric`. Medians decide; of two equal trials, the faster one wins.

    Eligible trials are feasible and measured twice; with ``allow_screening``, all feasible trials are eligible. Without
    ``prefer_baseline``, a near-tie does not go to the baseline: the search looks for rivals of the baseline.

    Raises:
        ConfigError: ``pick`` is not in the grammar, or does not work with this sweep's objectives.
        NoResultError: no trial is eligible.
    """
    rule = parse_pick(pick)
    metrics = _pick_metrics(record, rule)
    trials = _eligible(record, [m for m in metrics if m], allow_screening)
    trial, fitting, nearest = _apply_rule(rule, trials, *metrics)
    words = ""
    if nearest is None:
        first = trial
        trial = _without_ties(record, trial, fitting, *metrics, prefer_baseline=prefer_baseline)
        is_default = trial is default_at(record, trial)
        if is_default and str(rule) == record.pick:
            words = why_default(record)
        elif is_default and trial is not first:
            words = DEFAULT_TIES if record.ladder else BASELINE_TIES
    words = words or price_in_words(record, trial)
    return Recommendation(trial, str(rule), words, nearest)


def why_default(record: SweepRecord) -> str:
    """Why the pick is the default settings, in words: nothing else was measured yet, or nothing was better."""
    measured = [trial for trial in record.trials if trial.metrics]
    return ONLY_DEFAULT if all(trial is default_at(record, trial) for trial in measured) else KEEP_DEFAULT


@dataclass(frozen=True, slots=True)
class Line:
    """The threshold of a pick, for oriented objectives: one objective must reach it, another is to be improved.

    ``bounded`` and ``improved`` are indices of objectives. The threshold is ``share`` of the best value in the bounded
    objective, or else ``level``, oriented.
    """

    bounded: int
    improved: int
    share: float | None = None
    level: float | None = None


def line_of(objectives: Sequence[Objective], pick: str) -> Line | None:
    """The threshold of ``pick``; None if the pick has none or does not work with these objectives."""
    rule = parse_pick(pick)
    metrics = [o.metric for o in objectives]
    speed, cost = first_of(objectives, SPEEDS, "maximize"), first_of(objectives, POWERS, "minimize")
    if rule.amount is None or speed is None or cost is None:
        return None
    fast, cheap = metrics.index(speed), metrics.index(cost)
    if rule.kind == "within":
        return Line(fast, cheap, share=1 - rule.amount / 100)
    if rule.kind == "at-least":
        return Line(fast, cheap, level=rule.amount)
    return Line(cheap, fast, level=-rule.amount)


def undecided(record: SweepRecord) -> tuple[int, ...]:
    """Trials that only noise keeps from being the record's own pick. More repeats of them decide something.

    Each is clearly better than the pick in the metric that the pick minimises (for ``at-most``, maximises), and misses
    the pick's threshold by less than its own interval. For ``within:N%``, the fastest trial is included, because it
    sets the threshold. Empty if nothing is undecided, if no trial was measured twice, or if the pick has no threshold.
    """
    line = line_of(record.objectives, record.pick)
    if line is None:
        return ()
    bounded, improved = record.objectives[line.bounded], record.objectives[line.improved]
    try:
        trials = _eligible(record, [bounded.metric, improved.metric], False)
        recommended = choose(record, record.pick)
    except (ConfigError, NoResultError):
        return ()
    sides = {t.number: orient(t.metrics[bounded.metric], bounded) for t in trials}
    gains = {t.number: orient(t.metrics[improved.metric], improved) for t in trials}
    best = max(sides, key=lambda number: sides[number].value)
    level = line.level if line.level is not None else (line.share or 0.0) * sides[best].value
    own = gains[recommended.trial.number]

    def open_to(number: int) -> bool:
        side = sides[number]
        reaches = side.value < level <= side.value + side.up
        return reaches and (recommended.nearest is not None or clearly_better(gains[number], own))

    found = [number for number in sides if open_to(number)]
    return tuple(dict.fromkeys([best, *found] if found and line.share is not None else found))


def _pick_metrics(record: SweepRecord, rule: Pick) -> tuple[str | None, str | None]:
    """The metrics (speed, cost) that the rule needs. Raises ConfigError if the sweep does not have them."""
    speed, cost = speed_metric(record), cost_metric(record)
    if rule.kind == "longest" and any(o.metric == CONTEXT for o in record.objectives):
        return next((o.metric for o in record.objectives if o.metric in SPEEDS), DECODE), cost
    if rule.kind == "greenest":
        return None, "prompt_joules_per_token" if speed == PROMPTS else "joules_per_token"
    wanted = None
    if rule.kind == "longest":
        wanted = "the objective n_ctx (objectives=longest_context)"
    elif speed is None:
        wanted = "an objective that is maximised"
    elif rule.kind == "fastest":
        return speed, None
    elif cost is None:
        wanted = "an objective that is minimised"
    elif rule.kind == "at-least" and speed not in SPEEDS:
        wanted = "an objective in tok/s"
    elif rule.kind == "at-most" and cost not in POWERS:
        wanted = "an objective in W"
    if wanted:
        have = ", ".join(f"{o.direction} {o.metric}" for o in record.objectives)
        raise ConfigError(f"pick={rule} needs {wanted}, and this sweep's objectives are: {have}")
    return speed, cost


def _eligible(record: SweepRecord, metrics: Sequence[str], allow_screening: bool) -> list[TrialRecord]:
    feasible = [t for t in record.trials if t.feasible]
    if not feasible:
        raise NoResultError(
            f"sweep {record.sweep!r} has no valid trial: `sweeper report {shlex.quote(record.sweep)}` shows the reasons"
        )
    twice = [t for t in feasible if t.remeasured or allow_screening]
    if not twice:
        raise NoResultError(
            f"sweep {record.sweep!r} has not measured any trial twice yet, so sweeper cannot recommend one: "
            f"run `sweeper sweep name={shlex.quote(record.sweep)}` to finish it"
        )
    found = [t for t in twice if all(m in t.metrics for m in metrics)]
    if not found:
        missing = next(m for m in metrics if not all(m in t.metrics for t in twice))
        reason = next((t.missing[missing] for t in twice if missing in t.missing), "it was not measured")
        raise NoResultError(f"no trial of sweep {record.sweep!r} has {missing}: {reason}")
    return found


def _apply_rule(
    rule: Pick,
    trials: Sequence[TrialRecord],
    speed: str | None,
    cost: str | None,
) -> tuple[TrialRecord, Sequence[TrialRecord], str | None]:
    """The trial that the rule picks, the trials that meet its bound, and a message if no trial meets it."""

    def fast(trial: TrialRecord) -> float:
        return trial.metrics[speed].median if speed else 0.0

    def cheap(trial: TrialRecord) -> float:
        return -trial.metrics[cost].median if cost else 0.0

    def best(among: Sequence[TrialRecord], *keys: Callable[[TrialRecord], float]) -> TrialRecord:
        return max(among, key=lambda trial: (*(key(trial) for key in keys), -trial.number))

    def cheapest(among: Sequence[TrialRecord]) -> TrialRecord:
        least = best(among, cheap, fast)
        return best([t for t in among if cost is None or _costs_alike(least, t, cost)], fast, cheap)

    amount = rule.amount or 0.0
    if rule.kind == "longest":
        longest = max(t.metrics[CONTEXT].median for t in trials)
        trials, amount = [t for t in trials if t.metrics[CONTEXT].median == longest], LONGEST_WITHIN
    if rule.kind == "knee":
        return _knee(trials, fast, cheap), trials, None
    if rule.kind in ("fastest", "greenest"):  # one of the two keys is 0 for all trials
        return best(trials, fast, cheap), trials, None
    if rule.kind in ("within", "longest"):
        least = (1 - amount / 100) * max(map(fast, trials))
        near = [t for t in trials if fast(t) >= (1 - LEAST_TOLD_APART) * least]
        reaching = [t for t in near if fast(t) >= least or (speed and t.metrics[speed].high >= least)]
        return cheapest(reaching), reaching, None
    if rule.kind == "at-least":
        fitting = [t for t in trials if fast(t) >= amount]
        nearest, metric, verb, unit = best(trials, fast, cheap), speed, "reaches", "tok/s"
    else:
        fitting = [t for t in trials if -cheap(t) <= amount]
        nearest, metric, verb, unit = best(trials, cheap, fast), cost, "stays under", "W"
    if fitting:
        return cheapest(fitting) if rule.kind == "at-least" else best(fitting, fast, cheap), fitting, None
    said = f"the nearest is #{nearest.number} ({amount_words(nearest, metric or '')})"
    twice = " and was measured twice" if all(t.remeasured for t in trials) else ""
    which = f"no trial that keeps the constraints{twice}"
    return nearest, (), f"{which} {verb} {amount:g} {unit}; {said}"


def _without_ties(
    record: SweepRecord,
    chosen: TrialRecord,
    fitting: Sequence[TrialRecord],
    speed: str | None,
    cost: str | None,
    *,
    prefer_baseline: bool,
) -> TrialRecord:
    """The trial to prefer among those that noise cannot tell from ``chosen``.

    First those that lose least quality, then the one that reads prompts fastest; and the baseline, if nothing is
    better than it beyond noise, unless ``prefer_baseline`` is False.
    """
    alike = _least_quality_lost(chosen, fitting, speed, cost)
    if chosen not in alike:
        chosen = max(alike, key=lambda t: (*(t.metrics[m].median for m in (speed,) if m), -t.number))
    if PROMPTS not in {o.metric for o in record.objectives}:
        chosen = _best_with_prompts(chosen, alike, speed, cost)
    default = default_at(record, chosen) if prefer_baseline else None
    base = next((t for t in fitting if t is default), None)
    return chosen if base is None or _beats(record, chosen, base, (speed, cost)) else base


def _least_quality_lost(
    chosen: TrialRecord, fitting: Sequence[TrialRecord], speed: str | None, cost: str | None
) -> Sequence[TrialRecord]:
    """Of ``chosen`` and the trials tied with it in speed and cost, those that lose least quality."""
    if QUALITY not in chosen.metrics:
        return fitting
    told = [m for m in (speed, cost) if m]
    tied = [
        t
        for t in fitting
        if QUALITY in t.metrics and all(within_noise(t.metrics[m], chosen.metrics[m]) for m in told)
    ]
    least = min(t.metrics[QUALITY].median for t in tied)
    return [t for t in tied if t.metrics[QUALITY].median <= (1 + LEAST_TOLD_APART) * least]


def _beats(record: SweepRecord, trial: TrialRecord, base: TrialRecord, metrics: Sequence[str | None]) -> bool:
    """Whether ``trial`` is better than ``base``: in quality, or beyond noise in an objective or on prompts."""
    more = {m for m in metrics if m} - {o.metric for o in record.objectives}
    objectives = [*record.objectives, *(Objective(m, describe(m).direction) for m in more)]
    if _loses_less_quality(trial, base):
        return True

    def better(objective: Objective) -> bool:
        if objective.metric not in trial.metrics or objective.metric not in base.metrics:
            return False
        here, there = trial.metrics[objective.metric], base.metrics[objective.metric]
        return orient(here, objective).value > orient(there, objective).value and not overlap(here, there)

    return reads_prompts_faster(trial, base) or any(better(objective) for objective in objectives)


def _loses_less_quality(a: TrialRecord, b: TrialRecord) -> bool:
    here, there = a.metrics.get(QUALITY), b.metrics.get(QUALITY)
    return bool(here and there and (1 + LEAST_TOLD_APART) * here.median < there.median)


def _best_with_prompts(
    chosen: TrialRecord, fitting: Sequence[TrialRecord], speed: str | None, cost: str | None
) -> TrialRecord:
    """``chosen``, or the trial that reads prompts fastest among those equal within noise that cost no percent more."""

    def alike(trial: TrialRecord) -> bool:
        told_apart = speed is not None and not within_noise(chosen.metrics[speed], trial.metrics[speed])
        return not told_apart and (cost is None or _costs_alike(chosen, trial, cost))

    better = [t for t in fitting if reads_prompts_faster(t, chosen) and alike(t)]
    return max(better, key=lambda t: (t.metrics[PROMPTS].median, -t.number), default=chosen)


def reads_prompts_faster(a: TrialRecord, b: TrialRecord) -> bool:
    """Whether ``a`` reads prompts faster beyond noise; False if either was measured once or not at all."""
    here, there = a.metrics.get(PROMPTS), b.metrics.get(PROMPTS)
    return here is not None and there is not None and min(here.n, there.n) > 1 and here.low > there.high


def _costs_alike(least: TrialRecord, trial: TrialRecord, cost: str) -> bool:
    """Whether the extra cost of ``trial`` over ``least`` is negligible: under 1 %, and under the noise of both."""
    less, here, there = Objective(cost, "minimize"), trial.metrics[cost], least.metrics[cost]
    alike = not clearly_better(orient(there, less), orient(here, less))
    return alike and here.median <= (1 + LEAST_TOLD_APART) * there.median


def _knee(
    trials: Sequence[TrialRecord],
    fast: Callable[[TrialRecord], float],
    cheap: Callable[[TrialRecord], float],
) -> TrialRecord:
    # On axes that run from 0 to 1 along the front, the distance beyond the line between its ends is
    # (speed + thrift - 1) / sqrt(2). If no point lies beyond the line, the faster end wins.
    kept = [trials[i] for i in undominated([(fast(t), cheap(t)) for t in trials])]

    def share(key: Callable[[TrialRecord], float], trial: TrialRecord) -> float:
        column = [key(t) for t in kept]
        spread = max(column) - min(column)
        return (key(trial) - min(column)) / spread if spread else 1.0

    return max(kept, key=lambda t: (share(fast, t) + share(cheap, t), fast(t), -t.number))
