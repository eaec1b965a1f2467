"""Progress while a sweep runs: two live lines in a terminal, plain lines in a pipe.

The lines change only when an event comes, so that no thread of the display wakes up while power is
measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sweeper.records import Configuration, Objective, PowerSource, SweepRecord, TrialRecord
from sweeper.report.caveats import reason as why_lost
from sweeper.report.columns import writable
from sweeper.report.progress import Plan, Progress
from sweeper.report.time_left import TimeLeft, in_words
from sweeper.report.words import STATES, clean, figure, is_doubtful, settings, spread, unit

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
    story = Story(tuple(objectives), power, plan or Plan(), baseline, clock)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(console, story)
    return PlainProgress(console, story)


class Story:
    """The progress so far, in words; it writes to no console."""

    def __init__(
        self,
        objectives: tuple[Objective, ...],
        power: PowerSource,
        plan: Plan,
        baseline: Configuration | None,
        clock: Clock,
    ) -> None:
        self.objectives = objectives
        self.power = power
        self._clock = clock
        self._started = self._since = clock()
        self._left = TimeLeft(plan)
        self._number = self._total = 0
        self._running = False
        self._stage = "trial"
        self._phase = ""
        self._base = baseline
        self._best: TrialRecord | None = None

    def trial_started(self, number: int, total: int, configuration: Configuration) -> None:
        """A trial begins. The first runs the engine's defaults; the lines of later trials show the differences."""
        self._number, self._total, self._running = number, total, True
        self._phase = ""
        if self._base is None and number == 1:
            self._base = configuration

    def phase(self, name: str, speed: float | None, watts: float | None) -> None:
        """Where the trial is, with its latest figures."""
        parts = [name]
        if speed is not None:
            parts.append(f"{figure(speed)} tok/s")
        if watts is not None:
            parts.append(f"{figure(watts)} {self._watts()}")
        self._phase = "  ".join(parts)

    def finalists(self, measurements: int) -> None:
        """The search is over."""
        self._since = self._clock()
        self._left.finalists_started(measurements)
        self._stage, self._number, self._total = "finalist", 0, measurements

    def trial_finished(self, trial: TrialRecord) -> None:
        """Keep the best trial. A trial's time runs from the end of the trial before it."""
        now = self._clock()
        self._left.trial_took(now - self._since)
        self._since = now
        self._running = False
        self._phase = ""
        first = self.objectives[0]
        if trial.feasible and first.metric in trial.metrics:
            better = self._best is None or self._beats(trial, self._best, first)
            again = self._best is not None and trial.number == self._best.number
            if better or again:
                self._best = trial

    @staticmethod
    def _beats(trial: TrialRecord, best: TrialRecord, objective: Objective) -> bool:
        new, old = trial.metrics[objective.metric].median, best.metrics[objective.metric].median
        return new > old if objective.direction == "maximize" else new < old

    def seconds_left(self) -> float | None:
        """Seconds until the end of the sweep, or None while that is not known."""
        now = self._clock()
        to_come = self._total - self._number + self._running
        left = self._left.seconds(max(0, to_come), now - self._started)
        # The running trial counts as a whole above, so its time so far comes off.
        return None if left is None else max(0.0, left - (now - self._since))

    def now(self) -> str:
        """``trial 12/40  decode  29.8 tok/s  224 W``."""
        return f"{self._stage} {self._number}/{self._total}  {self._phase}".rstrip()

    def outlook(self) -> str:
        """``best so far 31.2 ± 0.2 tok/s, 210 ± 1 W (#7) · about 6 min left``."""
        left = in_words(self.seconds_left())
        if self._best is None:
            return left
        return f"best so far {self._figures(self._best)} (#{self._best.number}) · {left}"

    def line(self, trial: TrialRecord) -> str:
        """One finished trial: figures, or why there are none, and its settings."""
        place = f"{self._stage} {self._number}/{self._total}  #{trial.number}"
        own = settings(trial.configuration, self._base or Configuration())
        if trial.state == "complete" and trial.metrics:
            outside = "" if trial.feasible else f"  {clean(why_lost(trial))}"
            return f"{place}  {self._figures(trial)}{outside}  {own}"
        reason = f": {clean(trial.reason)}" if trial.reason else ""
        return f"{place}  {STATES[trial.state]}{reason}  {own}"

    def _figures(self, trial: TrialRecord) -> str:
        shown = [o.metric for o in self.objectives if o.metric in trial.metrics]
        return ", ".join(f"{spread(trial.metrics[m])} {unit(m, self.power)}" for m in shown)

    def _watts(self) -> str:
        return f"W {self.power.kind}" if is_doubtful(self.power) else "W"


