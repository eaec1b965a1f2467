"""The final stage: everybody three times, then only those that noise leaves open."""

from dataclasses import replace

from test_assemble import record

from sweeper.records import Configuration, Reading, TrialRecord
from sweeper.search.finals import DECIDING_VISITS, FINAL_VISITS, rounds


def trial(number, speed, watts, noise):
    def reading(value):
        return Reading(value, value * (1 - noise), value * (1 + noise), 12)

    metrics = {"tokens_per_second": reading(speed), "watts": reading(watts)}
    return TrialRecord(number, "complete", Configuration(n_threads=number + 1), metrics, remeasured=True)


def sweep(noise):
    trials = (trial(0, 20, 60, noise), trial(1, 18.7, 30, noise), trial(2, 19.5, 55, noise))
    return replace(record(), trials=trials)


def test_where_nothing_is_open_everybody_is_visited_three_times_in_an_order_of_its_own():
    made = list(rounds((0, 1, 2), (), lambda: sweep(0.001), seed=1))
    assert [visit for visit, _ in made] == list(range(FINAL_VISITS))
    assert all(sorted(order) == [0, 1, 2] for _, order in made)
    assert made == list(rounds((0, 1, 2), (), lambda: sweep(0.001), seed=1))  # the same after a restart


def test_what_noise_leaves_open_is_visited_again_until_it_is_settled():
    noise = iter([0.02, 0.02, 0.001])
    made = list(rounds((0, 1, 2), (), lambda: sweep(next(noise)), seed=1))
    assert [sorted(order) for _, order in made[FINAL_VISITS:]] == [[0, 1], [0, 1]]


def test_what_stays_open_is_left_as_a_tie_after_so_many_rounds():
    made = list(rounds((0, 1, 2), (), lambda: sweep(0.02), seed=1))
    assert len(made) == FINAL_VISITS + DECIDING_VISITS


def test_a_restart_makes_only_the_visits_that_are_missing():
    done = {(n, visit) for n in range(3) for visit in range(FINAL_VISITS)} | {(1, FINAL_VISITS)}
    made = list(rounds((0, 1, 2), done, lambda: sweep(0.02), seed=1))
    assert [order for _, order in made[:FINAL_VISITS]] == [[], [], []]
    assert made[FINAL_VISITS] == (FINAL_VISITS, [0])
