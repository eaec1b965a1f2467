"""Prices of another day or place: a report takes them without a new sweep, and every form names the cost of a month."""

from __future__ import annotations

import json
import tarfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from made_sweeps import running, sweep

from sweeper import prepare
from sweeper.cli import main
from sweeper.config import compose
from sweeper.records import Prices, Reading
from sweeper.report.documents import front_document
from sweeper.report.html import html_report
from sweeper.report.markdown import markdown_report, picks_markdown
from sweeper.report.sections import month, why_no_month
from sweeper.report.terminal import front_text
from sweeper.rig.open import open_rig
from sweeper.search.study import SweepStudy

MONTHS = 365 / 12
STORE = Path(__file__).parent.parent / "fixtures" / "recorded" / "mlruns.tar.xz"


def priced(kind: str = "measured", **prices: object):
    """A sweep whose recommended trial draws 6 W, and 3 W when the loaded model waits."""
    record = replace(sweep(kind=kind), prices=Prices(per_kwh=0.30, hours_per_day=3, **prices))  # type: ignore[arg-type]
    figures = {"watts": Reading(6, 6, 6, 10), "resident_watts": Reading(3, 3, 3, 10)}
    trials = (
        replace(t, metrics={**t.metrics, **figures}) if t.number == record.recommended else t
        for t in record.trials
    )
    return replace(record, trials=tuple(trials))


@pytest.mark.parametrize("write", [front_text, markdown_report, picks_markdown, html_report])
def test_every_form_says_what_a_month_costs(write) -> None:
    said = " ".join(write(priced()).split())
    generating, idle = (watts / 1000 * hours * MONTHS * 0.30 for watts, hours in ((6, 3), (3, 21)))
    assert f"€{generating:.2f} for a month in which it generates for 3 h a day, and €{idle:.2f} idle" in said
    assert "computed from watts of the GPU only" in said


def test_watts_that_were_not_measured_are_called_so_and_none_give_no_cost() -> None:
    assert "computed from estimated watts of the processor only" in month(priced("estimated"))
    record = priced()
    blind = tuple(
        replace(t, metrics={k: v for k, v in t.metrics.items() if "watts" not in k}) for t in record.trials
    )
    assert month(replace(record, trials=blind)) == ""
    assert front_document(replace(record, trials=blind))["cost_per_month"] is None


def test_a_report_without_a_cost_says_why_and_what_to_do() -> None:
    assert why_no_month(priced()) == ""
    begun = running(sweep(), 6)
    said = why_no_month(begun)
    assert (
        "no cost yet, since nothing is recommended: no trial that counts was measured twice; `sweeper s"
        in said
    )
    assert said.endswith("resumes the sweep")
    assert "Ctrl-C" in why_no_month(begun, is_running=True)
    blind = replace(
        priced(),
        trials=tuple(
            replace(t, metrics={k: r for k, r in t.metrics.items() if "watts" not in k})
            for t in priced().trials
        ),
    )
    assert "has no watts (they were not measured); `sweeper doctor`" in why_no_month(blind)
    for line in (said, why_no_month(blind)):
        assert "\n" not in line


@pytest.mark.parametrize("option", [("--hours", "3"), ("--per-kwh", "0.30"), ("--currency", "CHF"), ()])
def test_the_command_says_it_only_to_who_asks(
    option: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SweepStudy.create(tmp_path, replace(running(sweep(), 0), sweep="begun"))
    assert main(["report", "begun", "--root", str(tmp_path), "--json", *option]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["cost_per_month"] is None
    assert ("no cost yet, since nothing is recommended: no trial finished; " in said.err) == bool(option)


def test_programs_read_the_month_too() -> None:
    found = front_document(priced(currency="CHF"))["cost_per_month"]
    assert found["generating"] == pytest.approx(0.006 * 3 * MONTHS * 0.30)
    assert found["idle"] == pytest.approx(0.003 * 21 * MONTHS * 0.30)
    assert (found["kind"], found["currency"], found["watts"], found["scope"]) == (
        "computed",
        "CHF",
        "measured",
        "gpu",
    )


@pytest.fixture
def simulated(tmp_path: Path) -> Path:
    with tarfile.open(STORE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "mlruns"


def test_a_report_takes_other_prices(simulated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cost(*options: str) -> dict[str, object]:
        capsys.readouterr()
        assert main(["report", "demo", "--json", "--root", str(simulated), *options]) == 0
        return json.loads(capsys.readouterr().out)["cost_per_month"]

    before = cost()
    after = cost("--hours", "3", "--per-kwh", "0,60", "--currency", "CHF")
    assert (after["hours_per_day"], after["per_kwh"], after["currency"]) == (3, 0.6, "CHF")
    assert after["generating"] == pytest.approx(before["generating"] * 3 / 4 * 2)
    assert "CHF for a month in which it generates for 3 h a day" in (
        simulated / "reports" / "demo" / "report.html"
    ).read_text("utf-8")
    assert cost() == before  # only this report has the other prices
    for wrong in (("--hours", "25"), ("--per-kwh=-1",), ("--per-kwh", "cheap")):
        assert main(["report", "demo", "--root", str(simulated), *wrong]) == 2
    assert "--per-kwh cheap: this is not a number" in capsys.readouterr().err


def test_another_price_starts_no_other_sweep(tmp_path: Path) -> None:
    def name(*words: str) -> str:
        composed = compose((f"root={tmp_path / 'mlruns'}", "engine=simulated", *words))
        with ExitStack() as held:
            rig, space, _ = open_rig(composed, held, lambda _: None)
            workload = rig.workload or composed.settings.workload_record()
            root = Path(composed.settings.root)
            return prepare.sweep_name(composed.settings, space, workload, rig, root, composed.plain)

    assert name() == name("prices.per_kwh=0.42", "prices.hours_per_day=9", "prices.currency=CHF")
    assert name() != name("workload.prompt_tokens=99")
