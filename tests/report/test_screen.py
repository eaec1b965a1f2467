"""The live screen of given records, at the widths that people have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_sweeps import failed_only, no_front, running, sweep
from rich.cells import cell_len
from rich.text import Text

from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.picks import current
from sweeper.report.screen import screen
from sweeper.report.sections import front_trials
from sweeper.report.tables import writable
from sweeper.report.text_plot import text_plot
from sweeper.report.words import own_settings

TITLE = "tok/s (up) over W (right)"  # of the plot
ROWS = 18  # of a terminal with 24, beside the other rows of the display
RECORDS = {
    "the baseline alone": running(sweep(), 1),
    "a few trials": running(sweep(), 6),
    "a whole search": running(sweep(), 40),
    "on a GPU": running(sweep(kind="measured", gpu=True), 40),
    "the final stage is over": replace(sweep(), state="running"),
}


def text_of(lines: list[Text]) -> str:
    return "\n".join(line.plain for line in lines)


def in_one_line(lines: list[Text]) -> str:
    return " ".join(text_of(lines).split())


def has_plot(lines: list[Text]) -> bool:
    return "└─" in text_of(lines)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_it_fits_and_names_the_pick_and_the_baseline(record: SweepRecord, width: int) -> None:
    lines = screen(record, width, ROWS)
    assert len(lines) <= ROWS
    assert max(cell_len(line.plain) for line in lines) <= width
    best = current(record)
    assert best is not None
    said = in_one_line(lines)
    assert f"current pick: {best.sign} #{best.trial.number} (within:5%)" in said
    assert ("provisional: screened only" in said) == (not best.recommended)
    assert "baseline" in said


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_settings_are_whole_in_a_tall_terminal(record: SweepRecord, width: int) -> None:
    lines = [line.plain for line in screen(record, width, 200)]
    places = [line.index(TITLE) for line in lines if TITLE in line]
    assert len(places) == 1
    beside = places[0] or None  # the column at which the plot begins; None: it stands below
    said = " ".join(" ".join(line[:beside] for line in lines).split())
    for trial in front_trials(record):
        assert own_settings(record, trial) in said


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_plot_goes_before_a_point_does(width: int) -> None:
    record = RECORDS["a whole search"]
    for rows in range(60, 0, -1):
        lines = screen(record, width, rows)
        assert len(lines) <= rows
        if "more point" in text_of(lines):
            assert not has_plot(lines)
    hidden = text_of(screen(record, width, 9))
    assert "which `sweeper report` shows" in hidden
    assert f"☆ #{current(record).trial.number}" in hidden.split("\n\n")[1]


def test_a_wide_terminal_shows_the_plot_beside_the_front() -> None:
    record = RECORDS["a few trials"]
    assert has_plot(screen(record, 160, ROWS))
    beside = next(line.plain for line in screen(record, 160, ROWS) if TITLE in line.plain)
    assert beside.startswith("  trial")


def test_without_a_figure_there_is_no_screen() -> None:
    assert screen(running(sweep(), 0), 80, ROWS) == []
    assert screen(replace(failed_only(), state="running"), 80, ROWS) == []


def test_where_no_trial_counts_it_says_so() -> None:
    record = running(sweep(), 1)
    broken: TrialRecord = replace(record.trials[0], violations={"kl_divergence <= 0.02": 1.0})
    assert "no trial counts yet" in text_of(screen(replace(record, trials=(broken,), front=()), 80, ROWS))


def test_a_terminal_in_ascii_gets_a_plot_as_well() -> None:
    plain = [writable(line, "ascii").plain for line in screen(RECORDS["a whole search"], 160, 40)]
    assert all(line.isascii() for line in plain)
    assert any("+---" in line for line in plain)
    assert not any("?" in line.replace("± ?", "").replace("+- ?", "") for line in plain)


def test_the_plot_has_every_point_at_its_place() -> None:
    record = RECORDS["a whole search"]
    lines = [line.plain for line in text_plot(record, 60, 24)]
    best, base = current(record), record.trial(0)
    assert best is not None
    place = {sign: at for sign in "☆■" if (at := found(lines, sign))}
    assert place["☆"] != place["■"]
    (pick_row, pick_column), (base_row, base_column) = place["☆"], place["■"]
    speed, watts = "tokens_per_second", "watts"
    assert (pick_row < base_row) == (best.trial.metrics[speed].median > base.metrics[speed].median)
    assert (pick_column < base_column) == (best.trial.metrics[watts].median < base.metrics[watts].median)
    assert all(cell_len(line) <= 60 for line in lines)


def found(lines: list[str], sign: str) -> tuple[int, int]:
    """The row and the column of a sign; the last row is the key."""
    return next((row, line.index(sign)) for row, line in enumerate(lines[:-1]) if sign in line)


def test_a_sweep_without_watts_has_no_plot() -> None:
    record = running(sweep(), 6)
    trials = tuple(
        replace(t, metrics={m: r for m, r in t.metrics.items() if "watts" not in m}) for t in record.trials
    )
    assert text_plot(replace(record, trials=trials, objectives=record.objectives[:1]), 60, 20) == []


def test_a_stopped_search_has_a_current_pick_and_no_recommendation() -> None:
    best = current(no_front())
    assert best is not None
    assert not best.recommended
    assert best.sign == "☆"
