"""Whether a card of the table would pay is computed from published figures, and called so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_sweeps import sweep

from sweeper.errors import UsageError
from sweeper.records import ModelFile, Prices, Reading, SweepRecord
from sweeper.report.cards import Card, find_card, known_cards, needed_bytes, speed_range
from sweeper.report.compare import compare

GB = 10**9


def owned(speed: float = 10.0, watts: float = 60.0, size: int = 4 * GB, **model: object) -> SweepRecord:
    """A sweep of a model of ``size`` bytes, with its recommended trial's figures set."""
    record = sweep(kind="measured", parameters=4 * GB)
    exact = {
        "tokens_per_second": Reading(speed, speed, speed, 10),
        "watts": Reading(watts, watts, watts, 10),
    }
    trials = tuple(
        replace(t, metrics={**t.metrics, **exact})
        if t.number == record.recommended
        else replace(t, remeasured=False)
        for t in record.trials
    )
    files = {quant: ModelFile(quant, "", "", size) for quant in record.model.files}
    return replace(record, trials=trials, model=replace(record.model, files=files, **model))  # type: ignore[arg-type]


def asked(name: str, price: float | None = None, **given: float) -> Card:
    known = {"tokens_per_second": None, "watts": None} | given
    return Card(name, price, **known, scope="gpu", facts=find_card(name))  # type: ignore[arg-type]


def answer(record: SweepRecord, card: Card, **prices: float) -> str:
    return compare([record], replace(Prices(per_kwh=0.40, hours_per_day=6), **prices), card).sentences[-1]


def test_every_card_has_plausible_figures_and_a_source() -> None:
    cards = known_cards()
    assert len({card.name for card in cards}) == len(cards) >= 25
    for card in cards:
        assert 2 <= card.memory_gib <= 512
        assert 50 <= card.bandwidth_gb_per_second <= 8000
        assert card.board_watts is None or 50 <= card.board_watts <= 1000
        assert card.source.split(",")[0] in ("NVIDIA", "AMD", "Intel", "Apple")
        assert find_card(card.name) is card


@pytest.mark.parametrize("name", ["RTX 3060", "rtx3060", "3060", "NVIDIA GeForce RTX 3060", " rtx-3060 "])
def test_a_card_is_found_by_the_names_that_people_use(name: str) -> None:
    assert find_card(name).name == "RTX 3060"


@pytest.mark.parametrize("name", ["RTX 3061", "Voodoo 2", "", "RTX"])
def test_an_unknown_card_is_refused_with_the_closest_names(name: str) -> None:
    with pytest.raises(UsageError, match="is not in sweeper's table of cards") as refusal:
        find_card(name)
    assert "\n" not in str(refusal.value)
    assert ("RTX 3060" in str(refusal.value)) == (name == "RTX 3061")


def test_the_speed_follows_from_the_bytes_of_a_token() -> None:
    card = find_card("RTX 3060")  # 360 GB/s, so at most 90 tokens of 4 GB a second
    dense = owned()
    best = dense.trial(dense.recommended)
    assert speed_range(dense, best, card) == pytest.approx((0.5 * 90, 0.85 * 90))
    half = owned(expert_count=8, active_share=0.5)
    assert speed_range(half, best, card) == pytest.approx((0.5 * 180, 0.85 * 180))
    unknown = owned(expert_count=8)
    assert speed_range(unknown, best, card) == (pytest.approx(0.5 * 90), None)
    deep = owned(kv_elements=1_000_000)
    deep = replace(deep, workload=replace(deep.workload, depth=1872, generated_tokens=128))
    assert speed_range(deep, best, card)[1] == pytest.approx(0.85 * 360 / (4 + 2e6 * 2000 / GB))
    assert needed_bytes(deep, best) - needed_bytes(dense, best) == pytest.approx(
        2e6 * best.configuration.n_ctx
    )


def test_the_answer_is_plain_and_labelled() -> None:
    # 10 tok/s at 60 W for 6 h are 131.4 kWh a year; the card draws 170 W for 1.33 to 0.78 h a day.
    said = answer(owned(), asked("RTX 3060"))
    least, most = (131.4 - 170 / 1000 * 6 * 10 / speed * 365 for speed in (45, 76.5))
    assert f"Computed: in ten years it saves €{least * 4:.0f} to €{most * 4:.0f} of electricity." in said
    assert "would generate 45 to 76 tok/s instead of 10" in said
    assert "At its board power of 170 W" in said
    assert "cover the GPU only" in said
    priced = answer(owned(), asked("RTX 3060", price=300))
    assert f"pays for itself after {300 / most / 0.4:.1f} to {300 / least / 0.4:.1f} years" in priced


@pytest.mark.parametrize(
    ("record", "card", "words"),
    [
        (owned(watts=5), "RTX 3060", "it never pays for itself in electricity"),
        (owned(watts=30), "RTX 3060", "it hardly pays for itself in electricity"),
        (owned(size=40 * GB), "RTX 3060", "the model does not fit: it needs about 38 of 12 GiB"),
        (owned(), "Mac M4 Pro", "nobody can say, for its power is not published"),
        (owned(size=10**8), "RTX 3060", "So small a model is limited by more than memory"),
        (owned(expert_count=8), "RTX 3060", "would generate at least 45 tok/s"),
    ],
)
def test_each_case_has_its_answer(record: SweepRecord, card: str, words: str) -> None:
    said = answer(record, asked(card))
    assert words in said
    assert "Computed: " in said


def test_the_users_own_figures_take_precedence() -> None:
    said = answer(owned(), asked("RTX 3060", tokens_per_second=52.0, watts=120.0))
    assert "would generate 52 tok/s instead of 10" in said
    assert "At your 120 W" in said
    saved = 131.4 - 120 / 1000 * 6 * 10 / 52 * 365
    assert f"save {float(f'{saved:.2g}'):g} kWh" in said
    assert "pays for itself" in answer(owned(), asked("Mac M4 Pro", watts=40.0, price=500))


def test_the_board_power_is_called_that_of_the_card_alone() -> None:
    alone = "That is the card alone: the power of the PC around it is not included."
    assert alone in answer(owned(), asked("RTX 3060"))
    assert alone not in answer(owned(), asked("RTX 3060", watts=120.0))


@pytest.mark.parametrize(
    "figures", [{}, {"watts": 120.0}, {"tokens_per_second": 52.0, "watts": 120.0, "price": 300.0}]
)
def test_idle_power_is_left_out_unless_the_user_gives_it(figures: dict[str, float]) -> None:
    card = asked("RTX 3060", **figures)
    said = answer(owned(), card)
    assert said.count("idle power") == 1
    assert "is left out, because sweeper has no figure for it: give yours with --card-idle W." in said
    given = answer(owned(), replace(card, idle_watts_more=10.0))
    assert given.count("idle power") == 1
    assert "idle power is counted as 10 W, which is your figure." in given
    assert "counted as 0 W" in answer(owned(), replace(card, idle_watts_more=0.0))
    with pytest.raises(UsageError, match="idle power must be 0 W or more, not -1"):
        answer(owned(), replace(card, idle_watts_more=-1.0))


def test_no_idle_power_is_named_where_nothing_is_computed() -> None:
    assert "idle" not in answer(owned(), asked("Mac M4 Pro"))
    assert "idle" not in answer(owned(size=40 * GB), asked("RTX 3060"))
