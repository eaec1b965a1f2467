"""Speed with a full context: its windows are counted apart, and the notes say where the order turns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.simulator import MACHINES, SimulatedEngine
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.trial import Stage, caveats_of, measure, metrics_of
from sweeper.records import (
    Caveat,
    Configuration,
    EnergyReading,
    EngineRecord,
    MachineRecord,
    ModelRecord,
    Objective,
    PowerSource,
    Reading,
    SweepRecord,
    TrialRecord,
    Window,
    Workload,
)
from sweeper.results.assemble import conclude

SOURCE = PowerSource("rapl", "test", "package", "measured", 0.001)
WORKLOAD = Workload(prompt_tokens=100, generated_tokens=50, depth=0, n_ctx=1024)


def window(phase, speed, depth, watts=10.0, repeat=0):
    energy = EnergyReading(SOURCE, 1.0, watts, samples=1000)
    return Window(phase, repeat, int(speed), 1.0, energy, depth)


def test_the_full_depth_is_what_a_request_leaves_free():
    assert WORKLOAD.full_depth(1024) == 1024 - 150
    assert WORKLOAD.full_depth(150) is None
    assert replace(WORKLOAD, depth=None).full_depth(1024) is None  # its windows run there anyway


def test_deep_windows_count_apart():
    shallow = [window(phase, speed, 0) for phase, speed in (("prefill", 500), ("decode", 40))] * 2
    deep = [window("prefill", 300, 874), window("decode", 25, 874, watts=12.0)]
    metrics, missing = metrics_of([*shallow, *deep], WORKLOAD)
    alone, _ = metrics_of(shallow, WORKLOAD)
    assert {k: v for k, v in metrics.items() if "full_depth" not in k} == alone
    assert metrics["tokens_per_second_at_full_depth"].median == 25
    assert metrics["prompt_tokens_per_second_at_full_depth"].median == 300
    assert metrics["watts_at_full_depth"].median == 12
    assert not missing
    assert Caveat.NOISY not in caveats_of([*shallow, *deep], 1)


def sweep(*trials: TrialRecord) -> SweepRecord:
    return SweepRecord(
        sweep="s",
        state="complete",
        machine=MachineRecord("f", "cpu", 2, 2, 8192, "6.1"),
        engine=EngineRecord("llama_cpp", "1"),
        model=ModelRecord("m", "llama", 1, 2, 2048, "file", "Q8_0", {}),
        workload=WORKLOAD,
        objectives=(Objective("tokens_per_second", "maximize"), Objective("watts", "minimize")),
        constraints=(),
        power=SOURCE,
        space={"n_threads": [1, 2]},
        trials=trials,
        front=(),
        baseline=0,
        recommended=None,
        pick="fastest",
    )


def trial(number, speed, full, prompt=500.0):
    def near(value):
        return Reading(value, value * 0.99, value * 1.01, 10)

    metrics = {
        "tokens_per_second": near(speed),
        "prompt_tokens_per_second": near(prompt),
        "watts": near(10.0 + number),
        "n_ctx": Reading(1024, 1024, 1024, 1),
    }
    if full is not None:
        metrics["tokens_per_second_at_full_depth"] = near(full)
    return TrialRecord(number, "complete", Configuration(n_threads=1), metrics, remeasured=True)


def test_the_notes_name_the_pick_and_the_default_with_a_full_context():
    notes = conclude(sweep(trial(0, 30, 20), trial(1, 40, 25))).notes
    assert notes == (
        "with a full context (874 tokens), #1 generates 25 tok/s, the default configuration 20 tok/s",
    )


def test_an_order_that_turns_is_said():
    notes = conclude(sweep(trial(0, 30, 20), trial(1, 40, 18), trial(2, 38, 27))).notes
    assert "#2 is slower than #1 in a short context and faster in a full one (27 tok/s)" in notes[1]


@pytest.mark.parametrize("other", [(39.9, 27), (38, 18.1)])
def test_an_order_that_turns_within_noise_is_not_said(other):
    assert len(conclude(sweep(trial(0, 30, 15), trial(1, 40, 18), trial(2, *other))).notes) == 1


def test_a_context_that_takes_too_long_to_fill_is_said_as_computed():
    (note,) = conclude(sweep(trial(0, 30, None), trial(1, 40, None, prompt=5.0))).notes
    assert note.endswith("because filling it takes about 175 s (computed)")


@pytest.mark.parametrize(("full_depth", "deep"), [(True, 2), (False, 0)])
def test_a_visit_measures_both_phases_once_with_a_full_context(full_depth, deep):
    clock = VirtualClock()
    engine = SimulatedEngine(MACHINES["server"], clock, seed=1)
    stage = replace(Stage.final(WORKLOAD), full_depth=full_depth)
    with engine, SimulatedMeter(engine.trace, clock) as meter:
        found = measure(
            Configuration(n_ctx=1024, n_gpu_layers=99, n_threads=4),
            engine,
            meter,
            WORKLOAD,
            stage,
            clock=clock,
            sleep=clock.advance,
        )
    assert [w.phase for w in found.windows if w.depth == 874] == ["prefill", "decode"][:deep]
    assert ("tokens_per_second_at_full_depth" in found.metrics) == full_depth
