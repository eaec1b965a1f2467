"""What nobody can beat: dominance that knows its noise, the front, its hypervolume, and picks on it.

Pure: records in, records and words out. Points that are given as plain numbers are *oriented*: more is
better in each of their coordinates, so that minimised metrics enter with their sign turned.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sweeper.errors import ConfigError, NoResultError
from sweeper.records import Objective, Prices, Reading, SweepRecord, TrialRecord

Point = Sequence[float]

# How far behind the worst point of a front the reference lies, as a share of the front's range: without
# it the ends of the front would add nothing to the hypervolume.
REFERENCE_MARGIN = 0.1
# Who misses a line by less than this, and by less than his own noise, is on it: no repeat settles that.
LEAST_TOLD_APART = 0.01
# Half an interval of more than this share of its median: something else ran, and no difference is known.
TOO_NOISY = 0.5
DAYS_PER_YEAR = 365

GRAMMAR = "fastest, greenest, knee, within:5%, at-least:20tok/s or at-most:60W"
DEFAULT_PICK = "within:5%"

PROMPTS = "prompt_tokens_per_second"
_SPEEDS = ("tokens_per_second", "prompt_tokens_per_second")
_POWERS = ("watts", "prompt_watts")
_IN_WORDS = {
    "tokens_per_second": "speed",
    "prompt_tokens_per_second": "prompt speed",
    "joules_per_token": "J/token",
    "prompt_joules_per_token": "prompt J/token",
    "time_to_first_token_seconds": "time to first token",
    "request_seconds": "time of a request",
    "n_ctx": "context",
    "memory_mib": "memory",
    "vram_mib": "GPU memory",
}
_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£"}


# Dominance and the front


def oriented(trial: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The trial's medians, turned so that more is better. Raises KeyError where a metric is missing."""
    return tuple(_orient(trial.metrics[o.metric], o).value for o in objectives)


def dominates(
    a: TrialRecord, b: TrialRecord, objectives: Sequence[Objective], *, beyond_noise: bool = False
) -> bool:
    """Whether ``a`` is at least as good as ``b`` in every objective and better in one, by their medians.

    With ``beyond_noise`` the better one must be better by more than the noise of both: by more than the
    root of the summed squares of the two half-widths that face each other. A reading with one repeat has
    no width and counts as exact.
    """
    return _dominates(_sides(a, objectives), _sides(b, objectives), beyond_noise)


def tied(a: TrialRecord, b: TrialRecord, objectives: Sequence[Objective]) -> bool:
    """Whether noise hides every difference between the two."""
    pairs = list(zip(_sides(a, objectives), _sides(b, objectives), strict=True))
    return not any(_clearly_better(x, y) or _clearly_better(y, x) for x, y in pairs)


def front(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, remeasured_only: bool = False
) -> tuple[int, ...]:
    """Numbers of the trials on the front, best in the first objective first.

    A trial is off the front only where another dominates it beyond noise; what is worse by less than
    noise stays, and :func:`ties` says with whom it is tied. Trials that are infeasible or lack an
    objective's metric are left out, and with ``remeasured_only`` those measured once.
    """
    candidates = [
        (trial.number, _sides(trial, objectives))
        for trial in trials
        if trial.feasible
        and (trial.remeasured or not remeasured_only)
        and all(o.metric in trial.metrics for o in objectives)
    ]
    kept = [
        (number, sides)
        for number, sides in candidates
        if not any(_dominates(other, sides, beyond_noise=True) for _, other in candidates)
    ]
    kept.sort(key=lambda item: (tuple(-side.value for side in item[1]), item[0]))
    return tuple(number for number, _ in kept)


def ties(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], numbers: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """For each of ``numbers`` that noise cannot tell from others of them: those others."""
    by_number = {trial.number: trial for trial in trials}
    chosen = [by_number[number] for number in numbers]
    found = {
        a.number: tuple(b.number for b in chosen if b is not a and tied(a, b, objectives)) for a in chosen
    }
    return {number: others for number, others in found.items() if others}


@dataclass(frozen=True, slots=True)
class _Side:
    """An oriented reading: its value, and how far it may be worse or better."""

    value: float
    down: float
    up: float


