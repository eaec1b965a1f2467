"""Stopping a trial that another beats in everything."""

from dataclasses import replace

import pytest

from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.simulator import MACHINES, SimulatedEngine, default_configuration
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.trial import Stage, measure
from sweeper.records import Caveat, Configuration, Constraint, Objective, Reading, TrialRecord, Workload
from sweeper.search.early_stop import LEAST_TRIALS, EarlyStop
from sweeper.search.finals import visit_stage
from sweeper.stats import deviation_of, reading

OBJECTIVES = (Objective("tokens_per_second", "maximize"), Objective("watts", "minimize"))


def metrics(speed: float, watts: float, n: int = 3, spread: float = 0.02) -> dict[str, Reading]:
    def repeats(value: float) -> list[float]:
        return [value * (1 + spread * (i - (n - 1) / 2)) for i in range(n)]

    return {"tokens_per_second": reading(repeats(speed)), "watts": reading(repeats(watts))}


def trial(number: int, speed: float, watts: float, **more) -> TrialRecord:
    return TrialRecord(number, "complete", Configuration(n_threads=number + 1), metrics(speed, watts), **more)


def learned(*trials: TrialRecord) -> EarlyStop:
    stop = EarlyStop(OBJECTIVES, (Constraint("kl_divergence", "<=", 0.05),))
    for each in trials:
        stop.learn(each)
    return stop


FRONT = tuple(trial(i, 10.0 + 5 * i, 20.0 + 5 * i) for i in range(LEAST_TRIALS))  # the last: 25 tok/s at 35 W


def test_what_is_beaten_in_everything_is_hopeless_and_what_leads_in_one_is_not():
    stop = learned(*FRONT)
    assert stop.hopeless(metrics(15.0, 50.0, n=1))
    assert not stop.hopeless(metrics(15.0, 22.0, n=1))
    assert not stop.hopeless(metrics(40.0, 90.0, n=1))


def test_a_near_tie_is_measured_to_its_end():
    stop = learned(*FRONT)
    assert not stop.hopeless(metrics(24.0, 36.0, n=1))
    assert not stop.hopeless(metrics(22.0, 36.0, n=1))  # clearly slower, watts within noise


def test_noise_widens_what_counts_as_a_near_tie():
    calm = learned(*FRONT)
    noisy = learned(
        *(replace(t, metrics=metrics(10.0 + 5 * i, 20.0 + 5 * i, spread=0.15)) for i, t in enumerate(FRONT))
    )
    assert calm.hopeless(metrics(20.0, 42.0, n=1))
    assert not noisy.hopeless(metrics(20.0, 42.0, n=1))


def test_nothing_is_judged_before_enough_is_known():
    assert not learned(*FRONT[1:]).hopeless(metrics(1.0, 500.0, n=1))


def test_who_breaks_a_constraint_or_failed_beats_nobody():
    broken = [replace(t, violations={"kl_divergence<=0.05": 0.1}) for t in FRONT]
    assert not learned(*broken).hopeless(metrics(1.0, 500.0, n=1))
    failed = [TrialRecord(9, "failed", Configuration()) for _ in range(9)]
    assert not learned(*failed).hopeless(metrics(1.0, 500.0, n=1))


def test_an_objective_without_noise_may_be_equal_but_not_worse():
    objectives = (Objective("n_ctx", "maximize"), OBJECTIVES[0])
    stop = EarlyStop(objectives, ())
    for i in range(LEAST_TRIALS):
        exact = {"n_ctx": Reading(4096, 4096, 4096, 1)} | metrics(20.0 + i, 30.0)
        stop.learn(TrialRecord(i, "complete", Configuration(), exact))
    assert stop.hopeless({"n_ctx": Reading(4096, 4096, 4096, 1)} | metrics(10.0, 30.0, n=1))
    assert not stop.hopeless({"n_ctx": Reading(8192, 8192, 8192, 1)} | metrics(10.0, 30.0, n=1))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_the_deviation_is_the_inverse_of_the_interval(n):
    import statistics

    values = [10.0 + 0.1 * i for i in range(n)]
    assert deviation_of(reading(values)) == pytest.approx(statistics.stdev(values), rel=0.03)


def test_nothing_is_known_of_the_spread_of_one():
    assert deviation_of(reading([3.0])) is None


class Rig:
    def __init__(self):
        machine = MACHINES["gpu_pc"]
        self.base = default_configuration(machine)
        self.engine = SimulatedEngine(machine, VirtualClock())
        self.meter = SimulatedMeter(self.engine.trace, self.engine.clock)

    def measure(self, stage, **more):
        return measure(
            self.base, self.engine, self.meter, WORKLOAD, stage, sleep=self.engine.clock.advance, **more
        )


WORKLOAD = Workload(screening_repeats=4)


