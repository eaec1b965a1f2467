import io
import re
from dataclasses import replace

import pytest
from made_sweeps import failed_only, no_front, single_point, sweep
from rich.cells import cell_len
from rich.console import Console

from sweeper.records import SweepRecord
from sweeper.report.markdown import markdown_report
from sweeper.report.sections import front_table, legend
from sweeper.report.tables import Column, fitting, total, wrapped
from sweeper.report.terminal import front_text, show_front

SWEEPS = {
    "cpu, estimated": sweep(),
    "gpu, measured": sweep(kind="measured", gpu=True),
    "simulated": sweep(kind="simulated"),
    "no front": no_front(),
    "one point": single_point(),
    "all failed": failed_only(),
}
HOSTILE = replace(
    sweep(),
    sweep="a b$(reboot)'\"\x1b[2J",
    model=replace(sweep().model, name="模型" * 40 + "\x1b[31m‮" + "x" * 200),
)


def shown(record: SweepRecord, **settings: object) -> str:
    out = io.StringIO()
    show_front(record, Console(file=out, **settings))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("width", [24, 30, 40, 60, 80, 120])
@pytest.mark.parametrize("record", [*SWEEPS.values(), HOSTILE], ids=[*SWEEPS, "hostile"])
def test_no_line_is_wider_than_the_terminal(record: SweepRecord, width: int) -> None:
    lines = front_text(record, width).splitlines()
    # A command is there to be copied, so it is never broken.
    assert [line for line in lines if cell_len(line) > width and not line.startswith("  sweeper ")] == []


def test_eighty_columns_show_intervals_changes_and_joules() -> None:
    record = sweep(kind="measured", gpu=True)
    table = front_text(record, 80)
    best = record.trial(record.recommended or 0)
    row = next(line for line in table.splitlines() if line.startswith("★"))
    assert f"#{best.number}" in row
    assert "±" in row
    assert "%" in row
    assert "J/tok" in table
    assert "baseline, not on the Pareto front · the engine's defaults" in " ".join(table.split())


@pytest.mark.parametrize("kind", ["estimated", "simulated"])
@pytest.mark.parametrize("width", [24, 40, 80])
def test_watts_that_are_not_measured_say_so_in_the_columns_head(kind: str, width: int) -> None:
    lines = front_text(sweep(kind=kind), width).splitlines()
    assert any(re.search(rf"\bW {kind}", line) for line in lines)


def test_measured_watts_bear_no_label() -> None:
    assert not re.search(r"W (estimated|simulated)", front_text(SWEEPS["gpu, measured"]))


def test_nothing_is_recommended_without_a_second_measurement() -> None:
    text = front_text(SWEEPS["no front"])
    assert "no trial that counts was measured twice" in text
    assert "★" not in text
    assert "sweeper apply" not in text


def test_a_complete_sweep_that_keeps_no_constraint_is_not_resumed() -> None:
    made = SWEEPS["no front"]
    broken = tuple(replace(t, violations={"kl_divergence <= 0.02": 0.1}) for t in made.trials)
    text = " ".join(front_text(replace(made, state="complete", trials=broken)).split())
    assert "no trial keeps the constraints; most often broken: kl_divergence <= 0.02. Loosen it" in text
    assert "sweeper sweep name=llama-110m-2026-11-23-2" in text
    assert "resumes" not in text


def test_a_simulated_sweep_leads_to_a_real_one() -> None:
    text = front_text(SWEEPS["simulated"])
    assert "sweeper sweep model.path=FILE" in text
    assert "sweeper apply" not in text
    assert "**Run this**" not in markdown_report(SWEEPS["simulated"])


def test_the_baseline_names_the_settings_that_the_user_fixed() -> None:
    space = {"n_threads_batch": 99, "use_mmap": True, "n_batch": "auto", "quant": ["Q8_0"]}
    fixed = replace(SWEEPS["one point"], config={"space": space})
    assert "the engine's defaults with your fixed settings (n_threads_batch=99)" in " ".join(
        front_text(fixed).split()
    )


def test_a_sweep_of_failures_says_why_they_failed() -> None:
    assert "6 × libcuda.so.1: cannot open shared object file" in front_text(SWEEPS["all failed"])


def test_the_next_commands_survive_a_hostile_name() -> None:
    text = front_text(HOSTILE)
    assert "\x1b" not in text
    assert """sweeper apply 'a b$(reboot)'"'"'" [2J' --pick within:5%""" in text


def test_no_color_means_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(sweep(), width=80, force_terminal=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text)  # no colour; bold is no colour


def test_a_pipe_gets_plain_text() -> None:
    assert shown(sweep(), width=80) == front_text(sweep(), 80)


def test_a_colour_terminal_gets_colours() -> None:
    assert "\x1b[" in shown(sweep(), width=80, force_terminal=True, no_color=False, color_system="standard")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_signs_it_can_write(encoding: str) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    show_front(HOSTILE, Console(file=out, width=80))
    text = raw.getvalue().decode(encoding)
    assert "+-" in text or "±" in text
    assert "estimated" in text


def test_columns_give_way_in_their_order() -> None:
    columns = [Column("a", ("1 ± 2",)), Column("b", ("xxxx",), 1), Column("c", ("yyyy",), 2)]
    assert [c.head for c in fitting(columns, 12)] == ["a", "b"]
    assert [c.head for c in fitting(columns, 6)] == ["a"]
    assert fitting(columns, 3)[0].cells == ("1 ± 2",)
    assert total(columns) == 17


def test_wrapping_counts_cells_and_breaks_what_is_too_long() -> None:
    lines = [line.plain for line in wrapped("模" * 30 + " ok", 20, indent="  ")]
    assert all(cell_len(line) <= 20 for line in lines)
    assert "".join(lines).replace(" ", "") == "模" * 30 + "ok"


def test_a_narrow_terminal_names_the_columns_that_it_leaves_out() -> None:
    narrow, wide = (" ".join(front_text(sweep(), width).split()) for width in (60, 200))
    assert "(a wider terminal also shows J/tok estimated" in narrow
    assert "a wider terminal" not in wide


def test_the_legend_explains_the_columns_that_are_shown() -> None:
    record = sweep()
    heads = front_table(record).heads
    quality = next(head for head in heads if head.startswith("KL divergence"))
    assert "KL divergence:" in legend(record)
    assert "KL divergence:" not in legend(record, [quality])