def _orient(reading: Reading, objective: Objective) -> _Side:
    below, above = reading.median - reading.low, reading.high - reading.median
    if objective.direction == "maximize":
        return _Side(reading.median, below, above)
    return _Side(-reading.median, above, below)


def _sides(trial: TrialRecord, objectives: Sequence[Objective]) -> tuple[_Side, ...]:
    return tuple(_orient(trial.metrics[o.metric], o) for o in objectives)


def _clearly_better(a: _Side, b: _Side) -> bool:
    return a.value - b.value > math.hypot(a.down, b.up)


def _dominates(a: Sequence[_Side], b: Sequence[_Side], beyond_noise: bool) -> bool:
    pairs = list(zip(a, b, strict=True))
    if any(x.value < y.value for x, y in pairs):
        return False
    return any(_clearly_better(x, y) if beyond_noise else x.value > y.value for x, y in pairs)


# Hypervolume of oriented points


def undominated(points: Sequence[Point]) -> tuple[int, ...]:
    """Indices of the oriented points that no other dominates; of equal points the first only."""
    kept: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: tuple(-x for x in points[i])):
        # In this order nothing that comes later can dominate what was kept before.
        if not any(all(k >= x for k, x in zip(points[i], points[index], strict=True)) for i in kept):
            kept.append(index)
    return tuple(sorted(kept))


def reference_point(points: Sequence[Point], margin: float = REFERENCE_MARGIN) -> tuple[float, ...]:
    """A reference behind all of the oriented ``points``: their worst, less ``margin`` of their range.

    Give it the points of a front: over everything that was measured the hypervolume would be ruled by
    points that nobody wants. A coordinate without range is set back by ``margin`` of its size.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError("a reference needs at least one point")
    reference = []
    for column in zip(*points, strict=True):
        worst, spread = min(column), max(column) - min(column)
        reference.append(worst - margin * (spread or abs(worst) or 1.0))
    return tuple(reference)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume that oriented ``points`` dominate above ``reference``, exact, in 1, 2 or 3 dimensions.

    Points that are not above the reference in every coordinate add nothing. Never falls when a point is
    added. In the product of the coordinates' units.

    Raises:
        ValueError: another number of dimensions, or a coordinate that is not a finite number.
    """
    if not 1 <= len(reference) <= 3:
        raise ValueError("a hypervolume is computed for one, two or three objectives")
    above = [tuple(x - r for x, r in zip(point, reference, strict=True)) for point in points]
    if not all(math.isfinite(x) for point in above for x in point):
        raise ValueError("a coordinate is not a finite number")
    above = [point for point in above if min(point) > 0]
    if len(reference) == 1:
        return max((point[0] for point in above), default=0.0)
    if len(reference) == 2:
        stairs = _Stairs()
        for x, y in above:
            stairs.add(x, y)
        return stairs.area()
    return _volume(above)


class _Stairs:
    """The undominated points of a plane, x rising and y falling."""

    def __init__(self) -> None:
        self.xs: list[float] = []
        self.ys: list[float] = []

    def add(self, x: float, y: float) -> bool:
        """Take a point in; False where it changes nothing."""
        at = bisect.bisect_left(self.xs, x)
        if at < len(self.xs) and self.ys[at] >= y:
            return False
        end = at + 1 if at < len(self.xs) and self.xs[at] == x else at
        start = at
        while start > 0 and self.ys[start - 1] <= y:
            start -= 1
        self.xs[start:end] = [x]
        self.ys[start:end] = [y]
        return True

    def area(self) -> float:
        steps = zip([0.0, *self.xs], self.xs, self.ys, strict=False)  # one left edge more than stairs
        return math.fsum((x - left) * y for left, x, y in steps)


def _volume(above: Sequence[tuple[float, ...]]) -> float:
    # Slices from the top: between two heights the dominated area is that of all points above.
    ordered = sorted(above, key=lambda point: -point[2])
    floors = [point[2] for point in ordered[1:]] + [0.0]
    stairs, slices, area = _Stairs(), [], 0.0
    for (x, y, z), floor in zip(ordered, floors, strict=False):  # without points one floor is left
        if stairs.add(x, y):
            area = stairs.area()
        slices.append(area * (z - floor))
    return math.fsum(slices)


