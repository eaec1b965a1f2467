"""The front as a still drawing: for paper, for a reader without scripts, and until plotly has drawn its own."""

from __future__ import annotations

from sweeper.records import SweepRecord
from sweeper.report import svg
from sweeper.report.groups import groups_of
from sweeper.report.picks import marks
from sweeper.report.plots import axes_of, axis_title

WIDTH, HEIGHT = 720.0, 420.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 12.0, 12.0, 46.0


def front_svg(record: SweepRecord) -> str:
    """The drawing, or nothing where no trial has both figures."""
    metrics = axes_of(record)
    groups = groups_of(record, metrics)
    if not groups.scored:
        return ""
    x, y = metrics
    across = svg.fit([t.metrics[x].median for t in groups.scored], LEFT, WIDTH - RIGHT)
    up = svg.fit([t.metrics[y].median for t in groups.scored], HEIGHT - BOTTOM, TOP)
    at = {t.number: (across.at(t.metrics[x].median), up.at(t.metrics[y].median)) for t in groups.scored}
    parts = [
        svg.rules(across, up),
        svg.dots((at[t.number] for t in groups.beaten), "beaten", 3),
        svg.crosses((at[t.number] for t in groups.outside), "outside"),
        svg.line([at[t.number] for t in groups.front], "front"),
    ]
    for t in groups.front:
        wide = across.at(t.metrics[x].low), across.at(t.metrics[x].high)
        tall = up.at(t.metrics[y].low), up.at(t.metrics[y].high)
        parts.append(svg.arms(*at[t.number], wide, tall, "front"))
    parts.append(svg.dots((at[t.number] for t in groups.front), "front", 4.5))
    parts += [svg.ring(*at[t.number], "baseline", 8) for t in groups.baseline]
    parts += _picks(record, at)
    parts.append(svg.words((LEFT + WIDTH) / 2, HEIGHT - 8, axis_title(x, record), "", "middle"))
    turned = f'<g transform="translate(13 {HEIGHT / 2 - 20:g}) rotate(-90)">'
    parts.append(turned + svg.words(0, 0, axis_title(y, record), "", "middle") + "</g>")
    title = f"{axis_title(y, record)} against {axis_title(x, record)}: the front and the other trials"
    return svg.picture(WIDTH, HEIGHT, "".join(parts), title)


def _picks(record: SweepRecord, at: dict[int, tuple[float, float]]) -> list[str]:
    parts = []
    for number, names in marks(record).items():
        if number not in at:
            continue
        x, y = at[number]
        is_pick = record.pick in names
        parts.append(svg.ring(x, y, "pick" if is_pick else names[0], 12 if is_pick else 9))
        anchor = "end" if x > WIDTH * 0.75 else "start"
        parts.append(svg.words(x - 15 if anchor == "end" else x + 15, y + 18, ", ".join(names), "", anchor))
    return parts
