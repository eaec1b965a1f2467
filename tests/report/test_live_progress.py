import io
import re
from dataclasses import replace

import pytest
from made_sweeps import running, sweep
from rich.console import Console
from small_terminal import SmallTerminal

from sweeper.records import Objective, SweepRecord
from sweeper.report.live import LiveProgress, PlainProgress, open_progress
from sweeper.report.picks import current
from sweeper.report.progress import Plan, Progress
from sweeper.report.words import tally

# A row of the trial or measurement that runs, or ended.
COUNTED = re.compile(r"\d+ of \d+ (trials|finalist measurements)\b")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def play(record: SweepRecord, display: PlainProgress, clock: Clock, trials: int = 9) -> None:
    with display as progress:
        for number, trial in enumerate(record.trials[:trials], 1):
            progress.trial_started(number, trials, trial.configuration)
            progress.phase("load")
            progress.phase("decode", 1234.5, 23.4)
            clock.now += 12
            progress.trial_finished(trial)
            progress.so_far(lambda number=number: running(record, number))
        progress.note("no right to set the power limit")
        progress.finalists(2, 2)
        for number in (1, 2):
            progress.trial_started(number, 2, record.trials[0].configuration)
            clock.now += 20
            progress.trial_finished(record.trials[0])
        progress.finished(record)


def played(record: SweepRecord, verbose: bool = False, trials: int = 9, **settings: object) -> str:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, **settings)  # type: ignore[arg-type]
    play(record, open_progress(console, record, Plan(2, 2.0), clock, verbose=verbose), clock, trials)
    return out.getvalue()


def test_a_pipe_gets_one_plain_line_for_each_trial() -> None:
    lines = [line for line in played(sweep(), width=60).splitlines() if not line.startswith("current pick")]
    assert [line.split(": ")[0] for line in lines[:3]] == ["1 of 9 trials", "2 of 9 trials", "3 of 9 trials"]
    assert "\x1b" not in "".join(lines)
    assert "decode" not in "".join(lines)
    assert lines[-1].endswith("complete: 40 trials done")
    assert sum("finalist measurements: #" in line for line in lines) == 2


def test_figures_come_with_their_spread_and_label() -> None:
    first = played(sweep()).splitlines()[0]
    assert re.search(r"[\d.]+ ± [\d.]+ tok/s, [\d.]+ ± [\d.]+ W estimated", first)
    assert "estimated" not in played(sweep(kind="measured", gpu=True))


def test_the_time_left_counts_down_to_the_end() -> None:
    lines = played(sweep()).splitlines()
    # Eight trials of 12 s and two finalists of twice that are left after the first.
    assert "(about 2 min left)" in lines[0]
    assert "(about 20 s left)" in next(
        line for line in lines if line.startswith("1 of 2 finalist measurements: #0")
    )


def test_a_comparison_of_quality_is_left_out_of_the_time_left() -> None:
    said = []
    for minutes_compared in (0, 20):
        out, clock = io.StringIO(), Clock()
        record = sweep()
        display = open_progress(Console(file=out, width=120), record, Plan(minutes=5), clock)
        for number, trial in enumerate(record.trials[:3], 1):
            display.trial_started(number, 100, trial.configuration)
            if number == 2:
                clock.now += 60 * minutes_compared
                display.compared(60 * minutes_compared)
            clock.now += 12
            display.trial_finished(trial)
        said.append(out.getvalue())
    assert said[0] == said[1]
    assert "(about 4 min left)" in said[0].splitlines()[-1]


def test_a_failed_trial_says_why() -> None:
    record = sweep()
    lost = next(t for t in record.trials if t.state == "out_of_memory")
    moved = replace(record, trials=(record.trials[0], lost, *record.trials[1:]))
    assert (
        f"2 of 9 trials: #{lost.number}  out of memory: forecast 13.1 GiB, the device has 12.0 GiB"
        in played(moved)
    )


def test_a_trial_outside_a_constraint_says_so() -> None:
    record = sweep()
    lost = next(t for t in record.trials if t.state == "infeasible")
    measured = replace(lost, state="complete", reason=None)
    moved = replace(record, trials=(record.trials[0], measured, *record.trials[1:]))
    line = next(row for row in played(moved).splitlines() if row.startswith("2 of 9 trials"))
    assert "breaks kl_divergence <= 0.02" in line
    assert "tok/s" in line


def test_two_speeds_are_told_apart() -> None:
    record = sweep()
    prompt = Objective("prompt_tokens_per_second", "maximize")
    first = played(replace(record, objectives=(*record.objectives, prompt))).splitlines()[0]
    assert re.search(r"± [\d.]+ tok/s, .* prefill tok/s", first)


