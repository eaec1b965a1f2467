"""A verification as text for a terminal of 80 columns, and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sweeper.apply.verify.check import Verification
from sweeper.apply.verify.users_speed import EACH_USER, FIRST_TOKEN
from sweeper.metrics import describe
from sweeper.records import Reading, to_plain

_NAMES = {
    "tokens_per_second": "decode",
    EACH_USER: "each user",
    FIRST_TOKEN: "first token p95",
    "prompt_tokens_per_second": "prefill",
    "watts": "power",
}


def render_verification(verification: Verification) -> str:
    """Two tables, metrics and settings, and the verdict."""
    v = verification
    lines = [f"sweep {v.sweep}, trial #{v.trial} as {v.name}: {v.server} at {v.url}"]
    if v.started:
        lines.append("no running server offers this model, so verify started this one and ended it")
    settings = [("setting", "configured", "in force", "verdict")]
    for s in v.settings:
        found = "-" if s.verdict == "unknown" else _short(s.in_force)
        settings.append((s.name, _short(s.configured), found, s.verdict))
    names = _NAMES if v.users == 1 else _NAMES | {"tokens_per_second": f"{v.users} users"}
    figures = [("figure", "promised", "found", "change", "server says", "verdict")]
    for f in v.figures:
        name = f"{names.get(f.metric, f.metric)} {describe(f.metric).unit}"
        change = "-" if f.change is None else f"{100 * f.change:+.1f} %"
        figures.append((name, _reading(f.promised), _reading(f.found), change, _reading(f.own), f.verdict))
    lines += ["", *_table(figures), *(f.says for f in v.figures if f.says), "", *_table(settings), ""]
    lines += [f"note: {note}" for note in v.notes]
    return "\n".join([*lines, _verdict(v)])


def verification_to_plain(verification: Verification) -> dict[str, Any]:
    """A verification for ``--json``."""
    return {"schema": 1, "kept": verification.kept, **to_plain(verification)}


def _verdict(v: Verification) -> str:
    if not v.kept:
        return "the promise is NOT kept"
    if any(f.verdict == "drifted" for f in v.figures):
        return (
            "the server is as fast as the engine is now, but both are slower than during the sweep: "
            "close other programs, check the cooling, or sweep again"
        )
    unclear = [f.metric for f in v.figures if f.verdict == "unclear"]
    if unclear and unclear != [FIRST_TOKEN]:
        return "unclear: the measurements are too noisy; close other programs and verify again"
    unknown = [s.name for s in v.settings if s.verdict == "unknown"]
    more = "; too few requests to tell the 95th percentile: raise --repeats" if unclear else ""
    more += f"; not reported by the server: {', '.join(unknown)}" if unknown else ""
    return f"the promise is kept (tolerance {100 * v.tolerance:g} %){more}"


def _reading(reading: Reading | None) -> str:
    return "-" if reading is None else f"{reading.median:.4g} [{reading.low:.4g} {reading.high:.4g}]"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 26 else f"…{text[-25:]}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]
