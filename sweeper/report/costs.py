"""What a figure means in money and against the memory's limit. Pure arithmetic on a record."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweeper.records import Prices, SweepRecord, TrialRecord

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


# Large copies and plain reading reach this machine's bandwidth within about a tenth, beside other work.
BANDWIDTH_ERROR = 1.1


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The decode speed that memory bandwidth allows in tok/s, and the share of it that was reached.

    ``least_share`` is that of the low end of the speed's interval.
    """

    tokens_per_second: float
    share: float
    least_share: float

    @property
    def cannot_be_true(self) -> bool:
        """Whether the speed lies above the ceiling by more than its noise and what a measured bandwidth errs by."""
        return self.least_share > BANDWIDTH_ERROR


def ceiling(record: SweepRecord, trial: TrialRecord) -> Ceiling | str:
    """The ceiling of one trial, or the reason why it is not known.

    Bytes read for each token are taken as the model file's size: weights only, so with a long context the
    true ceiling is a little lower, and a little higher where the embedding table is a large part of it.
    """
    bandwidth = record.machine.memory_bandwidth_gb_per_second
    speed = trial.metrics.get("tokens_per_second")
    file = record.model.files.get(trial.configuration.quant or record.model.base_quant)
    if trial.configuration.n_gpu_layers != 0 and record.engine.gpu_offload:
        return "layers run on a GPU, whose memory bandwidth was not measured"
    if record.engine.simulated:
        return "the machine is simulated"
    if record.model.expert_count:
        return "a mixture of experts reads only a part of its weights for each token"
    if bandwidth is None:
        return "this machine's memory bandwidth was not measured"
    if speed is None or file is None or file.size_bytes <= 0:
        return "the speed or the model file's size is not known"
    limit = bandwidth * 1e9 / file.size_bytes
    return Ceiling(limit, speed.median / limit, speed.low / limit)
