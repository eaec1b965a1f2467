"""The page's parts, the answer first: each takes the record and gives HTML, or nothing where it has none."""

from __future__ import annotations

from sweeper.metrics import describe
from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.caveats import advice_lines
from sweeper.report.front_drawing import front_svg, key
from sweeper.report.picks import is_recommended, marks, meaning, next_commands, picks, recommended
from sweeper.report.pieces import Cell, command, facts, fold, items, paragraph, section, table, text
from sweeper.report.planes import planes_of
from sweeper.report.words import (
    MISSING,
    SCOPES,
    TRUST,
    baseline_of,
    change,
    disturbed,
    figures,
    head,
    is_doubtful,
    machine_name,
    model_line,
    moment,
    own_settings,
    parts,
    power_line,
    tally,
    unfinished,
    value,
)

HINT = (
    "Point at a dot, or tap it, for its settings. With a mouse, drag over a part to enlarge it; a double-click "
    "goes back."
)


def answer(record: SweepRecord) -> str:
    """Title, how far to trust the watts, and what to run."""
    title = (
        f"<header><h1>{text(record.model.name)} on {text(machine_name(record))}</h1>"
        f'<p class="soft">sweep {text(record.sweep)} · {text(tally(record))} · {text(moment(record.updated_utc))}</p>'
        "</header>"
    )
    trust = f"Watts are {TRUST[record.power.kind]}."
    banner = paragraph(trust, "warn") if is_doubtful(record.power) else ""
    if record.engine.simulated:
        banner = paragraph("Everything here is simulated: no figure was measured on a real machine.", "warn")
    if unfinished(record):
        banner += paragraph(unfinished(record), "warn")
    if disturbed(record):
        banner += paragraph(disturbed(record), "warn")
    commands = "".join(command(line, purpose) for line, purpose in next_commands(record))
    best = recommended(record)
    if best is None:
        why = f" The sweep ended because: {record.stopped_because}." if record.stopped_because else ""
        said = paragraph(f"Nothing can be recommended: no trial that counts was measured twice.{why}")
        return f'{title}{banner}<section class="answer"><h2>No answer yet</h2>{said}{commands}</section>'
    base = baseline_of(record)
    own = own_settings(record, best.trial)
    return (
        f'{title}{banner}<section class="answer"><h2>Run this</h2>'
        f"<p>{text(best.words)}</p>"
        f'<p class="soft">{text(f"{best.pick}: {meaning(record, best.pick)}; trial #{best.trial.number}")}</p>'
        f"{_figures(record, best.trial, base)}"
        f"<p><code>{text(own)}</code></p>{commands}</section>"
    )


def _figures(record: SweepRecord, trial: TrialRecord, base: TrialRecord | None) -> str:
    shown = dict.fromkeys([*(o.metric for o in record.objectives), "joules_per_token"])
    cells = []
    for metric in shown:
        reading = trial.metrics.get(metric)
        if reading is None:
            continue
        median, half = parts(reading)
        against = change(reading, base.metrics.get(metric)) if base is not None and base is not trial else ""
        kind = f", {record.power.kind}" if describe(metric).power and is_doubtful(record.power) else ""
        under = f"{'± ' if half else ''}{half} {describe(metric).unit}{kind}".strip()
        note = f"<small>{text(against)} against the default</small>" if against else ""
        cells.append(
            f"<div><b>{text(median)}</b><small>{text(describe(metric).title)}</small>"
            f"<small>{text(under)}</small>{note}</div>"
        )
    return f'<div class="figures">{"".join(cells)}</div>'


def front(record: SweepRecord) -> str:
    """The drawing of the front and its table."""
    planes = planes_of(record)
    drawings = [(plane, front_svg(record, plane)) for plane in planes]
    if not drawings[0][1]:
        return ""
    figures_html = "".join(
        f'<figure><div class="front-plot" data-plane="{number}" hidden></div>'
        f'<div class="still">{drawing}</div></figure>'
        for number, (_, drawing) in enumerate(drawings)
        if drawing
    )
    caption = (
        f"Each dot is a configuration; {planes[0].better} is better. Trials that failed have no dot: they are "
        "listed below with their reasons. "
    )
    if len(planes) > 1:
        caption += (
            "With more than two objectives there is a drawing for each; the line joins those dots of the front "
            "that nothing beats in the two objectives drawn. "
        )
    under = f'<p class="caption">{text(caption)}<span class="hint">{text(HINT)}</span></p>'
    title = "Pareto front" if record.front else "Measured trials; there is no front yet"
    return section("front", title, figures_html + key(record) + under + _front_table(record))


