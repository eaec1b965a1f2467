"""The sampler: it learns where memory ends and where the front lies, and repeats nothing."""

import contextlib
import functools
import warnings

import numpy as np
import optuna
import pytest

from sweeper.errors import OutOfMemory
from sweeper.lab.simulator import MACHINES, default_configuration, true_metrics
from sweeper.records import Configuration, Objective, Workload
from sweeper.results.front import hypervolume, reference_point, undominated
from sweeper.results.picks import Line, line_of
from sweeper.search.candidates import Candidates
from sweeper.search.encoding import Encoder
from sweeper.search.front_model import FrontModel, ObjectiveModel, Outlook
from sweeper.search.gaussian_process import GaussianProcess, Hyper, fit, starting_hyper
from sweeper.search.gp_front import GpFrontSampler
from sweeper.search.memory_order import MemoryOrder
from sweeper.search.stopping import IN_A_ROW, StoppingRule
from sweeper.search.warm_start import initial_design
from sweeper.space.space import Traits, build_space

WORKLOAD = Workload(depth=512)
# Small enough to know it whole.
SPEC = {
    "quant": ["Q8_0", "Q6_K", "Q4_K_M"],
    "n_gpu_layers": {"low": 0, "high": 49, "step": 7},
    "n_threads": [1, 4, 16],
    "n_ctx": [2048, 32768],
    "flash_attn": [True, False],
    "type_k": ["f16", "q8_0"],
    "power_limit_watts": {"low": 100, "high": 175, "step": 15},
}


def gpu_space(spec=None):
    machine = MACHINES["gpu_pc"]
    traits = Traits(n_layer=48, gpu_offload=True, n_ctx_needed=WORKLOAD.n_ctx_needed)
    return build_space(spec or SPEC, default_configuration(machine), traits)


def truth(configuration):
    metrics = true_metrics(MACHINES["gpu_pc"], configuration, WORKLOAD)
    return metrics["tokens_per_second"], metrics["watts"]


def search(
    sampler,
    space,
    trials,
    objective=truth,
    directions=("maximize", "minimize"),
    noise=0.01,
    seed=0,
    enough=lambda asked: False,
):
    rng = np.random.default_rng(seed)
    study = optuna.create_study(directions=list(directions), sampler=sampler)
    asked = []
    for _ in range(trials):
        trial = study.ask(space.distributions())
        configuration = space.configuration(trial.params)
        asked.append(configuration)
        trial.set_user_attr("configuration", configuration.to_dict())
        try:
            values = [v * rng.normal(1, noise) for v in objective(configuration)]
        except OutOfMemory:
            trial.set_user_attr("state", "out_of_memory")
            trial.set_constraint("runs", 1.0)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            trial.set_user_attr("state", "complete")
            trial.set_constraint("runs", 0.0)
            study.tell(trial, values)
        if enough(asked):
            break
    return study, asked


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@functools.cache
def everything():
    """Every point of the space that runs, oriented."""
    found = {}
    for configuration in gpu_space().grid():
        with contextlib.suppress(OutOfMemory):
            speed, watts = truth(configuration)
            found[configuration] = (speed, -watts)
    return found


@functools.cache
def whole_front():
    """The true front and the reference behind it."""
    values = list(everything().values())
    front = [values[i] for i in undominated(values)]
    return front, reference_point(front)


def volume(configurations):
    points, (front, reference) = everything(), whole_front()
    found = [points[c] for c in configurations if c in points]
    return hypervolume(found, reference) / hypervolume(front, reference)


def test_it_finds_most_of_the_front_in_a_small_share_of_the_grid_and_repeats_nothing():
    space = gpu_space()
    _, asked = search(GpFrontSampler(space, seed=1), space, 30)
    assert len(set(asked)) == 30
    assert not any(space.violations(c) for c in asked)
    shuffled = initial_design(space, asked[0], 1, 5) + tuple(Candidates(space, 5).random_points(29))
    assert volume(asked) > 0.9
    assert volume(asked) > volume(shuffled)


