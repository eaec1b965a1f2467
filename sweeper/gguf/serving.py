"""The child side of a worker process: JSON requests a line on standard input, JSON answers on its own pipe.

What ggml prints, also to standard output when it aborts, goes to standard error, which the parent keeps
as the log.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

Handler = Callable[..., Mapping[str, Any]]

_PR_SET_PDEATHSIG = 1


class Refused(Exception):
    """The work cannot be done, for a reason that the engine or we can name; the worker lives on."""


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests ``{"do": name, "with": {…}}`` by ``handlers`` until standard input ends.

    An answer is ``{"ok": {…}}`` or ``{"refused": reason}``. Any other exception ends the process: its
    traceback is in the log.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"ok": handlers[request["do"]](**request["with"])}
        except Refused as refused:
            answer = {"refused": str(refused)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
