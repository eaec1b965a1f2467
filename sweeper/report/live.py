"""Progress while a sweep runs: a live screen in a terminal, plain lines in a pipe.

The screen changes when an event comes, and about every 10 s while something other than a measurement goes on. No
thread of the display wakes up while power is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segments
from rich.text import Text

from sweeper.metrics import FIRST_WHEN_FULL
from sweeper.records import Configuration, SweepRecord, TrialRecord
from sweeper.report.caveats import failures
from sweeper.report.caveats import reason as why_lost
from sweeper.report.heartbeat import SILENCE_SECONDS, Activity, Heartbeat
from sweeper.report.picks import current, sureness
from sweeper.report.progress import Plan, Progress
from sweeper.report.screen import screen
from sweeper.report.tables import wrapped, writable
from sweeper.report.time_left import TimeLeft, in_words
from sweeper.report.words import STATES, broken_constraints, clean, figure, figures, settings, tally, unit
from sweeper.results.contexts import CONTEXT, DECODE

Clock = Callable[[], float]
# After a look at the sweep so far, the display looks away for this many times as long: with thousands of simulated
# trials a look takes longer than a trial.
LOOKS_AWAY = 50
# The live screen leaves so many rows of the terminal to the notes above it.
ROWS_FOR_NOTES = 2
AGAIN = "press Ctrl-C again to stop at once"
# The phases whose watts or speed are measured, from the event to the next one.
MEASURED = ("at rest", "prefill", "decode")
# Other phases of a trial, in words.
PHASES = {"load": "loading the model", "warm-up": "warming up"}
# A plain log tells of a measurement only after so long a silence: a trial's line usually comes before.
PLAIN_SILENCE_SECONDS = 3 * SILENCE_SECONDS


def open_progress(
    console: Console,
    header: SweepRecord,
    plan: Plan | None = None,
    clock: Clock = time.monotonic,
    *,
    verbose: bool = False,
) -> PlainProgress:
    """The display that suits ``console``: live where it is a terminal that can move its cursor, else plain.

    Enter it right before the search: its time runs from here. Lines show how trials differ from the baseline of
    ``header``; its default is the configuration of the first trial. ``verbose`` also prints a line for each trial
    above a live screen.
    """
    is_live = console.is_terminal and not console.is_dumb_terminal
    display = LiveProgress if is_live else PlainProgress
    return display(console, header, plan or Plan(), clock, verbose)


class PlainProgress(Progress):
    """One line for each trial, new pick and note, and in long silences: for pipes, logs and dumb terminals."""

    def __init__(
        self, console: Console, header: SweepRecord, plan: Plan, clock: Clock, verbose: bool = False
    ) -> None:
        self._console = console
        self._objectives = header.objectives
        self._power = header.power
        self._left = TimeLeft(plan)
        self._base = header.baseline_configuration
        self._clock = clock
        self._verbose = verbose
        self._started = self._since = clock()
        self._stage, self._number, self._total = "trial", 0, 0
        self._running = False
        self._time_left_of_all: Callable[[], float] | None = None
        self._finalists, self._all_visited = (
            0,
            False,
        )  # once each finalist was visited, Ctrl-C measures nothing more
        self._looks_at = self._started
        self._named: int | None = None  # the pick that was named last
        self._activity = Activity(clock)
        self._heartbeat = Heartbeat(self._beat, SILENCE_SECONDS)

    def __enter__(self) -> Self:
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.__exit__()

    def limited(self, left: Callable[[], float]) -> None:
        """No estimate of the time left is longer than the sweep may last."""
        self._time_left_of_all = left

    def trial_started(self, number: int, total: int, configuration: Configuration) -> None:
        """Only a live display shows a trial before it ended."""
        self._number, self._total, self._running = number, total, True
        self._all_visited = self._all_visited or (self._stage != "trial" and number > self._finalists)
        if self._base is None and number == 1:
            self._base = configuration

    def phase(self, name: str, speed: float | None = None, watts: float | None = None) -> None:
        """Note what is under way; a line about it comes only in a long silence."""
        self._activity(PHASES.get(name, name))
        self._heartbeat.goes_on(name not in MEASURED)
        if name in MEASURED and self._heartbeat.silence() > PLAIN_SILENCE_SECONDS:
            self._print(f"{self._place()}measuring {name}", "dim")

    def compared(self, seconds: float) -> None:
        """Leave the comparison out of the estimate of the time left: it serves every trial of its level."""
        self._started += seconds
        self._since += seconds

    def trial_finished(self, trial: TrialRecord) -> None:
        """Print the trial's line. A trial's time runs from the end of the trial before it."""
        now = self._clock()
        self._left.trial_took(now - self._since)
        self._since = now
        self._running = False
        self._print_trial(trial)

    def so_far(self, record: Callable[[], SweepRecord]) -> None:
        """Show the sweep so far, unless the search goes on and the last look was too short a time ago.

        Visits of the final stage are few and long, and each may change the pick.
        """
        began = self._clock()
        if began >= self._looks_at or self._stage != "trial":
            self._show_record(record())
            now = self._clock()
            self._looks_at = now + LOOKS_AWAY * (now - began)

    def note(self, text: str) -> None:
        """Print the note."""
        self._print(clean(text), "yellow", whole=True)

    def finalists(self, trials: int, measurements: int) -> None:
        """Print that the search is over, and what follows."""
        self._finalists = trials
        self._start_stage(measurements)
        if not trials:
            return
        times, rest = divmod(measurements, trials)
        best = "the best trial is" if trials == 1 else f"the {trials} best trials are"
        more = f"{times} more {'time' if times == 1 else 'times'}"
        more = f"up to {more}, as time allows" if self._time_left_of_all else more
        line = f"the search is over; {best} measured {more}"
        if not measurements:
            line = "already complete: every finalist is measured"
        elif rest:
            line = f"the search is over; {measurements} measurements of the {trials} best trials are left"
        self._print(line, "bold")

    def stopping(self) -> None:
        """Print what one Ctrl-C does."""
        then = "" if self._all_visited else " and measures the pick once more"
        self.note(f"stopping: sweeper finishes this measurement{then}; {AGAIN}")

    def confirming(self, measurements: int) -> None:
        """Print which measurements follow after Ctrl-C, if any."""
        self._start_stage(measurements)
        if measurements:
            times = "measurement" if measurements == 1 else "measurements"
            self._print(
                f"stopped by hand; {measurements} more {times} of the baseline, the pick and its near-ties, so that "
                f"sweeper can recommend one; {AGAIN}",
                "bold",
                whole=True,
            )

    def undecided(self, measurements: int, disturbed: bool = False) -> None:
        """Print that sweeper measures some finalists once more."""
        self._start_stage(measurements)
        why = "other programs disturbed some finalists" if disturbed else "the top finalists are within noise"
        self._print(f"{why}; {measurements} more measurements follow", "bold")

    def finished(self, record: SweepRecord) -> None:
        """Print why the sweep ended."""
        self._heartbeat.goes_on(False)
        because = f": {clean(record.stopped_because)}" if record.stopped_because else ""
        self._print(f"sweep {clean(record.sweep)} {record.state}{because}", "bold")

    def _start_stage(self, measurements: int) -> None:
        self._since = self._clock()
        self._left.finalists_started(measurements)
        self._stage, self._number, self._total = "finalist measurement", 0, measurements

    def _place(self) -> str:
        return f"{self._count()}: " if self._running else ""

    def _count(self) -> str:
        """``7 of 14 trials``: a count, since the report's ``#6`` is the number of a trial and begins with 0."""
        return f"{self._number} of {self._total} {self._stage}s"

    def _beat(self) -> None:
        """Say what goes on, after a silence."""
        self._print(f"{self._place()}{clean(self._activity.words)}", "dim")

    def _time_left(self) -> str:
        now = self._clock()
        to_come = self._total - self._number + self._running
        left = self._left.seconds(max(0, to_come), now - self._started)
        if left is not None and self._time_left_of_all is not None:
            left = min(left, self._time_left_of_all())
        # The running trial counts as a whole above, so its time so far comes off.
        return in_words(None if left is None else max(0.0, left - (now - self._since)))

    def _line(self, trial: TrialRecord) -> str:
        """One finished trial: figures, or why there are none, and its settings."""
        place = f"{self._count()}: #{trial.number}"
        own = settings(trial.configuration, self._base or Configuration())
        if trial.state == "complete" and trial.metrics:
            outside = "" if trial.feasible else f"  {clean(why_lost(trial))}"
            return f"{place}  {self._figures(trial)}{outside}  {own}"
        reason = f": {clean(trial.reason)}" if trial.reason else ""
        return f"{place}  {STATES[trial.state]}{reason}  {own}"

    def _figures(self, trial: TrialRecord) -> str:
        metrics = [o.metric for o in self._objectives]
        is_long = CONTEXT in metrics  # then its speed is told in any case
        shown = dict.fromkeys([*metrics, *([DECODE] if is_long else [])])
        said = []
        for metric in (m for m in shown if m in trial.metrics):
            number, comma, doubt = figures(trial, metric).partition(", ")  # as in "7235, too noisy to use"
            said.append(f"{number} {unit(metric, self._power)}{comma}{doubt}")
        if is_long and FIRST_WHEN_FULL in trial.metrics:
            said.append(f"first word after {figures(trial, FIRST_WHEN_FULL)} s")
        return ", ".join(said)

    def _print_trial(self, trial: TrialRecord) -> None:
        self._print(f"{self._line(trial)}  ({self._time_left()})")

    def _show_record(self, record: SweepRecord) -> None:
        """Name the pick if it is another one than before."""
        best = current(record)
        if best is not None and best.trial.number != self._named:
            self._named = best.trial.number
            own = settings(best.trial.configuration, self._base or Configuration())
            line = f"current pick: #{best.trial.number}  {self._figures(best.trial)}  {own}"
            self._print(f"{line}  ({sureness(record, best)})")

    def _print(self, line: str, style: str = "", *, whole: bool = False) -> None:
        self._heartbeat.said()
        self._console.print(writable(Text(line), self._console.encoding), soft_wrap=True, highlight=False)


