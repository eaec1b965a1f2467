"""Simulated machines: the shapes that a search must find, noise, memory, virtual time."""

import itertools
import statistics

import pytest

from sweeper.errors import EngineRefused, LimitRefused, OutOfMemory
from sweeper.lab.simulated_power import SimulatedLimits, SimulatedMeter
from sweeper.lab.simulator import (
    MACHINES,
    QUIET,
    Noise,
    SimulatedEngine,
    default_configuration,
    limit_ranges,
    machine_record,
    model_record,
    true_metrics,
)
from sweeper.lab.virtual_time import PowerTrace, VirtualClock
from sweeper.measure.trial import Stage, measure
from sweeper.records import Caveat, Workload

WORKLOAD = Workload(depth=1024)


def speed_and_watts(machine, configuration):
    metrics = true_metrics(machine, configuration, WORKLOAD)
    return metrics["tokens_per_second"], metrics["watts"]


@pytest.mark.parametrize("name", MACHINES)
def test_a_tighter_cap_never_speeds_up_nor_draws_more(name):
    machine = MACHINES[name]
    limits = limit_ranges(machine)["power_limit_watts"]
    base = default_configuration(machine)
    points = [
        speed_and_watts(machine, base.with_(power_limit_watts=cap)) for cap in range(limits.low, limits.high)
    ]
    for (slow, low), (fast, high) in itertools.pairwise(points):
        assert slow <= fast * (1 + 1e-9)
        assert low <= high * (1 + 1e-9)
    assert points[0][0] < points[-1][0]
    assert points[0][1] < points[-1][1]


def test_the_cap_flattens_where_decode_never_reaches_it():
    machine = MACHINES["server"]
    base = default_configuration(machine)
    assert speed_and_watts(machine, base.with_(power_limit_watts=600)) == speed_and_watts(
        machine, base.with_(power_limit_watts=700)
    )
    slower = base.with_(clock_limit_mhz=1000)
    assert speed_and_watts(machine, slower)[1] < speed_and_watts(machine, base)[1]


def test_the_last_layer_on_the_gpu_is_a_cliff():
    machine = MACHINES["gpu_pc"]
    layers = machine.model.n_layer
    speeds = [
        speed_and_watts(machine, default_configuration(machine).with_(n_gpu_layers=n))[0]
        for n in (layers - 2, layers - 1, layers, layers + 1)
    ]
    gains = [b / a for a, b in itertools.pairwise(speeds)]
    assert gains[-1] > 1.2 > gains[0] > 1


def test_fewer_bits_decode_faster_and_too_many_threads_slower():
    machine = MACHINES["minipc"]
    base = default_configuration(machine)
    by_quant = [speed_and_watts(machine, base.with_(quant=q))[0] for q in ("F16", "Q8_0", "Q4_K_M")[1:]]
    assert by_quant == sorted(by_quant)
    threads = [speed_and_watts(machine, base.with_(n_threads=n))[0] for n in (1, 4, 8, 24)]
    assert threads[0] < threads[1] < threads[2] > threads[3]


def test_bigger_ubatches_speed_prefill_up_and_leave_decode_alone():
    machine = MACHINES["gpu_pc"]
    small = true_metrics(machine, default_configuration(machine).with_(n_ubatch=64), WORKLOAD)
    large = true_metrics(machine, default_configuration(machine).with_(n_ubatch=512), WORKLOAD)
    assert large["prompt_tokens_per_second"] > 1.5 * small["prompt_tokens_per_second"]
    assert large["tokens_per_second"] == small["tokens_per_second"]


def test_what_does_not_fit_runs_out_of_memory_on_the_right_device():
    gpu, host = MACHINES["gpu_pc"], MACHINES["minipc"]
    with pytest.raises(OutOfMemory, match="GPU memory"):
        true_metrics(gpu, default_configuration(gpu).with_(quant="Q8_0"), WORKLOAD)
    with pytest.raises(OutOfMemory, match="host memory"):
        true_metrics(host, default_configuration(host).with_(n_ctx=32768), WORKLOAD)


def rig(name="gpu_pc", noise=None, seed=0):
    clock = VirtualClock()
    engine = SimulatedEngine(MACHINES[name], clock, noise, seed)
    return engine, SimulatedMeter(engine.trace, clock), clock


def test_a_trial_measures_the_truth_within_its_noise_and_says_simulated():
    engine, meter, clock = rig(noise=Noise(0.01, 0.01, 0.0))
    configuration = default_configuration(engine.machine)
    workload = Workload(screening_repeats=10)
    result = measure(configuration, engine, meter, workload, Stage.screening(workload))
    truth = true_metrics(engine.machine, configuration, workload)
    for metric in ("tokens_per_second", "watts", "prompt_tokens_per_second", "joules_per_token"):
        assert result.metrics[metric].median == pytest.approx(truth[metric], rel=0.03)
    assert Caveat.SIMULATED in result.caveats
    assert engine.record.simulated
    assert meter.source.kind == "simulated"
    assert clock() > 5


