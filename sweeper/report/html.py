"""``report.html``: one file that needs nothing else, with the answer first and the reasons after it.

The page fetches nothing: style, scripts and data stand inside, and its content security policy lets nothing
else run or load. Without scripts it still shows everything; front.js lets the reader point at the front's
drawing and enlarge it.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from sweeper.records import SweepRecord, to_plain
from sweeper.report import charts, contexts, picks, sections, words
from sweeper.report.caveats import advice_lines, failures, lost_trials, why_nothing
from sweeper.report.front_points import REST, front_chart, front_data, front_points, planes_of
from sweeper.report.influence import LEAST_TRIALS, VISIBLE_SHARE, influences
from sweeper.report.why import why_not, why_table


def html_report(record: SweepRecord) -> str:
    """The whole page as text."""
    import yaml

    rows = influences(record)
    telling = [row for row in rows if max(one.share for one in row) >= VISIBLE_SHARE]
    return _template().render(
        record=record,
        style=_read("page.css"),
        script=_read("front.js"),
        front_points=Markup(front_points(record)),  # noqa: S704 - it escapes what could end the script element
        drawings=[(plane, front_chart(plane)) for plane in front_data(record)["planes"]],
        telling=telling,
        quiet=[row for row in rows if row not in telling],
        config=yaml.safe_dump(to_plain(record.config), sort_keys=False, allow_unicode=True),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("sweeper.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Others' text may hold signs that turn text around.
        finalize=lambda item: item if isinstance(item, Markup) else words.clean(item),
    )
    environment.globals.update(
        advice_lines=advice_lines, charts=charts, contexts=contexts, failures=failures,
        least_trials=LEAST_TRIALS, lost_trials=lost_trials, picks=picks, planes_of=planes_of, rest=REST,
        sections=sections, why_not=why_not, why_nothing=why_nothing, why_table=why_table, words=words,
    )  # fmt: skip
    environment.filters["sha256"] = _hash
    return environment.get_template("page.html.j2")


def _hash(source: str) -> Markup:
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'")  # noqa: S704 - base64


def _read(name: str) -> Markup:
    return Markup((resources.files("sweeper.report") / "page" / name).read_text("utf-8"))  # noqa: S704 - our own