def test_a_hopeless_trial_ends_after_its_first_windows_and_says_so():
    seen = []
    found = Rig().measure(Stage.screening(WORKLOAD), hopeless=lambda m: seen.append(m) or True)
    assert [(w.phase, w.repeat) for w in found.windows] == [("prefill", 0), ("decode", 0)]
    assert len(seen) == 1
    assert Caveat.STOPPED_EARLY in found.caveats
    assert not {Caveat.SHORT_WINDOW, Caveat.SPREAD_UNKNOWN} & set(found.caveats)


def test_a_trial_with_hope_is_measured_whole_and_the_last_round_is_not_asked_about():
    seen = []
    found = Rig().measure(Stage.screening(WORKLOAD), hopeless=lambda m: seen.append(m) or False)
    assert len(found.windows) == 8
    assert len(seen) == 3
    assert Caveat.STOPPED_EARLY not in found.caveats


@pytest.mark.parametrize(
    ("decides", "prefills"),
    [
        (("tokens_per_second", "watts"), 1),
        (("tokens_per_second", "prompt_tokens_per_second"), 4),
        (("joules_per_token", "time_to_first_token_seconds"), 4),
        (("request_seconds",), 4),
        (None, 4),
    ],
)
def test_prefill_is_repeated_only_where_something_rests_on_it(decides, prefills):
    found = Rig().measure(Stage.screening(WORKLOAD, decides))
    assert [w.phase for w in found.windows].count("prefill") == prefills
    assert [w.phase for w in found.windows].count("decode") == 4
    assert found.metrics["prompt_tokens_per_second"].n == prefills
    assert found.metrics["request_seconds"].n == 4
    assert Caveat.SPREAD_UNKNOWN not in found.caveats


class SlowRig(Rig):
    """A mini PC under its lowest cap, on which a prompt takes a minute and more."""

    def __init__(self):
        machine = MACHINES["minipc"]
        self.base = default_configuration(machine).with_(power_limit_watts=15)
        self.engine = SimulatedEngine(machine, VirtualClock())
        self.meter = SimulatedMeter(self.engine.trace, self.engine.clock)


@pytest.mark.parametrize(
    ("stage", "prefills"),
    [
        (Stage.screening(WORKLOAD, ("tokens_per_second", "watts")), 0),
        (Stage.screening(WORKLOAD, ("tokens_per_second", "time_to_first_token_seconds")), 2),
        (Stage.screening(WORKLOAD), 4),
        (visit_stage(WORKLOAD), 1),
        (Stage.recording(WORKLOAD), 4),
    ],
)
def test_of_prompts_that_take_longer_than_the_rest_only_so_many_are_measured_as_are_needed(stage, prefills):
    found = SlowRig().measure(stage)
    assert [w.phase for w in found.windows].count("prefill") == prefills
    assert [w.phase for w in found.windows].count("decode") == stage.repeats
    assert Caveat.SPREAD_UNKNOWN not in found.caveats


def test_what_no_prompt_was_measured_for_is_missing_with_its_reason():
    found = SlowRig().measure(Stage.screening(WORKLOAD, ("tokens_per_second", "watts")))
    of_prefill = {
        "prompt_tokens_per_second",
        "prompt_watts",
        "prompt_joules_per_token",
        "time_to_first_token_seconds",
        "request_seconds",
    }
    assert of_prefill <= set(found.missing)
    assert not of_prefill & set(found.metrics)
    assert all("only finalists" in found.missing[name] for name in of_prefill)
    assert {"tokens_per_second", "watts", "joules_per_token"} <= set(found.metrics)


def test_a_first_prompt_that_reads_the_weights_from_disk_does_not_pass_for_a_slow_machine():
    rig = Rig()
    asked, prefill = [], rig.engine.prefill

    def cold(tokens, depth, low, high):
        asked.append(tokens)
        run = prefill(tokens, depth, low, high)
        return replace(run, seconds=run.seconds * 1000) if len(asked) == 1 else run

    rig.engine.prefill = cold
    found = rig.measure(Stage.screening(WORKLOAD, ("tokens_per_second", "watts")))
    assert asked == [64, 64, 512]
    assert [w.phase for w in found.windows].count("prefill") == 1


def test_a_context_is_filled_once_on_the_simulated_machine_and_restored_after():
    rig = SlowRig()

    def seconds(**changes):
        rig.engine.load(rig.base.with_(**changes))
        began = rig.engine.clock()
        rig.engine.decode(1, 512, 0.0, 1e-9)
        return rig.engine.clock() - began

    assert seconds() > 30
    assert seconds(n_ubatch=64) < 2
    assert seconds(type_k="q8_0") > 30
    assert seconds(type_k="q8_0", use_mmap=False) < 2
