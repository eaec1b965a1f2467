"""How long a context can I afford? The same answer in every form, with a name for what it is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_sweeps import SPEED, WATTS, reading, sweep
from rich.cells import cell_len

from sweeper.metrics import FIRST_WHEN_FULL
from sweeper.records import (
    Configuration,
    Constraint,
    Objective,
    SweepRecord,
    TrialRecord,
    Workload,
    from_plain,
    to_plain,
)
from sweeper.report.contexts import contexts_table, summary
from sweeper.report.formats import render
from sweeper.report.html import html_report
from sweeper.report.markdown import markdown_report
from sweeper.report.picks import picks, recommended, title
from sweeper.report.plots import pareto_png
from sweeper.report.terminal import front_text
from sweeper.report.words import limits
from sweeper.results.assemble import conclude

CONTEXT = Objective("n_ctx", "maximize")
FLOOR = Constraint("tokens_per_second", ">=", 5.0)
BASE = Configuration(n_threads=6, n_threads_batch=6, n_ctx=2048, quant="Q8_0")


def trial(
    number: int,
    speed: float,
    watts: float = 30.0,
    first: float | None = None,
    visits: int = 3,
    **changes: object,
) -> TrialRecord:
    c = BASE.with_(**changes)
    metrics = {
        "tokens_per_second": reading(speed, 0.01, 9),
        "watts": reading(watts, 0.01, 9),
        "joules_per_token": reading(watts / speed, 0.01, 9),
        "prompt_tokens_per_second": reading(90.0, 0.01, 3),
        "memory_mib": reading(1000.0 + c.n_ctx / 16, 0.0, 1),
        "n_ctx": reading(float(c.n_ctx), 0.0, 1),
    }
    if first is not None:
        metrics[FIRST_WHEN_FULL] = reading(first, 0.0, 1)
    return TrialRecord(
        number,
        "complete",
        c,
        metrics,
        violations={str(FLOOR): FLOOR.bound - speed},
        remeasured=visits > 0,
        visits=visits,
    )


def ladder(*trials: TrialRecord, most: int = 16384, kind: str = "measured", **more: object) -> SweepRecord:
    contexts = [n for n in (2048, 4096, 8192, 16384, 32768) if n <= most]
    record = replace(
        sweep(kind=kind),
        workload=Workload(name="long_context", generated_tokens=64, depth=None),
        objectives=(CONTEXT, SPEED, WATTS),
        constraints=(FLOOR,),
        space={"n_ctx": contexts, "n_threads": [1, 6]},
        trials=trials,
        baseline=0,
        baseline_configuration=BASE,
        ladder=tuple(BASE.with_(n_ctx=n) for n in contexts),
        pick="longest",
        notes=(),
        caveats=(),
        **more,
    )
    return conclude(record)


CLIMB = (
    trial(0, 31.0, first=22.4),
    trial(1, 27.0, n_ctx=4096, first=45.0, visits=0),
    trial(2, 24.0, n_ctx=8192, first=91.0, visits=0),
    trial(3, 20.1, n_ctx=16384, first=166.0),
    trial(4, 23.0, 31.0, n_ctx=16384, type_k="q8_0"),
    trial(5, 9.0, 12.0, n_ctx=16384, n_threads=1),
)


@pytest.fixture
def record() -> SweepRecord:
    return ladder(*CLIMB)


def cells_of(record: SweepRecord) -> dict[tuple[str, str], list[str]]:
    table = contexts_table(record)
    assert table is not None
    return {(str(row.cells[0]), row.below): [str(cell) for cell in row.cells[1:]] for row in table.rows}


def test_each_context_has_its_speed_watts_memory_and_first_word(record: SweepRecord) -> None:
    table = contexts_table(record)
    assert table is not None
    assert list(table.heads) == ["  context", "tok/s", "W", "MiB", "first word s"]
    rows = cells_of(record)
    assert rows["  2,048", "default settings"] == ["31.0 ± 0.3", "30.0 ± 0.3", "1128", "22.4 ± ?"]
    assert rows["  8,192", "default settings · screening only"][0] == "24.0 ± 0.2"
    assert rows["  16,384", "default settings"][3] == "166 ± ?"


def test_better_settings_stand_beside_the_default_ones(record: SweepRecord) -> None:
    rows = cells_of(record)
    assert ("★ 16,384", "better settings · type_k=q8_0") in rows
    assert rows["★ 16,384", "better settings · type_k=q8_0"][3] == "–"  # filling it was not timed
    assert not any("n_threads=1" in below for _, below in rows)  # slower than the default


def test_a_table_without_a_ladder_is_not_made() -> None:
    assert contexts_table(sweep()) is None
    assert "Contexts" not in front_text(sweep())
    assert "Contexts" not in markdown_report(sweep())
    assert "Contexts" not in html_report(sweep())


@pytest.mark.parametrize("width", [24, 40, 80, 120])
def test_the_terminal_has_it_before_the_front(record: SweepRecord, width: int) -> None:
    text = front_text(record, width)
    assert text.index("Contexts, each measured") < text.index("Percentages")
    lines = text.splitlines()
    assert [line for line in lines if cell_len(line) > width and not line.startswith("  sweeper ")] == []
    flat = " ".join(text.split())
    assert "166" in flat
    assert "decode speed at least 5 tok/s" in flat


def test_every_form_has_the_same_figures(record: SweepRecord) -> None:
    for text in (front_text(record, 120), markdown_report(record), html_report(record)):
        for figure in ("20.1 ± 0.2", "166 ± ?", "8,192", "better settings", "longest context"):
            assert figure in text, figure
    rows = json.loads(render(record, "json"))["contexts"]
    assert [(row["n_ctx"], row["settings"], row["trial"]) for row in rows] == [
        (2048, "default", 0),
        (4096, "default", 1),
        (8192, "default", 2),
        (16384, "default", 3),
        (16384, "better", 4),
    ]
    assert [row["recommended"] for row in rows] == [False] * 4 + [True]
    assert rows[3]["metrics"][FIRST_WHEN_FULL] == {"median": 166.0, "low": None, "high": None, "n": 1}
    assert FIRST_WHEN_FULL not in rows[4]["metrics"]
    assert pareto_png(record)


def test_estimated_watts_say_so_in_the_head() -> None:
    table = contexts_table(ladder(*CLIMB, kind="estimated"))
    assert table is not None
    assert "W estimated" in table.heads


def test_the_pick_is_named_for_what_it_is(record: SweepRecord) -> None:
    best = recommended(record)
    assert best is not None
    assert (best.pick, best.label, best.trial.number) == ("longest", "longest context", 4)
    assert "--pick longest" in best.apply_command
    assert best.words.startswith(
        "16,384 tokens: 23.0 tok/s with a full context. Compared with the default settings"
    )
    assert "+14 % speed" in best.words
    found = [p for p in picks(record) if p.trial.number == best.trial.number]
    assert title(record, found).startswith("#4 (recommended): longest context")
    fastest = next(p for p in picks(record) if p.pick == "fastest")
    assert fastest.trial.number == 0
    assert "31.0 tok/s with a full context, first word after 22.4 s" in fastest.words


def test_without_speed_as_an_objective_nothing_is_called_fastest() -> None:
    record = replace(ladder(*CLIMB), objectives=(CONTEXT, WATTS))
    assert "fastest" not in [p.pick for p in picks(record)]
    assert "tok/s with a full context" in picks(record)[0].words
    assert "speed" in picks(record)[0].words


def test_default_settings_that_nothing_beats_are_kept() -> None:
    slower = trial(4, 12.0, n_ctx=16384, type_k="q8_0")
    for trials, words in (
        (CLIMB[:4], "Only the default settings have been measured so far."),
        ((*CLIMB[:4], slower), "Keep the default settings: nothing measured better beyond noise."),
    ):
        best = recommended(ladder(*trials))
        assert best is not None
        assert best.trial.number == 3
        assert words in best.words


def test_a_pick_without_a_visit_to_the_default_at_its_context_claims_nothing() -> None:
    once = replace(CLIMB[3], remeasured=False, visits=0)
    best = recommended(ladder(*CLIMB[:3], once, *CLIMB[4:]))
    assert best is not None
    assert best.provisional
    assert "only the screening measured the default settings at this context" in best.words


@pytest.mark.parametrize(
    ("trials", "most", "words"),
    [
        (
            CLIMB[:4],
            16384,
            "With the default settings, 16,384 tokens is the longest context that keeps the constraints (decode speed "
            "at least 5 tok/s). Longer ones were not tried: space.n_ctx sets the contexts.",
        ),
        (
            (*CLIMB[:3], trial(3, 4.2, n_ctx=16384), trial(4, 6.0, n_ctx=16384, type_k="q8_0")),
            32768,
            "With the default settings, 8,192 tokens is the longest context that keeps the constraints (decode speed "
            "at least 5 tok/s). With better settings, it is 16,384.",
        ),
        (
            (trial(0, 4.0),),
            16384,
            "No context keeps the constraints (decode speed at least 5 tok/s) with the default settings.",
        ),
    ],
)
def test_the_answer_in_a_sentence(trials: tuple[TrialRecord, ...], most: int, words: str) -> None:
    assert summary(ladder(*trials, most=most)) == words


def test_contexts_beyond_the_floor_say_why_they_have_no_figures() -> None:
    slow = trial(3, 4.2, n_ctx=16384, first=300.0)
    rows = cells_of(ladder(*CLIMB[:3], slow, most=32768))
    broken = "default settings · breaks tokens_per_second >= 5"
    assert rows["  16,384", broken][0] == "4.20 ± 0.04"
    why = "default settings: not tried, because 16,384 tokens already failed or broke a constraint"
    assert rows["  32,768", why] == ["–"] * 4


def test_a_context_that_does_not_fit_says_so() -> None:
    short = TrialRecord(3, "out_of_memory", BASE.with_(n_ctx=16384), reason="needs 13 GiB, and there are 12")
    rows = cells_of(ladder(*CLIMB[:3], short))
    assert rows["  16,384", "default settings · needs 13 GiB, and there are 12"] == ["–"] * 4


def test_windows_in_an_empty_context_are_not_shown_as_those_of_a_full_one() -> None:
    deep = replace(
        CLIMB[1], metrics={**CLIMB[1].metrics, "tokens_per_second_at_full_depth": reading(15.0, 0.01, 3)}
    )
    record = replace(ladder(CLIMB[0], deep, most=4096), workload=Workload(depth=0))
    rows = cells_of(record)
    assert rows["★ 2,048", "default settings"][:2] == ["–", "–"]
    assert rows["  4,096", "default settings · screening only"][:2] == ["15.0 ± 0.2", "–"]


def test_limits_in_words() -> None:
    both = (FLOOR, Constraint("time_to_first_token_seconds", "<=", 0.5))
    assert limits(both) == "decode speed at least 5 tok/s, time to first token at most 0.5 s"
    assert limits(()) == ""


def test_records_of_before_have_no_ladder(record: SweepRecord) -> None:
    old = to_plain(record)
    del old["ladder"]
    assert from_plain(old, SweepRecord).ladder == ()
    assert from_plain(to_plain(record), SweepRecord) == record