def test_it_learns_where_memory_ends():
    space = gpu_space()
    _, asked = search(GpFrontSampler(space, seed=2), space, 30)
    # Most of the fast end of this space breaks; whoever does not learn breaks there again and again.
    assert sum(c not in everything() for c in asked[18:]) <= 3


def test_what_is_not_allowed_is_never_asked_for():
    space = gpu_space()
    forecasts = []

    def allowed(configuration):
        forecasts.append(configuration)
        return configuration.n_gpu_layers <= 35

    _, asked = search(GpFrontSampler(space, seed=0, allowed=allowed), space, 15)
    assert max(c.n_gpu_layers for c in asked) <= 35
    assert len(forecasts) == len(set(forecasts)) < 60  # a forecast costs a tenth of a second


def test_the_same_seed_asks_the_same():
    space = gpu_space()
    first = search(GpFrontSampler(space, seed=4), space, 14)[1]
    assert search(GpFrontSampler(space, seed=4), space, 14)[1] == first


def test_a_small_space_is_searched_to_its_end_and_then_anything_is_said():
    space = gpu_space({"n_threads": [1, 2, 4], "power_limit_watts": [100, 130]})
    _, asked = search(GpFrontSampler(space), space, 8)
    assert set(asked[:6]) == set(space.grid())
    assert asked[6] in set(asked[:6])


def test_it_goes_on_from_a_study_that_another_sampler_began():
    space = gpu_space()
    study, asked = search(optuna.samplers.RandomSampler(seed=0), space, 20)
    study.sampler = GpFrontSampler(space, seed=0)
    trial = study.ask(space.distributions())
    assert space.configuration(trial.params) not in asked
    assert study.sampler.outlook is not None


def test_constraints_on_a_metric_are_learned():
    space = gpu_space()
    sampler = GpFrontSampler(space, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    kept = []
    for _ in range(26):
        trial = study.ask(space.distributions())
        configuration = space.configuration(trial.params)
        trial.set_user_attr("configuration", configuration.to_dict())
        try:
            metrics = true_metrics(MACHINES["gpu_pc"], configuration, WORKLOAD)
        except OutOfMemory:
            trial.set_user_attr("state", "out_of_memory")
            trial.set_constraint("watts >= 120", 0.0)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        trial.set_user_attr("state", "complete")
        trial.set_constraint("watts >= 120", 120 - metrics["watts"])
        study.tell(trial, [metrics["tokens_per_second"], metrics["watts"]])
        kept.append(metrics["watts"] >= 120)
    assert sum(kept[-10:]) >= 7


@pytest.mark.parametrize("count", [1, 3])
def test_one_and_three_objectives(count):
    space = gpu_space()
    directions = ["maximize", "minimize", "maximize"][:count]

    def objective(configuration):
        return (*truth(configuration), float(configuration.n_ctx))[:count]

    study, asked = search(GpFrontSampler(space, seed=0), space, 18, objective, directions)
    assert len(set(asked)) == 18
    if count == 1:
        best = max(t.values[0] for t in study.trials if t.values)
        assert best > 0.9 * max(speed for speed, _ in everything().values())


def test_values_of_both_signs_are_taken_as_they_are():
    space = gpu_space()

    def objective(configuration):
        speed, watts = truth(configuration)
        return speed - 10, watts

    _, asked = search(GpFrontSampler(space, seed=0), space, 15, objective)
    assert len(set(asked)) == 15


def test_nothing_that_runs_is_no_dead_end():
    space = gpu_space()

    def objective(configuration):
        raise OutOfMemory("always")

    _, asked = search(GpFrontSampler(space, seed=0), space, 30, objective)
    assert len(set(asked)) == 30


# The parts


def test_equal_configurations_are_one_point_and_the_last_layer_stands_apart():
    space = gpu_space()
    encode = Encoder(space)
    base = space.configuration({"n_gpu_layers": 49})
    rows = encode(
        [base, base.with_(n_gpu_layers=42), base.with_(n_gpu_layers=35), base.with_(n_gpu_layers=0)]
    )
    assert rows.shape == (4, encode.dimensions)
    assert rows.min() >= 0
    assert rows.max() <= 1
    apart = np.linalg.norm(np.diff(rows, axis=0), axis=1)
    assert apart[0] > 3 * apart[1]


def test_values_beside_the_space_are_encoded_as_their_nearest():
    space = gpu_space()
    encode = Encoder(space)
    inside = space.configuration({"n_threads": 4})
    assert (encode([inside.with_(n_threads=5)]) == encode([inside])).all()
    assert encode([Configuration(quant="unheard of")]).shape == (1, encode.dimensions)


def test_as_found_counts_as_the_highest_limit():
    encode = Encoder(gpu_space({"power_limit_watts": [100, 150, None], "n_threads": [1, 2]}))
    c = Configuration(n_threads=1)
    assert (encode([c]) == encode([c.with_(power_limit_watts=150)])).all()


def test_a_process_goes_through_its_data_and_knows_where_it_knows_nothing():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (30, 2))
    y = 5 + np.sin(4 * x[:, 0]) + rng.normal(0, 0.02, 30)
    process = GaussianProcess(x, y, fit(x, y, starting_hyper(2, 0.02), 0.02))
    mean, deviation = process.predict(x)
    assert mean == pytest.approx(y, abs=0.1)
    assert process.predict(np.array([[3.0, 3.0]]))[1][0] > 5 * deviation.max()
    assert process.noise < 0.1
    # The second feature does nothing, and the fit says so.
    assert process.hyper.log_lengths[1] > process.hyper.log_lengths[0]


