"""Prefill and decode apart, what they cost, and how near the memory's limit they come."""

from __future__ import annotations

from sweeper.metrics import describe
from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.picks import marks, recommended
from sweeper.report.pieces import Cell, facts, paragraph, section, table
from sweeper.report.words import MISSING, figure, figures, is_doubtful
from sweeper.results.ceiling import Ceiling, ceiling
from sweeper.results.price import kwh_per_year, money, per_hour, per_million_tokens

PHASES = (
    ("prefill", "prompt_tokens_per_second", "prompt_watts", "prompt_joules_per_token"),
    ("decode", "tokens_per_second", "watts", "joules_per_token"),
)


def compared(record: SweepRecord) -> list[tuple[str, TrialRecord]]:
    """The baseline and each trial that was picked, with the names they go by."""
    named = dict(marks(record))
    rows = []
    if record.baseline is not None:
        names = ("baseline", *named.pop(record.baseline, ()))
        rows.append((", ".join(names), record.trial(record.baseline)))
    rows += [(", ".join(names), record.trial(number)) for number, names in named.items()]
    return [(names, trial) for names, trial in rows if trial.metrics]


def phases(record: SweepRecord) -> str:
    """Reading the prompt and writing the answer, side by side: their best settings differ."""
    rows = compared(record)
    if not rows:
        return ""
    kind = f" {record.power.kind}" if is_doubtful(record.power) else ""
    heads = ["", "tok/s", f"W{kind}", f"J/token{kind}", f"per million tokens{kind}"]
    cells: list[list[Cell]] = [
        [(phase, names), *_phase(record, trial, speed, watts, joules)]
        for names, trial in rows
        for phase, speed, watts, joules in PHASES
    ]
    extra = ("time_to_first_token_seconds", "request_seconds", "memory_mib", "vram_mib")
    shown = [m for m in extra if any(m in t.metrics and t.metrics[m].median for _, t in rows)]
    requests = table(
        ["", *(f"{describe(m).title} ({describe(m).unit})" for m in shown)],
        [[names, *(figures(t, m) for m in shown)] for names, t in rows],
    )
    w = record.workload
    said = (
        f"Prefill reads a prompt of {w.prompt_tokens} tokens; decode writes {w.generated_tokens}, one by one."
    )
    return section("phases", "Prefill and decode apart", paragraph(said) + table(heads, cells) + requests)


def _phase(record: SweepRecord, trial: TrialRecord, speed: str, watts: str, joules: str) -> list[str]:
    reading = trial.metrics.get(joules)
    price = MISSING
    if reading is not None:
        price = money(per_million_tokens(reading.median, record.prices), record.prices)
    return [*(figures(trial, metric) for metric in (speed, watts, joules)), price]


def money_section(record: SweepRecord) -> str:
    """An hour, a year and a rest in energy and money."""
    rows = compared(record)
    prices = record.prices
    kind = f" ({record.power.kind})" if is_doubtful(record.power) else ""
    entries = []
    for names, trial in rows:
        watts = trial.metrics.get("watts")
        if watts is None:
            continue
        yearly = kwh_per_year(watts.median, prices.hours_per_day)
        entries.append(
            (
                f"{names}, generating{kind}",
                f"{money(per_hour(watts.median, prices), prices)} an hour; {yearly:.0f} kWh and "
                f"{money(yearly * prices.per_kwh, prices)} a year at {prices.hours_per_day:g} h a day",
            )
        )
    if record.idle_watts is not None:
        entries.append((f"machine at rest{kind}", _around_the_clock(record, record.idle_watts.median)))
    best = recommended(record)
    resident = best.trial.metrics.get("resident_watts") if best else None
    if best and resident:
        entries.append(
            (f"{best.pick}, loaded and idle{kind}", _around_the_clock(record, resident.median)),
        )
    if not entries:
        return ""
    said = f"At {prices.per_kwh:g} {prices.currency} per kWh (prices.per_kwh), for what this sensor sees. "
    said += "Here each runs for the same hours; what a pick saves, above, is for the same tokens."
    return section("costs", "What it costs", paragraph(said, "soft") + facts(entries))


def _around_the_clock(record: SweepRecord, watts: float) -> str:
    kwh = kwh_per_year(watts, 24)
    price = money(kwh * record.prices.per_kwh, record.prices)
    return f"{figure(watts)} W; around the clock {kwh:.0f} kWh and {price} a year"


AT_THE_LIMIT = "at the limit, as far as both were measured"


def ceiling_section(record: SweepRecord) -> str:
    """How near decode comes to what the memory can deliver."""
    rows = compared(record)
    entries, reasons = [], []
    for names, trial in rows:
        found = ceiling(record, trial)
        if isinstance(found, Ceiling):
            why = "so small a model may stay in the processor's caches" if found.cached else AT_THE_LIMIT
            at_it = f": {why}" if found.share > 1 else ""
            note = ": more than can be true" if found.cannot_be_true else at_it
            entries.append((names, f"{found.share:.0%} of {figure(found.tokens_per_second)} tok/s{note}"))
        else:
            reasons.append(found)
    if not rows:
        return ""
    said = (
        "Each generated token reads the weights once, so memory bandwidth over the model file's size bounds "
        "decode speed. The context's own bytes are left out: deep contexts lie a little lower."
    )
    body = paragraph(said, "soft") + facts(entries) if entries else ""
    body += "".join(paragraph(f"Not known: {reason}.") for reason in dict.fromkeys(reasons))
    return section("ceiling", "How near the memory's limit", body)
