"""Why these settings: what each setting of the recommended trial changes, compared with its default value. Pure.

The trials of a search differ in several settings at once. Those with one value of a setting, compared with those with
another, would show the effects of the other settings as well. A linear model of the metric's logarithm gives each value
of each searched setting a factor of its own: its effect with all other settings equal. These factors are computed, from
measured trials alone. The model knows nothing of combinations; what it cannot explain widens its intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.records import Reading, SweepRecord, TrialRecord
from sweeper.report.influence import (
    LEAST_TRIALS,
    MATTERS,
    MOST_HIDDEN,
    NO_EFFECT,
    TOO_NOISY_TO_SAY,
    Range,
    grouped,
)
from sweeper.report.picks import recommended
from sweeper.report.tables import Cell, Row, Table
from sweeper.report.words import MISSING, disturbed, head, parts, searched, value
from sweeper.results.contexts import CONTEXT, default_at
from sweeper.results.provisional import comparable
from sweeper.stats import CONFIDENCE

# In a terminal, with its head: the block is a glance, and report.html has the rest.
MOST_ROWS = 7
# With fewer trials beyond the unknowns of the model, its intervals are too wide to say anything.
LEAST_FREEDOM = 5
OTHERS = "others"  # of values that are known only by their range
# Each value of a setting has a factor of its own where the trials are twice as many; else ranges of numbers have one.
COARSER = (8, 5, 3)

# The logarithm of a factor, and half its 95 % interval; None where the trials do not determine it.
Factor = tuple[float, float] | None
UNKNOWN = 1e-9  # of a share: what a factor may lose to the directions that no trial tells apart


@dataclass(frozen=True, slots=True)
class Effect:
    """What a setting changes in one metric, with 95 % limits in its unit; None where ``words`` stand instead.

    The ``percent`` of a setting that stays at its default is that of another value, which the words name.
    """

    metric: str
    words: str = ""
    change: float | None = None
    low: float | None = None
    high: float | None = None
    percent: int | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """One setting of the recommended trial with its effects."""

    parameter: str
    value: Any
    default: Any
    effects: tuple[Effect, ...]

    @property
    def is_default(self) -> bool:
        """Whether the recommended value is the default one."""
        return bool(self.value == self.default)


@dataclass(frozen=True, slots=True)
class Why:
    """The reasons, those with the largest effects first; none where too few ``trials`` have figures."""

    trials: int
    reasons: tuple[Reason, ...]


def why(record: SweepRecord) -> Why | None:
    """What each setting of the recommended trial gave; None where nothing is recommended or nothing can be compared."""
    best = recommended(record)
    base = None if best is None else default_at(record, best.trial)
    if best is None or base is None or disturbed(record) or not comparable(base, best.trial):
        return None
    both = (base, best.trial)
    metrics = [
        o.metric for o in record.objectives if o.metric != CONTEXT and all(_has(t, o.metric) for t in both)
    ]
    names = [name for name in searched(record) if name != "fit"]  # only the baseline has it
    trials = [t for t in record.trials if all(_has(t, metric) for metric in metrics)]
    if not metrics or not names:
        return None
    if len(trials) < LEAST_TRIALS:
        return Why(len(trials), ())
    default, chosen = (trial.configuration.to_dict() for trial in both)
    rows = [trial.configuration.to_dict() for trial in trials]
    values = {name: [row[name] for row in rows] for name in names}
    reasons = []
    for name in names:
        groups, table = _model(values, name, (default[name], chosen[name]))
        solve = _solver(table, len(groups))
        effects = []
        for metric in metrics:
            found = solve([trial.metrics[metric].median for trial in trials])
            factors = dict(zip(groups, found, strict=True))
            stays = default[name] == chosen[name]
            effects.append(
                _of_others(base, metric, factors) if stays else _effect(base, metric, factors[chosen[name]])
            )
        reasons.append(Reason(name, chosen[name], default[name], tuple(effects)))
    return Why(len(trials), tuple(sorted(reasons, key=lambda one: (one.is_default, -_size(one)))))


def _has(trial: TrialRecord, metric: str) -> bool:
    return metric in trial.metrics and trial.metrics[metric].median > 0


def _size(reason: Reason) -> float:
    """How large the effects of a reason are, in percent."""
    return max((abs(effect.percent or 0) for effect in reason.effects), default=0)


def _of_others(base: TrialRecord, metric: str, factors: Mapping[Any, Factor]) -> Effect:
    """Of a setting that stays at its default: the largest effect of another value, in words."""
    if not factors:  # no trial with another value gave figures
        return Effect(metric, MISSING)
    found = [(_effect(base, metric, factor).percent or 0, group) for group, factor in factors.items()]
    percent, group = max(found, key=lambda one: abs(one[0]))
    if abs(percent) >= 100 * (MATTERS - 1):
        other = OTHERS if isinstance(group, Range) else value(group)
        return Effect(metric, f"{other}: {_signed(percent)} %", percent=percent)
    quiet = all(one is not None and _is_quiet(*one) for one in factors.values())
    return Effect(metric, NO_EFFECT if quiet else TOO_NOISY_TO_SAY)


def _is_quiet(size: float, half: float) -> bool:
    return abs(size) + half <= math.log(MATTERS)


def _effect(base: TrialRecord, metric: str, factor: Factor) -> Effect:
    """The factor as a change from the figure of ``base``, or in words where noise hides it."""
    if factor is None:
        return Effect(metric, TOO_NOISY_TO_SAY)
    size, half = factor[0], min(factor[1], MOST_HIDDEN)
    percent = round(100 * math.expm1(size))
    change, low, high = (
        base.metrics[metric].median * math.expm1(x) for x in (size, size - half, size + half)
    )
    # The wider half is shown: a figure whose ± is larger than itself would look like none.
    if percent and max(change - low, high - change) < abs(change):
        return Effect(metric, "", change, low, high, percent)
    return Effect(metric, NO_EFFECT if _is_quiet(size, half) else TOO_NOISY_TO_SAY)


def _model(
    values: Mapping[str, Sequence[Any]], asked: str, apart: tuple[Any, Any]
) -> tuple[list[Any], list[list[float]]]:
    """The groups of values of ``asked`` but for the first of ``apart``, and the model's columns, one row a trial.

    The constant is the first column, and those of the groups come next. Values of ``apart`` are groups of their own.
    """
    count = len(values[asked])
    for most in (count, *COARSER):
        groups = {name: grouped(of, most, apart if name == asked else ()) for name, of in values.items()}
        if 2 * sum(len(set(of)) for of in groups.values()) <= count:
            break
    of_asked = groups.pop(asked)
    others = [group for group in dict.fromkeys(of_asked) if group != apart[0]]
    indicated = [(group, of_asked) for group in others]
    indicated += [(group, of) for of in groups.values() for group in list(dict.fromkeys(of))[1:]]
    rows = [[1.0, *(float(of[row] == group) for group, of in indicated)] for row in range(count)]
    return others, rows


def _solver(table: Sequence[Sequence[float]], count: int) -> Callable[[Sequence[float]], list[Factor]]:
    """Fits the model to the figures of the trials by least squares: the factors of its ``count`` first groups."""
    import numpy as np
    from scipy.special import stdtrit

    left, sizes, right = np.linalg.svd(np.array(table), full_matrices=False)
    kept = sizes > UNKNOWN * sizes[0]
    left, sizes, right = left[:, kept], sizes[kept], right[kept]
    freedom = len(table) - len(sizes)
    far = float(stdtrit(max(freedom, 1), (1 + CONFIDENCE) / 2))
    columns = right[:, 1 : count + 1]
    known = (columns**2).sum(axis=0) > 1 - UNKNOWN
    spreads = np.sqrt(((columns.T / sizes) ** 2).sum(axis=1))

    def solve(figures: Sequence[float]) -> list[Factor]:
        logarithms = np.log(figures)
        factors = right.T @ ((left.T @ logarithms) / sizes)
        rest = logarithms - np.array(table) @ factors
        noise = far * math.sqrt(float(rest @ rest) / max(freedom, 1))
        return [
            (float(factors[place + 1]), noise * float(spreads[place]))
            if known[place] and freedom >= LEAST_FREEDOM
            else None
            for place in range(count)
        ]

    return solve


# -- as a table and as a document


def why_table(record: SweepRecord, most: int | None = None) -> Table | None:
    """One row for each setting, at most ``most`` rows; None if there is nothing to say."""
    found = why(record)
    if found is None or not found.reasons:
        return None
    shown = list(found.reasons)
    if most is not None and len(shown) > most:
        shown = shown[: most - 1]
    metrics = [effect.metric for effect in shown[0].effects]
    rows = [Row([_named(record, one), *map(_cell, one.effects)]) for one in shown]
    if more := len(found.reasons) - len(shown):
        rows.append(Row([f"and {more} more, in report.html", *("" for _ in metrics)]))
    heads = [f"why? (computed from {found.trials} trials)", *(head(m, record.power) for m in metrics)]
    return Table(heads, rows)


def why_not(record: SweepRecord) -> str:
    """Why nothing is said about single settings, where that is only for want of trials; else empty.

    Default settings need no reason.
    """
    found, best = why(record), recommended(record)
    if found is None or found.reasons or best is None or best.trial is default_at(record, best.trial):
        return ""
    few = f"{found.trials} have figures, and {LEAST_TRIALS} are needed"
    return f"why? Too few trials to say what each setting gave: {few}"


def why_document(record: SweepRecord) -> dict[str, Any] | None:
    """The same for programs; null where nothing is recommended or nothing can be compared."""
    found = why(record)
    if found is None:
        return None
    settings = [
        {
            "parameter": one.parameter,
            "value": one.value,
            "default": one.default,
            "effects": {
                effect.metric: {
                    "change": effect.change,
                    "low": effect.low,
                    "high": effect.high,
                    "percent": effect.percent,
                    "words": effect.words or None,
                }
                for effect in one.effects
            },
        }
        for one in found.reasons
    ]
    return {"kind": "computed", "trials": found.trials, "settings": settings}


def _named(record: SweepRecord, reason: Reason) -> str:
    """``n_threads 6 (default 4)``; ``flash_attn on (default)`` if both are the same."""

    def shown(one: Any) -> str:
        return value(record.model.base_quant if reason.parameter == "quant" and one is None else one)

    default = (
        "" if reason.is_default else " as found" if reason.default is None else f" {shown(reason.default)}"
    )
    return f"{reason.parameter} {shown(reason.value)} (default{default})"


def _cell(effect: Effect) -> Cell:
    """``+3.1 ± 0.4`` with ``+12 %`` beside it, or the words."""
    if effect.change is None or effect.low is None or effect.high is None or effect.percent is None:
        return effect.words, ""
    size, far = abs(effect.change), max(effect.change - effect.low, effect.high - effect.change)
    far = far if far > UNKNOWN * size else 0.0  # what is left of rounding is no spread
    shown = " ± ".join(filter(None, parts(Reading(size, size - far, size + far, 2))))
    return f"{'+' if effect.change > 0 else '−'}{shown}", f"{_signed(effect.percent)} %"


def _signed(percent: int) -> str:
    return f"{percent:+d}".replace("-", "−")