def test_the_gradient_of_the_fit_is_right():
    from scipy.optimize import check_grad

    from sweeper.search.gaussian_process import _Problem

    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, (12, 3)), rng.normal(size=12)
    problem = _Problem(x, y, np.log(0.1))
    at = Hyper(np.log([0.3, 0.7, 1.5]), 0.1, np.log(0.2)).packed()
    assert check_grad(lambda v: problem(v)[0], lambda v: problem(v)[1], at) < 1e-3


def test_an_initial_design_begins_with_the_baseline_and_holds_no_point_twice():
    space = gpu_space()
    params = space.params_of(space.base) | {
        "quant": "Q8_0",
        "power_limit_watts": 175,
        "n_ctx": 2048,
        "n_threads": 4,
    }
    baseline = space.configuration(params)
    design = initial_design(space, baseline, 12, seed=0)
    assert design[0] == baseline
    assert len(set(design)) == 12
    assert design == initial_design(space, baseline, 12, seed=0)
    assert not any(space.violations(c) for c in design)
    assert {c.quant for c in design[1:5]} == {"Q4_K_M"}


def test_mutations_stay_in_the_space():
    space = gpu_space()
    candidates = Candidates(space, 0)
    parent = space.configuration({"n_gpu_layers": 49, "quant": "Q4_K_M"})
    drawn = candidates.draw([parent], {parent})
    assert parent not in drawn
    assert all(getattr(c, n) in p.values for c in drawn for n, p in space.parameters.items())
    assert len(set(drawn)) == len(drawn)


def test_who_asks_for_more_than_what_broke_breaks_too():
    base = Configuration(n_gpu_layers=30, n_ctx=8192, quant="Q6_K")
    more = [base.with_(n_ctx=16384), base.with_(quant="Q8_0"), base.with_(flash_attn=False)]
    less = [base.with_(n_ctx=4096), base.with_(quant="Q4_K_M"), base.with_(n_gpu_layers=20, n_ctx=4096)]
    order = MemoryOrder([base.with_(n_gpu_layers=0, n_ctx=4096)], [base])
    assert (order.probability(more) < 0.2).all()
    assert (order.probability(less) == 1).all()


