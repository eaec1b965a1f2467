"""What `gpu.py` measures: shapes, quantisations and lengths, whole and in the small form for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.measure.trial import Stage
from sweeper.model.shapes import ModelShape
from sweeper.records import Workload

# TinyLlama 1.1B's and Llama 2 7B's shapes, as in conf/model.
ONE_B = ModelShape(22, 2048, 5632, 32, 4, n_ctx_train=4096)
SEVEN_B = ModelShape(32, 4096, 11008, 32, 32)
# The smallest llama whose rows are a multiple of 256, which K-quants need.
TINY = ModelShape(2, 256, 512, 4, 2, vocab_size=512, n_ctx_train=2048)


@dataclass(frozen=True, slots=True)
class Plan:
    """One form of the benchmark. Lengths are in seconds; ``models`` are in order of worth."""

    name: str
    most_threads: int | None  # None: one a physical core
    models: Mapping[str, tuple[ModelShape, tuple[str, ...]]]  # name -> shape and quantisations
    path_workload: Workload
    path_stage: Stage
    rest_seconds: float  # of a reading at rest
    trust_seconds: float  # of the sensor's first look
    period_seconds: float  # of polling for the update period, under load
    compare_seconds: float  # of a window on which the readings are compared
    settle_seconds: float  # of decode before it: plain power usage is a mean of the last second
    table_model: str
    table_layers: tuple[int, ...]  # beside half and all
    table_space: Mapping[str, Any]
    table_workload: Workload
    table_stage: Stage
    sweep_overrides: tuple[str, ...]


WHOLE = Plan(
    name="whole",
    most_threads=None,
    models={
        "1b": (ONE_B, ("Q8_0", "Q4_K_M")),
        "7b": (SEVEN_B, ("Q4_K_M", "Q8_0", "F16")),
    },
    path_workload=Workload("path", 512, 64, warmup_seconds=1.0),
    path_stage=Stage(seconds=2.0, repeats=2, update_periods=10, warmup_seconds=1.0),
    rest_seconds=3.0,
    trust_seconds=2.0,
    period_seconds=8.0,
    compare_seconds=10.0,
    settle_seconds=2.0,
    table_model="1b",
    table_layers=(22,),  # one short of all: the step before the output layer goes over
    # 3 numbers of layers × 2 quantisations × 5 pairs of batches × 2 contexts × 6 caches: 360.
    table_space={
        "quant": ["Q8_0", "Q4_K_M"],
        "n_ctx": [1024, 4096],
        "n_batch": [256, 512],
        "n_ubatch": [64, 256, 512],
        "flash_attn": [True, False],
        "type_k": ["f16", "q8_0"],
        "type_v": ["f16", "q8_0"],
    },
    table_workload=Workload("table", 512, 32, warmup_seconds=0.1),
    table_stage=Stage(seconds=0.25, repeats=1, update_periods=1, warmup_seconds=0.1),
    sweep_overrides=(
        "search.trials=40",
        "search.finalists=2",
        "workload.n_ctx=1024",
        "workload.warmup_seconds=0.3",
        "workload.screening_seconds=1",
        "workload.screening_repeats=2",
        "workload.final_seconds=3",
        "workload.final_repeats=3",
        "space.offload_kqv=[true,false]",
    ),
)

SMALL = Plan(
    name="small",
    most_threads=1,  # two would wait for each other on a busy machine
    models={"tiny": (TINY, ("Q4_K_M",))},
    path_workload=Workload("path", 32, 8, warmup_seconds=0.1),
    path_stage=Stage(seconds=0.2, repeats=1, update_periods=1, warmup_seconds=0.1),
    rest_seconds=0.3,
    trust_seconds=2.0,  # what the sweep would ask for again
    period_seconds=0.5,
    compare_seconds=0.6,
    settle_seconds=0.1,
    table_model="tiny",
    table_layers=(),
    table_space={"n_ubatch": [16, 32], "flash_attn": [True, False], "type_k": ["f16", "q8_0"]},
    table_workload=Workload("table", 32, 8, warmup_seconds=0.05),
    table_stage=Stage(seconds=0.2, repeats=1, update_periods=1, warmup_seconds=0.05),
    sweep_overrides=(
        "search.wait_for_quiet=false",  # a test must not wait for the other work of a machine
        "search.trials=2",
        "search.finalists=1",
        "search.full_depth=false",
        "workload.prompt_tokens=32",
        "workload.generated_tokens=8",
        "workload.n_ctx=256",
        "workload.warmup_seconds=0.05",
        "workload.screening_seconds=0.2",
        "workload.screening_repeats=1",
        "workload.final_seconds=0.2",
        "workload.final_repeats=1",
        "space.n_batch=32",
        "space.n_ubatch=[16,32]",
        "space.n_threads=1",
        "space.n_threads_batch=1",
    ),
)

# Peak memory bandwidth in GB/s as NVIDIA's data sheets give it, by the name that NVML says. What stands in
# no line here is given with --gpu-gb-per-second; nothing is guessed from a part of a name.
DATA_SHEET_GB_PER_SECOND = {
    "NVIDIA H200": 4800.0,
    "NVIDIA H200 NVL": 4800.0,
    "NVIDIA H100 80GB HBM3": 3350.0,
    "NVIDIA H100 PCIe": 2000.0,
    "NVIDIA A100-SXM4-80GB": 2039.0,
    "NVIDIA A100 80GB PCIe": 1935.0,
    "NVIDIA A100-SXM4-40GB": 1555.0,
    "NVIDIA A100-PCIE-40GB": 1555.0,
    "NVIDIA A40": 696.0,
    "NVIDIA A30": 933.0,
    "NVIDIA A10": 600.0,
    "NVIDIA L40S": 864.0,
    "NVIDIA L40": 864.0,
    "NVIDIA L4": 300.0,
    "NVIDIA RTX A6000": 768.0,
    "NVIDIA RTX 6000 Ada Generation": 960.0,
    "NVIDIA GeForce RTX 3060": 360.0,
    "NVIDIA GeForce RTX 3090": 936.0,
    "NVIDIA GeForce RTX 4060 Ti": 288.0,
    "NVIDIA GeForce RTX 4070": 504.0,
    "NVIDIA GeForce RTX 4090": 1008.0,
    "NVIDIA GeForce RTX 5090": 1792.0,
}