def _front_table(record: SweepRecord) -> str:
    base = baseline_of(record)
    rows = list(record.on_front())
    if base is not None and base.metrics and base.number not in record.front:
        rows.insert(0, base)
    if not rows:
        return ""
    named = marks(record)
    extra = ("joules_per_token", "prompt_tokens_per_second", "kl_divergence")
    wanted = dict.fromkeys([*(o.metric for o in record.objectives), *extra])
    metrics = [m for m in wanted if any(m in t.metrics for t in rows)]
    cells: list[list[Cell]] = []
    kinds, below = [], []
    for t in rows:
        is_base = base is not None and t.number == base.number
        who = [*(["baseline"] if is_base else []), *named.get(t.number, ())]
        own = "the engine's default" if is_base else own_settings(record, t)
        cells.append(
            [
                f"#{t.number} {', '.join(who)}".strip(),
                *(_against(t, None if is_base else base, metric) for metric in metrics),
            ]
        )
        below.append(own)
        kinds.append("pick" if is_recommended(record, t) else "baseline" if is_base else "")
    return table(["trial", *(head(m, record.power) for m in metrics)], cells, kinds, below)


def _against(trial: TrialRecord, base: TrialRecord | None, metric: str) -> Cell:
    if describe(metric).exact:
        return figures(trial, metric)
    reading = trial.metrics.get(metric)
    return figures(trial, metric), change(reading, base.metrics.get(metric)) if base is not None else ""


def picked(record: SweepRecord) -> str:
    """Each trial that was picked, in words, with its whole configuration and the command that applies it."""
    blocks = []
    named = marks(record)
    for chosen in picks(record):
        names = named.pop(chosen.trial.number, None)
        if names is None:
            continue  # told under another of its names
        mark = " (recommended)" if chosen.recommended else ""
        whole = chosen.trial.configuration.to_dict().items()
        blocks.append(
            f'<div class="pick-block"><h3>{text(" = ".join(names))}{mark}: trial #{chosen.trial.number}</h3>'
            f"{paragraph('; '.join(f'{name}: {meaning(record, name)}' for name in names), 'soft')}"
            f"{paragraph(chosen.words)}{command(chosen.apply_command)}"
            f"{fold('the whole configuration', facts((name, value(item)) for name, item in whole))}</div>"
        )
    return section("picks", "The picks, in words", "".join(blocks))


def caveats(record: SweepRecord) -> str:
    """What a reader must know about the figures, with advice."""
    return section("caveats", "Read this with it", items([*advice_lines(record), *record.notes]))


def setting(record: SweepRecord) -> str:
    """What was tuned, on what machine, with which sensor and how far to trust it."""
    m, power, w = record.machine, record.power, record.workload
    bandwidth = m.memory_bandwidth_gb_per_second
    period = power.update_period_seconds
    rows = [
        ("model", model_line(record)),
        ("processor", f"{m.cpu}: {m.physical_cores} cores, {m.logical_cores} threads"),
        ("memory", f"{m.memory_mib / 1024:.1f} GiB" + (f", reads {bandwidth:.1f} GB/s" if bandwidth else "")),
        *(("GPU", f"{gpu.name}, driver {gpu.driver}") for gpu in m.gpus),
        ("kernel", m.kernel),
        ("fingerprint", m.fingerprint),
        ("engine", f"{record.engine.name} {record.engine.version} {record.engine.build}".strip()),
        ("sensor", power_line(power)),
        ("how far to trust it", TRUST[power.kind] + (f"; {power.note}" if power.note else "")),
        ("what it sees", SCOPES[power.scope]),
        ("new reading every", f"{period * 1000:.0f} ms" if period else MISSING),
        ("workload", f"{w.name}: {w.prompt_tokens} prompt tokens, {w.generated_tokens} generated"),
        ("constraints", ", ".join(map(str, record.constraints)) or "none"),
    ]
    return section("setting", "What was tuned, and on what", facts(rows))