# Picks


@dataclass(frozen=True, slots=True)
class Pick:
    """A rule that picks one point of a front. ``amount`` is in %, tok/s or W, None for the first three."""

    kind: Literal["fastest", "greenest", "knee", "within", "at-least", "at-most"]
    amount: float | None = None

    def __str__(self) -> str:
        unit = {"within": "%", "at-least": "tok/s", "at-most": "W"}.get(self.kind)
        return self.kind if unit is None or self.amount is None else f"{self.kind}:{self.amount:g}{unit}"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The trial that a pick chose, and its price in words.

    ``nearest`` is None where the trial does what the pick asks. Otherwise no trial does, the one given is
    the nearest, and ``nearest`` says so: whoever applies it must have been told.
    """

    trial: TrialRecord
    pick: str
    words: str
    nearest: str | None = None


_PLAIN: tuple[Literal["fastest", "greenest", "knee"], ...] = ("fastest", "greenest", "knee")
_AMOUNTS: tuple[tuple[Literal["within", "at-least", "at-most"], str], ...] = (
    ("within", r"within:\s*([0-9.]+)\s*%?"),
    ("at-least", r"at-least:\s*([0-9.]+)\s*(?:tok/s|t/s)?"),
    ("at-most", r"at-most:\s*([0-9.]+)\s*(?:w|watts)?"),
)


def parse_pick(text: str) -> Pick:
    """The pick that ``text`` names. Raises ConfigError with the grammar where it names none."""
    word = text.strip().lower()
    for plain in _PLAIN:
        if word == plain:
            return Pick(plain)
    for kind, pattern in _AMOUNTS:
        match = re.fullmatch(pattern, word)
        amount = _number(match.group(1)) if match else None
        if amount is not None and (amount < 100 if kind == "within" else amount > 0):
            return Pick(kind, amount)
    raise ConfigError(f"pick={text!r} is none of {GRAMMAR}")


def choose(record: SweepRecord, pick: str = DEFAULT_PICK, *, allow_screening: bool = False) -> Recommendation:
    """The trial of ``record`` that ``pick`` names, and what it costs against the baseline, in words.

    ``fastest`` is the best in speed; ``within:N%`` the least in cost that reaches (100 - N) % of it, or misses
    that by less than 1 % and less than its own noise;
    ``at-least`` the least in cost that reaches a speed, ``at-most`` the best in speed under a power;
    ``greenest`` the fewest joules per token; ``knee`` the point that lies farthest beyond the straight
    line between the ends of the front. Who costs more by less than 1 % and less than noise costs the same, and of
    those the fastest is taken. Speed is the first objective in tok/s, else the first that is
    maximised; cost the first in W, else the first that is minimised. Medians decide, and the faster of
    two equals. Then of what noise cannot tell from that trial, the one that reads prompts fastest, where it does
    so beyond noise and no objective weighs prompts. Eligible are feasible trials that were measured twice, with
    ``allow_screening`` all.

    Raises:
        ConfigError: ``pick`` is not in the grammar, or this sweep's objectives cannot answer it.
        NoResultError: no trial is eligible.
    """
    rule = parse_pick(pick)
    metrics = _pick_metrics(record, rule)
    trials = _eligible(record, [m for m in metrics if m], allow_screening)
    trial, fitting, nearest = _apply_rule(rule, trials, *metrics)
    if nearest is None and PROMPTS not in {o.metric for o in record.objectives}:
        trial = _best_with_prompts(trial, fitting, *metrics)
    return Recommendation(trial, str(rule), price_in_words(record, trial), nearest)


def price_in_words(record: SweepRecord, trial: TrialRecord) -> str:
    """What ``trial`` gives and costs against the sweep's baseline, in words.

    For example ``-3 % speed, -28 % watts, 31 kWh and €9 a year less at 4 h a day``.

    The energy is that of the same tokens: those that the baseline generates in the hours a day of
    ``record.prices``, on 365 days. The baseline's energy is watts x hours; the trial's is that times the
    ratio of the two J/token (watts / tok/s). What the machine draws while it waits is not in it. A
    difference smaller than the noise of both is called that. Estimated or simulated watts say so.
    """
    label = {"measured": "", "mixed": " (partly estimated)"}.get(record.power.kind, f" ({record.power.kind})")
    shown = [m for m in (speed_metric(record), cost_metric(record)) if m and m in trial.metrics]
    base = _baseline(record)
    absolute = ", ".join(f"{_amount(trial, m)}{label if _is_energy(m) else ''}" for m in shown)
    if base is None or not all(m in base.metrics for m in shown):
        return f"{absolute}; no baseline to compare with"
    if base.number == trial.number:
        return "this is the engine's default configuration, the baseline"
    if any(too_noisy(t.metrics[m]) for t in (base, trial) for m in shown):
        return f"{absolute}; too noisy to compare with the baseline"
    parts = [f"{_change(base, trial, m)}{label if _is_energy(m) else ''}" for m in shown]
    prefix = "prompt_" if speed_metric(record) == "prompt_tokens_per_second" else ""
    energy = _energy_words(base, trial, record.prices, prefix)
    return ", ".join([*parts, f"{energy}{label}"] if energy else parts)


@dataclass(frozen=True, slots=True)
class Line:
    """What a pick with a line asks of oriented objectives: one must reach the line, another be as good as can be.

    ``bounded`` and ``improved`` are places among the objectives. The line is ``share`` of the best in the bounded
    objective, else ``level``, oriented.
    """

    bounded: int
    improved: int
    share: float | None = None
    level: float | None = None


def line_of(objectives: Sequence[Objective], pick: str) -> Line | None:
    """The line of ``pick``; None for picks without one, and where these objectives cannot answer it."""
    rule = parse_pick(pick)
    metrics = [o.metric for o in objectives]
    speed, cost = _first(objectives, _SPEEDS, "maximize"), _first(objectives, _POWERS, "minimize")
    if rule.amount is None or speed is None or cost is None:
        return None
    fast, cheap = metrics.index(speed), metrics.index(cost)
    if rule.kind == "within":
        return Line(fast, cheap, share=1 - rule.amount / 100)
    if rule.kind == "at-least":
        return Line(fast, cheap, level=rule.amount)
    return Line(cheap, fast, level=-rule.amount)


def undecided(record: SweepRecord) -> tuple[int, ...]:
    """Trials that noise alone keeps from being the record's own pick: more repeats of them decide something.

    Each is clearly better than the pick in what the pick minimises (for ``at-most``, maximises), and misses the
    pick's line by less than its own interval. For ``within:N%`` the fastest is among them, since it sets the line.
    Empty where nothing is open, where nothing was measured twice, and for picks without a line.
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
    sides = {t.number: _orient(t.metrics[bounded.metric], bounded) for t in trials}
    gains = {t.number: _orient(t.metrics[improved.metric], improved) for t in trials}
    best = max(sides, key=lambda number: sides[number].value)
    level = line.level if line.level is not None else (line.share or 0.0) * sides[best].value
    own = gains[recommended.trial.number]

    def open_to(number: int) -> bool:
        side = sides[number]
        reaches = side.value < level <= side.value + side.up
        return reaches and (recommended.nearest is not None or _clearly_better(gains[number], own))

    found = [number for number in sides if open_to(number)]
    return tuple(dict.fromkeys([best, *found] if found and line.share is not None else found))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _first(objectives: Sequence[Objective], preferred: Sequence[str], direction: str) -> str | None:
    metrics = [o.metric for o in objectives if o.direction == direction]
    return next((m for m in metrics if m in preferred), metrics[0] if metrics else None)


