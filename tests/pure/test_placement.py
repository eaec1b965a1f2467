"""Placement: which splits and placements are worth a trial, and which of them are the same point."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.errors import SpaceError
from sweeper.lab.simulator import MACHINES, machine_record, model_record
from sweeper.parameters import Configuration, proportions, why_it_changes_nothing
from sweeper.records import GpuRecord, ModelFile, Workload
from sweeper.space.auto import Facts, default_configuration, fill_auto, unsettable
from sweeper.space.space import SearchSpace, Traits, build_space
from sweeper.space.splits import host_expert_layers, split_by_bytes, split_in_words, splits_to_try

MIB = 1 << 20
SERVER = ("n_parallel", "spec_type", "spec_draft_n_max", "n_cpu_ffn")


def facts(
    memory_mib: tuple[int, ...], model_mib: int, experts_mib: int = 0, engine: str = "llama_cpp"
) -> Facts:
    machine = MACHINES["minipc"]
    gpus = tuple(GpuRecord("card", f"GPU-{i}", "1", i, size) for i, size in enumerate(memory_mib))
    model = replace(
        model_record(machine),
        files={"Q4_K_M": ModelFile("Q4_K_M", "", "", model_mib * MIB)},
        expert_count=8 if experts_mib else 0,
        expert_size_bytes=experts_mib * MIB,
    )
    record = replace(machine_record(machine), gpus=gpus)
    return Facts(record, model, Workload(), gpu_offload=bool(gpus), engine=engine)


def auto(found: Facts, *names: str) -> dict[str, Any]:
    return fill_auto(dict.fromkeys(names, "auto"), found)[0]


def test_two_unlike_cards_are_split_in_five_ways_for_a_mixture_that_does_not_fit() -> None:
    found = splits_to_try([12_000, 6000], 48, 18_500, 17_500)
    assert found == [None, "1,1", "35,14", "1,0", "0,1"]
    assert [split_in_words(split) for split in found] == [
        "by free memory",
        "even",
        "71 % / 29 %",
        "GPU 0 alone",
        "GPU 1 alone",
    ]


def test_one_of_two_equal_cards_stands_for_both() -> None:
    assert splits_to_try([24_000, 24_000], 48, 18_500, 17_500) == [None, "1,1", "1,0"]


def test_many_cards_are_not_tried_alone() -> None:
    assert splits_to_try([24_000] * 4, 48, 40_000) == [None, "1,1,1,1"]


@given(
    st.lists(st.integers(4000, 48_000), min_size=2, max_size=4),
    st.integers(8, 96),
    st.floats(0.5, 0.98),
    st.floats(1.1, 3.0),
)
def test_a_split_by_bytes_fills_every_card_as_its_memory_allows(
    memory: list[int], layers: int, share: float, excess: float
) -> None:
    model = excess * sum(memory)
    experts = share * model
    split = split_by_bytes(list(map(float, memory)), layers, model, experts)
    assert split is not None
    counts = [int(n) for n in proportions(split)]
    assert sum(counts) == layers + 1
    left = host_expert_layers(sum(memory), layers, model, experts)
    expert, other = experts / layers, (model - experts) / (layers + 1)
    sizes = [other + (expert if left <= layer < layers else 0.0) for layer in range(layers + 1)]
    at = 0
    for count, size in zip(counts, memory, strict=True):
        wanted = sum(sizes) * size / sum(memory)
        assert abs(sum(sizes[at : at + count]) - wanted) <= max(sizes) * 1.01  # half a layer at each end
        at += count


def test_auto_tries_splits_only_with_two_cards() -> None:
    assert auto(facts((12_000, 6000), 18_500, 17_500), "tensor_split")["tensor_split"][0] is None
    assert "tensor_split" not in auto(facts((12_000,), 18_500, 17_500), "tensor_split")
    assert unsettable(facts((12_000,), 18_500))["tensor_split"] == "it needs 2 GPUs, and this machine has 1"


def test_auto_leaves_alone_what_concerns_only_weights_on_the_cpu() -> None:
    small, large = facts((12_000,), 4000, 3000), facts((12_000,), 18_500, 17_500)
    assert auto(small, "op_offload") == {"op_offload": True}
    assert auto(large, "op_offload") == {"op_offload": [True, False]}
    dense = facts((12_000,), 18_500, engine="llama_server")
    assert auto(dense, "n_cpu_ffn")["n_cpu_ffn"]["low"] == 0
    assert auto(facts((24_000,), 4000, engine="llama_server"), "n_cpu_ffn") == {"n_cpu_ffn": 0}


def test_auto_tries_repack_only_without_a_gpu() -> None:
    assert auto(facts((), 4000), "repack") == {"repack": [True, False]}
    assert auto(facts((12_000,), 18_500), "repack") == {"repack": True}


def test_llama_cpp_never_searches_what_only_a_server_can_set() -> None:
    spec = {"n_parallel": [1, 4], "spec_type": ["none", "ngram-mod"], "n_cpu_ffn": [0, 4]}
    found = facts((12_000,), 18_500)
    filled, notes = fill_auto(spec, found)
    assert filled == {}
    assert notes[0] == "n_parallel is not searched: only llama-server can set it (engine=llama_server)"
    assert set(SERVER) <= set(unsettable(found))
    assert fill_auto(dict.fromkeys(spec, "auto"), found) == ({}, ())  # nobody asked, so there is no note


def test_the_default_leaves_experts_that_do_not_fit_on_the_cpu() -> None:
    assert default_configuration(facts((24_000,), 18_500, 17_500)).n_cpu_moe == 0
    assert default_configuration(facts((12_000,), 18_500)).n_cpu_moe == 0  # a dense model
    one = default_configuration(facts((12_000,), 18_500, 17_500)).n_cpu_moe
    layers = MACHINES["minipc"].model.n_layer
    assert 18_500 - one * 17_500 / layers <= 0.85 * 12_000 < 18_500 - (one - 1) * 17_500 / layers
    # By the number of layers, the second card holds the last third, with all of its experts.
    assert default_configuration(facts((12_000, 6000), 18_500, 17_500)).n_cpu_moe > 2 * layers / 3


def test_an_older_server_has_no_such_option() -> None:
    found = replace(facts((12_000,), 18_500, engine="llama_server"), options=frozenset({"n-gpu-layers"}))
    assert unsettable(found)["n_cpu_ffn"] == "this llama-server has no option --n-cpu-ffn"
    assert "n_gpu_layers" not in unsettable(found)


def test_a_mixture_has_no_dense_layers_to_move() -> None:
    why = why_it_changes_nothing("n_cpu_ffn", gpu_offload=True, has_experts=True, engine="llama_server")
    assert why == "this model has experts, for which n_cpu_moe does the same"


def space(**spec: Any) -> SearchSpace:
    traits = Traits(4, gpu_offload=True, has_experts=True, gpus=2)
    return build_space(spec, Configuration(n_gpu_layers=5), traits)


def test_op_offload_and_repack_are_one_point_without_weights_on_the_cpu() -> None:
    found = space(n_cpu_moe=[0, 2], op_offload=[True, False], repack=[False, True])
    grid = [(c.n_cpu_moe, c.op_offload, c.repack) for c in found.grid()]
    assert len(grid) == 5
    assert [point for point in grid if point[0] == 0] == [(0, True, False)]
    assert all(c.op_offload in (True, False) and type(c.op_offload) is bool for c in found.grid())


def test_a_split_is_one_point_without_layers_on_the_gpus() -> None:
    found = space(n_gpu_layers=[0, 5], tensor_split=[None, "1,1"])
    assert [(c.n_gpu_layers, c.tensor_split) for c in found.grid()] == [(0, None), (5, None), (5, "1,1")]


def test_a_draft_length_is_one_point_without_a_draft() -> None:
    traits = Traits(4, engine="llama_server")
    spec = {"spec_type": ["none", "ngram-mod", "draft-mtp"], "spec_draft_n_max": [2, 3, 4]}
    grid = list(build_space(spec, Configuration(), traits).grid())
    assert [c.spec_draft_n_max for c in grid] == [2, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"tensor_split": "a,b"}, "'a,b' is not a list of proportions such as 3,1"),
        ({"tensor_split": "0,0"}, "is not a list of proportions"),
        ({"tensor_split": "1,1,1"}, "is for 3 GPUs, and here are 2"),
        ({"fit": [True, False]}, "only for the baseline"),
        ({"n_parallel": 0}, "below the minimum, 1"),
        ({"spec_type": "mtp"}, "is not one of none, draft-simple"),
    ],
)
def test_bad_values_name_the_key(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(SpaceError, match=rf"^space\.{next(iter(spec))}: .*{words}"):
        space(**spec)


def test_records_from_before_these_parameters_keep_their_digest() -> None:
    assert Configuration().digest == "54b10d69f648"
    for change in ({"tensor_split": "1,1"}, {"op_offload": False}, {"n_parallel": 2}, {"fit": True}):
        assert Configuration(**change).digest != Configuration().digest
