import io
import re
from dataclasses import replace

import pytest
from made_sweeps import sweep
from rich.console import Console

from sweeper.records import Objective, SweepRecord
from sweeper.report.live import LiveProgress, PlainProgress, open_progress
from sweeper.report.progress import Plan, Progress


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
        progress.note("no right to set the power limit")
        progress.finalists(2, 2)
        for number in (1, 2):
            progress.trial_started(number, 2, record.trials[0].configuration)
            clock.now += 20
            progress.trial_finished(record.trials[0])
        progress.finished(record)


def played(record: SweepRecord, **settings: object) -> str:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, **settings)  # type: ignore[arg-type]
    display = open_progress(console, record.objectives, record.power, Plan(2, 2.0), clock=clock)
    play(record, display, clock)
    return out.getvalue()


def test_a_pipe_gets_one_plain_line_for_each_trial() -> None:
    lines = played(sweep(), width=60).splitlines()
    assert [line.split(": ")[0] for line in lines[:3]] == ["trial 1/9", "trial 2/9", "trial 3/9"]
    assert "\x1b" not in "".join(lines)
    assert "decode" not in "".join(lines)
    assert lines[-1].endswith("complete: 40 trials done")
    assert sum(line.startswith("finalist measurement ") for line in lines) == 2


def test_figures_come_with_their_spread_and_label() -> None:
    first = played(sweep()).splitlines()[0]
    assert re.search(r"[\d.]+ ± [\d.]+ tok/s, [\d.]+ ± [\d.]+ W estimated", first)
    assert "estimated" not in played(sweep(kind="measured", gpu=True))


def test_the_time_left_counts_down_to_the_end() -> None:
    lines = played(sweep()).splitlines()
    # Eight trials of 12 s and two finalists of twice that are left after the first.
    assert "(about 2 min left)" in lines[0]
    assert "(about 20 s left)" in next(
        line for line in lines if line.startswith("finalist measurement 1/2: #0")
    )


def test_a_failed_trial_says_why() -> None:
    record = sweep()
    lost = next(t for t in record.trials if t.state == "out_of_memory")
    moved = replace(record, trials=(record.trials[0], lost, *record.trials[1:]))
    assert f"trial 2/9: #{lost.number}  out of memory: forecast 13.1 GiB, the device has 12.0 GiB" in played(
        moved
    )


def test_a_trial_outside_a_constraint_says_so() -> None:
    record = sweep()
    lost = next(t for t in record.trials if t.state == "infeasible")
    measured = replace(lost, state="complete", reason=None)
    moved = replace(record, trials=(record.trials[0], measured, *record.trials[1:]))
    line = played(moved).splitlines()[1]
    assert "rejected: breaks kl_divergence <= 0.02" in line
    assert "tok/s" in line


def test_two_speeds_are_told_apart() -> None:
    record = sweep()
    prompt = Objective("prompt_tokens_per_second", "maximize")
    first = played(replace(record, objectives=(*record.objectives, prompt))).splitlines()[0]
    assert re.search(r"± [\d.]+ tok/s, .* prefill tok/s", first)


def test_a_terminal_shows_phase_speed_watts_and_best_so_far() -> None:
    text = played(sweep(), width=100, force_terminal=True, color_system="standard")
    assert "decode  1234 tok/s  23.4 W estimated" in text
    assert "best so far" in text
    assert "no right to set the power limit" in text


@pytest.mark.parametrize("width", [20, 40, 80])
def test_live_lines_never_wrap(width: int) -> None:
    text = played(sweep(), width=width, force_terminal=True, no_color=True, color_system=None)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line for chunk in plain.split("\n") for line in chunk.split("\r")]
    notes = ("no right",)
    assert [line for line in lines if len(line) > width and not line.startswith(notes)] == []


def test_the_best_is_the_best_of_those_that_count() -> None:
    record = sweep()
    text = played(record, width=200, force_terminal=True, color_system=None)
    counted = [t for t in record.trials[:9] if t.feasible]
    best = max(counted, key=lambda t: t.metrics["tokens_per_second"].median)
    assert f"(#{best.number})" in text.split("best so far")[-1]


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    record = sweep()
    monkeypatch.setenv("TERM", "dumb")
    dumb = open_progress(Console(force_terminal=True), record.objectives, record.power)
    assert isinstance(dumb, PlainProgress)
    monkeypatch.setenv("TERM", "xterm")
    able = open_progress(Console(force_terminal=True), record.objectives, record.power)
    assert isinstance(able, LiveProgress)


def test_a_terminal_in_ascii_gets_through() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    record, clock = sweep(), Clock()
    for forced in (False, True):
        console = Console(file=out, width=80, force_terminal=forced)
        play(record, open_progress(console, record.objectives, record.power, clock=clock), clock)
    assert b"+-" in raw.getvalue()


def test_the_terminal_is_given_back_when_the_sweep_breaks() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True)
    record = sweep()
    display = open_progress(console, record.objectives, record.power)
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
    open_progress(Console(file=out), record.objectives, record.power).finalists(6, left)
    assert words in out.getvalue()


def test_nothing_is_said_of_finalists_where_there_are_none() -> None:
    out, record = io.StringIO(), sweep()
    open_progress(Console(file=out), record.objectives, record.power).finalists(0, 0)
    assert out.getvalue() == ""


def test_silence_is_a_progress_too() -> None:
    record, progress = sweep(), Progress()
    progress.trial_started(1, 1, record.trials[0].configuration)
    progress.phase("decode", 1.0, 2.0)
    progress.trial_finished(record.trials[0])
    progress.note("")
    progress.finalists(0, 0)
    progress.finished(record)
