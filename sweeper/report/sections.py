"""The sections of a report as tables and lists of facts; HTML, markdown and the terminal write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sweeper.metrics import METRICS, OF_USERS, describe
from sweeper.records import SweepRecord, TrialRecord
from sweeper.report import words
from sweeper.report.caveats import lost_trials, reason, why_nothing
from sweeper.report.picks import current, labels, next_commands, recommended
from sweeper.report.tables import Facts, Row, Table
from sweeper.results.ceiling import Ceiling, ceiling
from sweeper.results.contexts import baseline_name, default_at
from sweeper.results.front import too_noisy
from sweeper.results.price import (
    energy_words,
    kwh_per_year,
    money,
    month_of,
    per_hour,
    per_million_tokens,
    same_tokens,
    yearly_kwh,
)
from sweeper.results.provisional import comparable

PHASES = (
    ("prefill", "prompt_tokens_per_second", "prompt_watts", "prompt_joules_per_token"),
    ("decode", "tokens_per_second", "watts", "joules_per_token"),
)
# Metrics beside the objectives in the table of the front, and how soon a narrow terminal drops them.
EXTRA = {"joules_per_token": 1, "prompt_tokens_per_second": 2, "draft_acceptance": 3, "kl_divergence": 4}
LEGEND = (
    "±: the larger distance from the figure to an end of its 95 % confidence interval; ± ?: measured only once. "
    "Decode is generating text; prefill is reading the prompt."
)
AGAINST = " Percentages compare with {}. The line below each trial lists the settings that differ from the baseline."
FRONT = "The Pareto front holds the trials that no other trial beats beyond noise."
QUALITY = (
    "KL divergence: how far answers move from those of the most precise file (0: not at all), in nats/token"
)
SAME_TOP = "same top: how often the most likely token is the same"
# Versions that measured no top-token agreement read this many tokens of another text.
OLD_QUALITY_TOKENS = 256
ACCEPTED = "Accepted: the share of the tokens drafted by speculation that the model accepted (0 to 1)."
LOG_LINES = 4
AT_THE_LIMIT = "at the limit, as far as both were measured"


def headline(record: SweepRecord, trial: TrialRecord) -> Iterator[tuple[str, str, str, str]]:
    """The recommended trial's figures: median, title, spread with unit, change from the baseline."""
    base = default_at(record, trial)
    for metric in dict.fromkeys([*(o.metric for o in record.objectives), "joules_per_token"]):
        reading = trial.metrics.get(metric)
        if reading is None:
            continue
        median, half = words.parts(reading)
        half = "" if describe(metric).exact or too_noisy(reading) else half
        against = ""
        if base is not None and base is not trial and comparable(base, trial):
            against = words.change(reading, base.metrics.get(metric))
        if against and not (describe(metric).exact and against == "0 %"):
            against += " to compare with" if against == words.TOO_NOISY else ", compared with"
            against += f" {baseline_name(record)}"
        else:
            against = ""
        under = (
            f"{'± ' if half else ''}{half} {describe(metric).unit}{words.doubt(record.power, metric)}".strip()
        )
        if not describe(metric).exact and too_noisy(reading):
            under += f", {words.NOT_USABLE}"
        yield median, describe(metric).title, under, against


def front_trials(record: SweepRecord) -> list[TrialRecord]:
    """The front in its order; a baseline that is not on it comes first."""
    base = words.baseline_of(record)
    return [*([base] if base is not None and base.number not in record.front else []), *record.on_front()]


