"""Wherever the KL divergence stands, the top-token agreement and the amount of text stand beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_sweeps import QUANTS, sweep
from rich.cells import cell_len

from sweeper.records import Reading, SweepRecord, TrialRecord, from_plain, to_plain
from sweeper.report.formats import render
from sweeper.report.html import html_report
from sweeper.report.sections import legend, setting
from sweeper.report.terminal import front_text
from sweeper.report.words import figures, quality

SAME = {"Q8_0": 99.1, "Q5_K_M": 97.4, "Q4_K_M": 94.2}


def with_quality(trial: TrialRecord, tokens: int, agreement: bool = True) -> TrialRecord:
    quant = trial.configuration.quant or "Q8_0"
    if "kl_divergence" not in trial.metrics:
        return trial
    mean, same = QUANTS[quant][1], SAME[quant]
    measured = {"kl_divergence": Reading(mean, 0.9 * mean, 1.1 * mean, tokens)}
    if agreement:
        measured["top_token_agreement_percent"] = Reading(same, same - 0.5, same + 0.5, tokens)
    return replace(trial, metrics={**trial.metrics, **measured})


def measured(tokens: int = 4096, agreement: bool = True) -> SweepRecord:
    record = sweep()
    trials = tuple(with_quality(trial, tokens, agreement) for trial in record.trials)
    return replace(record, trials=trials, quality="against Q8_0 on prose (0123456789ab), by llama.cpp")


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_both_stand_in_one_cell_with_the_interval(form: str) -> None:
    record = measured()
    shown = render(record, form, 120).replace("\\", "")
    for number in (*record.front, record.baseline):
        assert quality(record.trial(number)) in shown
    best = record.trial(record.recommended)
    assert quality(best) == f"{figures(best, 'kl_divergence')} · {SAME[best.configuration.quant]:.1f} %"
    assert " ± " in quality(best)


def test_the_page_has_both() -> None:
    record = measured()
    page = html_report(record)
    assert quality(record.trial(record.recommended)) in page
    assert "same top: how often the most likely token is the same" in page


@pytest.mark.parametrize("width", [60, 80, 100])
def test_both_fit_a_narrow_terminal(width: int) -> None:
    record = measured()
    text = front_text(record, width)
    assert quality(record.trial(record.recommended)) in text
    assert max(cell_len(line) for line in text.splitlines() if "sweeper " not in line) <= width


@pytest.mark.parametrize("form", ["json", "csv"])
def test_programs_get_the_interval_and_the_tokens(form: str) -> None:
    record = measured()
    shown = render(record, form)
    if form == "json":
        (found, *_) = json.loads(shown)["front"]
        reading = found["metrics"]["top_token_agreement_percent"]
        assert reading["n"] == 4096
        assert reading["low"] < reading["median"] < reading["high"]
    else:
        head, first, *_ = shown.splitlines()
        row = dict(zip(head.split(","), first.split(","), strict=False))
        assert row["top_token_agreement_percent_n"] == row["kl_divergence_n"] == "4096"


def test_the_legend_says_how_much_text_it_rests_on() -> None:
    assert "the most likely token is the same, over 4,096 tokens of text." in legend(measured())
    record = measured()
    longer = with_quality(record.trial(record.recommended), 16_384)
    trials = tuple(longer if t.number == longer.number else t for t in record.trials)
    assert "over 4,096 to 16,384 tokens of text." in legend(replace(record, trials=trials))
    assert "tokens of text" not in legend(sweep())  # nothing was measured there


def test_figures_of_an_older_version_are_told_apart() -> None:
    old = measured(256, agreement=False)
    assert "in nats/token, over 256 tokens of text." in legend(old)
    assert "same top" not in front_text(old, 120)
    fresh = with_quality(old.trial(old.recommended), 4096)
    trials = tuple(fresh if t.number == fresh.number else t for t in old.trials)
    mixed = replace(old, trials=trials)
    assert "over 256 to 4,096 tokens of text (256: by an older version, on another text)." in legend(mixed)


def test_a_record_from_before_opens() -> None:
    plain = to_plain(measured(256, agreement=False))
    del plain["quality"]
    record = from_plain(plain, SweepRecord)
    assert record.quality == ""
    assert "KL divergence" not in dict(setting(record))
    assert dict(setting(measured()))["KL divergence"].startswith("against Q8_0 on prose")
