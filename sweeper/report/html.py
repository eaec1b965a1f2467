"""``report.html``: one file that needs nothing else, with the answer first and the reasons after it.

No part of it is fetched: style, scripts, data and plotly.js stand inside, and its content security policy
lets nothing else run or load. Without scripts it still shows everything; plotly only makes the front's
drawing one that can be pointed at.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from collections.abc import Iterable
from importlib import resources

from sweeper.records import SweepRecord
from sweeper.report import cost_sections, parameter_sections, search_sections, sections
from sweeper.report.pieces import text
from sweeper.report.plotly_figure import figure_json

_GZIP_LEVEL = 9


def html_report(record: SweepRecord) -> str:
    """The whole page as text."""
    style = _read("page.css")
    start, data = _read("page.js"), figure_json(record)
    body = "\n".join(part for part in _sections(record) if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy((start, plotly_js()))}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(record.model.name)}: sweeper</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n"
        f'<script type="application/json" id="front-data">{data}</script>\n'
        f'<script type="text/plain" id="plotly-gz">{_packed_plotly()}</script>\n'
        f"<script>{start}</script>\n</body>\n</html>\n"
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


@functools.cache
def plotly_js() -> str:
    """plotly.js as the installed Python package brings it."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@functools.cache
def _packed_plotly() -> str:
    # Packed, the page weighs 2 MB and not 5; the browser unpacks it in some tens of milliseconds.
    return base64.b64encode(gzip.compress(plotly_js().encode(), _GZIP_LEVEL, mtime=0)).decode()


def _policy(scripts: Iterable[str]) -> str:
    """Only these very scripts may run, and nothing may be loaded from anywhere.

    plotly writes its styles at run time, hence inline styles; its camera button makes a picture from a blob.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _read(name: str) -> str:
    return (resources.files("sweeper.report") / "page" / name).read_text("utf-8")
