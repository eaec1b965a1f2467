"""Builds of llama-server differ; their own help decides what sweeper can set. The texts are shortened."""

from __future__ import annotations

import json
import os

import pytest

from sweeper.client import llama_log
from sweeper.client.llama_options import options_of
from sweeper.engine.server_dialect import (
    Device,
    Dialect,
    dialect_of,
    parse_devices,
    parse_fitted,
    parse_help,
    program_of,
)
from sweeper.parameters import SERVER_TUNABLES
from sweeper.records import Configuration
from sweeper.space.auto import Facts, fill_auto
from sweeper.space.space import build_space

# llama.cpp of early 2025: no --fit, no --load-mode, flash attention as a switch, layers only as a number.
OLD = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-tb,   --threads-batch N                number of threads to use during batch and prompt processing (default:
                                        same as --threads)
-c,    --ctx-size N                     size of the prompt context (default: 4096, 0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
-b,    --batch-size N                   logical maximum batch size (default: 2048)
-ub,   --ubatch-size N                  physical maximum batch size (default: 512)
-fa,   --flash-attn                     enable Flash Attention (default: disabled)
                                        (env: LLAMA_ARG_FLASH_ATTN)
-nkvo, --no-kv-offload                  disable KV offload
                                        (env: LLAMA_ARG_NO_KV_OFFLOAD)
-ctk,  --cache-type-k TYPE              KV cache data type for K
-ctv,  --cache-type-v TYPE              KV cache data type for V
--mlock                                 force system to keep model in RAM rather than swapping or compressing
--no-mmap                               do not memory-map model (slower load but may reduce pageouts if not
                                        using mlock)
-ngl,  --gpu-layers, --n-gpu-layers N   number of layers to store in VRAM
                                        (env: LLAMA_ARG_N_GPU_LAYERS)
-sm,   --split-mode {none,layer,row}    how to split the model across multiple GPUs, one of:
                                        - none: use one GPU only
-mg,   --main-gpu INDEX                 the GPU to use for the model (default: 0)
-m,    --model FNAME                    model path (default: `models/$filename`)
-cmoe, --cpu-moe                        keep all Mixture of Experts (MoE) weights in the CPU
-lv,   --verbosity, --log-verbosity N   Set the verbosity threshold. Messages with a higher verbosity will be
                                        ignored.
--temp N                                temperature (default: 0.8)
--draft, --draft-n N                    the argument has been removed. use --spec-draft-n-max
--port PORT                             port to listen (default: 8080)
--host HOST                             ip address to listen (default: 127.0.0.1)
-np,   --parallel N                     number of parallel sequences to decode (default: 1)
--api-key KEY                           API key to use for authentication (default: none)
                                        (env: LLAMA_API_KEY)
"""

# ik_llama.cpp: its own format, --fit as a switch, and no positive --kv-offload.
IK = """\
usage: llama-server [options]

general:

  -h,    --help, --usage          print usage and exit
         --version                show version and build info
  -t,    --threads N              number of threads to use during generation (default: 8)
  -tb,   --threads-batch N        number of threads to use during batch and prompt processing
  -c,    --ctx-size N             size of the prompt context (default: 0, 0 = loaded from model)
  -b,    --batch-size N           logical maximum batch size (default: 2048)
  -ub,   --ubatch-size N          physical maximum batch size (default: 512)
  -fa,   --flash-attn (auto|on|off|0|1)
                                  set Flash Attention (default: on)
  -nkvo, --no-kv-offload          disable KV offload
  -ctk,  --cache-type-k TYPE      KV cache data type for K (default: f16)
  -ctv,  --cache-type-v TYPE      KV cache data type for V (default: f16)
         --mlock                  force system to keep model in RAM
         --no-mmap                do not memory-map model
  -ngl,  --gpu-layers N           number of layers to store in VRAM
  -ncmoe, --n-cpu-moe N           keep the MoE weights of the first N layers in the CPU
         --fit                    fit the model into the devices
  -sm,   --split-mode SPLIT_MODE  how to split the model across multiple GPUs
  -mg,   --main-gpu i             the GPU to use for the model
  -m,    --model FNAME            model path
  -np,   --parallel N             number of parallel sequences to decode (default: 1)
         --port PORT              port to listen (default: 8080)
         --host HOST              ip address to listen (default: 127.0.0.1)
"""


def dialect(text: str) -> Dialect:
    return Dialect(("llama-server",), parse_help(text), "1")


def words(text: str, **changes: object) -> str:
    configuration = Configuration(n_gpu_layers=-1, n_cpu_moe=3, **changes)  # type: ignore[arg-type]
    return " ".join(dialect(text).words(options_of(configuration, "/m.gguf", has_experts=True)))


def test_an_old_build_gets_its_own_words() -> None:
    assert words(OLD, flash_attn=True, offload_kqv=False, use_mmap=False, use_mlock=True, fit=False) == (
        "--model /m.gguf --parallel 1 --n-gpu-layers 9999 --ctx-size 4096 --batch-size 2048 --ubatch-size 512 "
        "--threads 1 --threads-batch 1 --flash-attn --cache-type-k f16 --cache-type-v f16 --no-kv-offload "
        "--split-mode layer --main-gpu 0 --mlock --no-mmap"
    )
    assert "flash-attn" not in words(OLD, flash_attn=False)  # its default
    assert "kv-offload" not in words(OLD, offload_kqv=True)
    assert "mmap" not in words(OLD, use_mmap=True)
    assert dialect(OLD).own_words() == []  # its log tells everything at the default verbosity


def test_ik_llama_cpp_gets_its_own_words() -> None:
    said = words(IK, flash_attn=False, fit=False)
    assert "--flash-attn off" in said
    assert "-ngl 9999" in said
    assert "--n-cpu-moe 3" in said
    assert "fit" not in said
    assert "kv-offload" not in said
    own = words(IK, fit=True)
    assert "--fit --parallel" in own  # a switch
    assert "-ngl" not in own  # left to it
    assert "n-cpu-moe" not in own


def test_what_a_build_lacks_leaves_the_space_with_one_note() -> None:
    facts = facts_of(dialect(OLD).keys())
    spec = {"n_cpu_moe": {"low": 0, "high": 4}, "n_threads": [1, 2], "repack": [True, False]}
    filled, notes = fill_auto(spec, facts)
    assert filled == {"n_threads": [1, 2]}
    assert notes == (
        "n_cpu_moe is not searched: this llama-server has no option --n-cpu-moe",
        "repack is not searched: this llama-server has no option --repack",
    )
    assert "n-cpu-moe" in dialect(IK).keys()  # noqa: SIM118 - not a mapping


def test_removed_options_are_unknown_and_names_stand_with_their_values() -> None:
    options = parse_help(OLD)
    assert "--draft" not in options
    assert options["-ngl"] is options["--n-gpu-layers"]
    assert options["-ngl"].value == "N"
    assert options["-fa"].value is None
    assert options["--temp"].default == "0.8"
    assert options["--split-mode"].value == "{none,layer,row}"


def test_variables_of_the_help_are_known() -> None:
    found = dialect(OLD).variables(
        {"LLAMA_API_KEY": "x", "LLAMA_ARG_X": "1", "PATH": "/bin", "HF_TOKEN": "y"}
    )
    assert found == ("LLAMA_API_KEY", "LLAMA_ARG_X")


def test_every_option_that_sweeper_writes_is_known_to_the_real_build(llama_server: str) -> None:
    real = dialect_of(program_of(llama_server), os.environ)
    assert real.version != "unknown"
    assert real.devices == ()
    assert not real.gpu_offload
    assert {t.option for t in SERVER_TUNABLES if t.option} - real.keys() == set()
    configuration = Configuration(
        n_gpu_layers=-1, tensor_split="3,1", repack=False, op_offload=False, n_cpu_ffn=1
    )
    options = options_of(configuration, "/m.gguf", has_experts=True)
    assert real.words(options) == [word for option in options for word in option.argv()]


def test_devices_are_those_that_can_hold_layers() -> None:
    text = (
        "Available devices:\n"
        "  CUDA0: NVIDIA GeForce RTX 3060 (12036 MiB, 11800 MiB free)\n"
        "  Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (24105 MiB, 24105 MiB free)\n"
        "  BLAS: OpenBLAS (0 MiB, 0 MiB free)\n"
    )
    assert parse_devices(text) == (
        Device("CUDA0", "NVIDIA GeForce RTX 3060", 12036, 11800),
        Device("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)", 24105, 24105),
    )
    assert parse_devices("Available devices:\n  (none)\n") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-c 4096 -ngl -1\n", {"n_gpu_layers": 33, "n_cpu_moe": 0}),
        ("-c 4096 -ngl 20\n", {"n_gpu_layers": 20, "n_cpu_moe": 0}),
        (
            "-c 4096 -ngl 33 -ot "
            r'"blk\.0\.ffn_(up|down|gate_up|gate)_(ch|)exps=CPU,blk\.1\.ffn_(up|down|gate_up|gate)_(ch|)exps=CPU"',
            {"n_gpu_layers": 33, "n_cpu_moe": 2},
        ),
        ("-c 4096 -ngl 33 -ncmoe 7", {"n_gpu_layers": 33, "n_cpu_moe": 7}),
        ("error: no model", None),
    ],
)
def test_the_placement_that_llama_fit_params_prints(text: str, expected: dict[str, int] | None) -> None:
    assert parse_fitted(text, n_layer=32) == expected


GPU_LOG = """\
0.00.010.000 I llama_model_loader: loaded meta data with 26 key-value pairs
0.00.010.000 I load_tensors:   CPU_Mapped model buffer size =   900.00 MiB
0.00.030.000 I llama_model_loader: loaded meta data with 26 key-value pairs
0.00.030.000 I print_info: n_ctx_train           = 32768
0.00.036.000 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.00.040.000 I load_tensors: offloaded 20/33 layers to GPU
0.00.040.000 I load_tensors:   CPU_Mapped model buffer size =   100.00 MiB
0.00.040.000 I load_tensors:        CUDA0 model buffer size =   400.50 MiB
0.00.041.000 I llama_context: n_ctx                 = 4096
0.00.041.000 I llama_context: flash_attn            = auto
0.00.041.000 I llama_context:  CUDA_Host  output buffer size =     0.50 MiB
0.00.042.000 I llama_kv_cache:        CPU KV buffer size =    30.00 MiB
0.00.042.000 I llama_kv_cache:      CUDA0 KV buffer size =    50.00 MiB
0.00.043.000 I resolve_fused_ops: Flash Attention enabled
0.00.044.000 I sched_reserve:      CUDA0 compute buffer size =    25.25 MiB
0.00.044.000 I sched_reserve:  CUDA_Host compute buffer size =    10.00 MiB
"""


def test_buffers_count_by_device_and_only_those_of_the_last_load() -> None:
    log = llama_log.plain(GPU_LOG)
    assert llama_log.buffers(log) == {
        "model": {"CPU": 100.0, "CUDA0": 400.5},
        "output": {"CPU": 0.5},
        "KV": {"CPU": 30.0, "CUDA0": 50.0},
        "compute": {"CUDA0": 25.25, "CPU": 10.0},
    }
    assert llama_log.on_devices(log) == {"CUDA0": 475.75}
    assert llama_log.in_force(log) == {
        "n_ctx": 4096,
        "n_gpu_layers": 20,
        "flash_attn": True,
        "use_mmap": True,
        "use_mlock": False,
    }


def test_layers_without_a_device_buffer_are_not_believed() -> None:
    log = llama_log.plain(GPU_LOG.replace("CUDA0 model", "CPU_REPACK model"))
    assert llama_log.in_force(log)["n_gpu_layers"] == 0


def test_what_fit_leaves_to_the_cpu_is_read_from_its_last_plan() -> None:
    log = (
        "0.00.238.976 I common_params_fit_impl:   - Vulkan0 (llvmpipe (LLVM 15.0.6, 256 bits)):  5 layers,     10 MiB "
        "used,   2037 MiB free\n"
        "0.00.341.145 I common_params_fit_impl:   - Vulkan0 (llvmpipe (LLVM 15.0.6, 256 bits)):  5 layers "
        "( 4 overflowing),     10 MiB used,   2037 MiB free\n"
    )
    assert llama_log.fitted_experts(log) == 4
    assert llama_log.fitted_experts(log.splitlines()[0]) == 0
    assert llama_log.fitted_experts("common_params_fit_impl: no changes needed\n") is None


def facts_of(options: frozenset[str]) -> Facts:
    from sweeper.records import GpuRecord, MachineRecord, ModelFile, ModelRecord, Workload

    machine = MachineRecord("0", "cpu", 2, 2, 1024, "Linux", (GpuRecord("card", "GPU-0", "1"),))
    file = ModelFile("Q8_0", "/m.gguf", "0" * 64, 1)
    model = ModelRecord("m", "llama", 1, 8, 4096, "file", "Q8_0", {"Q8_0": file}, expert_count=8)
    return Facts(machine, model, Workload(), True, engine="llama_server", options=options)


def test_the_servers_own_placement_is_the_baseline_and_its_neighbours_come_first() -> None:
    from sweeper.rig.open import space_of, with_own_placement
    from sweeper.search.warm_start import initial_design

    spec = {"n_gpu_layers": {"low": 0, "high": 9}, "n_cpu_moe": {"low": 0, "high": 8}}
    facts = facts_of(dialect(IK).keys() | {"fit"})

    class Spec:
        def space(self, *_: object, **__: object) -> dict[str, object]:
            return spec

    space, _ = space_of(Spec(), facts)  # type: ignore[arg-type]
    space = with_own_placement(space, {"n_gpu_layers": 9, "n_cpu_moe": 5})
    baseline, fewer, more, *_rest = initial_design(space, space.base, 6, 0)
    assert (baseline.fit, baseline.n_gpu_layers, baseline.n_cpu_moe) == (True, 9, 5)
    assert [(c.fit, c.n_gpu_layers, c.n_cpu_moe) for c in (fewer, more)] == [(False, 9, 3), (False, 9, 7)]
    assert space.configuration(space.params_of(baseline)) == baseline
    assert sum(c.fit for c in space.grid()) == 1
    assert json.dumps(baseline.digest) != json.dumps(baseline.with_(fit=False).digest)


def test_without_a_gpu_the_baseline_leaves_the_placement_to_the_server_too() -> None:
    from sweeper.rig.open import with_own_placement

    space = with_own_placement(build_space({"n_threads": [1, 2]}, Configuration(), build_traits()), {})
    assert [c.fit for c in space.grid()] == [True, False]


def build_traits():
    from sweeper.space.space import Traits

    return Traits(engine="llama_server")
