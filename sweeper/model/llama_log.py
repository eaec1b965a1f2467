"""Keeps llama.cpp's log line by line. For many failures, only the log contains the reason.

The levels are those of ``ggml.h``; ``llama_cpp`` numbers them differently (see ``LEVELS``).
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass
from typing import Any

LEVELS = {1: "debug", 2: "info", 3: "warn", 4: "error"}  # enum ggml_log_level; 0 is none, 5 continues a line
_CONTINUE = 5
_KEEP_LINES = 4000  # a load logs 200 to 700 lines, a quantisation two lines for each tensor


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the engine's log; ``level`` is ``debug``, ``info``, ``warn``, ``error`` or ``none``."""

    level: str
    text: str


@dataclass(slots=True)
class LogCapture:
    """A ring buffer of the engine's last log lines, oldest first. ``callback`` must live as long as the engine."""

    lines: deque[LogLine]
    callback: Any = None
    _level: str = "none"
    _partial: str = ""

    def feed(self, level: int, text: str) -> None:
        """Add one piece of log, which may be part of a line or several lines."""
        if level != _CONTINUE:
            name = LEVELS.get(level, "none")
            if name != self._level:  # the quantiser continues its lines with the same level
                self.flush()
            self._level = name
        pieces = (self._partial + text).split("\n")
        self._partial = pieces.pop()
        for piece in pieces:
            self._keep(piece)

    def flush(self) -> None:
        """Keep an unfinished line."""
        if self._partial:
            self._keep(self._partial)
            self._partial = ""

    def tail(self, count: int = 20) -> tuple[str, ...]:
        """The texts of the last ``count`` lines, oldest first."""
        self.flush()
        return tuple(line.text for line in list(self.lines)[-count:])

    def of_level(self, *levels: str) -> tuple[str, ...]:
        """The texts of the lines with these levels, oldest first."""
        self.flush()
        return tuple(line.text for line in self.lines if line.level in levels)

    def clear(self) -> None:
        """Delete all kept lines."""
        self._partial = ""
        self.lines.clear()

    def _keep(self, text: str) -> None:
        text = text.rstrip()
        if not text:
            return
        self.lines.append(LogLine(self._level, text))


def capture_log(keep: int = _KEEP_LINES) -> LogCapture:
    """Redirect llama.cpp's log in this process from stderr to a new capture.

    Keep the returned object for as long as llama.cpp may log: it holds the callback's only reference.
    """
    import llama_cpp

    capture = LogCapture(deque(maxlen=keep))

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def callback(level: int, text: bytes, user_data: Any) -> None:
        capture.feed(level, text.decode("utf-8", "replace"))

    capture.callback = callback
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return capture
