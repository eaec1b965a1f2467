"""Caps that change nothing: examples with known answers, and what must hold for any readings."""

from hypothesis import given
from hypothesis import strategies as st

from sweeper.records import Caveat, Reading
from sweeper.results.plateau import cap_caveats

FREE, CAPPED = Caveat.CAP_NOT_BINDING, Caveat.POWER_CAPPED


def reading(median: float, spread: float = 0.005) -> Reading:
    return Reading(median, median * (1 - spread), median * (1 + spread), 3)


def readings(speed: float, watts: float, spread: float = 0.005) -> tuple[Reading, Reading]:
    return reading(speed, spread), reading(watts, spread)


def test_a_card_that_reaches_its_cap_late() -> None:
    # the shape of an RTX 4090: 450 and 400 change nothing, 330 saves watts for free, 260 costs 7 % of speed
    card = {
        450: readings(52.0, 393),
        400: readings(52.1, 392),
        330: readings(51.9, 328),
        260: readings(48.3, 259),
    }
    assert cap_caveats(card) == {450: FREE, 400: FREE, 330: CAPPED, 260: CAPPED}


def test_where_every_cap_binds_nothing_shows_that_the_highest_is_free() -> None:
    card = {180: readings(81.2, 172.7), 150: readings(75.0, 147.2), 120: readings(60.0, 119.0)}
    assert cap_caveats(card) == {}


def test_no_cap_binds() -> None:
    assert set(cap_caveats({cap: readings(100.0, 140.0) for cap in (200, 300, 700)}).values()) == {FREE}


def test_a_point_below_the_cliff_that_agrees_again_is_capped() -> None:
    same, slow = readings(50, 390), readings(40, 299)
    assert cap_caveats({500: same, 400: same, 300: slow, 200: same}) == {
        500: FREE,
        400: FREE,
        300: CAPPED,
        200: CAPPED,
    }


def test_one_cap_and_none_tell_nothing() -> None:
    assert cap_caveats({}) == {}
    assert cap_caveats({250: readings(50, 240)}) == {}


def test_noise_hides_small_differences_and_no_more() -> None:
    noisy = {400: readings(50, 390, 0.05), 300: readings(48, 380, 0.05)}
    quiet = {400: readings(50, 390, 0.001), 300: readings(48, 380, 0.001)}
    assert set(cap_caveats(noisy).values()) == {FREE}
    assert cap_caveats(quiet) == {}


cards = st.dictionaries(
    st.integers(100, 700),
    st.builds(readings, st.floats(1, 500), st.floats(5, 700), st.floats(0, 0.1)),
    min_size=1,
    max_size=12,
)


@given(cards)
def test_the_free_caps_reach_down_from_the_highest(card: dict[int, tuple[Reading, Reading]]) -> None:
    found = cap_caveats(card)
    free = [cap for cap in sorted(card, reverse=True) if found.get(cap) is FREE]
    assert free == sorted(card, reverse=True)[: len(free)]
    assert len(free) != 1
    assert found.keys() == (card.keys() if free else set())


@given(cards)
def test_a_higher_cap_that_changes_nothing_is_free(card: dict[int, tuple[Reading, Reading]]) -> None:
    top = max(card)
    more = cap_caveats({**card, top + 50: card[top]})
    assert {top, top + 50} <= {cap for cap, caveat in more.items() if caveat is FREE}
    assert {cap: more[cap] for cap in cap_caveats(card)} == cap_caveats(card)


@given(st.integers(150, 400), st.floats(60, 600))
def test_a_modelled_card_is_judged_right(knee: int, demand: float) -> None:
    """Speed is flat above the knee and falls below it; the card draws the lesser of demand and cap."""
    caps = range(100, 701, 25)
    found = cap_caveats({c: readings(100 * min(1, (c / knee) ** 0.5), min(c, demand), 0.0) for c in caps})
    free = {cap for cap, caveat in found.items() if caveat is FREE}
    assert free <= {c for c in caps if min(c, demand) >= 0.99 * demand}
