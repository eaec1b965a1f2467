"""Says what goes on while nothing else is said: within 10 s, and then about every 10 s.

The thread of a heartbeat sleeps without waking up while something is measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

SILENCE_SECONDS = 10.0
# In a line of `Aloud`, the words before this sign name what goes on until the next line.
GOES_ON = " …"


class Heartbeat:
    """Calls ``beat`` in a thread of its own after each silence, while something goes on.

    Args:
        beat: shows one line. Neither `said` nor any other method waits for a lock that it needs.
        silence_seconds: the length of a silence.
    """

    def __init__(self, beat: Callable[[], None], silence_seconds: float = SILENCE_SECONDS) -> None:
        self._beat, self._silence = beat, silence_seconds
        self._last = time.monotonic()
        self._goes_on = self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sweeper-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def said(self) -> None:
        """A line was shown just now. It takes no lock, so that a signal's handler may call it."""
        self._last = time.monotonic()

    def silence(self) -> float:
        """The seconds since the last line."""
        return time.monotonic() - self._last

    def goes_on(self, goes_on: bool) -> None:
        """Whether something goes on that may be told of. With False, no beat comes after this returns."""
        if goes_on != self._goes_on:
            with self._changed:
                self._goes_on = goes_on
                self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._ended:
                left = self._last + self._silence - time.monotonic() if self._goes_on else None
                if left is None or left > 0:
                    self._changed.wait(left)
                else:
                    self.said()
                    self._beat()


class Activity:
    """What goes on, and since when, in words for a heartbeat."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._name, self._since = "", clock()

    def __call__(self, name: str) -> None:
        """``name`` goes on. What follows a colon, or a comma and a space, may change meanwhile."""
        if _kind(name) != _kind(self._name):
            self._since = self._clock()
        self._name = name

    @property
    def words(self) -> str:
        """``filling 16,384 tokens, 60 %, 84 s``; a wait tells its seconds itself."""
        seconds = self._clock() - self._since
        return self._name if self._name.endswith(" s") else f"{self._name}, {seconds:.0f} s"

    @property
    def is_long(self) -> bool:
        """Whether it goes on for so long that its seconds are worth telling."""
        return self._clock() - self._since >= SILENCE_SECONDS


def _kind(name: str) -> str:
    return name.partition(": ")[0].partition(", ")[0]


class Aloud:
    """Shows the lines of work that has no display, and in long silences what goes on and for how long.

    Args:
        show: shows one line.
        otherwise: what goes on after a line that does not name it with `GOES_ON`.
        silence_seconds: the length of a silence.
    """

    def __init__(
        self, show: Callable[[str], None], otherwise: str, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        self._show, self._otherwise = show, otherwise
        self._activity = Activity()
        self._activity(otherwise)
        self._heartbeat = Heartbeat(lambda: show(f"{self._activity.words} …"), silence_seconds)

    def __enter__(self) -> Self:
        self._heartbeat.__enter__()
        self._heartbeat.goes_on(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.__exit__()

    def __call__(self, text: str) -> None:
        """Show a line."""
        name, goes_on, _ = text.partition(GOES_ON)
        self._activity(name if goes_on else self._otherwise)
        self._heartbeat.said()
        self._show(text)

    def rest(self) -> None:
        """Tell nothing more of its own: another display takes over."""
        self._heartbeat.goes_on(False)