def front_table(record: SweepRecord) -> Table | None:
    """The baseline and the front, with changes from the baseline and each trial's settings."""
    trials = [trial for trial in front_trials(record) if trial.metrics]
    if not trials:
        return None
    base, best, named = words.baseline_of(record), current(record), labels(record)
    objectives = [objective.metric for objective in record.objectives]
    wanted = dict.fromkeys([*objectives, *EXTRA])
    metrics = [m for m in wanted if any(m in trial.metrics for trial in trials)]
    rows = []
    for trial in trials:
        is_base = trial is base
        chosen = best if best is not None and not best.nearest and trial is best.trial else None
        off = bool(record.front) and trial.number not in record.front
        place = "baseline, not on the Pareto front" if off else "baseline"
        names = (*((place,) if is_base else ()), *named.get(trial.number, ()))
        if chosen and not chosen.recommended:
            names += ("current pick",)
        here = default_at(record, trial)
        against = {} if here is None or here is trial or not comparable(here, trial) else here.metrics
        cells = [
            (
                words.quality(trial) if m == "kl_divergence" else words.figures(trial, m),
                "" if describe(m).exact else words.change(trial.metrics.get(m), against.get(m)),
            )
            for m in metrics
        ]
        rows.append(
            Row(
                [f"{chosen.sign if chosen else ' '} #{trial.number}", *cells],
                kind="pick" if chosen else "baseline" if is_base else "",
                below=" · ".join(filter(None, (", ".join(names), words.own_settings(record, trial)))),
            )
        )
    heads = ["  trial", *(words.head(m, record.power) + _beside(m, trials) for m in metrics)]
    stays = {*objectives, *(["kl_divergence"] if _differs(trials, "kl_divergence") else [])}
    return Table(heads, rows, gives_way=[0, *(0 if m in stays else EXTRA[m] for m in metrics)])


def _beside(metric: str, trials: Sequence[TrialRecord]) -> str:
    """What the head of the KL divergence adds where its cells hold the top-token agreement as well."""
    known = any("top_token_agreement_percent" in trial.metrics for trial in trials)
    return " · same top" if known and metric == "kl_divergence" else ""


def _differs(trials: Sequence[TrialRecord], metric: str) -> bool:
    """Whether the figures of ``metric``, as shown, are not the same in all trials."""
    return len({words.figures(trial, metric) for trial in trials}) > 1


def legend(record: SweepRecord, hidden: Sequence[str] = ()) -> str:
    """The meaning of the signs and words in the table of the front, but for the columns with the heads ``hidden``."""
    said = [LEGEND + ("" if record.baseline is None else AGAINST.format(baseline_name(record)))]
    if record.front:
        said.append(FRONT)
    trials = front_trials(record)

    def is_shown(metric: str) -> bool:
        known = any(metric in trial.metrics for trial in trials)
        return known and words.head(metric, record.power) + _beside(metric, trials) not in hidden

    if is_shown("kl_divergence"):
        same = [SAME_TOP] if _beside("kl_divergence", trials) else []
        said.append("; ".join([QUALITY, *same]) + f"{_over(trials)}.")
    if is_shown("draft_acceptance"):
        said.append(ACCEPTED)
    return " ".join(said)


def _over(trials: Sequence[TrialRecord]) -> str:
    """How many tokens of text the quality rests on; empty where nothing was measured.

    Figures of older versions are told apart by their 256 tokens.
    """
    counts = {t.metrics["kl_divergence"].n for t in trials if "kl_divergence" in t.metrics} - {1}
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    said = f", over {f'{least:,} to ' if least < most else ''}{most:,} tokens of text"
    mixed = least <= OLD_QUALITY_TOKENS < most
    return said + (f" ({least:,}: by an older version, on another text)" if mixed else "")


def compared(record: SweepRecord) -> list[tuple[str, TrialRecord]]:
    """The baseline and each trial that was picked, with their names."""
    named: dict[int, tuple[str, ...]] = {} if record.baseline is None else {record.baseline: ("baseline",)}
    for number, names in labels(record).items():
        named[number] = (*named.get(number, ()), *names)
    rows = [(", ".join(names), record.trial(number)) for number, names in named.items()]
    return [(names, trial) for names, trial in rows if trial.metrics]


