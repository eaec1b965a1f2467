"""The events of a running sweep. The loop reports them to a display that the caller chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from sweeper.records import Configuration, SweepRecord, TrialRecord


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a sweep, for the estimate of the time left.

    ``finalist_measurements`` is how many measurements are expected after the search, and
    ``finalist_cost`` the cost of one of them relative to a trial of the search, for example 2.0.
    """

    finalist_measurements: int = 0
    finalist_cost: float = 1.0
    minutes: float | None = None  # the search ends after so many minutes, whatever is left


class Progress:
    """Events of one sweep, in the order in which they come; a display overrides those that it shows.

    Enter it around the sweep. No event may raise or take long.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the display, also where the sweep broke."""

    def limited(self, left: Callable[[], float]) -> None:
        """The whole sweep ends after a time; ``left`` gives the seconds that are left, negative once it is over."""

    def trial_started(self, number: int, total: int, configuration: Configuration) -> None:
        """The ``number``-th of ``total`` begins, counted from 1; earlier trials of a resumed sweep count.

        After :meth:`finalists` both count the measurements of that stage, those of :meth:`undecided` included; after
        :meth:`confirming` they count its measurements.
        """

    def phase(self, name: str, speed: float | None = None, watts: float | None = None) -> None:
        """What is under way, with tok/s and W as far as known: a phase of a trial, or a wait.

        A measurement begins right after ``at rest``, ``prefill`` and ``decode``: nothing may disturb it until the next
        event. Other threads may report phases as well.
        """

    def compared(self, seconds: float) -> None:
        """The quality of the trial's level was measured for so long, which neither the trial nor the search counts."""

    def trial_finished(self, trial: TrialRecord) -> None:
        """The trial that was started last is over, whatever became of it."""

    def so_far(self, record: Callable[[], SweepRecord]) -> None:
        """The sweep may have another front or pick now. Making ``record`` takes milliseconds, more with many trials."""

    def note(self, text: str) -> None:
        """One line that the user must see, now."""

    def finalists(self, trials: int, measurements: int) -> None:
        """The search is over: so many candidates are measured again, in so many measurements that are left."""

    def stopping(self) -> None:
        """The user pressed Ctrl-C once: the trial in flight is finished, and :meth:`confirming` follows if needed."""

    def confirming(self, measurements: int) -> None:
        """The user stopped the search: so many measurements of the baseline, the pick and its near-ties follow."""

    def undecided(self, measurements: int, disturbed: bool = False) -> None:
        """So many more measurements of some finalists follow: they are a near-tie, or others disturbed them."""

    def finished(self, record: SweepRecord) -> None:
        """The sweep is over and recorded."""
