"""llama-mdl: computes placement and speed from the file's header, and measures nothing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from contest import Claim, Rules
from picks import options_of_words
from programs import Ran
from rivals import Answer, rival

_COMMAND = re.compile(r"^llama-server -m .*$", re.MULTILINE)
_FIRST = re.compile(r"^ 1 .*?(\d+) / \d+ t/s", re.MULTILINE)  # decode at depth 0 of its first pick


def words(rules: Rules, _folder: Path) -> list[str]:
    """Its profile `speed` maximises decode, as the race does; the default is for agents with a long context."""
    return ["mdl", "fit", str(rules.model), "--profile", "speed"]


def answer(ran: Ran, _rules: Rules) -> Answer | None:
    """The printed command, and the computed speed of the first row of its table."""
    command, first = _COMMAND.search(ran.output), _FIRST.search(ran.output)
    if command is None:
        return None
    claim = Claim(float(first[1]), "llama-bench", "computed, printed without decimals") if first else None
    return Answer(options_of_words(shlex.split(command[0])), command[0], claim)


CONTESTANTS = (rival("llama-mdl", "llama-mdl==0.14.0", words, answer),)
