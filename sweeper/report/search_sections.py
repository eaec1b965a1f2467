"""Trials that do not count and why, how the search went, and how to do it again."""

from __future__ import annotations

import shlex

from sweeper.records import SweepRecord, to_plain
from sweeper.report import svg
from sweeper.report.caveats import failures
from sweeper.report.pieces import command, facts, fold, paragraph, section, table, text
from sweeper.report.words import MISSING, STATES, clean, own_settings, tally

WIDTH, HEIGHT = 720.0, 200.0
MOST_LISTED = 200  # failed trials that are listed one by one; the counts above the list cover all
LOG_LINES = 4


def lost(record: SweepRecord) -> str:
    """Failed and infeasible trials: the reasons counted, then each trial."""
    found = failures(record)
    if not found:
        return ""
    trials = [t for t in record.trials if t.state not in ("complete", "dominated")]
    listed = trials[:MOST_LISTED]
    has_logs = any(t.log_tail for t in listed)
    rows = [
        [
            f"#{t.number}",
            STATES[t.state],
            t.reason or MISSING,
            own_settings(record, t),
            *([" / ".join(t.log_tail[-LOG_LINES:])] if has_logs else []),
        ]
        for t in listed
    ]
    heads = ["trial", "state", "reason", "settings", *(["the engine's last words"] if has_logs else [])]
    more = f", the first {MOST_LISTED}" if len(trials) > MOST_LISTED else ""
    each = fold(
        f"each of the {len(trials)} trials{more}",
        table(heads, rows),
    )
    counts = table(["reason", "trials"], [[reason, str(count)] for reason, count in found[:20]])
    said = "These have no score: a failure is never counted as a bad figure."
    return section("lost", "Trials that do not count", paragraph(said, "soft") + counts + each)


def search(record: SweepRecord) -> str:
    """Hypervolume over the trials, and why the search ended."""
    volumes = record.hypervolume
    said = tally(record) + (f". Ended: {record.stopped_because}." if record.stopped_because else ".")
    drawing = _hypervolume(volumes) if len(volumes) > 1 and max(volumes) > 0 else ""
    caption = "Hypervolume of the front after each trial: flat means that nothing better was found."
    figure = f"<figure>{drawing}<figcaption>{text(caption)}</figcaption></figure>" if drawing else ""
    return section("search", "How the search went", paragraph(said) + figure)


def _hypervolume(volumes: tuple[float, ...]) -> str:
    across = svg.fit([1, len(volumes)], 58, WIDTH - 12, margin=0.02)
    up = svg.fit([0, *volumes], HEIGHT - 36, 10)
    points = [(across.at(index), up.at(volume)) for index, volume in enumerate(volumes, 1)]
    body = svg.rules(across, up, 8, 4) + svg.line(points, "front")
    body += svg.words(WIDTH / 2, HEIGHT - 4, "finished trials", "", "middle")
    return svg.picture(WIDTH, HEIGHT, body, "hypervolume over finished trials")


def again(record: SweepRecord) -> str:
    """What it takes to get these figures again."""
    import yaml

    file = record.model.files.get(record.model.base_quant)
    name = clean(record.sweep)
    entries = [
        ("sweeper", record.sweeper_version or MISSING),
        ("engine", f"{record.engine.name} {record.engine.version}"),
        ("model file", (file.path if file else "") or MISSING),
        ("its SHA-256", (file.sha256 if file else "") or MISSING),
        ("from", f"{record.started_utc} to {record.updated_utc}"),
    ]
    config = yaml.safe_dump(to_plain(record.config), sort_keys=False, allow_unicode=True)
    body = (
        command(
            f"sweeper sweep name={shlex.quote(name)}",
            "with the settings it began with (below): goes on, or is done again under a new name",
        )
        + facts(entries)
        + (
            fold("the whole configuration, as composed", f"<pre>{text_block(config)}</pre>")
            if record.config
            else ""
        )
        + fold("the search space", facts((key, str(value)) for key, value in record.space.items()))
    )
    return section("again", "How to do it again", body)


def text_block(block: str) -> str:
    """Lines of others' text, escaped one by one so that they stay lines."""
    return "\n".join(text(line) for line in block.splitlines())
