"""Would another graphics card pay? Computed from the figures that vendors publish: nothing here was measured.

``cards.csv`` lists common cards. Its figures were written down from memory of the named specifications, and not checked
against them. The user's own figures take precedence.
"""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

from sweeper.errors import UsageError
from sweeper.records import Kind, Prices, Scope, SweepRecord, TrialRecord
from sweeper.report.words import SCOPES, clean
from sweeper.results.ceiling import MOST_CACHED_BYTES
from sweeper.results.price import energy_and_price, kwh_per_year, money

# The share of the memory bandwidth that llama.cpp uses while it generates. Results of `llama-bench` for a 7B model in
# Q4_0 (3.8 GB), as people published them in discussion 4167 of llama.cpp's repository: 14 tok/s at 68 GB/s (Apple M1,
# 78 %), 36 at 200 (M1 Pro, 69 %), 61 at 400 (M1 Max, 58 %), 94 at 800 (M2 Ultra, 45 %). The faster the memory, the more
# of each token's time is spent elsewhere, so the low end falls.
MOST_SHARE, LEAST_SHARE, LEAST_SHARE_OF_FAST = 0.85, 0.5, 0.35
FAST_GB_PER_SECOND = 600
# Beside weights and KV cache: the driver's context and llama.cpp's compute buffers. A rough figure for one user.
OVERHEAD_BYTES = 0.8 * 2**30
BYTES_PER_KV_ELEMENT = 2  # f16, llama.cpp's default
GIB = 2**30


@dataclass(frozen=True, slots=True)
class CardFacts:
    """A card in its vendor's figures. ``board_watts`` is its most; None if the vendor states none."""

    name: str
    memory_gib: float
    bandwidth_gb_per_second: float
    board_watts: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Card:
    """Another card or machine. The figures are the user's; with ``facts``, those that are None are computed.

    ``watts`` are of ``scope``; ``idle_watts_more`` is the machine's extra power at rest with the card. None: the user
    gave none, and sweeper has no source for it, so an answer leaves it out and says so.
    """

    name: str
    price: float | None
    tokens_per_second: float | None
    watts: float | None
    scope: Scope
    kind: Kind = "measured"
    idle_watts_more: float | None = None
    facts: CardFacts | None = None

    @property
    def is_known_to_the_user(self) -> bool:
        """Whether the user gave every figure, so that none has to be computed."""
        return None not in (self.price, self.tokens_per_second, self.watts)


