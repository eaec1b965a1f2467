"""Starting from what an earlier sweep found."""

import pytest

from sweeper.records import Configuration
from sweeper.search.transfer import moved
from sweeper.space import Traits, build_space


def space_of(spec, n_layer=32):
    return build_space(spec, Configuration(n_threads=4), Traits(n_layer=n_layer, gpu_offload=True))


@pytest.mark.parametrize(("then", "now"), [(33, 49), (-1, 49), (99, 49), (0, 0), (16, 24)])
def test_layers_keep_their_share_of_the_model(then, now):
    space = space_of({"n_gpu_layers": {"low": 0, "high": 49}}, n_layer=48)
    assert moved(Configuration(n_gpu_layers=then), 32, space).n_gpu_layers == now


def test_a_level_that_is_not_there_becomes_the_nearest_in_bits():
    space = space_of({"quant": ["F16", "Q8_0", "Q4_K_M"]})
    assert moved(Configuration(quant="Q5_K_M"), 32, space).quant == "Q4_K_M"
    assert moved(Configuration(quant="Q6_K"), 32, space).quant == "Q4_K_M"
    assert moved(Configuration(quant="Q8_0"), 32, space).quant == "Q8_0"


def test_numbers_move_to_the_nearest_value_and_what_is_not_searched_is_the_new_base():
    space = space_of({"n_threads": [2, 8], "power_limit_watts": [None, 150, 200]})
    found = moved(Configuration(n_threads=6, power_limit_watts=160, n_batch=64), 32, space)
    assert (found.n_threads, found.power_limit_watts, found.n_batch) == (8, 150, 2048)
