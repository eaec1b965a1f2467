"""Several sweeps side by side: models, machines or dates. Sweeps that cannot be ranked form separate groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sweeper.errors import UsageError
from sweeper.records import Kind, Prices, Reading, SweepRecord
from sweeper.report.cards import Card as Card
from sweeper.report.cards import idle_in_words, would_it_pay
from sweeper.report.caveats import why_nothing
from sweeper.report.picks import recommended
from sweeper.report.words import (
    SCOPES,
    clean,
    figure,
    fixed_settings,
    machine_name,
    power_line,
    prompts_in_words,
    sampling,
)
from sweeper.results.price import (
    DAYS_PER_YEAR,
    JOULES_PER_KWH,
    energy_and_price,
    money,
    per_hour,
    per_million_tokens,
    repriced,
)

UNRANKED = "The tables are not comparable, because sensor, workload or sampling differs."


@dataclass(frozen=True, slots=True)
class Entry:
    """The recommended trial of one sweep. Without one, the figures are None and ``reason`` says why."""

    sweep: str
    model: str
    parameters: int
    machine: str
    date: str
    group: int
    quant: str | None
    trial: int | None
    tokens_per_second: Reading | None
    prompt_tokens_per_second: Reading | None
    watts: Reading | None
    joules_per_token: Reading | None
    price_per_million_tokens: float | None
    price_per_hour: float | None
    reason: str | None
    provisional: str | None = None  # which visits of the final stage are missing; None: none


@dataclass(frozen=True, slots=True)
class Group:
    """Sweeps whose watts may be set against each other: ``rows`` are indices, fewest J/token first."""

    title: str
    kind: Kind
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Sweeps side by side. ``differences`` holds one value for each row, by the name of the fact."""

    rows: tuple[Entry, ...]
    groups: tuple[Group, ...]
    differences: Mapping[str, tuple[str, ...]]
    sentences: tuple[str, ...]
    prices: Prices
    card: Card | None = None


def compare(records: Sequence[SweepRecord], prices: Prices, card: Card | None = None) -> Comparison:
    """Set sweeps side by side, each by the trial that it recommends, at ``prices`` for all.

    Raises:
        UsageError: there is no sweep, a price is below 0, a day has more than 24 hours, or the card's figures are
            not above 0.
    """
    if not records:
        raise UsageError("nothing to compare: name the sweeps, for example `sweeper compare A B`")
    repriced(prices, prices.per_kwh, prices.hours_per_day)
    # Watts of another sensor, at another workload, or of tokens that were not sampled, cannot be ranked.
    keys = [
        (r.power.scope, r.power.name, r.power.kind, r.engine.simulated, r.engine.sampling, _workload(r))
        for r in records
    ]
    order = list(dict.fromkeys(keys))
    rows = tuple(_entry(record, order.index(key), prices) for record, key in zip(records, keys, strict=True))
    groups = tuple(_group(records, rows, number) for number in range(len(order)))
    sentences = [*_between_models(records, rows, groups)]
    if card is not None:
        for name in ("price", "tokens_per_second", "watts"):
            value = getattr(card, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"card {card.name!r}: {name} must be above 0, not {value}")
        if card.idle_watts_more is not None and not 0 <= card.idle_watts_more < math.inf:
            raise UsageError(
                f"card {card.name!r}: its idle power must be 0 W or more, not {card.idle_watts_more:g}"
            )
        sentences += [
            card_in_words(record, row, card, prices) for record, row in zip(records, rows, strict=True)
        ]
    if len(groups) > 1:
        sentences.append(UNRANKED)
    return Comparison(rows, groups, _differences(records), tuple(sentences), prices, card)


def card_in_words(record: SweepRecord, row: Entry, card: Card, prices: Prices) -> str:
    """Whether the card pays back its price in energy alone, for the tokens that are generated now.

    Without the user's own price, speed and watts, the answer is computed from the card's facts.

    The year's tokens are those of ``hours_per_day`` at today's speed. Energy of both is on one scope, or
    the sentence says that there is no break-even.
    """
    here = f"{clean(row.model)} on {clean(row.machine)} (sweep {clean(row.sweep)})"
    if row.trial is None or row.watts is None or row.tokens_per_second is None:
        return f"{clean(card.name)} against {here}: {row.reason}."
    price, card_speed, card_watts = card.price, card.tokens_per_second, card.watts
    if price is None or card_speed is None or card_watts is None:
        return would_it_pay(record, record.trial(row.trial), card, prices)
    if record.power.scope != card.scope:
        return (
            f"{clean(card.name)} against {here}: no break-even, for its watts are of scope {card.scope} "
            f"({SCOPES[card.scope]}) and this sweep's of scope {record.power.scope} ({SCOPES[record.power.scope]})."
        )
    speed, watts = row.tokens_per_second.median, row.watts.median
    tokens = speed * prices.hours_per_day * 3600 * DAYS_PER_YEAR
    saved_kwh = tokens * (watts / speed - card_watts / card_speed) / JOULES_PER_KWH
    # The card waits in all hours of a year but those that it needs for the same tokens.
    busy = min(24.0, prices.hours_per_day * speed / card_speed)
    saved_kwh -= (card.idle_watts_more or 0.0) * (24.0 - busy) * DAYS_PER_YEAR / 1000
    energy, cost = energy_and_price(abs(saved_kwh), prices)
    hours = prices.hours_per_day
    finishes = f"it finishes your {hours:g} h of work in {_duration(hours * speed / card_speed)}"
    doubtful = [kind for kind in dict.fromkeys((record.power.kind, card.kind)) if kind != "measured"]
    kinds = f"; watts are {' and '.join(doubtful)}" if doubtful else ""
    saved = saved_kwh * prices.per_kwh
    uses = f"and uses {energy} ({cost}) less" if saved_kwh > 0 else f"but uses {energy} ({cost}) more"
    pays = f"pays for itself after {price / saved:.1f} years" if saved > 0 else "never pays for itself"
    return (
        f"{clean(card.name)} for {money(price, prices)} against {here}: {finishes} {uses} a year: it {pays} "
        f"({prices.per_kwh:g} {clean(prices.currency)} per kWh{kinds}). {idle_in_words(card)}"
    )


