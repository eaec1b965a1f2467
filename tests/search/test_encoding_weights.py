"""What llama.cpp does not look at in a phase is not asked about, unless the figures say otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from sweeper.records import Configuration
from sweeper.search.encoding import IDLE_WEIGHT, Encoder, weighted
from sweeper.search.gaussian_process import GaussianProcess, fit, starting_hyper
from sweeper.space.space import Traits, build_space

SPACE = build_space(
    {
        "n_threads": [1, 2, 4, 8],
        "n_threads_batch": [4, 8],
        "n_ubatch": [64, 512],
        "quant": ["Q8_0", "Q4_K_M"],
    },
    Configuration(n_threads=4, n_threads_batch=4),
    Traits(n_layer=8, prompt_tokens=512, n_ctx_needed=1024),
)
ENCODE = Encoder(SPACE)
NAMES = ["n_threads", "n_threads_batch", "n_ubatch", "quant"]


def idle(metric):
    """Names of the parameters that count little for a metric."""
    weights, at, found = ENCODE.weights(metric), 0, set()
    for name in SPACE.parameters:
        width = len(Encoder(build_space_of(name))([Configuration()])[0]) if name == "quant" else 1
        if all(weights[at : at + width] == IDLE_WEIGHT):
            found.add(name)
        at += width
    assert at == len(weights) == ENCODE.dimensions
    return found


def build_space_of(name):
    return build_space({name: list(SPACE.parameters[name].values)}, Configuration(), Traits(n_layer=8))


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("tokens_per_second", {"n_threads_batch", "n_ubatch"}),
        ("watts", {"n_threads_batch", "n_ubatch"}),
        ("joules_per_token", {"n_threads_batch", "n_ubatch"}),
        ("prompt_tokens_per_second", {"n_threads"}),
        ("prompt_watts", {"n_threads"}),
        ("request_seconds", set()),
        ("memory_mib", set()),
        (None, set()),
    ],
)
def test_each_phase_has_its_own_idle_parameters(metric, expected):
    assert idle(metric) == expected


def test_weights_draw_a_range_together_about_its_middle():
    features = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    assert weighted(features, np.array([1.0, 0.2])) == pytest.approx(
        np.array([[0.0, 0.4], [1.0, 0.6], [0.5, 0.5]])
    )


def model_of(values_of, metric):
    """A model of a few points, as the sampler makes it."""
    points = [c for i, c in enumerate(SPACE.grid()) if i % 3 == 0]
    features = weighted(ENCODE(points), ENCODE.weights(metric))
    values = np.array([values_of(c) for c in points])
    hyper = fit(features, values, starting_hyper(features.shape[1], 0.02), 0.02)
    return lambda cs: GaussianProcess(features, values, hyper).predict(
        weighted(ENCODE(cs), ENCODE.weights(metric))
    )


def test_an_idle_parameter_is_not_uncertain_where_the_rest_was_measured():
    def speed(c):
        return np.log(c.n_threads)

    two = [
        Configuration(n_threads=8, n_threads_batch=b, n_ubatch=u, quant="Q4_K_M")
        for b in (4, 8)
        for u in (64, 512)
    ]
    knowing, unknowing = model_of(speed, "tokens_per_second"), model_of(speed, "request_seconds")
    assert knowing(two)[1].max() < unknowing(two)[1].max()


def test_what_should_be_idle_and_is_not_is_learned_all_the_same():
    def speed(c):
        return np.log(c.n_threads) + (1.0 if c.n_ubatch == 512 else 0.0)

    model = model_of(speed, "tokens_per_second")
    base = Configuration(n_threads=4, n_threads_batch=4, quant="Q8_0")
    few, many = model([base.with_(n_ubatch=64), base.with_(n_ubatch=512)])[0]
    assert many - few == pytest.approx(1.0, abs=0.3)
