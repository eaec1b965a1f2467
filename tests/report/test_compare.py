import csv
import io
import json
from dataclasses import replace

import pytest
from made_sweeps import no_front, reading, sweep
from rich.cells import cell_len
from rich.console import Console

from sweeper.errors import UsageError
from sweeper.records import Prices, SweepRecord, Workload
from sweeper.report.compare import UNRANKED, Card, compare
from sweeper.report.compare_formats import render_comparison, show_comparison

PRICES = Prices(per_kwh=0.40, hours_per_day=6)


def small() -> SweepRecord:
    return sweep(name="small", model_name="llama-3b", parameters=3_000_000_000)


def large() -> SweepRecord:
    return sweep(name="large", model_name="Llama-2-7B", parameters=7_000_000_000)


def on_gpu() -> SweepRecord:
    return sweep(kind="measured", gpu=True, name="gpu", model_name="Llama-2-7B", parameters=7_000_000_000)


def card(**changes: object) -> Card:
    made = Card("RTX 4060", 300.0, tokens_per_second=60.0, watts=90.0, scope="package")
    return replace(made, **changes)  # type: ignore[arg-type]


def figured(record: SweepRecord, speed: float, watts: float) -> SweepRecord:
    """The same sweep with the recommended trial's figures set."""
    best = record.recommended
    exact = {
        "tokens_per_second": reading(speed, 0.0, 10),
        "watts": reading(watts, 0.0, 10),
        "joules_per_token": reading(watts / speed, 0.0, 10),
    }
    trials = tuple(
        replace(t, metrics={**t.metrics, **exact}) if t.number == best else replace(t, remeasured=False)
        for t in record.trials
    )
    return replace(record, trials=trials)


def test_sweeps_of_one_sensor_are_ranked_by_joules_a_token() -> None:
    comparison = compare([large(), small()], PRICES)
    assert len(comparison.groups) == 1
    assert [comparison.rows[index].sweep for index in comparison.groups[0].rows] == ["small", "large"]
    assert UNRANKED not in comparison.sentences


@pytest.mark.parametrize(
    "other",
    [
        on_gpu(),
        sweep(kind="simulated"),
        replace(sweep(), workload=Workload(prompt_tokens=4096)),
        replace(sweep(), engine=replace(sweep().engine, sampling="as a server does")),
    ],
    ids=["another scope", "simulated", "another workload", "with sampling"],
)
def test_what_cannot_be_ranked_stands_apart_and_says_so(other: SweepRecord) -> None:
    comparison = compare([small(), other], PRICES)
    assert [group.rows for group in comparison.groups] == [(0,), (1,)]
    assert UNRANKED in comparison.sentences
    assert not any("draws" in sentence for sentence in comparison.sentences)


def test_a_smaller_model_is_told_by_watts_speed_and_what_is_lost() -> None:
    comparison = compare([figured(large(), 8, 30), figured(small(), 20, 24)], PRICES)
    sentence = comparison.sentences[0]
    assert sentence.startswith("llama-3b (3B) draws less than Llama-2-7B (7B)")
    assert "24.0 against 30.0 W estimated, at ×2.5 its speed and ×0.32 its J/token" in sentence
    assert "not between models" in sentence


def test_watts_that_overlap_are_not_told_apart() -> None:
    comparison = compare([figured(large(), 8, 24), figured(small(), 20, 24)], PRICES)
    assert "draws the same within noise as" in comparison.sentences[0]


def test_an_hour_and_a_million_tokens_have_their_price() -> None:
    row = compare([figured(small(), 20, 24)], PRICES).rows[0]
    assert row.price_per_hour == pytest.approx(0.024 * 0.40)
    assert row.price_per_million_tokens == pytest.approx(24 / 20 * 0.2778 * 0.40, rel=1e-4)


def test_a_card_pays_after_price_over_what_it_saves() -> None:
    # 10 tok/s at 60 W: 6 J/token; the card needs 1.5 J/token. 10 tok/s x 6 h x 365 = 78.84 M tokens a year.
    comparison = compare([figured(small(), 10, 60)], PRICES, card())
    saved_kwh = 78.84e6 * (6 - 1.5) / 3.6e6
    years = 300 / (saved_kwh * 0.40)
    sentence = comparison.sentences[-1]
    assert f"pays for itself after {years:.1f} years" in sentence
    assert "it finishes your 6 h of work in 1 h and uses 99 kWh" in sentence
    assert "watts are estimated" in sentence


def test_a_cards_draw_at_rest_counts_for_the_hours_it_waits() -> None:
    # One hour a day of work is left of six; 23 h x 365 x 10 W = 83.95 kWh more than nothing.
    with_rest = compare([figured(small(), 10, 60)], PRICES, card(idle_watts_more=10.0)).sentences[-1]
    assert f"uses {98.55 - 83.95:.0f} kWh (€5.80) less a year" in with_rest