def phases(record: SweepRecord) -> list[Table]:
    """Prefill and decode side by side, then whole requests; nothing without a figure."""
    trials = compared(record)
    if not trials:
        return []
    kind = words.doubt(record.power)
    rows = []
    for names, trial in trials:
        for phase, *metrics in PHASES:
            joules = trial.metrics.get(metrics[-1])
            price = (
                money(per_million_tokens(joules.median, record.prices), record.prices)
                if joules
                else words.MISSING
            )
            rows.append(Row([f"{phase}, {names}", *(words.figures(trial, m) for m in metrics), price]))
    extra = (*sorted(OF_USERS, key=list(METRICS).index), "draft_acceptance", "memory_mib", "vram_mib")
    told = {m for _, t in trials for m in t.metrics if t.metrics[m].median or m == "draft_acceptance"}
    shown = [m for m in extra if m in told]
    return [
        Table(["phase, trial", "tok/s", f"W{kind}", f"J/token{kind}", f"per million tokens{kind}"], rows),
        Table(
            ["trial", *(f"{describe(m).title} ({describe(m).unit})" for m in shown)],
            [Row([names, *(words.figures(t, m) for m in shown)]) for names, t in trials],
        ),
    ]


def costs(record: SweepRecord) -> Facts:
    """An hour and a year of each trial, and of a machine at rest, in energy and money.

    The year of a trial is for the tokens that the baseline generates, as in the words of a pick.
    """
    prices = record.prices
    kind = f" ({record.power.kind})" if words.doubt(record.power) else ""

    entries = []
    for names, trial in compared(record):
        if watts := trial.metrics.get("watts"):
            told = [f"{money(per_hour(watts.median, prices), prices)} an hour"]
            base = default_at(record, trial)
            if base and {"watts", "tokens_per_second"} <= trial.metrics.keys() & base.metrics.keys():
                year = energy_words(yearly_kwh(trial, base, prices), prices)
                told.append(f"{year} a year for {same_tokens(record)}")
            entries.append((f"{names}, generating{kind}", "; ".join(told)))
    waiting = [(f"machine at rest{kind}", record.idle_watts)]
    if best := recommended(record):
        waiting.append((f"{best.label}, model loaded, idle{kind}", best.trial.metrics.get("resident_watts")))
    for name, reading in waiting:
        if reading is not None:
            year = f"around the clock {energy_words(kwh_per_year(reading.median, 24), prices)} a year"
            entries.append((name, f"{words.spread(reading)} W; {year}"))
    return entries


def month(record: SweepRecord) -> str:
    """What the recommended trial costs a month, computed from its watts; empty if nothing is known of them."""
    best = recommended(record)
    cost = month_of(record, best.trial) if best else None
    if cost is None:
        return ""
    prices = record.prices
    idle = ""
    if cost.waiting is not None and prices.hours_per_day < 24:
        how = "the model loaded" if cost.waits_with_model else "no model loaded"
        idle = f", and {money(cost.waiting, prices)} idle ({how}, the other {24 - prices.hours_per_day:g} h)"
    watts = "watts" if record.power.kind == "measured" else f"{record.power.kind} watts"
    hours, per_kwh = (
        f"{prices.hours_per_day:g} h a day",
        f"{prices.per_kwh:g} {words.clean(prices.currency)} per kWh",
    )
    return (
        f"{money(cost.generating, prices)} for a month in which it generates for {hours}{idle}: "
        f"computed from {watts} of {words.SCOPES[record.power.scope]}, at {per_kwh}"
    )


def why_no_month(record: SweepRecord, is_running: bool = False) -> str:
    """Why a report has no cost of a month, and what to do, in one line; empty if it has one.

    ``is_running`` says whether a process works on the sweep now.
    """
    best = recommended(record)
    if best is not None and month_of(record, best.trial) is not None:
        return ""
    if best is not None:
        why = best.trial.missing.get("watts", record.power.note or "they were not measured")
        return (
            f"no cost: #{best.trial.number} has no watts ({words.clean(why)}); `sweeper doctor` shows how to connect a "
            "sensor, and a new sweep measures them"
        )
    command, purpose = next_commands(record)[0]
    do = f"`{command}` {purpose}"
    if is_running:
        do = "wait until the sweep ends, or press Ctrl-C there once for a provisional recommendation"
    return f"no cost yet, since nothing is recommended: {words.clean(why_nothing(record))}; {do}"