class PlainProgress(Progress):
    """One line for each trial that ended, and for each note: for pipes, logs and dumb terminals.

    Enter it around the sweep.
    """

    def __init__(self, console: Console, story: Story) -> None:
        self._console = console
        self._story = story

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def trial_started(self, number: int, total: int, configuration: Configuration) -> None:
        """Only a live display shows a trial before it ended."""
        self._story.trial_started(number, total, configuration)
        self._show()

    def phase(self, name: str, speed: float | None = None, watts: float | None = None) -> None:
        """Only a live display shows phases: a log is read afterwards."""
        self._story.phase(name, speed, watts)
        self._show()

    def trial_finished(self, trial: TrialRecord) -> None:
        """Print the trial's line."""
        self._story.trial_finished(trial)
        self._print_trial(trial)
        self._show()

    def note(self, text: str) -> None:
        """Print the note."""
        self._print(clean(text), "yellow", whole=True)

    def finalists(self, measurements: int) -> None:
        """Print that the search is over."""
        self._story.finalists(measurements)
        self._print(f"the search is over; {measurements} measurements of the finalists follow", "bold")
        self._show()

    def undecided(self, measurements: int) -> None:
        """Print that sweeper measures some finalists once more."""
        self._story.finalists(measurements)
        self._print(f"the top finalists are within noise; {measurements} more measurements follow", "bold")
        self._show()

    def finished(self, record: SweepRecord) -> None:
        """Print why the sweep ended."""
        because = f": {clean(record.stopped_because)}" if record.stopped_because else ""
        self._print(f"sweep {clean(record.sweep)} {record.state}{because}", "bold")

    def _print_trial(self, trial: TrialRecord) -> None:
        self._print(f"{self._story.line(trial)}  ({in_words(self._story.seconds_left())})")

    def _print(self, line: str, style: str = "", *, whole: bool = False) -> None:
        self._console.print(writable(Text(line), self._console.encoding), soft_wrap=True, highlight=False)

    def _show(self) -> None:
        pass


class LiveProgress(PlainProgress):
    """Two lines that change in place, below the lines of the trials that ended."""

    def __init__(self, console: Console, story: Story) -> None:
        super().__init__(console, story)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def finished(self, record: SweepRecord) -> None:
        """Remove the live lines and print why the sweep ended."""
        self._live.update(Text(), refresh=True)
        super().finished(record)

    def _print_trial(self, trial: TrialRecord) -> None:
        # The reason of a failed trial is shown whole. The report has the settings of the other trials.
        self._print(self._story.line(trial), "" if trial.feasible else "yellow", whole=not trial.feasible)

    def _print(self, line: str, style: str = "", *, whole: bool = False) -> None:
        text = Text(line, style=style)
        self._console.print(writable(text, self._console.encoding) if whole else self._fitted(text))

    def _show(self) -> None:
        lines = [Text(self._story.now(), style="bold"), Text(self._story.outlook(), style="dim")]
        self._live.update(Group(*(self._fitted(line) for line in lines)), refresh=True)

    def _fitted(self, line: Text) -> Text:
        """One row of the terminal: a line that wraps would leave its rest behind when it changes."""
        fitted = writable(line, self._console.encoding)
        sign = writable(Text("…"), self._console.encoding).plain == "…"
        fitted.truncate(self._console.width, overflow="ellipsis" if sign else "crop")
        fitted.no_wrap = True
        return fitted
