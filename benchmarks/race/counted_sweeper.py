"""Runs sweeper, and logs each worker that holds llama.cpp to ``$RACE_LOG``, as the wrappers log their programs.

python counted_sweeper.py sweep …
"""

from __future__ import annotations

import os
import sys
from typing import Any

# Workers of other folders, such as the load generator, hold no llama.cpp.
_HOLD_LLAMA_CPP = ("sweeper.engine.", "sweeper.model.")


def log_workers(event: str, details: tuple[Any, ...]) -> None:
    """An audit hook. Python calls it before each start of a process, with the program's words."""
    if event != "subprocess.Popen" or isinstance(details[1], str | bytes):
        return
    words = [os.fsdecode(word) for word in details[1]]
    if words[1:2] == ["-m"] and words[2].startswith(_HOLD_LLAMA_CPP):
        with open(os.environ["RACE_LOG"], "a", encoding="utf-8") as log:
            log.write(f"{words[2].removeprefix('sweeper.')}\t\n")


if __name__ == "__main__":
    from sweeper.cli import entry

    sys.addaudithook(log_workers)
    entry()
