"""Windows that others disturbed: measured again, within bounds; and what becomes of those that stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_load import FakeLoad

from sweeper.config import compose
from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.simulator import MACHINES, SimulatedEngine, default_configuration
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.disturbance import POLL_SECONDS, Watch
from sweeper.measure.trial import Stage, measure, metrics_of
from sweeper.prepare import prepared
from sweeper.records import (
    Caveat,
    Disturbance,
    EnergyReading,
    Measurement,
    PowerSource,
    TrialRecord,
    Visit,
    Window,
    Workload,
    from_plain,
    to_plain,
)
from sweeper.report.progress import Progress
from sweeper.results.assemble import undisturbed
from sweeper.search.finals import FINAL_VISITS, in_doubt, rounds

WORKLOAD = Workload(screening_repeats=3)
PAIRS = 2 * WORKLOAD.screening_repeats  # windows of a trial where nothing disturbs


def measured(*foreign: float, then: float = 0.0, **more) -> tuple[Measurement, FakeLoad, Watch]:
    """A simulated trial; others use the next of ``foreign`` cores in each window. Without waits between them."""
    machine = MACHINES["gpu_pc"]
    engine = SimulatedEngine(machine, VirtualClock())
    source = FakeLoad(engine.clock, foreign, then)
    watch = Watch(source, limit_seconds=0, clock=engine.clock, sleep=engine.clock.advance)
    found = measure(
        default_configuration(machine).with_(n_threads=2, n_threads_batch=2),
        engine,
        SimulatedMeter(engine.trace, engine.clock),
        WORKLOAD,
        Stage.screening(WORKLOAD),
        sleep=engine.clock.advance,
        watch=watch,
        **more,
    )
    return found, source, watch


def shares(found: Measurement, phase: str) -> list[float]:
    return [pytest.approx(w.disturbance.share) for w in found.windows if w.phase == phase]


def test_on_a_quiet_machine_every_window_is_measured_once() -> None:
    found, source, watch = measured()
    assert source.pairs == PAIRS == len(found.windows)
    assert watch.measured_again == 0
    assert Caveat.BUSY_MACHINE not in found.caveats


def test_a_disturbed_window_is_measured_again_at_once_and_leaves_no_trace() -> None:
    found, source, watch = measured(0.0, 0.8)  # the first decode window
    assert source.pairs == PAIRS + 1
    assert watch.measured_again == 1
    assert [(w.phase, w.repeat) for w in found.windows] == [
        (phase, repeat) for repeat in range(3) for phase in ("prefill", "decode")
    ]
    assert shares(found, "decode") == [0.0] * 3
    assert Caveat.BUSY_MACHINE not in found.caveats


def test_a_machine_that_is_never_quiet_costs_at_most_twice_the_windows_and_says_so() -> None:
    found, source, watch = measured(then=0.8)
    assert source.pairs == 2 * PAIRS
    assert watch.measured_again == PAIRS
    assert len(found.windows) == PAIRS
    assert Caveat.BUSY_MACHINE in found.caveats


def test_a_stopped_sweep_repeats_no_window() -> None:
    engine = SimulatedEngine(MACHINES["gpu_pc"], VirtualClock())
    source = FakeLoad(engine.clock, then=0.8)
    watch = Watch(source, clock=engine.clock, sleep=engine.clock.advance, stopped=lambda: True)
    found = measure(
        default_configuration(MACHINES["gpu_pc"]).with_(n_threads=2, n_threads_batch=2),
        engine,
        SimulatedMeter(engine.trace, engine.clock),
        WORKLOAD,
        Stage.screening(WORKLOAD),
        sleep=engine.clock.advance,
        watch=watch,
    )
    assert source.pairs == PAIRS == len(found.windows)


def test_the_least_disturbed_windows_stay() -> None:
    # Prefill is quiet. Decode: the first window takes all three spare ones, the others are measured once.
    found, _, _ = measured(0.0, 1.6, 0.4, 1.2, 0.8, 0.0, 1.0, 0.0, 0.6)
    assert shares(found, "decode") == [0.2, 0.4, 0.3]
    assert [w.repeat for w in found.windows if w.phase == "decode"] == [0, 1, 2]
    assert shares(found, "prefill") == [0.0] * 3


def test_two_calm_windows_are_enough_without_a_disturbed_third() -> None:
    found, _, _ = measured(0.0, 1.6, 0.4, 1.2, 0.8)  # the first decode window takes all three spare ones
    assert shares(found, "decode") == [0.0, 0.0]
    assert shares(found, "prefill") == [0.0] * 3
    assert Caveat.BUSY_MACHINE not in found.caveats


def test_a_disturbed_window_condemns_no_trial() -> None:
    asked: list[object] = []
    measured(then=0.8, hopeless=lambda metrics: asked.append(metrics) or True)
    assert asked == []
    found, _, _ = measured(hopeless=lambda metrics: True)
    assert Caveat.STOPPED_EARLY in found.caveats


def test_the_wait_before_a_measurement_is_shown_in_the_progress_line() -> None:
    lines: list[str] = []
    engine = SimulatedEngine(MACHINES["gpu_pc"], VirtualClock())
    source = FakeLoad(engine.clock, [0.0, *[0.8] * 5])
    measure(
        default_configuration(MACHINES["gpu_pc"]).with_(n_threads=2),
        engine,
        SimulatedMeter(engine.trace, engine.clock),
        WORKLOAD,
        Stage.screening(WORKLOAD),
        listener=lambda name, speed, watts: lines.append(name),
        sleep=engine.clock.advance,
        watch=Watch(source, limit_seconds=60, clock=engine.clock, sleep=engine.clock.advance),
    )
    assert "cc1plus uses 0.8 of 2 cores" in next(line for line in lines if line.startswith("waiting"))


def test_records_of_before_open_and_a_disturbance_survives_a_round_trip() -> None:
    energy = EnergyReading(PowerSource("rapl", "x", "package", "measured"), 1.0, 5.0)
    window = Window("decode", 0, 64, 1.0, energy)
    old = {key: value for key, value in to_plain(window).items() if key != "disturbance"}
    assert from_plain(old, Window) == window
    trial = measured()[0]
    record = TrialRecord(0, "complete", trial.configuration)
    old = {key: value for key, value in to_plain(record).items() if key != "disturbance"}
    assert from_plain(old, TrialRecord) == record
    busy = replace(window, disturbance=Disturbance(2, 0.4, None, 0.1, 0.03))
    assert from_plain(to_plain(busy), Window) == busy


# -- the final stage


def visit(number: int, decode: str, prefill: str = "-") -> Visit:
    """A visit with a window for each letter: ``-`` is calm, ``x`` is disturbed and half as fast."""
    energy = EnergyReading(PowerSource("rapl", "x", "package", "measured", 0.001), 10.0, 50.0)
    windows = [
        Window(
            phase,
            i,
            100 if letter == "-" else 50,
            10.0,
            energy,
            disturbance=Disturbance(2, 0.4 if letter == "x" else 0.0, limit_share=0.03),
        )
        for phase, letters in (("decode", decode), ("prefill", prefill))
        for i, letter in enumerate(letters)
    ]
    return Visit(0, number, tuple(windows), ("noisy", "sensor_conflict"), None, None)


def kept(*visits: Visit) -> list[str]:
    return [
        "".join("x" if w.disturbance.disturbs else "-" for w in v.windows if w.phase == "decode")
        for v in undisturbed(visits)
    ]


def test_where_calm_visits_are_left_disturbed_windows_do_not_count() -> None:
    assert kept(visit(0, "--x-"), visit(1, "----"), visit(2, "xxxx")) == ["---", "----"]
    assert kept(visit(0, "--x-"), visit(1, "xxxx"), visit(2, "xxxx")) == ["--x-", "xxxx", "xxxx"]
    assert kept(visit(0, "----"), visit(1, "----")) == ["----", "----"]


def test_caveats_about_spread_are_those_of_the_windows_that_count() -> None:
    first, second = undisturbed([visit(0, "-x-x"), visit(1, "----")])
    assert first.caveats == ("sensor_conflict",)
    assert second.caveats == ("noisy", "sensor_conflict")


def test_calm_windows_of_a_full_context_do_not_save_a_visit_without_others() -> None:
    deep = replace(visit(2, "-").windows[0], depth=1000)
    alone = replace(visit(2, "xx"), windows=(*visit(2, "xx").windows, deep))
    found = undisturbed([visit(0, "--"), visit(1, "--"), alone])
    assert [v.visit for v in found] == [0, 1]
    assert all("tokens_per_second" in metrics_of(v.windows, Workload())[0] for v in found)


def test_prompts_stay_with_their_caveat_where_none_is_calm() -> None:
    first, _ = undisturbed([visit(0, "---x", "xx"), visit(1, "----")])
    assert [w.phase for w in first.windows] == ["decode"] * 3 + ["prefill"] * 2


# -- the sweep


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def swept(tmp_path, then: float, foreign: tuple[float, ...] = ()):
    composed = compose(
        ["experiment=demo", f"root='{tmp_path}'", "search.trials=6", "search.finalists=2", "name=s"]
    )
    progress = Notes()
    with prepared(composed, lambda *_: progress, lambda _: None) as sweep:
        assert sweep.watch is None  # nothing disturbs a simulated machine
        sweep.watch = Watch(
            FakeLoad(sweep.clock, foreign, then), limit_seconds=24, clock=sweep.clock, sleep=sweep.sleep
        )
        return sweep.run(), progress, sweep


def test_a_machine_that_is_never_quiet_still_gets_its_sweep(tmp_path) -> None:
    record, progress, sweep = swept(tmp_path, then=1.9)
    assert record.state == "complete"
    assert record.recommended is not None
    assert any("did not become quiet (cc1plus uses 1.9 of 2 cores)" in line for line in progress.lines)
    assert Caveat.BUSY_MACHINE in record.caveats
    assert all(t.disturbance.disturbs for t in record.trials if t.state == "complete")
    assert "other programs used the processors: sweeper waited 24 s for quiet" in record.notes
    # The wait before the first trial showed what is usual here: nothing is gained by more waits or windows.
    assert sweep.watch.measured_again == 0
    assert in_doubt(record)


def test_a_sweep_that_a_burst_disturbed_says_nothing_to_doubt(tmp_path) -> None:
    record, _, sweep = swept(tmp_path, then=0.0, foreign=(0.0,) * 5 + (1.9, 1.9))
    assert sweep.watch.measured_again > 0
    assert any("again and waited" in note for note in record.notes)
    assert Caveat.BUSY_MACHINE not in record.caveats
    assert in_doubt(record) == ()


def test_a_busy_core_does_not_delay_a_sweep_whose_layers_are_on_a_gpu(tmp_path) -> None:
    composed = compose(["experiment=demo", "engine.machine=gpu_pc", f"root='{tmp_path}'", "search.trials=1"])
    with prepared(composed, lambda *_: Notes(), lambda _: None) as sweep:
        source = FakeLoad(sweep.clock, then=1.0, cores=8)
        sweep.watch = Watch(source, clock=sweep.clock, sleep=sweep.sleep)
        sweep.run()
        assert sweep.watch.waited_seconds == POLL_SECONDS


def test_disturbed_picks_are_visited_again(tmp_path) -> None:
    record, _, _ = swept(tmp_path, then=1.9)
    finalists = [t.number for t in record.trials if t.remeasured]
    made = list(rounds(finalists, (), lambda: record, seed=0))
    assert set(in_doubt(record)) <= set(made[FINAL_VISITS][1])