def ceilings(record: SweepRecord) -> tuple[Facts, list[str]]:
    """Each trial's share of the decode speed that memory bandwidth allows; and reasons why it is not known."""
    entries, reasons = [], []
    for names, trial in compared(record):
        found = ceiling(record, trial)
        if isinstance(found, Ceiling):
            why = "so small a model may stay in the processor's caches" if found.cached else AT_THE_LIMIT
            note = "more than can be true" if found.cannot_be_true else why if found.share > 1 else ""
            share = f"{found.share:.0%} of {words.figure(found.tokens_per_second)} tok/s"
            entries.append((names, f"{share}: {note}" if note else share))
        else:
            reasons.append(found)
    return entries, list(dict.fromkeys(reasons))


def lost(record: SweepRecord, most: int) -> Table:
    """The first ``most`` trials that do not count, each with its reason, settings and last log lines."""
    rows = []
    for t in lost_trials(record)[:most]:
        log = " / ".join(t.log_tail[-LOG_LINES:])
        below = words.own_settings(record, t) + (f" · the engine's last words: {log}" if log else "")
        rows.append(Row([f"#{t.number}", words.STATES[words.outcome(t)], reason(t)], below=below))
    return Table(["trial", "state", "reason"], rows, words=3)


def setting(record: SweepRecord) -> Facts:
    """The model, the machine, the sensor and how far to trust it."""
    m, power, w = record.machine, record.power, record.workload
    bandwidth = m.memory_bandwidth_gb_per_second
    period = power.update_period_seconds
    known = m.logical_cores > 0  # not of a server on another machine
    memory = f"{m.memory_mib / 1024:.1f} GiB" if known else words.MISSING
    return [
        ("model", words.model_line(record)),
        ("processor", f"{m.cpu}: {m.physical_cores} cores, {m.logical_cores} threads" if known else m.cpu),
        ("memory", memory + (f", reads {bandwidth:.1f} GB/s" if bandwidth else "")),
        *(("GPU", f"{gpu.name}, driver {gpu.driver}") for gpu in m.gpus),
        ("kernel", m.kernel),
        ("fingerprint", m.fingerprint),
        ("engine", f"{record.engine.name} {record.engine.version} {record.engine.build}".strip()),
        ("tokens", words.sampling(record)),
        ("watts", words.power_line(power)),
        ("how far to trust it", words.TRUST[power.kind] + (f"; {power.note}" if power.note else "")),
        ("sensor reading every", f"{period * 1000:.0f} ms" if period else words.MISSING),
        (
            "workload",
            f"{w.name}: {words.prompts_in_words(w)}, {w.generated_tokens} generated"
            + (f", {w.users} users at the same time" if w.users > 1 else ""),
        ),
        ("objectives", ", ".join(f"{o.direction} {describe(o.metric).title}" for o in record.objectives)),
        ("constraints", ", ".join(map(str, record.constraints)) or "none"),
        *([("KL divergence", words.clean(record.quality))] if record.quality else []),
        ("trials", words.tally(record)),
    ]


def origin(record: SweepRecord) -> Facts:
    """Versions and files that a repeat of the sweep needs."""
    file, draft = record.model.files.get(record.model.base_quant), record.model.draft
    drafts = [] if draft is None else [("draft model", draft.file.path), ("SHA-256", draft.file.sha256)]
    return [
        ("sweep", record.sweep),
        ("sweeper", record.sweeper_version or words.MISSING),
        ("model file", (file.path if file else "") or words.MISSING),
        ("its SHA-256", (file.sha256 if file else "") or words.MISSING),
        *drafts,
        ("measured", f"{words.moment(record.started_utc)} to {words.moment(record.updated_utc)}"),
    ]