def test_the_order_trusts_itself_more_when_confirmed_and_less_when_refuted():
    base = Configuration(n_ctx=8192)
    more = [base.with_(n_ctx=16384 + 256 * k) for k in range(8)]
    new = [base.with_(n_ctx=9000)]
    alone = MemoryOrder([], [base]).probability(new)[0]
    assert MemoryOrder([], [base, *more]).probability(new)[0] < alone
    assert MemoryOrder(more, [base]).probability(new)[0] > 5 * alone


# Stopping


def outlook(finished, gain, noise=0.0):
    return Outlook(20, gain, noise, finished)


def test_it_stops_when_little_is_left_to_gain_and_says_it():
    rule = StoppingRule()
    verdicts = [rule(outlook(n, 0.005)) for n in range(20, 20 + IN_A_ROW)]
    assert verdicts[:-1] == [None] * (IN_A_ROW - 1)
    assert verdicts[-1] == "a further 20 trials would be expected to add less than 1 % to the front"


def test_it_goes_on_while_there_is_something_to_gain_or_too_little_is_known():
    rule = StoppingRule()
    assert [rule(outlook(n, 0.05)) for n in range(20, 30)] == [None] * 10
    assert [rule(outlook(n, 0.0)) for n in range(10)] == [None] * 10
    assert rule(None) is None
    assert [rule(outlook(30, 0.0)) for _ in range(9)] == [None] * 9  # one proposal asked about often is one


def test_one_hopeful_proposal_starts_the_count_again():
    rule = StoppingRule()
    gains = [0.005, 0.005, 0.5, 0.005, 0.005]
    assert [rule(outlook(20 + n, gain)) for n, gain in enumerate(gains)] == [None] * 5


def test_noise_raises_the_threshold_and_is_named():
    rule = StoppingRule()
    words = [rule(outlook(n, 0.02, noise=0.03)) for n in range(20, 20 + IN_A_ROW)][-1]
    assert words == (
        "a further 20 trials would be expected to add less than 3 % to the front "
        "(about the noise of one measurement)"
    )


# What the recommendation asks for

TWO = (Objective("tokens_per_second", "maximize"), Objective("watts", "minimize"))


@pytest.mark.parametrize(
    ("pick", "line"),
    [
        ("within:5%", Line(0, 1, share=0.95)),
        ("at-least:20tok/s", Line(0, 1, level=20)),
        ("at-most:60W", Line(1, 0, level=-60)),
        ("knee", None),
        ("fastest", None),
    ],
)
def test_only_picks_with_a_line_have_one(pick, line):
    assert line_of(TWO, pick) == line
    assert line_of(TWO[:1], pick) is None


def line_model(xs):
    """Speed 10 + 10 x and watts 20 + 40 x over one feature, exactly known at ``xs``."""
    features = np.array(xs, dtype=float)[:, None]
    hyper = Hyper(np.zeros(1), 0.0, np.log(0.01))
    speed = ObjectiveModel(
        GaussianProcess(features, np.log(10 + 10 * features[:, 0]), hyper), 1.0, np.ones(1)
    )
    watts = ObjectiveModel(
        GaussianProcess(features, -np.log(20 + 40 * features[:, 0]), hyper), -1.0, np.ones(1)
    )
    configurations = [Configuration(n_threads=i + 1) for i in range(len(xs))]
    return FrontModel([speed, watts], [], None, None, configurations, features, [True] * len(xs))


def test_the_pick_gains_most_just_above_its_line_and_nothing_below_it_or_where_it_stands():
    model = line_model([0.0, 0.25, 0.5, 1.0])
    grid = np.linspace(0, 1, 101)[:, None]
    ask = [Configuration(n_threads=i + 1) for i in range(101)]
    gains = model.gains_of_pick(Line(0, 1, share=0.75), grid, ask)  # 15 tok/s: x = 0.5, which was measured
    assert gains.max() < 0.02
    gains = model.gains_of_pick(
        Line(0, 1, share=0.85), grid, ask
    )  # 17 tok/s: x = 0.7; measured is only x = 1
    assert 0.65 <= grid[int(gains.argmax()), 0] <= 0.75
    assert gains.max() > 0.1
    assert gains[:50].max() < 0.01
    assert gains[-1] < 0.02


