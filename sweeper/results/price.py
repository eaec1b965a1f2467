"""Energy and money costs of figures, and the price of a trial compared with the baseline, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sweeper.errors import UsageError
from sweeper.metrics import describe
from sweeper.records import Prices, Reading, SweepRecord, TrialRecord, Workload
from sweeper.results.contexts import CONTEXT, DECODE, baseline_name, default_at
from sweeper.results.front import overlap, too_noisy
from sweeper.results.objectives import amount_words, cost_metric, speed_metric
from sweeper.results.provisional import comparable

JOULES_PER_KWH = 3.6e6
DAYS_PER_YEAR = 365
MONTHS_PER_YEAR = 12
# A request that takes longer than this many times the baseline's is worth a warning, even if it saves energy.
MUCH_LONGER = 1.2
_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£"}


def price_in_words(record: SweepRecord, trial: TrialRecord) -> str:
    """Describe the gains and costs of ``trial``, compared with the sweep's baseline, in words.

    For example ``compared with the baseline: −3 % speed, −28 % watts, 31 kWh and €9 less a year for as many tokens as
    the baseline generates in 4 h a day``.

    Both energy figures are those of :func:`yearly_kwh`. The power of the waiting machine is not included. If the
    intervals of two figures overlap, they are called "same within noise". Estimated or simulated watts are labelled.
    """
    label, speed = _label(record), speed_metric(record)
    if record.ladder and speed == CONTEXT:  # both have the same context
        speed = DECODE
    shown = [m for m in (speed, cost_metric(record)) if m and m in trial.metrics]
    base, named = default_at(record, trial), baseline_name(record)
    absolute = ", ".join(f"{amount_words(trial, m)}{label if describe(m).power else ''}" for m in shown)
    if base is None or base.state != "complete" or not all(m in base.metrics for m in shown):
        return f"{absolute}; no baseline to compare with"
    if base.number == trial.number:
        return "these are the default settings" if record.ladder else "this is the baseline"
    if any(too_noisy(t.metrics[m]) for t in (base, trial) for m in shown):
        return f"{absolute}; too noisy to compare with {named}"
    if not comparable(base, trial):
        return f"{absolute}; nothing to compare with yet: only the screening measured {named}"
    parts = [f"{_change(base, trial, m)}{label if describe(m).power else ''}" for m in shown]
    prefix = "prompt_" if speed == "prompt_tokens_per_second" else ""
    if energy := _energy_words(record, base, trial, prefix, label):
        parts.append(energy)
    return f"compared with {named}: {', '.join(parts)}"


def _label(record: SweepRecord) -> str:
    """The label of watts and energy that were not measured."""
    return {"measured": "", "none": "", "mixed": " (partly estimated)"}.get(
        record.power.kind, f" ({record.power.kind})"
    )


def _change(base: TrialRecord, trial: TrialRecord, metric: str) -> str:
    name = describe(metric).short
    if overlap(base.metrics[metric], trial.metrics[metric]):
        return f"same {name} within noise"
    before, after = base.metrics[metric].median, trial.metrics[metric].median
    return f"{name} {before:g} → {after:g}" if before == 0 else f"{percent_of_change(before, after)} {name}"


def percent_of_change(before: float, after: float) -> str:
    """``−28 %``, with the minus sign of the tables."""
    return f"{(after / before - 1) * 100:+.0f} %".replace("-", "−")


def _energy_words(record: SweepRecord, base: TrialRecord, trial: TrialRecord, prefix: str, label: str) -> str:
    """The difference in energy and money a year to the baseline; empty if a figure is missing or noise hides it."""
    power, speed = f"{prefix}watts", f"{prefix}tokens_per_second"
    if not all(m in t.metrics and t.metrics[m].median > 0 for t in (base, trial) for m in (power, speed)):
        return ""
    if all(overlap(base.metrics[m], trial.metrics[m]) for m in (power, speed)):
        return ""
    prices = record.prices
    kwh = yearly_kwh(trial, base, prices, prefix) - yearly_kwh(base, base, prices, prefix)
    how = "more" if kwh > 0 else "less"
    return f"{energy_words(abs(kwh), prices)}{label} {how} a year for {same_tokens(record, prefix)}"


def same_tokens(record: SweepRecord, prefix: str = "") -> str:
    """The tokens of a year in words: those that the baseline makes in the user's hours a day."""
    verb, hours = "read" if prefix else "generate", f"in {record.prices.hours_per_day:g} h a day"
    if record.ladder:
        return f"as many tokens as the default settings {verb} {hours} at this context"
    return f"as many tokens as the baseline {verb}s {hours}"


def yearly_kwh(trial: TrialRecord, base: TrialRecord, prices: Prices, prefix: str = "") -> float:
    """The energy of a year, for the tokens that ``base`` makes on 365 days in the user's hours a day.

    A trial that is slower than ``base`` runs longer for them. Raises KeyError if speed or watts are missing.
    """
    power, speed = f"{prefix}watts", f"{prefix}tokens_per_second"
    hours = prices.hours_per_day * base.metrics[speed].median / trial.metrics[speed].median
    return kwh_per_year(trial.metrics[power].median, hours)