class LiveProgress(PlainProgress):
    """A screen that changes in place, below the notes.

    ``12 of 40 trials  decode  29.8 tok/s  224 W``, below it the time left and how the trials ended, and then what
    :func:`screen` shows.
    """

    _live: Live
    _record: SweepRecord | None = None
    # The width and the number of rows that there are, and the rows of the screen that fit, ready to write.
    _body: tuple[tuple[int, int], Segments] | None = None
    _is_stopping = False

    def __enter__(self) -> Self:
        self._ended: dict[
            int, TrialRecord
        ] = {}  # every trial so far, also those after the last look at the sweep
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._live.stop()

    def trial_started(self, number: int, total: int, configuration: Configuration) -> None:
        """Show which trial runs."""
        super().trial_started(number, total, configuration)
        self._show()

    def phase(self, name: str, speed: float | None = None, watts: float | None = None) -> None:
        """Show the phase, with its latest figures, or with its time if it lasts long."""
        self._activity(PHASES.get(name, name))
        self._heartbeat.goes_on(name not in MEASURED)
        if name not in MEASURED and self._activity.is_long:
            self._beat()
            return
        latest = ((speed, "tokens_per_second"), (watts, "watts"))
        parts = [
            f"{figure(value)} {unit(metric, self._power)}" for value, metric in latest if value is not None
        ]
        self._show("  ".join([PHASES.get(name, name), *parts]))

    def trial_finished(self, trial: TrialRecord) -> None:
        """Show the time left; print the trial's line above the screen only where the user wants the list."""
        self._ended[trial.number] = trial
        super().trial_finished(trial)
        self._show()

    def stopping(self) -> None:
        """Print what this Ctrl-C does, and show what the next one does."""
        self._is_stopping = True
        super().stopping()

    def finished(self, record: SweepRecord) -> None:
        """Remove the screen and print why the sweep ended."""
        self._live.update(Text(), refresh=True)
        super().finished(record)

    def _beat(self) -> None:
        self._show(clean(self._activity.words))

    def _start_stage(self, measurements: int) -> None:
        super()._start_stage(measurements)
        self._show()

    def _print_trial(self, trial: TrialRecord) -> None:
        if self._verbose:
            # The reason of a failed trial is shown whole. The report has the settings of the other trials.
            self._print(self._line(trial), "" if trial.feasible else "yellow", whole=not trial.feasible)

    def _print(self, line: str, style: str = "", *, whole: bool = False) -> None:
        text = Text(line, style=style)
        shown = writable(text, self._console.encoding) if whole else self._fitted(text)
        self._console.print(shown, soft_wrap=False)  # words stay whole

    def _show_record(self, record: SweepRecord) -> None:
        self._record, self._body = record, None
        self._ended = {trial.number: trial for trial in record.trials}
        self._show()

    def _show(self, phase: str = "") -> None:
        self._heartbeat.said()
        place = f"{self._count()}  " if self._number else ""
        now = f"{place}{phase}".rstrip()
        rows = [Text(now, style="bold"), *self._tallied()]
        width, height = self._console.size
        if self._record is not None:
            room = max(0, height - len(rows) - 1 - ROWS_FOR_NOTES)
            if self._body is None or self._body[0] != (width, room):
                fitting = Group(*map(self._fitted, screen(self._record, width, room)))
                self._body = (width, room), Segments(self._console.render(fitting))
        # Short, and last: a terminal writes ^C behind it.
        keys = Text(self._keys(), style="dim")
        body = self._body[1] if self._body else Segments(())
        self._live.update(Group(*map(self._fitted, rows), body, self._fitted(keys)), refresh=True)

    def _keys(self) -> str:
        """What Ctrl-C does now."""
        if self._is_stopping:
            return AGAIN
        if self._stage == "trial":
            return "Ctrl-C ends the search with a recommendation"
        if not self._all_visited:
            return "Ctrl-C ends the sweep after a last measurement of the pick"
        return "Ctrl-C ends the sweep after this measurement; finished measurements are kept"

    def _tallied(self) -> list[Text]:
        """The time left, how the trials ended, and the commonest reason of those that failed."""
        record, left = self._record, self._time_left()
        if record is None or not record.trials:
            return [Text(left, style="dim")]
        on_front = f"{len(record.front)} on the Pareto front"
        if len(self._ended) > len(record.trials):
            on_front = f"pick and figures after {len(record.trials)} of them: {on_front}"
        record = replace(record, trials=tuple(self._ended.values()))
        rows = wrapped(f"{left} · {tally(record)} · {on_front}", self._console.width, "dim")
        # The tally names the broken constraints.
        others = replace(record, trials=tuple(t for t in record.trials if not broken_constraints(t)))
        return rows + [Text(f"{count} × {clean(why)}", "yellow") for why, count in failures(others)[:1]]

    def _fitted(self, line: Text) -> Text:
        """One row of the terminal: a line that wraps would leave its rest behind when it changes."""
        fitted = writable(line, self._console.encoding)
        sign = writable(Text("…"), self._console.encoding).plain == "…"
        fitted.truncate(self._console.width, overflow="ellipsis" if sign else "crop")
        fitted.no_wrap = True
        return fitted
