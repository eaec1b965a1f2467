"""``n_cpu_moe``: experts of the first layers stay on the host, and only where that changes something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from nano_models import NANO_MOE

from sweeper.model.forecast import HOST, MemoryForecast, weights_by_device
from sweeper.model.header import read_header
from sweeper.model.llama_params import context_params, model_params, stays_on_host
from sweeper.parameters import Configuration
from sweeper.space.space import Traits, build_space

ALL = NANO_MOE.n_layer + 1


LOAD = """
import sys
from sweeper.engine.worker import Worker
from sweeper.parameters import CONTEXT_KEYS, MODEL_KEYS, Configuration
wanted = Configuration(n_ctx=512, n_cpu_moe=1).to_dict()
worker = Worker()
worker.load(sys.argv[1], {k: wanted[k] for k in MODEL_KEYS}, {k: wanted[k] for k in CONTEXT_KEYS})
assert worker.decode(4, 0, 0.01, 1.0)["tokens"] >= 4
"""


def test_llama_cpp_says_that_it_places_the_experts_of_these_layers(nano_moe: Path) -> None:
    """llama.cpp prints each tensor whose place was overridden, at its debug level."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(nano_moe)], capture_output=True, text=True, timeout=120, check=True
    )
    moved = [line for line in done.stderr.splitlines() if "buffer type overridden" in line]
    assert [line.split()[1] for line in moved] == [
        f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "down", "up")
    ]


def test_the_forecast_moves_the_same_tensors_to_the_host(nano_moe: Path) -> None:
    header = read_header(nano_moe)
    on_gpu = dict.fromkeys(range(ALL), "CUDA0")
    experts = sum(t.bytes for t in header.tensors if "_exps" in t.name) / 2**20
    all_on_gpu, half, none = (
        weights_by_device(header, on_gpu, Configuration(n_gpu_layers=ALL, n_cpu_moe=n))[HOST]
        for n in (0, NANO_MOE.n_layer // 2, NANO_MOE.n_layer)
    )
    assert none - all_on_gpu == pytest.approx(experts)
    assert half - all_on_gpu == pytest.approx(experts / 2)


@pytest.mark.parametrize(
    ("tensor", "stays"),
    [
        ("blk.1.ffn_up_exps.weight", True),
        ("blk.1.ffn_gate_up_exps.weight", True),
        ("blk.1.ffn_down_chexps.weight", True),
        ("blk.2.ffn_up_exps.weight", False),
        ("blk.11.ffn_up_exps.weight", False),
        ("blk.1.ffn_up.weight", False),
        ("blk.1.ffn_up_shexp.weight", False),
    ],
)
def test_only_experts_of_the_first_layers_stay(tensor: str, stays: bool) -> None:
    assert stays_on_host(tensor, {"n_cpu_moe": 2, "n_cpu_ffn": 0}) == stays


def test_without_experts_or_without_a_gpu_every_value_is_the_same() -> None:
    spec = {"n_cpu_moe": {"low": 0, "high": 4}, "n_gpu_layers": [5]}
    for traits in (Traits(4, gpu_offload=True), Traits(4, has_experts=True)):
        assert len(list(build_space(spec, Configuration(), traits).grid())) == 1


def test_layers_that_are_on_the_host_anyway_make_no_new_point() -> None:
    """Two of four layers are offloaded with n_gpu_layers=3 (the output counts): experts of the others move."""
    traits = Traits(4, gpu_offload=True, has_experts=True)
    space = build_space({"n_cpu_moe": {"low": 0, "high": 4}, "n_gpu_layers": [3]}, Configuration(), traits)
    assert [c.n_cpu_moe for c in space.grid()] == [0, 3, 4]


def test_configurations_recorded_before_it_was_there_keep_their_digest() -> None:
    assert Configuration().digest == Configuration(n_cpu_moe=0).digest == "54b10d69f648"
    assert Configuration(n_cpu_moe=1).digest != Configuration().digest


def test_the_header_says_which_share_of_the_weights_one_token_reads(nano_moe: Path) -> None:
    header = read_header(nano_moe)
    total = sum(t.bytes for t in header.tensors)
    experts = sum(t.bytes for t in header.tensors if "_exps" in t.name)
    assert header.active_share == pytest.approx((total - experts * (1 - 2 / 8)) / total)
    assert header.kv_elements


def test_the_forecast_of_two_unlike_devices_is_per_device(nano_moe: Path) -> None:
    """Three of four parts on one card, the last on the other; the experts of layer 0 stay on the host."""
    header = read_header(nano_moe)
    layers = {0: "CUDA0", 1: "CUDA0", 2: "CUDA1"}  # layer 2 is the output
    sizes = weights_by_device(header, layers, Configuration(n_gpu_layers=ALL, n_cpu_moe=1))
    one = {"blk.0.": 0, "blk.1.": 0, "blk.0.experts": 0}
    for tensor in header.tensors:
        for prefix in ("blk.0.", "blk.1."):
            if tensor.name.startswith(prefix):
                expert = prefix == "blk.0." and "_exps" in tensor.name
                one["blk.0.experts" if expert else prefix] += tensor.bytes
    assert sizes["CUDA0"] * 2**20 == one["blk.0."] + one["blk.1."]
    assert sizes[HOST] * 2**20 >= one["blk.0.experts"]
    assert sum(sizes.values()) * 2**20 >= sum(tensor.bytes for tensor in header.tensors)
    plan = MemoryForecast(sizes, {}, {}, {"CUDA0": 10_000.0, "CUDA1": 100.0})
    assert "on CUDA1, where 100 MiB are free" in (plan.fits() or "")


def test_llama_cpp_gets_the_proportions_and_the_flags() -> None:
    import llama_cpp

    wanted = Configuration(tensor_split="3,1", repack=False, op_offload=False, n_parallel=2, n_ctx=512)
    params = model_params(llama_cpp, wanted.to_dict())
    assert [params.tensor_split[i] for i in range(3)] == [3.0, 1.0, 0.0]
    assert not params.use_extra_bufts
    context = context_params(llama_cpp, wanted.to_dict())
    assert (context.n_ctx, context.n_seq_max, context.kv_unified, context.op_offload) == (
        1024,
        2,
        True,
        False,
    )
    plain = model_params(llama_cpp, Configuration().to_dict())
    assert not plain.tensor_split
    assert plain.use_extra_bufts
