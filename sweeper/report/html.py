"""``report.html``: one file that needs nothing else, with the answer first and the reasons after it.

No part of it is fetched: style, scripts and data stand inside, and its content security policy lets nothing
else run or load. Without scripts it still shows everything; front.js only makes the front's drawing one that
can be pointed at and enlarged. It is our own: plotly.js for this one drawing weighed seven eighths of the page
and took most of the time until it stood.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib import resources

from sweeper.records import SweepRecord
from sweeper.report import cost_sections, parameter_sections, search_sections, sections
from sweeper.report.front_points import front_points
from sweeper.report.pieces import text

SCRIPTS = ("front.js", "page.js")


def html_report(record: SweepRecord) -> str:
    """The whole page as text."""
    style, scripts = _read("page.css"), [_read(name) for name in SCRIPTS]
    body = "\n".join(part for part in _sections(record) if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts, style)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(record.model.name)}: sweeper</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n"
        f'<script type="application/json" id="front-data">{front_points(record)}</script>\n'
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def _sections(record: SweepRecord) -> Iterable[str]:
    yield sections.answer(record)
    yield sections.front(record)
    yield sections.picked(record)
    yield sections.caveats(record)
    yield cost_sections.phases(record)
    yield cost_sections.money_section(record)
    yield cost_sections.ceiling_section(record)
    yield parameter_sections.parameters(record)
    yield search_sections.lost(record)
    yield search_sections.search(record)
    yield sections.setting(record)
    yield search_sections.again(record)


def _policy(scripts: Iterable[str], style: str) -> str:
    """Only these very scripts and this style may stand, and nothing may be loaded from anywhere."""
    return (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (resources.files("sweeper.report") / "page" / name).read_text("utf-8")
