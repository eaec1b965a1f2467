"""The page's tables and lists as plain data; templates/page.html.j2 turns them into HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sweeper.metrics import describe
from sweeper.records import Reading, SweepRecord, TrialRecord
from sweeper.report.caveats import lost_trials, reason
from sweeper.report.front_rows import front_rows
from sweeper.report.picks import marks, recommended
from sweeper.report.words import (
    MISSING,
    SCOPES,
    STATES,
    TRUST,
    baseline_of,
    change,
    disturbed,
    figure,
    figures,
    head,
    is_doubtful,
    model_line,
    moment,
    outcome,
    own_settings,
    parts,
    power_line,
    spread,
    unfinished,
)
from sweeper.results.ceiling import Ceiling, ceiling
from sweeper.results.price import kwh_per_year, money, per_hour, per_million_tokens

PHASES = (
    ("prefill", "prompt_tokens_per_second", "prompt_watts", "prompt_joules_per_token"),
    ("decode", "tokens_per_second", "watts", "joules_per_token"),
)
LOG_LINES = 4
AT_THE_LIMIT = "at the limit, as far as both were measured"

Facts = list[tuple[str, str]]
Cell = str | tuple[str, str]  # of two texts the second stands small below the first


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: its cells, its class, and a line that runs below all of its cells."""

    cells: Sequence[Cell]
    kind: str = ""
    below: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first ``words`` columns hold words and stand left; the others hold figures."""

    heads: Sequence[str]
    rows: Sequence[Row]
    words: int = 1


def warnings(record: SweepRecord) -> Iterator[str]:
    """Reasons to doubt the answer, for the head of the page."""
    if record.engine.simulated:
        yield "Everything here is simulated: no figure was measured on a real machine."
    elif is_doubtful(record.power):
        yield f"Watts are {TRUST[record.power.kind]}."
    yield from filter(None, (unfinished(record), disturbed(record)))


def headline(record: SweepRecord, trial: TrialRecord) -> Iterator[tuple[str, str, str, str]]:
    """The recommended trial's figures: median, title, spread with unit, change from the baseline."""
    base = baseline_of(record)
    for metric in dict.fromkeys([*(o.metric for o in record.objectives), "joules_per_token"]):
        reading = trial.metrics.get(metric)
        if reading is None:
            continue
        median, half = parts(reading)
        against = change(reading, base.metrics.get(metric)) if base is not None and base is not trial else ""
        kind = f", {record.power.kind}" if describe(metric).power and is_doubtful(record.power) else ""
        under = f"{'± ' if half else ''}{half} {describe(metric).unit}{kind}".strip()
        yield median, describe(metric).title, under, against


def front_table(record: SweepRecord) -> Table | None:
    """The baseline and the front, with changes from the baseline and each trial's settings."""
    found = front_rows(record)
    if not found:
        return None
    extra = ("joules_per_token", "prompt_tokens_per_second", "kl_divergence")
    wanted = dict.fromkeys([*(o.metric for o in record.objectives), *extra])
    metrics = [m for m in wanted if any(m in row.trial.metrics for row in found)]
    rows = []
    for row in found:
        cells: list[Cell] = [f"#{row.trial.number} {', '.join(row.names)}".strip()]
        cells += [(figures(row.trial, m), "" if describe(m).exact else row.change(m)) for m in metrics]
        kind = "pick" if row.recommended else "baseline" if row.is_baseline else ""
        rows.append(Row(cells, kind, row.settings))
    return Table(["trial", *(head(m, record.power) for m in metrics)], rows)


def compared(record: SweepRecord) -> list[tuple[str, TrialRecord]]:
    """The baseline and each trial that was picked, with their names."""
    named = dict(marks(record))
    rows = []
    if record.baseline is not None:
        names = ("baseline", *named.pop(record.baseline, ()))
        rows.append((", ".join(names), record.trial(record.baseline)))
    rows += [(", ".join(names), record.trial(number)) for number, names in named.items()]
    return [(names, trial) for names, trial in rows if trial.metrics]


def phases(record: SweepRecord) -> list[Table]:
    """Prefill and decode side by side, then whole requests; nothing without a figure."""
    trials = compared(record)
    if not trials:
        return []
    kind = f" {record.power.kind}" if is_doubtful(record.power) else ""
    rows = []
    for names, trial in trials:
        for phase, *metrics in PHASES:
            joules = trial.metrics.get(metrics[-1])
            price = (
                money(per_million_tokens(joules.median, record.prices), record.prices) if joules else MISSING
            )
            rows.append(Row([(phase, names), *(figures(trial, metric) for metric in metrics), price]))
    extra = ("time_to_first_token_seconds", "request_seconds", "memory_mib", "vram_mib")
    shown = [m for m in extra if any(m in t.metrics and t.metrics[m].median for _, t in trials)]
    return [
        Table(["", "tok/s", f"W{kind}", f"J/token{kind}", f"per million tokens{kind}"], rows),
        Table(
            ["", *(f"{describe(m).title} ({describe(m).unit})" for m in shown)],
            [Row([names, *(figures(t, m) for m in shown)]) for names, t in trials],
        ),
    ]


