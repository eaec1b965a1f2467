"""The space: what Optuna may ask is what runs, and what would be equal is one point."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.errors import SpaceError
from sweeper.records import Configuration
from sweeper.space.space import SearchSpace, Traits, build_space, effective

BATCHES = st.lists(
    st.sampled_from([32, 64, 128, 256, 512, 1024, 2048, 4096]), min_size=1, max_size=5, unique=True
)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    spec: dict[str, Any] = {
        "n_batch": sorted(draw(BATCHES)),
        "n_ubatch": sorted(draw(BATCHES)),
        "n_ctx": draw(st.lists(st.integers(700, 5000), min_size=1, max_size=4, unique=True)),
        "n_threads": {"low": 1, "high": draw(st.integers(1, 6)), "step": draw(st.integers(1, 3))},
        "n_gpu_layers": {"low": 0, "high": draw(st.integers(0, 40))},
        "flash_attn": [True, False],
        "type_v": ["f16", "q8_0"],
    }
    traits = Traits(draw(st.integers(1, 33)), draw(st.booleans()), draw(st.sampled_from([0, 100, 512])), 640)
    return build_space(spec, Configuration(), traits)


@given(spaces(), st.data())
def test_what_is_asked_becomes_a_point_of_the_space_that_is_the_same_in_effect(
    space: SearchSpace, data: st.DataObject
) -> None:
    params = {name: data.draw(st.sampled_from(p.values)) for name, p in space.parameters.items()}
    asked = space.base.with_(**params)
    point = space.configuration(params)
    assert effective(point, space.traits) == effective(asked, space.traits)
    assert space.configuration(space.params_of(point)) == point  # canonical: once is enough
    if space.traits.gpu_offload or "n_gpu_layers" not in space.parameters:
        n = point.n_gpu_layers
        assert n in (asked.n_gpu_layers, space.traits.n_layer + 1)


@given(spaces())
def test_the_grid_is_valid_unique_and_canonical(space: SearchSpace) -> None:
    seen = set()
    for i, point in enumerate(space.grid()):
        assert not space.violations(point)
        key = (effective(point, space.traits), point.n_threads, point.flash_attn, point.type_v)
        assert key not in seen
        seen.add(key)
        if i > 50:
            break


@given(spaces())
def test_optuna_gets_the_parameters_own_names_and_values(space: SearchSpace) -> None:
    distributions = space.distributions()
    assert set(distributions) == set(space.parameters)
    for name, parameter in space.parameters.items():
        for value in parameter.values:
            assert distributions[name]._contains(distributions[name].to_internal_repr(value))


def test_a_range_a_choice_and_a_scalar() -> None:
    space = build_space(
        {"n_batch": {"low": 48, "high": 300, "log": True}, "n_threads": [1, 4], "n_ubatch": 64},
        Configuration(),
        Traits(),
    )
    assert space.parameters["n_batch"].values == (48, 64, 128, 256, 300)
    assert space.parameters["n_threads"].values == (1, 4)
    assert space.fixed["n_ubatch"] == 64
    assert space.size == 10


def test_layers_on_a_build_without_gpu_are_none() -> None:
    space = build_space({"n_gpu_layers": [0, 10, 20]}, Configuration(), Traits(22, gpu_offload=False))
    assert [c.n_gpu_layers for c in space.grid()] == [0]


def test_known_constraints_are_worded() -> None:
    space = build_space({"type_v": ["f16", "q8_0"], "flash_attn": [True, False]}, Configuration(), Traits())
    bad = space.configuration({"type_v": "q8_0", "flash_attn": False})
    assert space.violations(bad) == ("a V cache of q8_0 needs flash_attn=true",)
    assert len(list(space.grid())) == 3


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"threads": 3}, "space.threads: no such parameter"),
        ({"n_threads": []}, "space.n_threads: the list is empty"),
        ({"n_threads": {"low": 3, "high": 1}}, "space.n_threads: low 3 is above high 1"),
        ({"n_threads": {"low": 1}}, "space.n_threads.high"),
        ({"n_threads": {"low": 1, "high": 4, "stop": 2}}, "unknown key 'stop'"),
        ({"n_threads": {"low": 1.5, "high": 4}}, "not a whole number"),
        ({"n_threads": {"low": 1, "high": float("inf")}}, "not a whole number"),
        ({"n_threads": {"low": 1, "high": 4, "step": 0}}, "space.n_threads.step"),
        ({"n_batch": {"low": 0, "high": 4, "log": True}}, "space.n_batch.low"),
        ({"n_threads": [0]}, "below the minimum"),
        ({"n_threads": [None]}, "null is not allowed"),
        ({"n_threads": ["four"]}, "not a whole number"),
        ({"flash_attn": "yes"}, "neither true nor false"),
        ({"type_k": "q8_1"}, "space.type_k: 'q8_1' is not one of"),
        ({"n_ctx": 128}, "none of its configurations can run"),
        ({"n_threads": [1000]}, "none of its configurations can run"),
    ],
)
def test_bad_spaces_name_the_key(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(SpaceError, match=words):
        build_space(spec, Configuration(), Traits(n_ctx_needed=640))


def test_a_quantisation_that_is_not_to_be_had() -> None:
    with pytest.raises(SpaceError, match=r"space.quant: 'Q9' is not one of F16"):
        build_space({"quant": ["Q9"]}, Configuration(), Traits(quants=("F16",)))
