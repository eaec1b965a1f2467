"""Searching where a model's weights lie: the simulated machine, the first design, the encoding and the memory order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sweeper.errors import OutOfMemory
from sweeper.lab.simulated_experts import cards_of, placement
from sweeper.lab.simulated_machine import memory_mib, shortage
from sweeper.lab.simulator import MACHINES, default_configuration, true_metrics, with_fitting_experts
from sweeper.parameters import Configuration
from sweeper.records import Workload
from sweeper.search.encoding import Encoder
from sweeper.search.memory_order import MemoryOrder
from sweeper.search.warm_start import SPARED_LAYERS, initial_design
from sweeper.space.space import SearchSpace, Traits, build_space
from sweeper.space.splits import splits_to_try

MACHINE = MACHINES["moe_pc"]
DEFAULT = default_configuration(MACHINE)
WORKLOAD = Workload(depth=512)
LAYERS = MACHINE.model.n_layer


def speed(configuration: Configuration, metric: str = "tokens_per_second") -> float:
    return true_metrics(MACHINE, configuration, WORKLOAD)[metric]


def space() -> SearchSpace:
    weights = MACHINE.model.weight_bytes(None) / 2**20
    splits = splits_to_try(
        [card.memory_mib for card in cards_of(MACHINE)], LAYERS, weights, MACHINE.model.expert_share * weights
    )
    spec = {
        "n_gpu_layers": {"low": 0, "high": LAYERS + 1},
        "n_cpu_moe": {"low": 0, "high": LAYERS},
        "tensor_split": splits,
        "n_parallel": [1, 2, 4, 8],
        "power_limit_watts": [100, 170],
    }
    traits = Traits(LAYERS, gpu_offload=True, has_experts=True, gpus=2, engine="simulated")
    return build_space(spec, DEFAULT, traits)


# The simulated machine


def test_layers_and_experts_lie_where_llama_cpp_puts_them() -> None:
    host, cards = placement(MACHINE, DEFAULT.with_(n_gpu_layers=41, n_cpu_moe=20, tensor_split="3,1"))
    assert (host.layers, host.experts, host.output) == (8, 20, False)
    assert [card.layers for card in cards] == [31, 9]
    assert [card.experts for card in cards] == [19, 9]
    assert [card.output for card in cards] == [False, True]
    nothing, _ = placement(MACHINE, DEFAULT.with_(n_gpu_layers=0))
    assert (nothing.layers, nothing.experts, nothing.output) == (LAYERS, LAYERS, True)


def test_the_plain_split_leaves_the_first_card_empty() -> None:
    """llama.cpp shares layers by their number, and the experts that leave are those of the first card."""
    _, (first, second) = memory_mib(MACHINE, DEFAULT)
    assert first < 0.2 * MACHINE.gpu.memory_mib
    assert second > 0.9 * MACHINE.more_gpus[0].memory_mib
    split = with_fitting_experts(MACHINE, DEFAULT.with_(tensor_split="35,14"))
    assert split.n_cpu_moe < DEFAULT.n_cpu_moe / 3
    assert speed(split) > 1.5 * speed(DEFAULT)


def test_each_layer_of_experts_on_the_host_costs_speed() -> None:
    base = DEFAULT.with_(tensor_split="1,0")
    fits = with_fitting_experts(MACHINE, base).n_cpu_moe
    speeds = [speed(base.with_(n_cpu_moe=count)) for count in range(fits, LAYERS + 1)]
    assert speeds == sorted(speeds, reverse=True)
    with pytest.raises(OutOfMemory, match="of GPU memory"):
        speed(base.with_(n_cpu_moe=fits - 1))


def test_slots_raise_the_speed_of_all_users_ever_less() -> None:
    base = DEFAULT.with_(tensor_split="1,0", n_cpu_moe=LAYERS)
    speeds = [speed(base.with_(n_parallel=slots)) for slots in (1, 2, 4, 8)]
    gains = [more / less for less, more in itertools.pairwise(speeds)]
    assert all(gain > 1 for gain in gains)
    assert speeds[-1] < 4 * speeds[0]
    assert memory_mib(MACHINE, base.with_(n_parallel=8))[1][0] > memory_mib(MACHINE, base)[1][0]


def test_prompts_are_faster_with_op_offload_and_larger_batches() -> None:
    base, metric = DEFAULT.with_(n_cpu_moe=LAYERS, tensor_split="1,0"), "prompt_tokens_per_second"
    assert speed(base, metric) > 2 * speed(base.with_(op_offload=False), metric)
    assert speed(base.with_(n_ubatch=64), metric) < speed(base, metric)
    assert speed(base.with_(op_offload=False)) == speed(base)  # decode is the same


# The search


def test_the_first_design_has_the_best_placement_that_fits_with_room() -> None:
    searched = space()
    asked = 0

    def fits(configuration: Configuration) -> bool:
        nonlocal asked
        asked += 1
        return shortage(MACHINE, configuration) is None

    design = initial_design(searched, searched.base, 10, 0, fits)
    assert design[0].with_(power_limit_watts=None) == DEFAULT
    best = design[1]
    host = placement(MACHINE, best)[0].experts
    assert shortage(MACHINE, best) is None
    assert best.n_parallel == 8
    fitted = with_fitting_experts(MACHINE, DEFAULT.with_(n_parallel=8))
    assert host < fitted.n_cpu_moe / 2
    assert speed(best) > 1.3 * speed(fitted)
    spared = best.with_(n_cpu_moe=max(0, best.n_cpu_moe - SPARED_LAYERS))
    assert shortage(MACHINE, spared) is None
    assert asked < 250  # a forecast takes up to a tenth of a second


def test_without_a_forecast_the_design_is_as_before() -> None:
    searched = space()
    assert initial_design(searched, searched.base, 6, 0) == initial_design(
        searched, searched.base, 6, 0, lambda _: True
    )


def test_layers_on_the_cpu_count_together() -> None:
    """With 29 of 49 layers on the GPU, 20 layers' experts are on the CPU whether or not n_cpu_moe names them."""
    encode = Encoder(space())
    few, same, more = (encode([DEFAULT.with_(n_gpu_layers=29, n_cpu_moe=count)])[0] for count in (0, 20, 24))
    assert np.array_equal(few, same)
    assert not np.array_equal(same, more)