def request_in_words(record: SweepRecord, base: TrialRecord, trial: TrialRecord) -> str:
    """A warning if one request of the workload takes more energy, or much more time, beyond noise; else empty."""
    found, worse, label, work = [], [], _label(record), record.workload
    for kind, unit, factor, how in (
        ("tokens_per_second", "s", MUCH_LONGER, "is slower"),
        ("joules_per_token", f"J{label}", 1.0, "uses more energy"),
    ):
        here, there = (_request(record.workload, t, kind) for t in (trial, base))
        if here and there and here.low > factor * there.high:
            after, before = (
                f"{r.median:.3g}" if r.median < 1000 else f"{r.median:.0f}" for r in (here, there)
            )
            found.append(f"{after} {unit} instead of {before} {unit}")
            worse.append(how)
    if not found:
        return ""
    which = "a whole request (prompt and answer)"
    if record.ladder:  # the figures with a full context stand beside it
        which = f"a short request ({work.prompt_tokens} tokens in, {work.generated_tokens} out)"
    how = worse[0] if len(worse) == 1 else "is worse"
    return f"for {which} this setting {how}: {', and '.join(found)}"


def _request(work: Workload, trial: TrialRecord, kind: str) -> Reading | None:
    """The time or energy of one request, from the tok/s or J/token of both phases; None if one is missing."""
    prompt, answer = trial.metrics.get(f"prompt_{kind}"), trial.metrics.get(kind)
    if prompt is None or answer is None or min(prompt.low, answer.low) <= 0:
        return None

    def both(one: float, other: float) -> float:
        if kind == "tokens_per_second":
            return work.prompt_tokens / one + work.generated_tokens / other
        return work.prompt_tokens * one + work.generated_tokens * other

    low, high = sorted((both(prompt.low, answer.low), both(prompt.high, answer.high)))
    return Reading(both(prompt.median, answer.median), low, high, min(prompt.n, answer.n))


def energy_words(kwh: float, prices: Prices) -> str:
    """Energy and its price, for example ``31 kWh and €9.30``."""
    return " and ".join(energy_and_price(kwh, prices))


def energy_and_price(kwh: float, prices: Prices) -> tuple[str, str]:
    """Energy and its price in words, with two digits each, for no sensor supports more."""
    energy, cost = (float(f"{amount:.2g}") for amount in (kwh, kwh * prices.per_kwh))
    return f"{energy:g} kWh", money(cost, prices)


def per_million_tokens(joules_per_token: float, prices: Prices) -> float:
    """The energy cost of a million tokens: J/token × 0.2778 × price per kWh."""
    return joules_per_token * 1e6 / JOULES_PER_KWH * prices.per_kwh


@dataclass(frozen=True, slots=True)
class Month:
    """The computed cost of a month: of the hours of generating, and of the hours in which the machine waits.

    ``waits_with_model`` says whether the model stays loaded meanwhile. ``waiting`` is None if no sensor saw it.
    """

    generating: float
    waiting: float | None
    waits_with_model: bool


def month_of(record: SweepRecord, trial: TrialRecord) -> Month | None:
    """A month of ``trial`` at the record's prices, computed from its watts; None if these are missing."""
    watts, hours = trial.metrics.get("watts"), record.prices.hours_per_day
    if watts is None:
        return None
    loaded = trial.metrics.get("resident_watts")
    idle = loaded or record.idle_watts

    def cost(power: Reading, hours_per_day: float) -> float:
        return kwh_per_year(power.median, hours_per_day) / MONTHS_PER_YEAR * record.prices.per_kwh

    return Month(cost(watts, hours), None if idle is None else cost(idle, 24 - hours), loaded is not None)


def repriced(
    prices: Prices, per_kwh: float | None = None, hours: float | None = None, currency: str | None = None
) -> Prices:
    """``prices`` with the values that are given. Raises UsageError for an impossible one."""
    if per_kwh is not None and not 0 <= per_kwh < math.inf:
        raise UsageError(f"--per-kwh {per_kwh:g}: a price per kWh is 0 or more")
    if hours is not None and not 0 <= hours <= 24:
        raise UsageError(f"--hours {hours:g}: the hours of use a day are between 0 and 24")
    given = {"per_kwh": per_kwh, "hours_per_day": hours, "currency": currency}
    return replace(prices, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]


def per_hour(watts: float, prices: Prices) -> float:
    """The cost of an hour at ``watts``."""
    return watts / 1000 * prices.per_kwh


def kwh_per_year(watts: float, hours_per_day: float) -> float:
    """The energy of a year in kWh, at ``watts`` for ``hours_per_day``."""
    return watts / 1000 * hours_per_day * DAYS_PER_YEAR


def money(amount: float, prices: Prices) -> str:
    """An amount in the user's currency, for example ``€0.42`` or ``0.42 CHF``. Small amounts have two digits."""
    size = abs(amount)
    if size >= 100 or (size >= 10 and size == round(size)):
        digits = 0
    else:
        digits = 2 if size >= 0.1 or size == 0 else min(6, 1 - math.floor(math.log10(size)))
    text = f"{amount:.{digits}f}"
    return f"{_SIGNS[prices.currency]}{text}" if prices.currency in _SIGNS else f"{text} {prices.currency}"
