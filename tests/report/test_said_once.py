"""Lines about sensors that a machine lacks belong to the sweep's beginning, not to every answer after it."""

from dataclasses import replace

import pytest
from made_sweeps import power, sweep

from sweeper.report.html import html_report
from sweeper.report.markdown import markdown_report, picks_markdown
from sweeper.report.terminal import front_text

POWER = replace(power("estimated"), note="estimated as 10 W at rest to 20 W")
OF_SENSORS = (
    "rapl: the kernel has no powercap interface (RAPL) here",
    "power_limit_watts is not searched: no NVIDIA GPU can be reached",
    "estimated as 10 W at rest to 20 W",
)
OTHER = "other programs used the processors: sweeper measured 3 windows again"
RECORD = replace(sweep(), power=POWER, notes=(*OF_SENSORS, OTHER))


@pytest.mark.parametrize("write", [front_text, picks_markdown])
def test_answers_leave_out_what_the_machine_lacks(write) -> None:
    text = " ".join(write(RECORD).replace("\\", "").split())
    assert OTHER in text
    for line in OF_SENSORS:
        assert line not in text


@pytest.mark.parametrize("write", [html_report, markdown_report])
def test_whole_reports_keep_it(write) -> None:
    text = " ".join(write(RECORD).replace("\\", "").split())
    for line in (*OF_SENSORS, OTHER):
        assert line in text


def test_that_watts_are_estimated_is_said_once_with_what_to_do() -> None:
    text = " ".join(front_text(RECORD).split())
    assert text.count("not measured") == 1
    assert "`sweeper doctor` shows how to connect a sensor" in text
