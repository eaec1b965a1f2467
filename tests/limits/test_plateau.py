"""Plateaus of caps: examples with known answers, and what must hold for any points."""

import random

from hypothesis import assume, given
from hypothesis import strategies as st

from sweeper.records import Caveat, Reading
from sweeper.results.plateau import CapPoint, find_plateau


def reading(median: float, spread: float = 0.005) -> Reading:
    return Reading(median, median * (1 - spread), median * (1 + spread), 3)


def point(cap: int, speed: float, watts: float, spread: float = 0.005) -> CapPoint:
    return CapPoint(cap, reading(speed, spread), reading(watts, spread))


def test_a_card_that_reaches_its_cap_late() -> None:
    # the shape of an RTX 4090: 450 and 400 change nothing, 330 saves watts for free, 260 costs 7 % of speed
    found = find_plateau(
        [point(450, 52.0, 393), point(400, 52.1, 392), point(330, 51.9, 328), point(260, 48.3, 259)]
    )
    assert found.not_binding == (400, 450)
    assert found.keeps_speed == (330, 400, 450)
    assert found.recommended == 330
    assert found.caveat(400) is Caveat.CAP_NOT_BINDING
    assert found.caveat(330) is Caveat.POWER_CAPPED
    assert found.caveat(260) is Caveat.POWER_CAPPED


def test_every_cap_binds() -> None:
    found = find_plateau([point(180, 81.2, 172.7), point(150, 75.0, 147.2), point(120, 60.0, 119.0)])
    assert (found.not_binding, found.recommended) == ((), 180)
    assert found.caveat(150) is None  # nothing shows that the highest cap is free


def test_no_cap_binds() -> None:
    found = find_plateau([point(cap, 100.0, 140.0) for cap in (200, 300, 700)])
    assert found.not_binding == (200, 300, 700)
    assert found.recommended == 200


def test_a_lucky_point_below_the_cliff_is_not_recommended() -> None:
    found = find_plateau([point(400, 50, 390), point(300, 40, 299), point(200, 50, 199)])
    assert found.recommended == 400


def test_one_point_and_none() -> None:
    assert find_plateau([]).recommended is None
    only = find_plateau([point(250, 50, 240)])
    assert (only.recommended, only.not_binding, only.caveat(250)) == (250, (), None)


def test_noise_hides_small_differences_and_no_more() -> None:
    noisy = [point(400, 50, 390, 0.05), point(300, 48, 299, 0.05)]
    quiet = [point(400, 50, 390, 0.001), point(300, 48, 299, 0.001)]
    assert find_plateau(noisy).recommended == 300
    assert find_plateau(quiet).recommended == 400


points = st.lists(
    st.builds(point, st.integers(100, 700), st.floats(1, 500), st.floats(5, 700), st.floats(0, 0.1)),
    min_size=1,
    max_size=12,
    unique_by=lambda p: p.cap,
)


@given(points)
def test_sets_reach_down_from_the_highest_cap_and_lie_in_each_other(given_points: list[CapPoint]) -> None:
    found = find_plateau(given_points)
    caps = sorted(p.cap for p in given_points)
    assert found.keeps_speed == tuple(caps[len(caps) - len(found.keeps_speed) :])
    assert set(found.not_binding) <= set(found.keeps_speed)
    assert found.recommended == found.keeps_speed[0]
    assert len(found.not_binding) != 1


@given(points, st.randoms(use_true_random=False))
def test_order_does_not_matter(given_points: list[CapPoint], order: random.Random) -> None:
    shuffled = list(given_points)
    order.shuffle(shuffled)
    assert find_plateau(shuffled) == find_plateau(given_points)


@given(points)
def test_what_is_recommended_is_never_slower_beyond_noise(given_points: list[CapPoint]) -> None:
    found = find_plateau(given_points)
    by_cap = {p.cap: p for p in given_points}
    top, chosen = by_cap[max(by_cap)], by_cap[found.recommended or 0]
    apart = chosen.speed.high < top.speed.low
    assert not (apart and chosen.speed.median < 0.99 * top.speed.median)


@given(points, st.floats(0.1, 50), st.floats(0.1, 50))
def test_units_do_not_matter(given_points: list[CapPoint], speed: float, watts: float) -> None:
    def scaled(r: Reading, factor: float) -> Reading:
        return Reading(r.median * factor, r.low * factor, r.high * factor, r.n)

    # rounding may flip a comparison that is equal to the last digit
    assume(
        all(
            abs(a.speed.median - b.speed.median) > 1e-6
            for a in given_points
            for b in given_points
            if a is not b
        )
    )
    before = find_plateau(given_points)
    after = find_plateau(
        CapPoint(p.cap, scaled(p.speed, speed), scaled(p.watts, watts)) for p in given_points
    )
    nearly = [
        abs(abs(a - b) - 0.01 * max(a, b)) < 1e-6 * max(a, b) or abs(a - b) < 1e-6 * max(a, b)
        for one in given_points
        for other in given_points
        if one is not other
        for a in (
            one.speed.median,
            one.speed.low,
            one.speed.high,
            one.watts.median,
            one.watts.low,
            one.watts.high,
        )
        for b in (other.speed.median, other.speed.low, other.speed.high, other.watts.median, other.watts.high)
    ]
    assume(not any(nearly))
    assert after == before


@given(points)
def test_a_higher_cap_that_changes_nothing_changes_nothing(given_points: list[CapPoint]) -> None:
    top = max(given_points, key=lambda p: p.cap)
    more = find_plateau([*given_points, CapPoint(top.cap + 50, top.speed, top.watts)])
    before = find_plateau(given_points)
    assert more.recommended == before.recommended
    assert {top.cap, top.cap + 50} <= set(more.not_binding)


@given(st.integers(150, 400), st.floats(60, 600))
def test_a_modelled_card_is_judged_right(knee: int, demand: float) -> None:
    """Speed is flat above the knee and falls below it; the card draws the lesser of demand and cap."""
    caps = range(100, 701, 25)
    found = find_plateau(point(c, 100 * min(1, (c / knee) ** 0.5), min(c, demand), 0.0) for c in caps)
    idle = [c for c in caps if min(c, demand) >= 0.99 * demand]
    assert set(found.not_binding) <= set(idle)
    assert found.recommended is not None
    assert min(1, (found.recommended / knee) ** 0.5) >= 0.99
    assert all(min(1, (c / knee) ** 0.5) < 0.99 for c in caps if c < found.recommended)
