"""llama-optimus: Optuna in three stages over llama-bench, for decode speed."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

from contest import Claim, Rules
from picks import judged, options_of_words
from programs import Ran
from rivals import Answer, rival

REQUIREMENT = "llama-optimus==0.1.9"
# The "quick test" of its README, with 10 trials in place of 5.
SHORT = ("--trials", "10", "--repeat", "2", "--no-warmup", "--n-tokens", "20", "--metric", "tg")
_COMMAND = re.compile(r"^LLAMA_BIN=.*\nMODEL=.*\n\s*(\$LLAMA_BIN/llama-server .*)$", re.MULTILINE)
_BEST = re.compile(r"^Best Stage_3 \w+ tokens/sec: ([\d.]+)", re.MULTILINE)
_TRIAL = re.compile(r"Trial \d+ finished with value: ([\d.]+) and parameters: (\{.*?\})\.")
_NAMES = {"batch": "n_batch", "u_batch": "n_ubatch", "threads": "n_threads", "gpu_layers": "n_gpu_layers"}


def words(rules: Rules, extra: tuple[str, ...]) -> list[str]:
    """Its command; the defaults are those of the package."""
    return ["llama-optimus", "--llama-bin", str(rules.wrappers), "--model", str(rules.model), *extra]


def answer(ran: Ran, rules: Rules) -> Answer | None:
    """The printed command; of a run that was cut, the best trial so far, as its README advises after an abort."""
    printed, best = printed_command(ran.output), _BEST.search(ran.output)
    if printed is not None:
        command, options = printed
        claim = Claim(float(best[1]), "llama-bench", "measured, without warm-up") if best else None
        return Answer(options, command, claim)
    found = best_so_far(ran.output) if ran.exit_code is None else None
    if found is None:
        return None
    return Answer(found[1], None, Claim(found[0], "llama-bench", "measured, the best trial before the cap"))


def printed_command(output: str) -> tuple[str, dict[str, Any]] | None:
    """The lines to paste into a shell, and the judged options in them; None if there are none."""
    found = _COMMAND.search(output)
    return (found[0], options_of_words(shlex.split(found[1]))) if found else None


def best_so_far(output: str) -> tuple[float, dict[str, Any]] | None:
    """The best trial that finished: tok/s and judged options; None if none ran."""
    trials = [(float(value), ast.literal_eval(params)) for value, params in _TRIAL.findall(output)]
    numbers: dict[str, Any] = {}
    best: tuple[float, dict[str, Any]] | None = None
    for value, params in trials:
        # The second stage varies two switches around the best numbers of the first.
        whole = params if "batch" in params else {**numbers, **params}
        if value > 0 and (best is None or value > best[0]):
            best = value, whole
            numbers = {k: v for k, v in whole.items() if k in _NAMES}
    if best is None:
        return None
    options: dict[str, Any] = {_NAMES[k]: v for k, v in best[1].items() if k in _NAMES}
    if best[1].get("flash_attn") == 1:
        options["flash_attn"] = True
    return best[0], judged(options)


def _as_shipped(rules: Rules, _folder: Path) -> list[str]:
    return words(rules, ())


def _short(rules: Rules, _folder: Path) -> list[str]:
    return words(rules, SHORT)


CONTESTANTS = (
    rival("llama-optimus", REQUIREMENT, _as_shipped, answer),
    rival("llama-optimus-short", REQUIREMENT, _short, answer),
)
