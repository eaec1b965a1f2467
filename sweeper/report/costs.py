"""What a figure means in money. Pure arithmetic."""

from __future__ import annotations

import math

from sweeper.records import Prices

JOULES_PER_KWH = 3.6e6
HOURS_PER_YEAR = 24 * 365
DAYS_PER_YEAR = 365
_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£"}


def per_million_tokens(joules_per_token: float, prices: Prices) -> float:
    """What a million tokens cost in energy: J/token × 0.2778 × price per kWh."""
    return joules_per_token * 1e6 / JOULES_PER_KWH * prices.per_kwh


def per_hour(watts: float, prices: Prices) -> float:
    """What an hour at ``watts`` costs."""
    return watts / 1000 * prices.per_kwh


def kwh_per_year(watts: float, hours_per_day: float) -> float:
    """Energy of a year at ``watts`` for so many hours a day, in kWh."""
    return watts / 1000 * hours_per_day * DAYS_PER_YEAR


def money(amount: float, prices: Prices) -> str:
    """An amount in the user's currency, ``€0.42`` or ``0.42 CHF``; small ones in two digits."""
    size = abs(amount)
    digits = 0 if size >= 100 else 2 if size >= 0.1 or size == 0 else min(6, 1 - math.floor(math.log10(size)))
    text = f"{amount:.{digits}f}"
    return f"{_SIGNS[prices.currency]}{text}" if prices.currency in _SIGNS else f"{text} {prices.currency}"
