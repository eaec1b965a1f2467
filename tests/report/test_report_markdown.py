import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_sweeps import failed_only, no_front, sweep

from sweeper.report.markdown import code, escape, markdown_report, picks_markdown
from sweeper.report.picks import meaning, picks
from sweeper.results.price import energy_words, yearly_kwh


def test_the_report_answers_before_it_explains() -> None:
    text = markdown_report(sweep())
    assert text.index("**Run this**") < text.index("| trial |") < text.index("## How it was measured")
    assert "sweeper apply llama-110m-2026-11-23 --pick within:5% --to llama-server" in text


def test_what_to_run_follows_its_heading() -> None:
    lines = markdown_report(sweep()).splitlines()
    assert lines[lines.index("**Run this** (within:5%):") + 3].startswith("sweeper apply ")


def test_the_yearly_figures_rest_on_the_same_tokens() -> None:
    record = sweep()
    best, base = record.trial(record.recommended or 0), record.trial(0)
    before, after = (yearly_kwh(t, base, record.prices) for t in (base, best))
    text = markdown_report(record)
    for kwh in (before, after):
        assert (
            f"{energy_words(kwh, record.prices)} a year for as many tokens as the baseline generates in 4 h a day"
            in text
        )
    assert energy_words(before - after, record.prices).split(" and ")[0] in text.split("## Energy costs")[0]


def test_every_pick_is_told_in_words() -> None:
    record = sweep(kind="measured", gpu=True)
    text = markdown_report(record)
    for picked in picks(record):
        block = next(b for b in text.split("\n\n") if b.startswith(f"**\\#{picked.trial.number}"))
        assert escape(picked.pick) in block
        assert escape(picked.words) in block
        assert escape(meaning(record, picked.pick)) in text


@pytest.mark.parametrize("kind", ["estimated", "simulated"])
def test_watts_that_were_not_measured_say_so(kind: str) -> None:
    text = markdown_report(sweep(kind=kind))
    assert f"| W {kind} |" in text
    assert f"({kind})" in text.split("## Energy costs")[1]
    assert f"W {kind}" in picks_markdown(sweep(kind=kind))


def test_nothing_to_recommend_is_said_first() -> None:
    for record in (no_front(), failed_only()):
        assert "**Nothing can be recommended yet**" in markdown_report(record)
        assert "Run this" not in picks_markdown(record)


def test_the_baseline_stands_first_and_without_a_change() -> None:
    rows = [line for line in markdown_report(sweep()).splitlines() if "| \\#" in line or "| ★ \\#" in line]
    assert rows[0].startswith("| \\#0 |")
    assert rows[0].endswith("| baseline, not on the Pareto front · the engine's defaults |")
    assert "%" not in rows[0]
    assert all("%" in row for row in rows[1:])


@given(st.text())
def test_escaped_text_holds_no_markup(text: str) -> None:
    escaped = escape(text)
    assert "<" not in escaped
    assert ">" not in escaped.replace("&gt;", "")
    for sign in "|*_[]#~`":
        assert escaped.count(sign) == escaped.count(f"\\{sign}")


@given(st.text(alphabet="`ab "))
def test_code_is_fenced_by_more_backticks_than_it_holds(text: str) -> None:
    fenced = code(text)
    ticks = len(fenced) - len(fenced.lstrip("`"))
    inner = fenced[ticks:-ticks]
    assert "`" * ticks not in inner


def test_in_mlflow_the_command_comes_first_and_keeps_the_description_wide() -> None:
    for name in ("x", "llama-110m-synthetic-a-rather-long-name-2026-11-23"):
        first, words = picks_markdown(sweep(name=name)).splitlines()[1:4:2]
        assert first.startswith(f"sweeper apply {name} --pick within:5% --to llama-server --write")
        assert len(first) >= 72
        assert words.startswith("**Run this** (within:5%): ")
