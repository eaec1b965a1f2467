"""Progress while a sweep runs: two live lines in a terminal, plain lines in a pipe.

The lines change only when an event comes, so that no thread of the display wakes up while power is
measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sweeper.records import Configuration, Objective, PowerSource, SweepRecord, TrialRecord
from sweeper.report.caveats import reason as why_lost
from sweeper.report.progress import Plan, Progress
from sweeper.report.tables import writable
from sweeper.report.time_left import TimeLeft, in_words
from sweeper.report.words import STATES, clean, figure, settings, spread, unit
from sweeper.results.front import orient

Clock = Callable[[], float]


def open_progress(
    console: Console,
    objectives: Sequence[Objective],
    power: PowerSource,
    plan: Plan | None = None,
    baseline: Configuration | None = None,
    clock: Clock = time.monotonic,
) -> PlainProgress:
    """The display that suits ``console``: live where it is a terminal that can move its cursor, else plain.

    Enter it right before the search: its time runs from here. Lines show how trials differ
    from ``baseline``; its default is the configuration of the first trial.
    """
    is_live = console.is_terminal and not console.is_dumb_terminal
    display = LiveProgress if is_live else PlainProgress
    return display(console, objectives, power, plan or Plan(), baseline, clock)


class PlainProgress(Progress):
    """One line for each trial that ended, and for each note: for pipes, logs and dumb terminals."""

    def __init__(
        self,
        console: Console,
        objectives: Sequence[Objective],
        power: PowerSource,
        plan: Plan,
        baseline: Configuration | None,
        clock: Clock,
    ) -> None:
        self._console = console
        self._objectives = objectives
        self._power = power
        self._left = TimeLeft(plan)
        self._base = baseline
        self._clock = clock
        self._started = self._since = clock()
        self._stage, self._number, self._total = "trial", 0, 0
        self._running = False
        self._best: TrialRecord | None = None

    def trial_started(self, number: int, total: int, configuration: Configuration) -> None:
        """Only a live display shows a trial before it ended."""
        self._number, self._total, self._running = number, total, True
        if self._base is None and number == 1:
            self._base = configuration

    def trial_finished(self, trial: TrialRecord) -> None:
        """Print the trial's line. A trial's time runs from the end of the trial before it."""
        now = self._clock()
        self._left.trial_took(now - self._since)
        self._since = now
        self._running = False
        if trial.feasible and self._objectives[0].metric in trial.metrics:
            again = self._best is not None and trial.number == self._best.number
            if again or self._best is None or self._first(trial) > self._first(self._best):
                self._best = trial
        self._print_trial(trial)

    def note(self, text: str) -> None:
        """Print the note."""
        self._print(clean(text), "yellow", whole=True)

    def finalists(self, trials: int, measurements: int) -> None:
        """Print that the search is over, and what follows."""
        self._start_stage(measurements)
        if not trials:
            return
        times, rest = divmod(measurements, trials)
        best = "the best trial is" if trials == 1 else f"the {trials} best trials are"
        line = f"the search is over; {best} measured {times} more times"
        if not measurements:
            line = "already complete: every finalist is measured"
        elif rest:
            line = f"the search is over; {measurements} measurements of the {trials} best trials are left"
        self._print(line, "bold")

    def undecided(self, measurements: int, disturbed: bool = False) -> None:
        """Print that sweeper measures some finalists once more."""
        self._start_stage(measurements)
        why = "other programs disturbed some finalists" if disturbed else "the top finalists are within noise"
        self._print(f"{why}; {measurements} more measurements follow", "bold")

    def finished(self, record: SweepRecord) -> None:
        """Print why the sweep ended."""
        because = f": {clean(record.stopped_because)}" if record.stopped_because else ""
        self._print(f"sweep {clean(record.sweep)} {record.state}{because}", "bold")

    def _start_stage(self, measurements: int) -> None:
        self._since = self._clock()
        self._left.finalists_started(measurements)
        self._stage, self._number, self._total = "finalist measurement", 0, measurements

    def _first(self, trial: TrialRecord) -> float:
        """The first objective, oriented so that more is better."""
        objective = self._objectives[0]
        return orient(trial.metrics[objective.metric], objective).value

    def _time_left(self) -> str:
        now = self._clock()
        to_come = self._total - self._number + self._running
        left = self._left.seconds(max(0, to_come), now - self._started)
        # The running trial counts as a whole above, so its time so far comes off.
        return in_words(None if left is None else max(0.0, left - (now - self._since)))

    def _line(self, trial: TrialRecord) -> str:
        """One finished trial: figures, or why there are none, and its settings."""
        place = f"{self._stage} {self._number}/{self._total}: #{trial.number}"
        own = settings(trial.configuration, self._base or Configuration())
        if trial.state == "complete" and trial.metrics:
            outside = "" if trial.feasible else f"  {clean(why_lost(trial))}"
            return f"{place}  {self._figures(trial)}{outside}  {own}"
        reason = f": {clean(trial.reason)}" if trial.reason else ""
        return f"{place}  {STATES[trial.state]}{reason}  {own}"

    def _figures(self, trial: TrialRecord) -> str:
        shown = [o.metric for o in self._objectives if o.metric in trial.metrics]
        return ", ".join(f"{spread(trial.metrics[m])} {unit(m, self._power)}" for m in shown)

    def _print_trial(self, trial: TrialRecord) -> None:
        self._print(f"{self._line(trial)}  ({self._time_left()})")

    def _print(self, line: str, style: str = "", *, whole: bool = False) -> None:
        self._console.print(writable(Text(line), self._console.encoding), soft_wrap=True, highlight=False)


class LiveProgress(PlainProgress):
    """Two lines that change in place, below the lines of the trials that ended.

    ``trial 12/40  decode  29.8 tok/s  224 W``, and below it
    ``best so far 31.2 ± 0.2 tok/s, 210 ± 1 W (#7) · about 6 min left``.
    """

    _live: Live

    def __enter__(self) -> Self:
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def trial_started(self, number: int, total: int, configuration: Configuration) -> None:
        """Show which trial runs."""
        super().trial_started(number, total, configuration)
        self._show()

    def phase(self, name: str, speed: float | None = None, watts: float | None = None) -> None:
        """Show the phase, with its latest figures."""
        figures = ((speed, "tokens_per_second"), (watts, "watts"))
        parts = [
            f"{figure(value)} {unit(metric, self._power)}" for value, metric in figures if value is not None
        ]
        self._show("  ".join([name, *parts]))

    def trial_finished(self, trial: TrialRecord) -> None:
        """Print the trial's line above the live ones."""
        super().trial_finished(trial)
        self._show()

    def finished(self, record: SweepRecord) -> None:
        """Remove the live lines and print why the sweep ended."""
        self._live.update(Text(), refresh=True)
        super().finished(record)

    def _start_stage(self, measurements: int) -> None:
        super()._start_stage(measurements)
        self._show()

    def _print_trial(self, trial: TrialRecord) -> None:
        # The reason of a failed trial is shown whole. The report has the settings of the other trials.
        self._print(self._line(trial), "" if trial.feasible else "yellow", whole=not trial.feasible)

    def _print(self, line: str, style: str = "", *, whole: bool = False) -> None:
        text = Text(line, style=style)
        self._console.print(writable(text, self._console.encoding) if whole else self._fitted(text))

    def _show(self, phase: str = "") -> None:
        now = f"{self._stage} {self._number}/{self._total}  {phase}".rstrip()
        best = self._best
        known = "" if best is None else f"best so far {self._figures(best)} (#{best.number}) · "
        lines = [Text(now, style="bold"), Text(known + self._time_left(), style="dim")]
        self._live.update(Group(*(self._fitted(line) for line in lines)), refresh=True)

    def _fitted(self, line: Text) -> Text:
        """One row of the terminal: a line that wraps would leave its rest behind when it changes."""
        fitted = writable(line, self._console.encoding)
        sign = writable(Text("…"), self._console.encoding).plain == "…"
        fitted.truncate(self._console.width, overflow="ellipsis" if sign else "crop")
        fitted.no_wrap = True
        return fitted
