"""The front as a still drawing: for paper, for readers without scripts, and until front.js draws its own."""

from __future__ import annotations

from sweeper.records import Reading, SweepRecord
from sweeper.report import svg
from sweeper.report.groups import REST, groups_of
from sweeper.report.picks import marks, picks, recommended
from sweeper.report.pieces import text
from sweeper.report.planes import Plane
from sweeper.report.plots import axis_title
from sweeper.report.words import half_width

WIDTH, HEIGHT = 720.0, 420.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 12.0, 12.0, 46.0


def front_svg(record: SweepRecord, plane: Plane) -> str:
    """The drawing, or nothing where no trial has both figures."""
    groups = groups_of(record, plane)
    if not groups.scored:
        return ""
    x, y = plane.across, plane.up
    across = svg.fit([t.metrics[x].median for t in groups.scored], LEFT, WIDTH - RIGHT)
    up = svg.fit([t.metrics[y].median for t in groups.scored], HEIGHT - BOTTOM, TOP)
    at = {t.number: (across.at(t.metrics[x].median), up.at(t.metrics[y].median)) for t in groups.scored}
    parts = [
        svg.rules(across, up),
        svg.dots((at[t.number] for t in groups.beaten), "beaten", 3),
        svg.crosses((at[t.number] for t in groups.outside), "outside"),
        svg.steps([at[t.number] for t in groups.stairs], "front", turn_late=plane.turns_late),
    ]
    for t in groups.front:
        wide, tall = _interval(across, t.metrics[x]), _interval(up, t.metrics[y])
        parts.append(svg.arms(*at[t.number], wide, tall, "front"))
    parts.append(svg.dots((at[t.number] for t in groups.front), "front", 4.5))
    parts += [svg.square(*at[t.number], "baseline", 8) for t in groups.baseline]
    parts += _picks(record, at)
    parts.append(svg.words((LEFT + WIDTH) / 2, HEIGHT - 8, axis_title(x, record), "", "middle"))
    turned = f'<g transform="translate(13 {HEIGHT / 2 - 20:g}) rotate(-90)">'
    parts.append(turned + svg.words(0, 0, axis_title(y, record), "", "middle") + "</g>")
    title = f"{axis_title(y, record)} against {axis_title(x, record)}: the front and the other trials"
    return svg.picture(WIDTH, HEIGHT, "".join(parts), title)


def _interval(axis: svg.Axis, reading: Reading) -> svg.Point | None:
    return None if half_width(reading) is None else (axis.at(reading.low), axis.at(reading.high))


def _picks(record: SweepRecord, at: dict[int, tuple[float, float]]) -> list[str]:
    parts = []
    best = recommended(record)
    for number, names in marks(record).items():
        if number not in at:
            continue
        x, y = at[number]
        parts += [svg.sign(x, y, name, 8) for name in names if best is None or name != best.pick]
        if best is not None and number == best.trial.number:
            parts.append(svg.ring(x, y, "pick", 12))
        anchor = "end" if x > WIDTH * 0.75 else "start"
        parts.append(svg.words(x - 15 if anchor == "end" else x + 15, y + 18, ", ".join(names), "", anchor))
    return parts


def key(record: SweepRecord) -> str:
    """What each sign of the drawing means, as a list."""
    front = svg.dots([(12, 8)], "front", 4) + svg.arms(12, 8, (3, 21), (8, 8), "front")
    entries = [
        *([(front, "front, 95 % intervals")] if record.front else []),
        (svg.dots([(12, 8)], "beaten", 3), REST),
        (svg.crosses([(12, 8)], "outside"), "outside the constraints"),
        (svg.square(12, 8, "baseline", 6), "baseline"),
    ]
    for picked in picks(record):
        if picked.recommended:
            entries.append((svg.ring(12, 8, "pick", 6.5), f"{picked.pick} (recommended)"))
        else:
            entries.append((svg.sign(12, 8, picked.pick, 6), picked.pick))
    body = "".join(
        f'<li><svg viewBox="0 0 24 16" aria-hidden="true">{drawn}</svg>{text(words)}</li>'
        for drawn, words in entries
    )
    return f'<ul class="key">{body}</ul>'