def test_a_card_that_needs_more_energy_never_pays() -> None:
    sentence = compare([figured(small(), 10, 5)], PRICES, card()).sentences[-1]
    assert "but uses 22 kWh (€8.80) more a year: it never pays for itself" in sentence
    free = compare([figured(small(), 10, 60)], replace(PRICES, per_kwh=0.0), card()).sentences[-1]
    assert "never pays for itself" in free


def test_no_break_even_across_scopes() -> None:
    sentence = compare([figured(small(), 10, 60)], PRICES, card(scope="wall")).sentences[-1]
    assert "no break-even" in sentence
    assert "scope wall" in sentence


@pytest.mark.parametrize("name", ["price", "tokens_per_second", "watts"])
def test_a_cards_figures_must_be_above_zero(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be above 0"):
        compare([small()], PRICES, card(**{name: 0.0}))


@pytest.mark.parametrize(
    ("prices", "words"),
    [
        (Prices(per_kwh=-1.0), "--per-kwh -1"),
        (Prices(per_kwh=float("nan")), "--per-kwh nan"),
        (Prices(hours_per_day=-3.0), "--hours -3"),
        (Prices(hours_per_day=30.0), "--hours 30"),
    ],
)
def test_a_price_below_zero_and_a_day_of_30_hours_are_refused(prices: Prices, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compare([small()], prices)


def test_nothing_to_compare_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="name the sweeps"):
        compare([], PRICES)


def test_only_what_differs_is_shown() -> None:
    comparison = compare([small(), on_gpu()], PRICES)
    assert comparison.differences["scope"] == ("package", "gpu")
    assert "workload" not in comparison.differences
    assert compare([small(), small()], PRICES).differences == {}


def test_every_value_that_differs_names_its_sweeps() -> None:
    fixed = replace(small(), sweep="fixed", pick="fastest", config={"space": {"n_threads_batch": 99}})
    table = " ".join(render_comparison(compare([small(), fixed], PRICES), "table").split())
    assert "pick: within:5% (small); fastest (fixed)" in table
    assert "fixed settings: none (small); n_threads_batch=99 (fixed)" in table


def test_a_sweep_without_a_recommendation_has_a_reason_and_no_figures() -> None:
    comparison = compare([small(), no_front(name="stopped")], PRICES)
    row = comparison.rows[1]
    assert (row.watts, row.tokens_per_second, row.price_per_hour) == (None, None, None)
    assert row.reason == "no recommendation yet"
    assert "sweep stopped: no recommendation yet" in render_comparison(comparison, "table")


@pytest.mark.parametrize("width", [24, 30, 50, 80, 140])
def test_the_table_fits_its_width(width: int) -> None:
    comparison = compare([small(), large(), on_gpu(), no_front(name="stopped")], PRICES, card())
    lines = render_comparison(comparison, "table", width).splitlines()
    assert [line for line in lines if cell_len(line) > width] == []
    assert any("estimated" in line for line in lines)


def test_every_form_can_be_read_back() -> None:
    comparison = compare([small(), on_gpu(), no_front(name="stopped")], PRICES)
    document = json.loads(render_comparison(comparison, "json"))
    assert document["schema"] == 1
    assert [row["sweep"] for row in document["rows"]] == ["small", "gpu", "stopped"]
    rows = list(csv.DictReader(io.StringIO(render_comparison(comparison, "csv"))))
    assert [row["sweep"] for row in rows] == ["small", "gpu", "stopped"]
    assert rows[2]["watts_median"] == ""
    assert "| model |" in render_comparison(comparison, "markdown")
    assert all(render_comparison(comparison, form).endswith("\n") for form in ("table", "csv"))
    with pytest.raises(UsageError, match="choose one of"):
        render_comparison(comparison, "xml")


def test_a_console_gets_the_same_table() -> None:
    out = io.StringIO()
    comparison = compare([small(), on_gpu()], PRICES)
    show_comparison(comparison, Console(file=out, width=80))
    assert out.getvalue() == render_comparison(comparison, "table", 80)


def test_rows_keep_the_sweeps_names_in_a_narrow_terminal() -> None:
    pair = [replace(small(), sweep="monday"), replace(large(), sweep="tuesday")]
    lines = render_comparison(compare(pair, PRICES), "table", 80).splitlines()
    for name in ("monday", "tuesday"):
        assert any(line.lower().startswith("llama-") and name in line for line in lines)
    assert lines[-1] != ""
    assert all(cell_len(line) <= 80 for line in lines)
