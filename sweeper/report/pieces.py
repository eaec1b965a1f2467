"""Small pieces of HTML, each of which escapes what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from sweeper.report.words import clean


def text(item: object) -> str:
    """Others' text as HTML text or as an attribute's value."""
    return escape(clean(item), quote=True)


def section(name: str, title: str, body: str) -> str:
    """A section with its heading; ``body`` is HTML."""
    return f'<section id="{name}">\n<h2>{text(title)}</h2>\n{body}\n</section>' if body else ""


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def command(line: str, purpose: str = "") -> str:
    """A command to copy, with what it does."""
    note = f'<span class="purpose">{text(purpose)}</span>' if purpose else ""
    return f'<div class="command"><code>{text(line)}</code>{note}</div>'


def items(lines: Iterable[str]) -> str:
    """A list of plain lines."""
    body = "".join(f"<li>{text(entry)}</li>" for entry in lines)
    return f"<ul>{body}</ul>" if body else ""


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names with what they are."""
    body = "".join(f"<dt>{text(name)}</dt><dd>{text(what)}</dd>" for name, what in rows)
    return f"<dl>{body}</dl>" if body else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    """A table of plain cells; ``kinds`` are the rows' classes. It scrolls by itself where it is too wide."""
    head = "".join(f"<th>{text(name)}</th>" for name in heads)
    body = "".join(
        f'<tr class="{kinds[index] if index < len(kinds) else ""}">'
        + "".join(f"<td>{text(cell)}</td>" for cell in cells)
        + "</tr>"
        for index, cells in enumerate(rows)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def fold(summary: str, body: str) -> str:
    """What a reader opens when they want it; on paper it is always open (page.js sees to that)."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>" if body else ""