def costs(record: SweepRecord) -> Facts:
    """An hour and a year of each trial, and of a machine at rest, in energy and money."""
    prices = record.prices
    kind = f" ({record.power.kind})" if is_doubtful(record.power) else ""

    def around_the_clock(watts: Reading) -> str:
        kwh = kwh_per_year(watts.median, 24)
        return f"{spread(watts)} W; around the clock {kwh:.0f} kWh and {money(kwh * prices.per_kwh, prices)} a year"

    entries = []
    for names, trial in compared(record):
        if watts := trial.metrics.get("watts"):
            yearly = kwh_per_year(watts.median, prices.hours_per_day)
            cost = (
                f"{money(per_hour(watts.median, prices), prices)} an hour; {yearly:.0f} kWh and "
                f"{money(yearly * prices.per_kwh, prices)} a year at {prices.hours_per_day:g} h a day"
            )
            entries.append((f"{names}, generating{kind}", cost))
    if record.idle_watts is not None:
        entries.append((f"machine at rest{kind}", around_the_clock(record.idle_watts)))
    best = recommended(record)
    if best and (resident := best.trial.metrics.get("resident_watts")):
        entries.append((f"{best.pick}, loaded and idle{kind}", around_the_clock(resident)))
    return entries


def ceilings(record: SweepRecord) -> tuple[Facts, list[str]]:
    """Each trial's share of the decode speed that memory bandwidth allows; and reasons why it is not known."""
    entries, reasons = [], []
    for names, trial in compared(record):
        found = ceiling(record, trial)
        if isinstance(found, Ceiling):
            why = "so small a model may stay in the processor's caches" if found.cached else AT_THE_LIMIT
            note = "more than can be true" if found.cannot_be_true else why if found.share > 1 else ""
            share = f"{found.share:.0%} of {figure(found.tokens_per_second)} tok/s"
            entries.append((names, f"{share}: {note}" if note else share))
        else:
            reasons.append(found)
    return entries, list(dict.fromkeys(reasons))


def lost(record: SweepRecord, most: int) -> Table:
    """The first ``most`` trials that do not count, each with its reason, settings and last log lines."""
    rows = []
    for t in lost_trials(record)[:most]:
        log = " / ".join(t.log_tail[-LOG_LINES:])
        below = own_settings(record, t) + (f" · the engine's last words: {log}" if log else "")
        rows.append(Row([f"#{t.number}", STATES[outcome(t)], reason(t)], below=below))
    return Table(["trial", "state", "reason"], rows, words=3)


def setting(record: SweepRecord) -> Facts:
    """The model, the machine, the sensor and how far to trust it."""
    m, power, w = record.machine, record.power, record.workload
    bandwidth = m.memory_bandwidth_gb_per_second
    period = power.update_period_seconds
    return [
        ("model", model_line(record)),
        ("processor", f"{m.cpu}: {m.physical_cores} cores, {m.logical_cores} threads"),
        ("memory", f"{m.memory_mib / 1024:.1f} GiB" + (f", reads {bandwidth:.1f} GB/s" if bandwidth else "")),
        *(("GPU", f"{gpu.name}, driver {gpu.driver}") for gpu in m.gpus),
        ("kernel", m.kernel),
        ("fingerprint", m.fingerprint),
        ("engine", f"{record.engine.name} {record.engine.version} {record.engine.build}".strip()),
        ("sensor", power_line(power)),
        ("how far to trust it", TRUST[power.kind] + (f"; {power.note}" if power.note else "")),
        ("scope", SCOPES[power.scope]),
        ("new reading every", f"{period * 1000:.0f} ms" if period else MISSING),
        ("workload", f"{w.name}: {w.prompt_tokens} prompt tokens, {w.generated_tokens} generated"),
        ("constraints", ", ".join(map(str, record.constraints)) or "none"),
    ]


def origin(record: SweepRecord) -> Facts:
    """Versions and files that a repeat of the sweep needs."""
    file = record.model.files.get(record.model.base_quant)
    return [
        ("sweeper", record.sweeper_version or MISSING),
        ("engine", f"{record.engine.name} {record.engine.version}"),
        ("model file", (file.path if file else "") or MISSING),
        ("its SHA-256", (file.sha256 if file else "") or MISSING),
        ("measured", f"{moment(record.started_utc)} to {moment(record.updated_utc)}"),
    ]