def test_a_pipe_names_the_pick_when_it_changes() -> None:
    record = sweep()
    named = re.findall(r"current pick: #(\d+) .*", played(record))
    picks = [best.trial.number for n in range(1, 10) if (best := current(running(record, n)))]
    assert named == [str(now) for before, now in zip([None, *picks], picks, strict=False) if now != before]
    assert len(named) > 1
    assert "(provisional: screened only; the best trials are measured 3 more times at the end)" in played(
        record
    )


def test_a_look_that_takes_long_is_rare() -> None:
    record, clock, looks = sweep(), Clock(), []

    def slowly() -> SweepRecord:
        looks.append(clock.now)
        clock.now += 1
        return running(record, 1)

    display = open_progress(Console(file=io.StringIO()), record, clock=clock)
    for _ in range(100):
        display.so_far(slowly)
        clock.now += 1
    assert looks == [100, 151]


def test_a_terminal_shows_phase_speed_watts_and_the_current_pick() -> None:
    text = played(sweep(), width=100, force_terminal=True, color_system="standard")
    assert "decode  1234 tok/s  23.4 W estimated" in text
    assert "current pick: ☆ #" in text
    assert "no right to set the power limit" in text


@pytest.mark.parametrize(("verbose", "lines"), [(False, 0), (True, 9)])
def test_a_terminal_lists_the_trials_only_if_asked(verbose: bool, lines: int) -> None:
    terminal = SmallTerminal(100, 500)
    play_in(terminal, sweep(), verbose=verbose)
    assert sum(" trials: #" in row for row in terminal.shown()) == lines


def play_in(terminal: SmallTerminal, record: SweepRecord, trials: int = 9, verbose: bool = False) -> None:
    clock = Clock()
    console = Console(
        file=terminal,  # type: ignore[arg-type]
        width=terminal.width,
        height=terminal.height,
        force_terminal=True,
        color_system=None,
    )
    play(record, open_progress(console, record, Plan(2, 2.0), clock, verbose=verbose), clock, trials)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("gpu", [False, True])
def test_the_screen_stays_where_it_is(width: int, gpu: bool) -> None:
    terminal = SmallTerminal(width, 24)
    screens = []
    terminal.after_each_write = lambda: screens.append(terminal.shown())
    play_in(terminal, sweep(gpu=gpu, kind="measured" if gpu else "estimated"), trials=40)
    live = [rows for rows in screens if any("Ctrl-C ends" in row for row in rows)]
    assert len(live) > 100
    for rows in live:  # nothing of an older screen is left above or below
        # Before the first trial, the row says only what goes on.
        assert sum(COUNTED.match(row) is not None for row in rows) <= 1
        assert sum("current pick" in row for row in rows) <= 2  # the pick's own line, and the mark of its row
        assert "Ctrl-C ends" in next(row for row in reversed(rows) if row)
    assert not [row for row in terminal.gone if COUNTED.match(row) or row.startswith(("current pick", "☆"))]
    assert not any("Ctrl-C ends" in row for row in terminal.shown())  # the screen goes when the sweep ends


def test_ctrl_c_tells_what_follows() -> None:
    out = io.StringIO()
    display = open_progress(Console(file=out, width=200), sweep())
    display.stopping()
    assert "measures the pick once more; press Ctrl-C again to stop at once" in out.getvalue()
    display.confirming(3)
    assert "3 more measurements of the baseline, the pick and its near-ties" in out.getvalue()
    assert "press Ctrl-C again to stop at once" in out.getvalue()
    display.confirming(0)
    assert out.getvalue().count("stopped by hand") == 1


@pytest.mark.parametrize("width", [20, 40, 80])
def test_live_lines_never_wrap(width: int) -> None:
    text = played(sweep(), width=width, force_terminal=True, no_color=True, color_system=None)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line for chunk in plain.split("\n") for line in chunk.split("\r")]
    notes = ("no right",)
    assert [line for line in lines if len(line) > width and not line.startswith(notes)] == []


def test_trials_that_lost_are_a_count_with_the_commonest_reason() -> None:
    terminal, seen = SmallTerminal(160, 50), []
    terminal.after_each_write = lambda: seen.append(terminal.shown())
    record = sweep()
    play_in(terminal, record, trials=40)
    rows = next(rows for rows in reversed(seen) if any("Ctrl-C ends" in row for row in rows))
    searched = running(record, 40)
    assert any(tally(searched) in row for row in rows)
    ran_out = [trial for trial in searched.trials if trial.state == "out_of_memory"]
    assert f"{len(ran_out)} × {ran_out[0].reason}" in rows


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    record = sweep()
    monkeypatch.setenv("TERM", "dumb")
    dumb = open_progress(Console(force_terminal=True), record)
    assert isinstance(dumb, PlainProgress)
    monkeypatch.setenv("TERM", "xterm")
    able = open_progress(Console(force_terminal=True), record)
    assert isinstance(able, LiveProgress)


