"""The child side of a worker process: JSON requests a line on standard input, JSON answers on its own pipe.

What ggml prints, also to standard output when it aborts, goes to standard error, which the parent keeps
as the log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from sweeper.system import end_with_parent

Handler = Callable[..., Mapping[str, Any]]


class Refused(Exception):
    """The work cannot be done, for a reason that the engine or we can name; the worker lives on."""


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests ``{"do": name, "with": {…}}`` by ``handlers`` until standard input ends.

    An answer is ``{"ok": {…}}`` or ``{"refused": reason}``. Any other exception ends the process: its
    traceback is in the log. The handler of a request with ``"tells": true`` gets an argument ``tell``, which sends
    ``{"done": number}`` ahead of the answer.
    """
    _die_with_parent()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    for line in sys.stdin:
        request = json.loads(line)
        more = {"tell": lambda done: send({"done": done})} if request.get("tells") else {}
        try:
            answer: dict[str, Any] = {"ok": handlers[request["do"]](**request["with"], **more)}
        except Refused as refused:
            answer = {"refused": str(refused)}
        send(answer)


def _die_with_parent() -> None:
    """Ask the kernel to end this process with its parent, and to choose it first when memory runs out."""
    end_with_parent(signal.SIGKILL)()
    if sys.platform != "linux":
        return
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError as error:  # a hardened container: the kernel then chooses by size, which is us as well
        sys.stderr.write(f"oom_score_adj stays as it is: {error}\n")