def test_a_split_is_encoded_by_its_shares() -> None:
    searched = space()
    encode = Encoder(searched)
    rows = {
        split: encode([DEFAULT.with_(tensor_split=split)])[0]
        for split in searched.parameters["tensor_split"].values
    }
    by_bytes = next(split for split in rows if split not in (None, "1,1", "1,0", "0,1"))

    def distance(one: str | None, other: str | None) -> float:
        return float(np.linalg.norm(rows[one] - rows[other]))

    assert distance("1,1", by_bytes) < distance("1,1", "1,0") < distance("0,1", "1,0")
    assert distance(None, "1,1") > 0


def test_a_split_that_failed_says_nothing_about_another_one() -> None:
    broke = DEFAULT.with_(tensor_split="1,1", n_cpu_moe=10)
    order = MemoryOrder([], [broke])
    assert order.probability([broke.with_(n_cpu_moe=9)])[0] < 0.2
    others = [
        broke.with_(n_cpu_moe=9, tensor_split="3,1"),
        broke.with_(n_cpu_moe=9, tensor_split=None),
        broke.with_(n_cpu_moe=9, main_gpu=1),
    ]
    assert (order.probability(others) == 1).all()


def test_the_order_knows_the_directions_of_the_new_parameters() -> None:
    base = DEFAULT.with_(n_cpu_moe=10, n_parallel=2, op_offload=False, spec_type="none")
    order = MemoryOrder([DEFAULT.with_(n_gpu_layers=0)], [base])
    more = [
        base.with_(n_parallel=4),
        base.with_(op_offload=True),
        base.with_(spec_type="draft-mtp"),
        base.with_(n_cpu_moe=9),
    ]
    assert (order.probability(more) < 0.2).all()
    assert order.probability([base.with_(n_parallel=1)])[0] == 1
    drafting = MemoryOrder([], [base.with_(spec_type="draft-mtp")])
    assert drafting.probability([base])[0] == 1