def test_where_nothing_reaches_the_line_the_likeliest_is_asked_for():
    model = line_model([0.0, 0.25, 0.5])
    grid = np.linspace(0, 1, 101)[:, None]
    gains = model.gains_of_pick(
        Line(0, 1, level=18.0), grid, [Configuration(n_threads=i + 1) for i in range(101)]
    )
    assert grid[int(gains.argmax()), 0] > 0.8


# What an earlier sweep hands on


def earlier(values_of, count=40, seed=3):
    drawn = Candidates(gpu_space(), seed).random_points(count)
    return [(c, values_of(c)) for c in drawn if c in everything()]


def trials_to(share, space, sampler):
    """How many trials reach this share of the front; 31 if 30 do not."""
    _, asked = search(sampler, space, 30, enough=lambda asked: volume(asked) >= share)
    return len(asked) if volume(asked) >= share else len(asked) + 1


def test_an_earlier_sweep_that_explains_the_new_trials_saves_some_of_them():
    space = gpu_space()
    anew, with_it = [], []
    for seed in range(3):
        alike = earlier(lambda c: (0.5 * everything()[c][0], -0.8 * everything()[c][1]), seed=seed)
        anew.append(trials_to(0.95, space, GpFrontSampler(space, seed=seed)))
        with_it.append(trials_to(0.95, space, GpFrontSampler(space, seed=seed, earlier=alike)))
    assert sum(with_it) < sum(anew)


def test_an_earlier_sweep_that_explains_nothing_is_not_believed():
    space = gpu_space()
    rng = np.random.default_rng(5)
    nonsense = earlier(lambda c: (float(rng.uniform(1, 100)), float(rng.uniform(20, 400))))
    _, asked = search(GpFrontSampler(space, seed=1, earlier=nonsense), space, 30)
    assert volume(asked) > 0.93


def test_too_few_earlier_trials_teach_nothing():
    space = gpu_space()
    few = earlier(lambda c: (1.0, 1.0), count=5)
    assert (
        search(GpFrontSampler(space, seed=4, earlier=few), space, 10)[1]
        == (search(GpFrontSampler(space, seed=4), space, 10)[1])
    )


# What is idle for all that decides

IDLE_SPEC = {
    "quant": ["Q8_0", "Q6_K", "Q4_K_M"],
    "n_gpu_layers": {"low": 0, "high": 49, "step": 7},
    "n_threads": [1, 4, 16],
    "n_threads_batch": [1, 2, 4, 8, 16],
    "n_ubatch": [32, 64, 128, 256, 512],
    "power_limit_watts": {"low": 100, "high": 175, "step": 15},
}
DECIDING = ("tokens_per_second", "watts")


def from_model(**more):
    """What is proposed after the design, and the baseline."""
    space = gpu_space(IDLE_SPEC)
    _, asked = search(GpFrontSampler(space, seed=0, **more), space, 22)
    return asked[8:], space.base


def as_the_baseline(asked, base):
    return sum(c.n_threads_batch == base.n_threads_batch for c in asked)


def test_what_is_idle_is_left_as_the_baseline_has_it():
    asked, base = from_model(metrics=DECIDING, constrained=["kl_divergence"])
    assert as_the_baseline(asked, base) >= 0.8 * len(asked)
    # Batches take memory: they give way where that lets more layers onto the card.
    assert {c.n_ubatch for c in asked} > {base.n_ubatch}
    assert len({(c.quant, c.n_gpu_layers, c.n_threads, c.power_limit_watts) for c in asked}) > 8


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"metrics": DECIDING, "constrained": ["prompt_tokens_per_second"]},
        {"metrics": DECIDING, "constrained": ["memory_mib"]},
        {"metrics": (*DECIDING[:1], "request_seconds")},
    ],
)
def test_it_is_not_where_a_constraint_or_an_objective_may_rest_on_it(more):
    asked, base = from_model(**more)
    assert as_the_baseline(asked, base) < 0.5 * len(asked)
