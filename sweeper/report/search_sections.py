"""Trials that do not count and why, how the search went, and how to do it again."""

from __future__ import annotations

import shlex

from sweeper.records import SweepRecord, TrialRecord, to_plain
from sweeper.report import svg
from sweeper.report.caveats import failures, lost_trials, reason
from sweeper.report.pieces import command, facts, fold, paragraph, section, table, text
from sweeper.report.words import MISSING, STATES, clean, moment, outcome, own_settings, tally

WIDTH, HEIGHT = 720.0, 200.0
MOST_LISTED = 200  # failed trials that are listed one by one; the counts above the list cover all
MOST_REASONS = 20
LOG_LINES = 4


def lost(record: SweepRecord) -> str:
    """Failed and infeasible trials: the reasons counted, then each trial."""
    found = failures(record)
    if not found:
        return ""
    trials = lost_trials(record)
    listed = trials[:MOST_LISTED]
    rows = [[f"#{t.number}", STATES[outcome(t)], reason(t)] for t in listed]
    below = [_settings_and_log(record, t) for t in listed]
    more = f", the first {MOST_LISTED}" if len(trials) > MOST_LISTED else ""
    each = fold(
        f"each of the {len(trials)} trials{more}",
        table(["trial", "state", "reason"], rows, below=below),
    )
    counts = table(["reason", "trials"], [[why, str(count)] for why, count in found[:MOST_REASONS]])
    left_out = sum(count for _, count in found[MOST_REASONS:])
    if left_out:
        counts += paragraph(f"… and {left_out} more, for {len(found) - MOST_REASONS} other reasons.", "soft")
    said = "These cannot be recommended. What failed has no figures: a failure is never counted as a bad one."
    return section("lost", "Trials that do not count", paragraph(said, "soft") + counts + each)


def _settings_and_log(record: SweepRecord, trial: TrialRecord) -> str:
    log = " / ".join(trial.log_tail[-LOG_LINES:])
    return own_settings(record, trial) + (f" · the engine's last words: {log}" if log else "")


def search(record: SweepRecord) -> str:
    """Hypervolume over the trials, and why the search ended."""
    volumes = record.hypervolume
    said = tally(record) + (f". Ended: {record.stopped_because}." if record.stopped_because else ".")
    drawing = _hypervolume(volumes) if len(volumes) > 1 and max(volumes) > 0 else ""
    caption = (
        "How much of the final front was found after so many trials (its hypervolume, 1 is all of it): where "
        "the line is flat at the end, more trials would hardly find better ones."
    )
    figure = f"<figure>{drawing}<figcaption>{text(caption)}</figcaption></figure>" if drawing else ""
    return section("search", "How the search went", paragraph(said) + figure)


def _hypervolume(volumes: tuple[float, ...]) -> str:
    across = svg.fit([1, len(volumes)], 58, WIDTH - 12, margin=0.02)
    up = svg.fit([0, *volumes], HEIGHT - 30, 10)
    points = [(across.at(index), up.at(volume)) for index, volume in enumerate(volumes, 1)]
    body = svg.rules(across, up, 8, 4) + svg.line(points, "front")
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
        ("measured", f"{moment(record.started_utc)} to {moment(record.updated_utc)}"),
    ]
    config = yaml.safe_dump(to_plain(record.config), sort_keys=False, allow_unicode=True)
    body = (
        command(
            f"sweeper sweep name={shlex.quote(name)}",
            "with the settings that it began with, which are all below: the same name goes on, a new one "
            "measures everything again",
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