def test_without_noise_and_warm_it_measures_the_truth():
    engine, _, _ = rig(noise=QUIET)
    configuration = default_configuration(engine.machine)
    engine.load(configuration)
    first = engine.decode(128, 0, 0.2, 1)
    engine.decode(128, 0, 30, 60)
    steady = engine.decode(128, 0, 1, 2)
    truth = true_metrics(engine.machine, configuration, Workload(depth=0))
    assert steady.tokens_per_second == pytest.approx(truth["tokens_per_second"])
    assert first.tokens_per_second < 0.9 * steady.tokens_per_second


def test_the_same_seed_gives_the_same_figures_and_another_gives_others():
    def speeds(seed):
        engine, _, _ = rig(seed=seed)
        engine.load(default_configuration(engine.machine))
        return [engine.decode(64, 0, 1, 2).tokens_per_second for _ in range(5)]

    assert speeds(1) == speeds(1) != speeds(2)


def test_noise_is_as_large_as_it_says():
    engine, _, _ = rig(noise=Noise(0.02, 0.0, 0.0))
    engine.load(default_configuration(engine.machine))
    engine.decode(128, 0, 10, 20)
    speeds = [engine.decode(128, 0, 1, 2).tokens_per_second for _ in range(400)]
    assert statistics.stdev(speeds) / statistics.fmean(speeds) == pytest.approx(0.02, rel=0.15)


def test_only_what_must_be_loaded_again_is():
    engine, _, clock = rig()
    base = default_configuration(engine.machine)
    first = engine.load(base)
    loaded_at = clock()
    context = engine.load(base.with_(n_threads=2, power_limit_watts=120))
    assert first.reloaded
    assert not context.reloaded
    assert clock() - loaded_at < first.load_seconds / 10
    assert engine.load(base.with_(n_gpu_layers=3)).reloaded


def test_out_of_memory_costs_time_and_the_engine_goes_on():
    engine, _, clock = rig()
    base = default_configuration(engine.machine)
    with pytest.raises(OutOfMemory):
        engine.load(base.with_(quant="Q8_0"))
    assert clock() > 0
    with pytest.raises(EngineRefused):
        engine.decode(8, 0, 1, 1)
    assert engine.load(base).reloaded
    assert engine.memory()[1] < 12_000


def test_windows_keep_their_limits():
    engine, _, _ = rig("minipc")
    engine.load(default_configuration(engine.machine))
    cut = engine.decode(100_000, 0, 1, 2)
    assert cut.seconds <= 2
    assert cut.tokens == pytest.approx(cut.tokens_per_second * 2, abs=1.5)
    whole = engine.prefill(512, 0, 0.0, 0.15)
    assert (whole.tokens, whole.rounds) == (512, 1)
    rounds = engine.decode(16, 0, 10, 20)
    assert rounds.tokens == 16 * rounds.rounds
    assert rounds.seconds >= 10


def test_the_meter_integrates_what_ran_and_idle_between():
    clock, trace = VirtualClock(), PowerTrace(idle_watts=10)
    trace.add(1.0, 3.0, 110)
    clock.advance(2.0)
    meter = SimulatedMeter(trace, clock)
    assert trace.joules(0, 4) == pytest.approx(10 * 2 + 110 * 2)
    assert trace.joules(2, 2.5) == pytest.approx(55)
    assert meter.watts_now() == 110
    clock.advance(5)
    assert meter.watts_now() == 10
    with pytest.raises(ValueError, match="overlaps"):
        trace.add(2.0, 4.0, 50)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)
    for k in range(2000):
        trace.add(10 + k, 10.5 + k, 60)
    assert trace.joules(2000, 2001) == pytest.approx(0.5 * 60 + 0.5 * 10)


def test_limits_are_given_back_and_kept_in_range():
    with SimulatedLimits(limit_ranges(MACHINES["gpu_pc"])) as limits:
        assert limits.set("power_limit_watts", 120).enforced == 120
        with pytest.raises(LimitRefused, match="outside the range 100 to 175"):
            limits.set("power_limit_watts", 50)
        with pytest.raises(LimitRefused, match="no fan"):
            limits.set("fan", 1)
    assert limits.in_force["power_limit_watts"] == 175
    assert limit_ranges(MACHINES["minipc"])["power_limit_watts"].high == 45


@pytest.mark.parametrize("name", MACHINES)
def test_records_say_simulated(name):
    machine = MACHINES[name]
    assert "simulated" in machine_record(machine).fingerprint
    model = model_record(machine)
    assert model.source == "simulated"
    assert model.file(None).kl_divergence == pytest.approx(0.031)
