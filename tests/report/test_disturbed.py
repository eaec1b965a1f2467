"""A machine that was disturbed says so above the answer, everywhere, and gains nobody can know are not told."""

from dataclasses import replace

import pytest
from made_sweeps import sweep

from sweeper.records import Reading, SweepRecord
from sweeper.report.html import html_report
from sweeper.report.markdown import markdown_report
from sweeper.report.terminal import front_text
from sweeper.report.words import disturbed
from sweeper.tracking.description import describe


def with_speed_of_baseline(half_width: float) -> SweepRecord:
    record = sweep()

    def changed(trial):
        if trial.number != record.baseline:
            return trial
        speed = trial.metrics["tokens_per_second"]
        wide = Reading(
            speed.median, (1 - half_width) * speed.median, (1 + half_width) * speed.median, speed.n
        )
        return replace(trial, metrics={**trial.metrics, "tokens_per_second": wide})

    return replace(record, trials=tuple(changed(t) for t in record.trials))


@pytest.mark.parametrize("show", [markdown_report, html_report, front_text, describe])
def test_it_stands_above_the_answer(show) -> None:
    said = " ".join(show(with_speed_of_baseline(0.77)).split())
    assert "These results are not reliable yet" in said
    assert "too noisy to use" in said
    assert "too noisy to compare with the baseline" in said
    assert said.index("These results are not reliable yet") < said.index(
        "too noisy to compare with the baseline"
    )


def test_ordinary_noise_is_no_disturbance() -> None:
    assert disturbed(with_speed_of_baseline(0.2)) == ""
    assert "**Run this**" in markdown_report(with_speed_of_baseline(0.2))
    assert "too noisy to compare" not in markdown_report(with_speed_of_baseline(0.2))


@pytest.mark.parametrize("show", [markdown_report, html_report, front_text, describe])
def test_the_repeat_is_offered_and_nothing_that_applies(show) -> None:
    said = " ".join(show(with_speed_of_baseline(0.77)).split())
    assert "(recommended):" not in said
    assert "epeat the sweep before you apply it" in said
    assert "sweeper sweep name=llama-110m-2026-11-23-2" in said
    assert "sweeper apply" not in said
