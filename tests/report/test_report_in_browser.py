"""The report in a real Chromium: it draws, asks nobody for anything, and has nothing to complain about."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium, chromium_path
from made_sweeps import failed_only, sweep
from test_report_page import evil, three_objectives

from sweeper.records import SweepRecord
from sweeper.report.html import html_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium_path() is None, reason="no chromium here: apt-get install chromium"),
]
DRAWN = "document.documentElement?.dataset.drawn === 'yes'"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as running:
        yield running


@pytest.fixture
def page(browser: Chromium) -> Chromium:
    browser.events.clear()
    browser.screen(1280)
    return browser


def opened(page: Chromium, record: SweepRecord, folder: Path, until: str = DRAWN) -> None:
    path = folder / "report.html"
    path.write_text(html_report(record))
    page.open(path.as_uri(), until)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_draws_quietly_and_fits_its_width(page: Chromium, tmp_path: Path, width: int) -> None:
    page.screen(width, phone=width < 600)
    opened(page, sweep(kind="measured", gpu=True), tmp_path)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelectorAll('.front-plot svg path.dots').length") == 2
    assert page.evaluate("document.querySelectorAll('.front-plot svg .ring').length") >= 4
    assert page.requests() == []
    assert page.complaints() == []


def place_of_the_recommended(page: Chromium) -> tuple[float, float]:
    """Where its ring lies on the screen."""
    page.evaluate("document.querySelector('.front-plot').scrollIntoView()")
    box = "document.querySelector('.front-plot circle.pick').getBoundingClientRect()"
    return tuple(page.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})"))  # type: ignore[return-value]


def mouse(page: Chromium, kind: str, x: float, y: float, clicks: int = 0) -> None:
    button = "left" if kind != "mouseMoved" or clicks else "none"
    page.ask(
        "Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=clicks, clickCount=clicks
    )


def drag(page: Chromium, start: tuple[float, float], end: tuple[float, float]) -> None:
    mouse(page, "mousePressed", *start, clicks=1)
    mouse(page, "mouseMoved", *end, clicks=1)
    mouse(page, "mouseReleased", *end, clicks=1)


TIP = "document.querySelector('.front-plot .tip')"


def test_pointing_at_a_point_tells_its_settings(page: Chromium, tmp_path: Path) -> None:
    record = sweep()
    opened(page, record, tmp_path)
    x, y = place_of_the_recommended(page)
    mouse(page, "mouseMoved", x + 3, y)
    said = page.evaluate(f"{TIP}.innerText")
    assert f"trial #{record.recommended}" in said
    assert "W estimated" in said
    assert "n_threads=" in said
    mouse(page, "mouseMoved", 5, 5)
    assert page.evaluate(f"{TIP}.hidden")


def test_the_front_is_walked_along_with_the_keyboard(page: Chromium, tmp_path: Path) -> None:
    record = sweep()
    opened(page, record, tmp_path)
    page.evaluate("document.querySelector('.front-plot').focus()")
    said = []
    for _ in range(len(record.front) + 1):
        page.ask("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight")
        said.append(page.evaluate(f"{TIP}.innerText.split('\\n')[0]"))
    assert sorted(said[:-1]) == sorted(f"trial #{number}" for number in record.front)
    assert said[-1] == said[0]
    page.ask("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft")
    assert page.evaluate(f"{TIP}.innerText.split('\\n')[0]") == said[-2]


def test_a_part_that_is_dragged_over_is_enlarged_and_a_double_click_goes_back(
    page: Chromium, tmp_path: Path
) -> None:
    opened(page, sweep(), tmp_path)
    ticks = "[...document.querySelectorAll('.front-plot .tick')].map(t => Number(t.textContent))"
    whole = page.evaluate(ticks)
    x, y = place_of_the_recommended(page)
    drag(page, (x - 40, y - 40), (x + 40, y + 40))
    part = page.evaluate(ticks)
    assert part != whole
    mouse(page, "mouseMoved", x, y)  # a square around it was drawn, so it lies in the middle now
    place = page.evaluate(
        "(b => [b.x + b.width / 2, b.y])(document.querySelector('.front-plot').getBoundingClientRect())"
    )
    assert abs(place_of_the_recommended(page)[0] - place[0]) < 60
    for clicks in (1, 2):
        mouse(page, "mousePressed", x, y, clicks=clicks)
        mouse(page, "mouseReleased", x, y, clicks=clicks)
    assert page.evaluate(ticks) == whole
    assert page.complaints() == []


def test_dark_and_light_have_colours_of_their_own(page: Chromium, tmp_path: Path) -> None:
    seen = []
    for dark in (False, True):
        page.screen(1280, dark=dark)
        opened(page, sweep(), tmp_path, "document.readyState !== 'loading'")
        seen.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert seen == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]


def test_on_paper_the_drawing_is_whole_again(page: Chromium, tmp_path: Path) -> None:
    opened(page, sweep(), tmp_path)
    ticks = "[...document.querySelectorAll('.front-plot .tick')].map(t => Number(t.textContent))"
    whole = page.evaluate(ticks)
    x, y = place_of_the_recommended(page)
    drag(page, (x - 40, y - 40), (x + 40, y + 40))
    assert page.evaluate(ticks) != whole
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(ticks) == whole
    page.ask("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate("document.querySelector('.front-plot svg').clientHeight") > 200
    assert page.evaluate("getComputedStyle(document.querySelector('.hint')).display") == "none"
    page.ask("Emulation.setEmulatedMedia", media="")


def test_without_scripts_the_page_is_whole(page: Chromium, tmp_path: Path) -> None:
    page.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened(page, sweep(), tmp_path, "document.readyState === 'complete'")
        assert page.evaluate("document.querySelectorAll('.front-plot path.dots').length") == 2
        assert page.evaluate("document.querySelector('.front-plot svg').clientHeight") > 200
        assert page.evaluate("getComputedStyle(document.querySelector('.hint')).display") == "none"
    finally:
        page.ask("Emulation.setScriptExecutionDisabled", value=False)


def test_hostile_text_runs_nothing(page: Chromium, tmp_path: Path) -> None:
    opened(page, evil(), tmp_path)
    assert page.evaluate("document.images.length") == 0
    assert page.complaints() == []
    assert page.requests() == []


def test_a_script_that_got_in_would_not_run(page: Chromium, tmp_path: Path) -> None:
    html = html_report(failed_only()).replace("<main>", "<main><script>window.got_in = true</script>", 1)
    (tmp_path / "report.html").write_text(html)
    page.open((tmp_path / "report.html").as_uri(), "document.readyState === 'complete'")
    assert page.evaluate("window.got_in === undefined")
    assert any("Content Security Policy" in line for line in page.complaints())


def test_each_of_three_objectives_is_drawn(page: Chromium, tmp_path: Path) -> None:
    opened(page, three_objectives(), tmp_path)
    assert page.evaluate("document.querySelectorAll('.front-plot svg path.front').length") >= 4
    assert page.evaluate("getComputedStyle(document.querySelector('.hint')).display") == "inline"
    assert page.complaints() == []
