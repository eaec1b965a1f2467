"""llama-dyno: llama-bench over batch sizes and threads; 30 % of its score is prefill speed."""

from __future__ import annotations

import re
from pathlib import Path

from contest import Claim, NoAnswer, Rules
from picks import judged
from programs import Ran
from rivals import Answer, rival

_CONFIG = re.compile(
    r"ngl=(?P<ngl>\d+), fa=(?P<fa>\S).*?ctk=(?P<ctk>\w+), ctv=(?P<ctv>\w+).*?"
    r"batch=(?P<batch>\d+), ubatch=(?P<ubatch>\d+).*?threads=(?P<threads>\w+)",
    re.DOTALL,
)
_NEXT = re.compile(r"Next:\s*(dyno bench .*?)\s*$", re.MULTILINE)
# The end of a row in its table of trials: batch, threads, pp t/s, tg t/s, ±, score, OK.
_ROW = re.compile(r"\d+\s+(?:auto|\d+)\s+[\d.]+\s+([\d.]+)\s+\S+\s+([\d.]+)\s+OK\b")


def words(rules: Rules, _folder: Path) -> list[str]:
    """The quick mode of its README."""
    if "ik" in str(rules.wrappers).lower():
        raise NoAnswer(
            "llama-dyno takes a llama-bench whose path holds `ik` for ik_llama.cpp: choose another --work"
        )
    return ["dyno", "tune", str(rules.model), "--quick"]


def answer(ran: Ran, _rules: Rules) -> Answer | None:
    """The panel with the winner, the command below it, and the winner's speed in the table of trials."""
    config, rows = _CONFIG.search(ran.output), _ROW.findall(ran.output)
    if config is None or not rows:
        return None
    options = {
        "n_gpu_layers": int(config["ngl"]),
        "flash_attn": config["fa"] == "✓",
        "type_k": config["ctk"],
        "type_v": config["ctv"],
        "n_batch": int(config["batch"]),
        "n_ubatch": int(config["ubatch"]),
        "n_threads": None if config["threads"] == "auto" else int(config["threads"]),
    }
    decode, _score = max(rows, key=lambda row: float(row[1]))
    command = _NEXT.search(ran.output)
    claim = Claim(float(decode), "llama-bench", "measured, tg128")
    return Answer(judged(options), command[1] if command else None, claim)


CONTESTANTS = (rival("llama-dyno", "llama-dyno==1.5.0", words, answer),)
