"""A pick without all visits of the final stage is called provisional wherever it is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_sweeps import failed_only, running, sweep
from rich.cells import cell_len

from sweeper.apply.run import plan
from sweeper.records import Prices, SweepRecord
from sweeper.report.compare import compare
from sweeper.report.compare_formats import render_comparison
from sweeper.report.documents import front_document, recommendation_document
from sweeper.report.html import html_report
from sweeper.report.markdown import markdown_report, picks_markdown
from sweeper.report.picks import current, next_commands
from sweeper.report.sections import headline
from sweeper.report.terminal import front_text
from sweeper.report.words import own_settings
from sweeper.tracking.projection import sweep_image, trial_image

SAID = "provisional: 1 of 3 visits"


def stopped(of_pick: int = 1, of_baseline: int = 3) -> SweepRecord:
    """A sweep that its user stopped in the final stage."""
    record = sweep(kind="measured", gpu=True)
    visits = {record.baseline: of_baseline, record.recommended: of_pick}
    trials = tuple(
        replace(t, visits=visits.get(t.number, 3 if t.remeasured else None)) for t in record.trials
    )
    return replace(record, trials=trials, state="stopped", stopped_because="Ctrl-C")


@pytest.mark.parametrize("write", [front_text, markdown_report, picks_markdown, html_report])
def test_every_report_says_how_many_visits_there_were(write) -> None:
    said = " ".join(write(stopped()).split())
    assert SAID in said.replace("Provisional", "provisional")
    assert "Run this" not in said
    assert "sweeper apply" not in said
    complete = " ".join(write(stopped(of_pick=3)).split())
    assert SAID not in complete.replace("Provisional", "provisional")
    assert "sweeper apply" in complete


def test_the_baseline_needs_its_visits_too() -> None:
    assert "Provisional: 1 of 3 visits." in front_text(stopped(of_pick=3, of_baseline=1), 200)


def test_a_screened_baseline_is_nothing_to_compare_with() -> None:
    record = stopped()
    trials = tuple(
        replace(t, remeasured=False, visits=None) if t.number == record.baseline else t for t in record.trials
    )
    screened = replace(record, trials=trials)
    best = screened.trial(record.recommended)
    assert all(not against for *_, against in headline(screened, best))
    assert any(against for *_, against in headline(record, best))
    text = front_text(screened, 200)
    assert "Provisional: the baseline was screened only" in text
    assert "only the screening measured the baseline" in text


def test_the_first_command_finishes_the_sweep() -> None:
    command, purpose = next_commands(stopped())[0]
    assert command == "sweeper sweep name=llama-110m-2026-11-23"
    assert purpose.endswith("finishes the sweep")


def test_programs_and_mlflow_are_told() -> None:
    record = stopped()
    best = recommendation_document(record)["recommended"]
    assert (best["provisional"], best["visits"]) == (SAID, 1)
    assert front_document(record)["picks"]["within:5%"]["provisional"] == SAID
    assert sweep_image(record).tags["sweeper.provisional"] == SAID
    tags = trial_image(record, record.trial(record.recommended)).tags
    assert tags["sweeper.visits"] == "1"
    assert tags["sweeper.provisional"] == SAID
    assert tags["mlflow.note.content"].startswith(SAID)
    assert "sweeper.provisional" not in sweep_image(stopped(of_pick=3)).tags


def test_compare_and_apply_say_it() -> None:
    record = stopped()
    comparison = compare([record], Prices())
    for form in ("table", "markdown", "csv", "json"):
        assert SAID in render_comparison(comparison, form, 100)
    notes = plan(record, record.pick, "env").draft.notes
    assert any(note.startswith(SAID) for note in notes)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_quality_lost_stands_wherever_it_differs(width: int) -> None:
    record = sweep()
    numbers = {record.trial(n).metrics["kl_divergence"].median for n in (*record.front, record.baseline)}
    assert len(numbers) > 1, "the rows must differ"
    text = front_text(record, width)
    assert "KL divergence" in text
    assert max(cell_len(line) for line in text.splitlines() if "sweeper " not in line) <= width


@pytest.mark.parametrize("write", [front_text, markdown_report, html_report])
def test_a_running_sweep_names_its_current_pick_and_how_sure_it_is(write) -> None:
    record = running(sweep(kind="measured", gpu=True), 30)
    said = " ".join(write(record).replace("\\", "").split())
    best = current(record)
    assert f"Current pick (within:5%): #{best.trial.number}, {own_settings(record, best.trial)}" in said
    assert "Provisional: screened only; the best trials are measured 3 more times at the end." in said
    assert "Run this" not in said
    assert "(recommended" not in said
    assert "Current pick" not in " ".join(write(stopped()).split())


def test_programs_are_told_the_current_pick() -> None:
    record = running(sweep(kind="measured", gpu=True), 30)
    found = front_document(record)["current_pick"]
    assert (found["recommended"], found["visits"]) == (False, 0)
    assert found["trial"] == current(record).trial.number
    assert front_document(stopped())["current_pick"]["recommended"] is True
    assert recommendation_document(record)["recommended"] is None
    assert front_document(failed_only())["current_pick"] is None


def test_a_tie_goes_to_the_baseline_before_the_final_stage_as_well() -> None:
    record = running(sweep(), 1)
    assert current(record).words.endswith("Only the default settings have been measured so far.")
    twin = replace(record.trials[0], number=1, configuration=record.trials[0].configuration.with_(n_batch=64))
    best = current(replace(record, trials=(*record.trials, twin)))
    assert best.trial.number == 0
    assert "Keep the default settings" in best.words


def test_a_pick_that_nothing_reaches_is_only_the_nearest() -> None:
    record = replace(running(sweep(), 30), pick="at-least:1000000tok/s")
    best = current(record)
    assert best.nearest
    assert "measured twice" not in best.words
