"""Energy and money costs of figures, and the price of a trial compared with the baseline, in words."""

from __future__ import annotations

import math

from sweeper.metrics import describe
from sweeper.records import Prices, SweepRecord, TrialRecord
from sweeper.results.front import too_noisy, within_noise
from sweeper.results.objectives import amount_words, cost_metric, speed_metric

JOULES_PER_KWH = 3.6e6
DAYS_PER_YEAR = 365
_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£"}


def price_in_words(record: SweepRecord, trial: TrialRecord) -> str:
    """Describe the gains and costs of ``trial``, compared with the sweep's baseline, in words.

    For example ``compared with the baseline: -3 % speed, -28 % watts, 31 kWh and €9 less a year at 4 h a day``.

    Both energy figures are for the same tokens: those that the baseline generates on 365 days, in the hours a day of
    ``record.prices``. The baseline's energy is watts x hours. The trial's energy is that times the ratio of the two
    J/token (watts / tok/s). The power of the waiting machine is not included. A difference within the noise of both is
    called "same within noise". Estimated or simulated watts are labelled.
    """
    label = {"measured": "", "mixed": " (partly estimated)"}.get(record.power.kind, f" ({record.power.kind})")
    shown = [m for m in (speed_metric(record), cost_metric(record)) if m and m in trial.metrics]
    base = None if record.baseline is None else record.trial(record.baseline)
    absolute = ", ".join(f"{amount_words(trial, m)}{label if describe(m).power else ''}" for m in shown)
    if base is None or base.state != "complete" or not all(m in base.metrics for m in shown):
        return f"{absolute}; no baseline to compare with"
    if base.number == trial.number:
        return "this is the engine's default configuration, the baseline"
    if any(too_noisy(t.metrics[m]) for t in (base, trial) for m in shown):
        return f"{absolute}; too noisy to compare with the baseline"
    parts = [f"{_change(base, trial, m)}{label if describe(m).power else ''}" for m in shown]
    prefix = "prompt_" if speed_metric(record) == "prompt_tokens_per_second" else ""
    if energy := _energy_words(base, trial, record.prices, prefix):
        parts.append(energy + label)
    return f"compared with the baseline: {', '.join(parts)}"


def _change(base: TrialRecord, trial: TrialRecord, metric: str) -> str:
    name = describe(metric).short
    if within_noise(base.metrics[metric], trial.metrics[metric]):
        return f"same {name} within noise"
    before, after = base.metrics[metric].median, trial.metrics[metric].median
    return f"{name} {before:g} → {after:g}" if before == 0 else f"{(after / before - 1) * 100:+.0f} % {name}"


def _energy_words(base: TrialRecord, trial: TrialRecord, prices: Prices, prefix: str) -> str:
    """The difference in energy and money a year to the baseline; empty if a figure is missing or noise hides it."""
    power, speed = f"{prefix}watts", f"{prefix}tokens_per_second"
    if not all(m in t.metrics and t.metrics[m].median > 0 for t in (base, trial) for m in (power, speed)):
        return ""
    if all(within_noise(base.metrics[m], trial.metrics[m]) for m in (power, speed)):
        return ""
    before, after = (t.metrics[power].median / t.metrics[speed].median for t in (base, trial))
    kwh = kwh_per_year(base.metrics[power].median, prices.hours_per_day) * (after / before - 1)
    direction = "more" if kwh > 0 else "less"
    return f"{energy_words(abs(kwh), prices)} {direction} a year at {prices.hours_per_day:g} h a day"


def energy_words(kwh: float, prices: Prices) -> str:
    """Energy and its price, for example ``31 kWh and €9.30``: two digits each, for no sensor supports more."""
    energy, cost = (float(f"{amount:.2g}") for amount in (kwh, kwh * prices.per_kwh))
    return f"{energy:g} kWh and {money(cost, prices)}"


def per_million_tokens(joules_per_token: float, prices: Prices) -> float:
    """The energy cost of a million tokens: J/token × 0.2778 × price per kWh."""
    return joules_per_token * 1e6 / JOULES_PER_KWH * prices.per_kwh


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
