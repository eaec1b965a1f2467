"""What is worked out from the trials of a study, where a figure is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeper.lab.simulator import MACHINES, machine_record, model_record
from sweeper.records import (
    Caveat,
    Configuration,
    Constraint,
    EnergyReading,
    EngineRecord,
    Objective,
    PowerSource,
    Reading,
    SweepRecord,
    TrialRecord,
    Visit,
    Window,
    Workload,
)
from sweeper.results.assemble import MOST_NEAR_TIES, choose_to_confirm, conclude, with_finals

TRIAL = TrialRecord(
    0, "complete", Configuration(), {"tokens_per_second": Reading(9, 8, 10, 3), "watts": Reading(5, 4, 6, 3)}
)


def record(*constraints: Constraint) -> SweepRecord:
    return SweepRecord(
        sweep="s",
        state="complete",
        machine=machine_record(MACHINES["minipc"]),
        engine=EngineRecord("llama_cpp", "1"),
        model=model_record(MACHINES["minipc"]),
        workload=Workload(),
        objectives=(Objective("tokens_per_second", "maximize"), Objective("watts", "minimize")),
        constraints=constraints,
        power=PowerSource("estimate", "", "package", "estimated"),
        space={},
        trials=(TRIAL,),
        front=(),
        baseline=0,
        recommended=None,
    )


def test_a_constraint_without_its_metric_is_said_not_to_have_been_judged() -> None:
    missing = replace(TRIAL, missing={"vram_mib": "the engine cannot read it here"})
    found = conclude(replace(record(Constraint("vram_mib", "<=", 100)), trials=(missing,)))
    assert found.notes == (
        "vram_mib <= 100 was not checked in 1 of 1 trials: the engine cannot read it here",
    )
    assert conclude(found).notes == found.notes  # said once


def test_a_constraint_that_was_judged_is_not_spoken_of() -> None:
    assert conclude(record(Constraint("watts", "<=", 100))).notes == ()


def test_the_most_precise_file_loses_no_quality_that_would_have_to_be_checked() -> None:
    limited = record(Constraint("kl_divergence", "<=", 0.1))
    files = limited.model.files
    best = max(files, key=lambda quant: files[quant].size_bytes)

    def notes(**changes: str) -> tuple[str, ...]:
        trial = replace(TRIAL, configuration=Configuration(quant=best).with_(**changes))
        return conclude(replace(limited, trials=(trial,))).notes

    assert notes() == ()
    unchecked = "kl_divergence <= 0.1 was not checked in 1 of 1 trials"
    for changes in ({"quant": next(quant for quant in files if quant != best)}, {"type_k": "q8_0"}):
        assert [note.startswith(unchecked) for note in notes(**changes)] == [True]


SOURCE = PowerSource("rapl", "energy_uj", "package", "measured", update_period_seconds=0.001)


def visit(number: int, *said: str, slow: float = 1.0) -> Visit:
    """A visit of four windows of each phase, 1 s each, the first prompt ``slow`` times as fast."""

    def window(phase, repeat: int, tokens: int) -> Window:
        return Window(phase, repeat, tokens, 1.0, EnergyReading(SOURCE, 1.0, 10.0), 0, "")

    windows = [
        w
        for i in range(4)
        for w in (
            window("prefill", i, round((200 + i) * (slow if i == 0 else 1))),
            window("decode", i, 100 + i),
        )
    ]
    return Visit(0, number, tuple(windows), said, None, None)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([(), (), ()], False),
        ([("slow_first_run",), (), ()], False),
        ([("slow_first_run",), ("slow_first_run",), ()], True),
        ([("slow_first_run", "slow_first_run"), (), ()], False),  # both phases of one visit are one visit
        ([("slow_first_run",)], True),
    ],
)
def test_what_few_windows_say_of_their_spread_counts_where_half_of_the_visits_say_it(said, expected) -> None:
    (found,) = with_finals((TRIAL,), [visit(i, *names) for i, names in enumerate(said)], record())
    assert (Caveat.SLOW_FIRST_RUN in found.caveats) == expected


def test_what_one_visit_says_of_the_machine_counts() -> None:
    (found,) = with_finals((TRIAL,), [visit(0, "thermally_throttled"), visit(1), visit(2)], record())
    assert Caveat.THERMALLY_THROTTLED in found.caveats


def test_the_first_visits_first_window_is_no_slow_first_run_of_the_trial() -> None:
    """Windows of several visits stand beside each other: each visit begins anew."""
    (found,) = with_finals((TRIAL,), [visit(0, slow=0.5), visit(1), visit(2)], record())
    assert Caveat.SLOW_FIRST_RUN not in found.caveats


def test_a_single_visit_is_no_more_certain_than_its_distance_from_the_screening() -> None:
    """The windows of one visit share one load of the model, so they alone would promise too much."""
    (once,) = with_finals((TRIAL,), [visit(0)], record())
    (full,) = with_finals((TRIAL,), [visit(0), visit(1), visit(2)], record())
    assert (once.visits, full.visits) == (1, 3)
    one, three = once.metrics["tokens_per_second"], full.metrics["tokens_per_second"]
    assert one.low <= 9 <= one.high  # the screening's median
    assert one.high - one.low > 10 * (three.high - three.low)


def plain(number: int, speed: float, watts: float, noise: float = 0.001) -> TrialRecord:
    def around(value: float) -> Reading:
        return Reading(value, value * (1 - noise), value * (1 + noise), 3)

    metrics = {"tokens_per_second": around(speed), "watts": around(watts)}
    return TrialRecord(number, "complete", Configuration(n_threads=number + 1), metrics)


def screened(*trials: TrialRecord, pick: str = "within:5%") -> SweepRecord:
    return conclude(replace(record(), state="running", trials=trials, pick=pick))


def test_a_stopped_search_confirms_the_baseline_the_pick_and_the_fastest() -> None:
    found = screened(plain(0, 10, 50), plain(1, 20, 60), plain(2, 19.5, 40), plain(3, 15, 30))
    assert choose_to_confirm(found) == (0, 2, 1)
    assert choose_to_confirm(replace(found, pick="fastest")) == (0, 1)
    assert choose_to_confirm(replace(found, pick="greenest")) == (0, 1)  # without J/token, the front's first


def test_near_ties_are_confirmed_as_well_but_not_without_end() -> None:
    ties = [plain(number, 20 + 0.01 * number, 60, noise=0.05) for number in range(1, 9)]
    found = screened(plain(0, 10, 50), *ties, pick="fastest")
    assert choose_to_confirm(found) == (0, 8, 7, 6)
    assert MOST_NEAR_TIES == 2


def test_a_trial_that_does_not_count_is_not_confirmed() -> None:
    failed = replace(plain(1, 20, 60), state="failed", metrics={})
    assert choose_to_confirm(screened(plain(0, 10, 50), failed)) == (0,)
    assert choose_to_confirm(conclude(replace(record(), trials=(failed,), baseline=None))) == ()