@cache
def known_cards() -> tuple[CardFacts, ...]:
    """The cards of ``cards.csv``."""
    text = (resources.files("sweeper.report") / "cards.csv").read_text("utf-8")
    return tuple(
        CardFacts(
            row["name"],
            float(row["memory_gib"]),
            float(row["bandwidth_gb_per_second"]),
            float(row["board_watts"]) if row["board_watts"] else None,
            row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def find_card(name: str) -> CardFacts:
    """The card of that name: ``rtx3060``, ``3060`` and ``NVIDIA GeForce RTX 3060`` are one.

    Raises:
        UsageError: the table has no such card; the message names the closest.
    """
    by_key = {_key(card.name): card for card in known_cards()}
    wanted = _key(name)
    found = [
        card for key, card in by_key.items() if wanted in (key, key.lstrip("abcdefghijklmnopqrstuvwxyz"))
    ]
    if wanted and len(found) == 1:
        return found[0]
    close = [by_key[key].name for key in difflib.get_close_matches(wanted, by_key, n=5, cutoff=0.6)]
    closest = f"; the closest are {', '.join(close)}" if close else ""
    raise UsageError(
        f"--card {name!r} is not in sweeper's table of cards{closest}; for another card, give --card-price, "
        "--card-speed and --card-watts"
    )


def _key(name: str) -> str:
    plain = re.sub(
        r"nvidia|geforce|amd|radeon|intel|apple|tesla|mac(book|mini)?\b|\(r\)|\(tm\)", "", name.lower()
    )
    return re.sub(r"[^a-z0-9]", "", plain)


def speed_range(record: SweepRecord, trial: TrialRecord, facts: CardFacts) -> tuple[float, float | None]:
    """The computed decode speed on a card in tok/s, from least to most, by the bytes that each token reads.

    These are the weights, of a mixture of experts only the active ones, and the KV cache at the workload's depth. The
    most is None if the record does not say which part of its experts a model uses.
    """
    model, bandwidth = record.model, facts.bandwidth_gb_per_second * 1e9
    depth = record.workload.depth_at(trial.configuration.n_ctx) + record.workload.generated_tokens
    cache_bytes = BYTES_PER_KV_ELEMENT * (model.kv_elements or 0) * depth
    share = model.active_share or (None if model.expert_count else 1.0)
    size = model.file(trial.configuration.quant).size_bytes
    fast = facts.bandwidth_gb_per_second > FAST_GB_PER_SECOND
    least = (LEAST_SHARE_OF_FAST if fast else LEAST_SHARE) * bandwidth / (size * (share or 1.0) + cache_bytes)
    return least, None if share is None else MOST_SHARE * bandwidth / (size * share + cache_bytes)


def needed_bytes(record: SweepRecord, trial: TrialRecord) -> float:
    """The memory that a card needs to hold the whole model with the context of ``trial``, computed."""
    cache_bytes = BYTES_PER_KV_ELEMENT * (record.model.kv_elements or 0) * trial.configuration.n_ctx
    return record.model.file(trial.configuration.quant).size_bytes + cache_bytes + OVERHEAD_BYTES


def would_it_pay(record: SweepRecord, trial: TrialRecord, card: Card, prices: Prices) -> str:
    """Whether a card of the table would pay for itself in electricity, in one sentence that is labelled computed.

    ``trial`` has speed and watts. Its year has ``hours_per_day`` of generating; the card generates the same tokens.
    """
    facts = card.facts
    if facts is None:
        raise ValueError("only a card of the table has facts to compute with")
    head = f"Would the {clean(facts.name)} pay for {clean(record.model.name)} (sweep {clean(record.sweep)})? Computed: "
    needed, size = needed_bytes(record, trial), record.model.file(trial.configuration.quant).size_bytes
    if size <= 0:
        return f"{head}nothing can be said, for the size of the model file is not known."
    room = f"{_rough(needed / GIB)} of {facts.memory_gib:g} GiB"
    if needed > facts.memory_gib * GIB:
        return f"{head}it would not pay, for the model does not fit: it needs about {room}."
    given = card.tokens_per_second
    slow, fast = (given, given) if given else speed_range(record, trial, facts)
    now = trial.metrics["tokens_per_second"].median
    speeds = f"at least {_rough(slow)}" if fast is None else _range(_rough(slow), _rough(fast))
    verdict, energy = _verdict(trial, card, prices, now, (slow, fast or slow))
    parts = [
        f"{head}{verdict}.",
        f"It fits (about {room}) and would generate {speeds} tok/s instead of {_rough(now)}.",
        f"{energy}.",
    ]
    if facts.board_watts and not card.watts:
        parts.append("That is the card alone: the power of the PC around it is not included.")
    if facts.board_watts or card.watts:
        parts.append(idle_in_words(card))
    if not record.engine.simulated:
        kind = "" if record.power.kind == "measured" else f"{record.power.kind} "
        parts.append(f"Your {kind}watts cover {SCOPES[record.power.scope]}.")
    if size < MOST_CACHED_BYTES and given is None:
        parts.append("So small a model is limited by more than memory: expect fewer tok/s.")
    return " ".join(parts)


def idle_in_words(card: Card) -> str:
    """Whether an answer counts the card's power at rest, in one sentence."""
    if card.idle_watts_more is None:
        return "The card's idle power is left out, because sweeper has no figure for it: give yours with --card-idle W."
    return f"The card's idle power is counted as {card.idle_watts_more:g} W, which is your figure."


def _rough(value: float) -> str:
    """Two digits, for no computed range supports more."""
    return f"{float(f'{value:.2g}'):g}"


def _verdict(
    trial: TrialRecord, card: Card, prices: Prices, now: float, speeds: tuple[float, float]
) -> tuple[str, str]:
    """The answer, and the energy behind it as the end of a sentence."""
    watts = card.watts or (card.facts and card.facts.board_watts)
    hours = prices.hours_per_day
    if not watts:
        return "nobody can say, for its power is not published", "Give it with --card-watts"
    before = kwh_per_year(trial.metrics["watts"].median, hours)

    def saved(speed: float) -> float:
        busy = min(24.0, hours * now / speed)
        idle = kwh_per_year(card.idle_watts_more or 0.0, 24.0 - busy)
        return before - kwh_per_year(watts, busy) - idle

    least, most = (saved(speed) for speed in speeds)
    label = f"At {'your' if card.watts else 'its board power of'} {watts:g} W"
    work = f"a year for the work of your {hours:g} h a day"
    if most <= 0 or prices.per_kwh == 0:
        more = "more" if most <= 0 else "less"
        amounts = _amounts(-most, -least, prices) if most <= 0 else _amounts(least, most, prices)
        return "it never pays for itself in electricity", f"{label}, it would use {amounts} {more} {work}"
    if least <= 0:
        loss, gain = (" and ".join(energy_and_price(abs(kwh), prices)) for kwh in (least, most))
        either = f"{label}, it would use {loss} more, or up to {gain} less, {work}"
        return "it hardly pays for itself in electricity", either
    saving = f"{label}, it would save {_amounts(least, most, prices)} {work}"
    years = [
        (card.price / (kwh * prices.per_kwh)) if card.price else 10 * kwh * prices.per_kwh
        for kwh in (most, least)
    ]
    if card.price:
        return f"it pays for itself after {_range(*(f'{y:.1f}' for y in years))} years", saving
    return (
        f"in ten years it saves {_range(*(money(y, prices) for y in reversed(years)))} of electricity",
        saving,
    )


def _amounts(low: float, high: float, prices: Prices) -> str:
    """Energy and its price from ``low`` to ``high``: ``12 to 20 kWh (€3.60 to €6.00)``."""
    (less, cheap), (more, dear) = energy_and_price(low, prices), energy_and_price(high, prices)
    return f"{_range(less.removesuffix(' kWh'), more.removesuffix(' kWh'))} kWh ({_range(cheap, dear)})"


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
