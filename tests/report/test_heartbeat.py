"""Long silences: what goes on is said, with its seconds, and nothing wakes up while something is measured."""

from __future__ import annotations

import io
import threading

import pytest
from made_sweeps import sweep
from rich.console import Console

from sweeper.report import live
from sweeper.report.heartbeat import Activity, Aloud, Heartbeat
from sweeper.report.live import LiveProgress, PlainProgress, open_progress

MOST_SECONDS = 60.0  # a beat that has not come by then never comes


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Lines:
    """Lines as they come, and a way to wait for one of them."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._came = threading.Condition()

    def __call__(self, text: str) -> None:
        with self._came:
            self.all.append(text)
            self._came.notify_all()

    def until(self, start: str) -> str:
        with self._came:
            assert self._came.wait_for(
                lambda: any(line.startswith(start) for line in self.all), MOST_SECONDS
            ), self.all
        return next(line for line in self.all if line.startswith(start))


def test_beats_come_while_something_goes_on_and_stop_with_it() -> None:
    beats, came = [], threading.Semaphore(0)

    def beat() -> None:
        beats.append(1)
        came.release()

    with Heartbeat(beat, silence_seconds=0.001) as heartbeat:
        assert not beats
        heartbeat.goes_on(True)
        assert came.acquire(timeout=MOST_SECONDS)
        assert came.acquire(timeout=MOST_SECONDS)
        heartbeat.goes_on(False)
        told = len(beats)
        heartbeat.goes_on(False)
        assert len(beats) == told  # none is under way once this has returned
    assert not heartbeat._thread.is_alive()


def test_a_line_puts_the_next_beat_off() -> None:
    beats: list[int] = []
    with Heartbeat(lambda: beats.append(1), silence_seconds=3600.0) as heartbeat:
        heartbeat.goes_on(True)
        heartbeat.said()
        assert heartbeat.silence() < 3600.0
    assert beats == []


def test_an_activity_tells_its_own_seconds() -> None:
    clock = Clock()
    activity = Activity(clock)
    activity("filling 16,384 tokens")
    clock.now = 8.0
    activity("filling 16,384 tokens, 40 %")
    assert activity.words == "filling 16,384 tokens, 40 %, 8 s"
    assert not activity.is_long
    clock.now = 12.0
    assert activity.is_long
    activity("loading the model")
    assert activity.words == "loading the model, 0 s"
    activity("waiting for quiet: cc1plus uses 0.9 of 2 cores, 12 s of at most 60 s")
    assert activity.words.endswith(", 12 s of at most 60 s")


def test_a_long_preparation_is_not_silent() -> None:
    lines = Lines()
    with Aloud(lines, "preparing the sweep", silence_seconds=0.001) as say:
        lines.until("preparing the sweep, ")
        say("making Q8_0 with llama.cpp's quantiser … (once; a large model takes minutes)")
        assert lines.until("making Q8_0 with llama.cpp's quantiser, ").endswith(" s …")
        say("made Q8_0")
        before = len(lines.all)
        lines.all = lines.all[before:]
        lines.until("preparing the sweep, ")
        say.rest()
        told = len(lines.all)
        say.rest()
        assert len(lines.all) == told


def shown(display: PlainProgress) -> PlainProgress:
    record = sweep()
    display.trial_started(3, 40, record.trials[2].configuration)
    return display


class Screen(io.StringIO):
    """Text with a way to wait for a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self._came = threading.Condition()

    def write(self, text: str) -> int:
        with self._came:
            count = super().write(text)
            self._came.notify_all()
        return count

    def until(self, text: str) -> None:
        with self._came:
            assert self._came.wait_for(lambda: text in self.getvalue(), MOST_SECONDS), self.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True], ids=["log", "terminal"])
def test_a_display_tells_of_a_fill_and_of_a_load(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SILENCE_SECONDS", 0.001)
    monkeypatch.setenv("TERM", "xterm")
    record, screen = sweep(), Screen()
    console = Console(file=screen, width=100, force_terminal=is_terminal, color_system=None)
    display = open_progress(console, record, clock=Clock())
    assert isinstance(display, LiveProgress) is is_terminal
    with display:
        shown(display)
        display.phase("load")
        screen.until("loading the model, 0 s")
        display.phase("filling 16,384 tokens, 60 %")
        screen.until("filling 16,384 tokens, 60 %, 0 s")
        assert "3 of 40 trials" in screen.getvalue()


def test_a_log_says_nothing_while_a_window_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SILENCE_SECONDS", 0.001)
    record, screen = sweep(), Screen()
    display = open_progress(Console(file=screen, width=100), record)
    with display:
        for name in live.MEASURED:
            shown(display).phase("load")  # beats come without a pause now
            screen.until("loading the model")
            display.phase(name)
            said = screen.getvalue()
            display.phase(name)
            assert screen.getvalue() == said


def test_a_log_tells_of_a_measurement_after_a_long_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PLAIN_SILENCE_SECONDS", -1.0)
    record, screen = sweep(), Screen()
    with open_progress(Console(file=screen, width=100), record) as display:
        shown(display).phase("prefill")
    assert screen.getvalue() == "3 of 40 trials: measuring prefill\n"