def _duration(hours: float) -> str:
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.2g} h"


def _workload(record: SweepRecord) -> str:
    w = record.workload
    depth = (
        "as deep as fits" if w.depth is None else f"after {w.depth} others" if w.depth else "empty context"
    )
    users = f", {w.users} users" if w.users > 1 else ""
    prompts = prompts_in_words(w)
    return f"{prompts}, {w.generated_tokens} generated, {depth}{users}"


def _entry(record: SweepRecord, group: int, prices: Prices) -> Entry:
    best = recommended(record)
    trial = best.trial if best else None
    metrics = trial.metrics if trial else {}
    joules, watts = metrics.get("joules_per_token"), metrics.get("watts")
    why = "" if any(t.feasible for t in record.trials) else f": {why_nothing(record)}"
    reason = None if trial else f"no recommendation yet{why}"
    absent = next((m for m in ("tokens_per_second", "watts") if m not in metrics), None)
    if trial and absent:
        reason = f"{absent} is missing: {trial.missing.get(absent, 'not measured')}"
    return Entry(
        sweep=record.sweep,
        model=record.model.name,
        parameters=record.model.parameters,
        machine=machine_name(record),
        date=(record.updated_utc or record.started_utc)[:10],
        group=group,
        quant=(trial.configuration.quant or record.model.base_quant) if trial else None,
        trial=trial.number if trial else None,
        tokens_per_second=metrics.get("tokens_per_second"),
        prompt_tokens_per_second=metrics.get("prompt_tokens_per_second"),
        watts=watts,
        joules_per_token=joules,
        price_per_million_tokens=per_million_tokens(joules.median, prices) if joules else None,
        price_per_hour=per_hour(watts.median, prices) if watts else None,
        reason=reason,
        provisional=best.provisional if best else None,
    )


def _group(records: Sequence[SweepRecord], rows: Sequence[Entry], number: int) -> Group:
    members = [index for index, row in enumerate(rows) if row.group == number]
    first = records[members[0]]

    def joules(index: int) -> float:
        reading = rows[index].joules_per_token
        return float("inf") if reading is None else reading.median

    title = f"watts: {power_line(first.power)} · workload: {_workload(first)}"
    if len({record.engine.sampling for record in records}) > 1:
        title += f" · tokens {sampling(first)}"
    return Group(title, first.power.kind, tuple(sorted(members, key=joules)))


_FACTS: dict[str, Callable[[SweepRecord], str]] = {
    "processor": lambda r: r.machine.cpu,
    "cores": lambda r: str(r.machine.physical_cores),
    "memory": lambda r: f"{r.machine.memory_mib / 1024:.0f} GiB",
    "GPU": lambda r: " + ".join(gpu.name for gpu in r.machine.gpus) or "none",
    "driver": lambda r: ", ".join(dict.fromkeys(gpu.driver for gpu in r.machine.gpus)) or "none",
    "kernel": lambda r: r.machine.kernel,
    "fingerprint": lambda r: r.machine.fingerprint,
    "engine": lambda r: f"{r.engine.name} {r.engine.version}",
    "tokens are": sampling,
    "sensor": lambda r: f"{r.power.name} ({r.power.interface})",
    "scope": lambda r: r.power.scope,
    "watts are": lambda r: r.power.kind,
    "workload": _workload,
    "pick": lambda r: r.pick,
    "fixed settings": lambda r: fixed_settings(r) or "none",
}


def _differences(records: Sequence[SweepRecord]) -> dict[str, tuple[str, ...]]:
    found = {name: tuple(clean(fact(record)) for record in records) for name, fact in _FACTS.items()}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _between_models(
    records: Sequence[SweepRecord], rows: Sequence[Entry], groups: Sequence[Group]
) -> Iterator[str]:
    """A sentence for each two models of different size on one machine and sensor."""
    for group in groups:
        by_size = sorted(group.rows, key=lambda index: rows[index].parameters)
        for small, large in pairwise(by_size):
            same_machine = records[small].machine.fingerprint == records[large].machine.fingerprint
            if same_machine and rows[small].parameters < rows[large].parameters:
                yield from _smaller(rows[small], rows[large], group.kind)


def _smaller(small: Entry, large: Entry, kind: Kind) -> Iterator[str]:
    a, b, c, d = small.watts, large.watts, small.tokens_per_second, large.tokens_per_second
    if a is None or b is None or c is None or d is None:
        return
    label = "" if kind == "measured" else f" {kind}"
    how = "less than" if a.high < b.low else "more than" if a.low > b.high else "the same within noise as"
    ratio = (a.median / c.median) / (b.median / d.median)
    yield (
        f"{clean(small.model)} ({_size(small)}) draws {how} {clean(large.model)} ({_size(large)}) while it "
        f"generates: {figure(a.median)} against {figure(b.median)} W{label}, at ×{c.median / d.median:.2g} "
        f"its speed and ×{ratio:.2g} its J/token{label}. What is lost is the larger model's answers: a sweep "
        "measures quality between quantisations of one model, not between models."
    )


def _size(row: Entry) -> str:
    if row.parameters >= 1e9:
        return f"{row.parameters / 1e9:.3g}B"
    return f"{row.parameters / 1e6:.3g}M"
