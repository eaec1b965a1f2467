"""fituna, on its own question: the best quality that reaches a target speed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from contest import Claim, NoAnswer, Rules
from picks import options_of_words
from programs import Ran
from rivals import Answer, rival

_SERVER = re.compile(r"^\s*(\S*llama-server -m .*)$", re.MULTILINE)
_SPEED = re.compile(r"gen tok/s\s+\(tg\):\s*([\d.]+)")
_QUANT = re.compile(r"^\s*quant\s*:\s*(\w+)", re.MULTILINE)
_TESTED_TOKENS = 640  # of its own llama-bench: 512 of prompt and 128 of answer, which end at its --ctx


def words(rules: Rules, folder: Path) -> list[str]:
    """The command of its README, with a file and a text that are on the disk."""
    if rules.target is None or rules.precise_model is None:
        raise NoAnswer("the question of quality needs a target speed and an F16 file")
    return [
        *("fituna", "run", "--model", str(rules.precise_model), "--llama-bin-dir", str(rules.wrappers)),
        *("--target-tps", f"{rules.target:.2f}", "--max-quality-loss", "5"),
        *("--ctx", str(rules.depth + _TESTED_TOKENS), "--quality-corpus", str(rules.text)),
        *("--out", str(folder / "out"), "--resume"),
    ]


def answer(ran: Ran, rules: Rules) -> Answer | None:
    """Its summary, which it prints also for the best effort below the target."""
    command, speed, quant = (pattern.search(ran.output) for pattern in (_SERVER, _SPEED, _QUANT))
    if command is None or speed is None or quant is None:
        return None
    server = shlex.split(command[1])
    notes = (f"quant {quant[1]}", *(() if ran.exit_code == 0 else ("its best effort, below the target",)))
    claim = Claim(float(speed[1]), "llama-bench", f"measured, tg128 at depth {rules.depth}")
    return Answer(options_of_words(server), command[1], claim, server[server.index("-m") + 1], notes)


CONTESTANTS = (rival("fituna", "fituna==0.3.6", words, answer, "quality"),)
