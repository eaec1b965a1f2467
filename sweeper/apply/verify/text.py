"""A verification as text for a terminal of 80 columns, and as plain data."""

from __future__ import annotations

from typing import Any

from sweeper.apply.verify.check import FigureCheck, SettingCheck, Verification
from sweeper.metrics import describe
from sweeper.records import Reading, to_plain

_NAMES = {"tokens_per_second": "decode", "prompt_tokens_per_second": "prefill", "watts": "power"}


def render_verification(verification: Verification) -> str:
    """Two tables, settings and metrics, and the verdict."""
    v = verification
    lines = [f"sweep {v.sweep}, trial {v.trial} as {v.name}: {v.server} at {v.url}"]
    if v.started:
        lines.append("no running server offers this model, so verify started this one and ended it")
    lines.append("")
    lines += _table(("setting", "configured", "in force", "verdict"), [_setting(s) for s in v.settings])
    lines.append("")
    lines += _table(
        ("figure", "promised", "found", "change", "server says", "verdict"), [_figure(f) for f in v.figures]
    )
    lines.append("")
    lines += [f"{f.metric}: {f.says}" for f in v.figures if f.says]
    lines += [f"note: {note}" for note in v.notes]
    lines.append(_verdict(v))
    return "\n".join(lines) + "\n"


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
    if any(f.verdict == "unclear" for f in v.figures):
        return "unclear: the measurements are too noisy; close other programs and verify again"
    unknown = [s.name for s in v.settings if s.verdict == "unknown"]
    more = f"; not reported by the server: {', '.join(unknown)}" if unknown else ""
    return f"the promise is kept (tolerance {100 * v.tolerance:g} %){more}"


def _setting(check: SettingCheck) -> tuple[str, ...]:
    found = "-" if check.verdict == "unknown" else _short(check.in_force)
    return check.name, _short(check.configured), found, check.verdict


def _figure(check: FigureCheck) -> tuple[str, ...]:
    change = "-" if check.change is None else f"{100 * check.change:+.1f} %"
    name = f"{_NAMES.get(check.metric, check.metric)} {describe(check.metric).unit}"
    return name, _reading(check.promised), _reading(check.found), change, _reading(check.own), check.verdict


def _reading(reading: Reading | None) -> str:
    return "-" if reading is None else f"{reading.median:.4g} [{reading.low:.4g} {reading.high:.4g}]"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 26 else f"…{text[-25:]}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