def speed_metric(record: SweepRecord) -> str | None:
    """The objective that picks call speed: the first in tok/s, else the first that is maximised."""
    return _first(record.objectives, _SPEEDS, "maximize")


def cost_metric(record: SweepRecord) -> str | None:
    """The objective that picks call cost: the first in W, else the first that is minimised."""
    return _first(record.objectives, _POWERS, "minimize")


def _pick_metrics(record: SweepRecord, rule: Pick) -> tuple[str | None, str | None]:
    """The metrics (speed, cost) that the rule rests on; ConfigError where the sweep does not have them."""
    speed, cost = speed_metric(record), cost_metric(record)
    have = ", ".join(f"{o.direction} {o.metric}" for o in record.objectives)

    def refuse(wanted: str) -> ConfigError:
        return ConfigError(f"pick={rule} needs {wanted}, and this sweep's objectives are: {have}")

    if rule.kind == "greenest":
        return None, "prompt_joules_per_token" if speed == "prompt_tokens_per_second" else "joules_per_token"
    if speed is None:
        raise refuse("an objective that is maximised")
    if rule.kind == "fastest":
        return speed, None
    if cost is None:
        raise refuse("an objective that is minimised")
    if rule.kind == "at-least" and speed not in _SPEEDS:
        raise refuse("an objective in tok/s")
    if rule.kind == "at-most" and cost not in _POWERS:
        raise refuse("an objective in W")
    return speed, cost