def test_a_terminal_in_ascii_gets_through() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    record, clock = sweep(), Clock()
    for forced in (False, True):
        console = Console(file=out, width=80, force_terminal=forced)
        play(record, open_progress(console, record, clock=clock), clock)
    assert b"+-" in raw.getvalue()


def test_the_terminal_is_given_back_when_the_sweep_breaks() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True)
    record = sweep()
    display = open_progress(console, record)
    with pytest.raises(KeyboardInterrupt):
        interrupted(display, record)
    hidden, given_back = out.getvalue().rfind("\x1b[?25l"), out.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < given_back


def interrupted(display: PlainProgress, record: SweepRecord) -> None:
    with display as progress:
        progress.trial_started(1, 9, record.trials[0].configuration)
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (18, "the 6 best trials are measured 3 more times"),
        (5, "5 measurements of the 6 best trials are left"),
        (0, "already complete"),
    ],
)
def test_what_follows_the_search_is_told(left: int, words: str) -> None:
    out, record = io.StringIO(), sweep()
    open_progress(Console(file=out), record).finalists(6, left)
    assert words in out.getvalue()


def test_nothing_is_said_of_finalists_where_there_are_none() -> None:
    out, record = io.StringIO(), sweep()
    open_progress(Console(file=out), record).finalists(0, 0)
    assert out.getvalue() == ""


def test_silence_is_a_progress_too() -> None:
    record, progress = sweep(), Progress()
    progress.trial_started(1, 1, record.trials[0].configuration)
    progress.phase("decode", 1.0, 2.0)
    progress.trial_finished(record.trials[0])
    progress.so_far(lambda: record)
    progress.note("")
    progress.finalists(0, 0)
    progress.stopping()
    progress.confirming(0)
    progress.finished(record)


def test_the_counts_are_current_while_the_table_is_of_an_earlier_trial() -> None:
    terminal, clock, record = SmallTerminal(160, 50), Clock(), sweep()
    console = Console(file=terminal, width=160, height=50, force_terminal=True, color_system=None)  # type: ignore[arg-type]

    def slowly() -> SweepRecord:
        clock.now += 10
        return running(record, 1)

    with open_progress(console, record, Plan(2, 2.0), clock) as display:
        for number, trial in enumerate(record.trials[:5], 1):
            display.trial_started(number, 40, trial.configuration)
            display.trial_finished(trial)
            display.so_far(slowly)
        shown = " ".join(terminal.shown())
    assert tally(replace(record, trials=record.trials[:5])) in shown
    assert "pick and figures after 1 of them: " in shown


def test_each_visit_of_the_final_stage_is_shown() -> None:
    record, clock, looks = sweep(), Clock(), []

    def slowly() -> SweepRecord:
        looks.append(clock.now)
        clock.now += 1
        return running(record, 1)

    display = open_progress(Console(file=io.StringIO()), record, clock=clock)
    display.finalists(2, 6)
    for _ in range(6):
        display.so_far(slowly)
    assert len(looks) == 6


def test_the_last_row_says_what_ctrl_c_does_in_each_stage() -> None:
    terminal, record = SmallTerminal(100, 24), sweep()
    console = Console(file=terminal, width=100, height=24, force_terminal=True, color_system=None)  # type: ignore[arg-type]
    own = record.trials[0].configuration

    def last_row() -> str:
        return next(row for row in reversed(terminal.shown()) if row)

    with open_progress(console, record) as display:
        display.trial_started(1, 40, own)
        assert last_row() == "Ctrl-C ends the search with a recommendation"
        display.finalists(2, 6)
        display.trial_started(1, 6, own)
        assert last_row() == "Ctrl-C ends the sweep after a last measurement of the pick"
        display.trial_started(3, 6, own)
        assert last_row() == "Ctrl-C ends the sweep after this measurement; finished measurements are kept"
        display.stopping()
        display.phase("load")
        assert last_row() == "press Ctrl-C again to stop at once"
        assert "measures the pick once more" not in " ".join(terminal.shown())


def test_no_estimate_is_longer_than_the_time_limit() -> None:
    out, clock, record = io.StringIO(), Clock(), sweep()
    with open_progress(Console(file=out, width=300), record, Plan(20, 2.0), clock) as display:
        display.limited(lambda: 240.0 - clock.now)
        display.trial_started(1, 14, record.trials[0].configuration)
        clock.now += 20
        display.trial_finished(record.trials[0])
        display.finalists(1, 3)
    assert "(about 2 min left)" in out.getvalue()
    assert "the best trial is measured up to 3 more times, as time allows" in out.getvalue()
