import math
import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from made_sweeps import reading, sweep

from sweeper.records import Configuration, SweepRecord, TrialRecord
from sweeper.report.charts import parameter_slice
from sweeper.report.influence import LEAST_TRIALS, influence, influences


def tried(rows: list[tuple[Configuration, float]]) -> SweepRecord:
    trials = tuple(
        TrialRecord(number, "complete", configuration, metrics={"tokens_per_second": reading(speed, 0.01, 3)})
        for number, (configuration, speed) in enumerate(rows)
    )
    record = sweep(trials=2)
    return replace(record, trials=trials, objectives=record.objectives[:1], front=(), baseline=None)


def test_what_decides_everything_has_the_whole_share_and_noise_has_none() -> None:
    rng = random.Random(3)
    rows = [
        (Configuration(n_threads=rng.randint(1, 4), flash_attn=rng.random() < 0.5), 0.0) for _ in range(200)
    ]
    record = tried([(c, 10.0 * c.n_threads) for c, _ in rows])
    threads = influence(record, "n_threads", "tokens_per_second")
    attention = influence(record, "flash_attn", "tokens_per_second")
    assert threads is not None
    assert attention is not None
    assert threads.share > 0.999
    assert abs(threads.ratio - 4) < 1e-9
    assert attention.share < 0.05


def test_many_values_are_grouped_and_still_tell() -> None:
    record = tried([(Configuration(n_batch=64 * k), 100.0 + k) for k in range(1, 101)])
    found = influence(record, "n_batch", "tokens_per_second")
    assert found is not None
    assert found.share > 0.9


def test_too_few_trials_say_nothing() -> None:
    rows = [(Configuration(n_threads=1 + k % 2), 1.0 + k) for k in range(LEAST_TRIALS - 1)]
    assert influences(tried(rows)) == ()


def test_an_objective_that_never_moves_has_no_influences() -> None:
    found = influence(
        tried([(Configuration(n_threads=1 + k % 3), 5.0) for k in range(30)]),
        "n_threads",
        "tokens_per_second",
    )
    assert found is not None
    assert found.share == 0


def test_noise_that_could_hide_an_effect_is_not_called_no_effect() -> None:
    rng = random.Random(4)

    def captions(noise: float) -> str:
        rows = [
            (Configuration(n_ubatch=64 * (1 + k % 2)), 30 * math.exp(rng.gauss(0, noise))) for k in range(40)
        ]
        record = tried(rows)
        one = influence(record, "n_ubatch", "tokens_per_second")
        assert one is not None
        assert one.share < 0.05
        return parameter_slice(record, one).caption

    assert captions(0.3).endswith("too noisy to say")
    assert captions(0.01).endswith("no visible effect")


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 64), st.sampled_from(["f16", "q8_0"]), st.floats(min_value=1e-3, max_value=1e6)
        ),
        min_size=LEAST_TRIALS,
        max_size=60,
    )
)
def test_a_share_is_a_share_whatever_was_tried(rows: list[tuple[int, str, float]]) -> None:
    record = tried([(Configuration(n_threads=t, type_k=k), speed) for t, k, speed in rows])
    for row in influences(record):
        for one in row:
            assert 0 <= one.share <= 1
            assert one.ratio >= 1


def test_the_made_up_machine_is_ruled_by_its_layers() -> None:
    rows = influences(sweep(200, "measured", gpu=True))
    assert rows[0][0].parameter == "n_gpu_layers"
    assert {one.metric for one in rows[0]} == {"tokens_per_second", "watts"}