def _eligible(record: SweepRecord, metrics: Sequence[str], allow_screening: bool) -> list[TrialRecord]:
    feasible = [t for t in record.trials if t.feasible]
    if not feasible:
        raise NoResultError(f"sweep {record.sweep!r} has no trial that counts: `sweeper report` says why")
    twice = [t for t in feasible if t.remeasured or allow_screening]
    if not twice:
        raise NoResultError(
            f"sweep {record.sweep!r} measured nothing twice yet, and only that is recommended: "
            f"let it go on to its end with `sweeper sweep`"
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
    """The trial that the rule picks, those that do what it asks, and where none does, that, in words."""

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
    if rule.kind == "fastest":
        return best(trials, fast), trials, None
    if rule.kind == "greenest":
        return best(trials, cheap), trials, None
    if rule.kind == "knee":
        return _knee(trials, fast, cheap), trials, None
    if rule.kind == "within":
        least = (1 - amount / 100) * fast(best(trials, fast))

        def reaches(trial: TrialRecord) -> bool:
            high = trial.metrics[speed].high if speed else 0.0
            return fast(trial) >= least or (high >= least and fast(trial) >= (1 - LEAST_TOLD_APART) * least)

        reaching = [t for t in trials if reaches(t)]
        return cheapest(reaching), reaching, None
    if rule.kind == "at-least":
        fitting, order = [t for t in trials if fast(t) >= amount], (cheap, fast)
        nearest, metric, verb = best(trials, fast, cheap), speed, "reaches"
    else:
        fitting, order = [t for t in trials if -cheap(t) <= amount], (fast, cheap)
        nearest, metric, verb = best(trials, cheap, fast), cost, "stays under"
    if fitting:
        return cheapest(fitting) if rule.kind == "at-least" else best(fitting, *order), fitting, None
    bound = str(rule).partition(":")[2]
    said = f"the nearest is trial {nearest.number} with {_amount(nearest, metric or '')}"
    return nearest, (), f"no configuration that was measured {verb} {bound}: {said}"


def _best_with_prompts(
    chosen: TrialRecord, fitting: Sequence[TrialRecord], speed: str | None, cost: str | None
) -> TrialRecord:
    """``chosen``, or of what is as good within noise and costs no percent more, the fastest with prompts."""

    def alike(trial: TrialRecord) -> bool:
        told_apart = speed is not None and not _within_noise(chosen.metrics[speed], trial.metrics[speed])
        return not told_apart and (cost is None or _costs_alike(chosen, trial, cost))

    better = [t for t in fitting if reads_prompts_faster(t, chosen) and alike(t)]
    return max(better, key=lambda t: (t.metrics[PROMPTS].median, -t.number), default=chosen)


def reads_prompts_faster(a: TrialRecord, b: TrialRecord) -> bool:
    """Whether ``a`` is faster with prompts beyond noise; False where either was measured once or not at all."""
    here, there = a.metrics.get(PROMPTS), b.metrics.get(PROMPTS)
    return here is not None and there is not None and min(here.n, there.n) > 1 and here.low > there.high


def _costs_alike(least: TrialRecord, trial: TrialRecord, cost: str) -> bool:
    """Whether ``trial`` costs more than ``least`` by too little to count: under 1 %, and under the noise of both."""
    less, here, there = Objective(cost, "minimize"), trial.metrics[cost], least.metrics[cost]
    alike = not _clearly_better(_orient(there, less), _orient(here, less))
    return alike and here.median <= (1 + LEAST_TOLD_APART) * there.median


def _knee(
    trials: Sequence[TrialRecord],
    fast: Callable[[TrialRecord], float],
    cheap: Callable[[TrialRecord], float],
) -> TrialRecord:
    # On axes that run from 0 to 1 along the front, the distance beyond the line between its ends is
    # (speed + thrift - 1) / sqrt(2). Of two ends with nothing beyond the line, the faster.
    points = [(fast(t), cheap(t)) for t in trials]
    kept = [trials[i] for i in undominated(points)]
    speeds, thrifts = [fast(t) for t in kept], [cheap(t) for t in kept]

    def share(value: float, column: Sequence[float]) -> float:
        spread = max(column) - min(column)
        return (value - min(column)) / spread if spread else 1.0

    return max(kept, key=lambda t: (share(fast(t), speeds) + share(cheap(t), thrifts), fast(t), -t.number))


def _baseline(record: SweepRecord) -> TrialRecord | None:
    if record.baseline is None:
        return None
    base = record.trial(record.baseline)
    return base if base.state == "complete" else None


def _is_energy(metric: str) -> bool:
    return metric in _POWERS or "joules" in metric or "watts" in metric


def _unit(metric: str) -> str:
    for ending, unit in (
        ("tokens_per_second", "tok/s"),
        ("joules_per_token", "J/token"),
        ("watts", "W"),
        ("seconds", "s"),
        ("mib", "MiB"),
        ("n_ctx", "tokens"),
    ):
        if metric.endswith(ending):
            return unit
    return metric.replace("_", " ")


def _amount(trial: TrialRecord, metric: str) -> str:
    """The median with its unit, such as ``18.4 tok/s``."""
    return f"{trial.metrics[metric].median:.4g} {_unit(metric)}"


def _change(base: TrialRecord, trial: TrialRecord, metric: str) -> str:
    name = _IN_WORDS.get(metric, metric.replace("_", " "))
    if _within_noise(base.metrics[metric], trial.metrics[metric]):
        return f"same {name} within noise"
    before, after = base.metrics[metric].median, trial.metrics[metric].median
    return f"{name} {before:g} → {after:g}" if before == 0 else f"{(after / before - 1) * 100:+.0f} % {name}"


def too_noisy(reading: Reading) -> bool:
    """Whether noise leaves no more than the order of magnitude: a percentage of it would be made up."""
    return max(reading.high - reading.median, reading.median - reading.low) > TOO_NOISY * abs(reading.median)


def _within_noise(a: Reading, b: Reading) -> bool:
    more = Objective("", "maximize")
    x, y = _orient(a, more), _orient(b, more)
    return not (_clearly_better(x, y) or _clearly_better(y, x))


def _joules_per_token(metrics: Mapping[str, Reading], prefix: str) -> float | None:
    watts, speed = metrics.get(f"{prefix}watts"), metrics.get(f"{prefix}tokens_per_second")
    return watts.median / speed.median if watts and speed and speed.median > 0 else None


def _energy_words(base: TrialRecord, trial: TrialRecord, prices: Prices, prefix: str) -> str | None:
    """Energy and money of a year against the baseline; None where a figure is missing or noise hides it."""
    before, after = _joules_per_token(base.metrics, prefix), _joules_per_token(trial.metrics, prefix)
    if before is None or after is None or before <= 0:
        return None
    both = (f"{prefix}watts", f"{prefix}tokens_per_second")
    if all(_within_noise(base.metrics[m], trial.metrics[m]) for m in both):
        return None
    yearly_kwh = base.metrics[f"{prefix}watts"].median * prices.hours_per_day * DAYS_PER_YEAR / 1000
    kwh = yearly_kwh * (after / before - 1)
    direction = "more" if kwh > 0 else "less"
    money = _money(abs(kwh) * prices.per_kwh, prices.currency)
    return f"{_round(abs(kwh))} kWh and {money} a year {direction} at {prices.hours_per_day:g} h a day"


def _round(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _money(value: float, currency: str) -> str:
    text = f"{value:.0f}" if value >= 2 else f"{value:.2f}"
    return f"{_SIGNS[currency]}{text}" if currency in _SIGNS else f"{text} {currency}"
