import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from nano_models import NANO

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.errors import (
    EngineCrashed,
    EngineRefused,
    EngineTimeout,
    ModelFileError,
    ModelMissingError,
    OutOfMemory,
)
from sweeper.model.available_memory import given_back_mib, host_available_mib
from sweeper.model.forecast import HOST, HOST_OVERHEAD_MIB, Forecaster, MemoryForecast, weights_by_device
from sweeper.model.forecast_worker import compute_by_device, kv_by_device, layer_devices
from sweeper.model.header import read_header
from sweeper.model.synthetic import write_synthetic
from sweeper.records import Configuration
from sweeper.rig.llama_cpp import why_it_does_not_fit

CONFIGURATIONS = (
    Configuration(n_ctx=512, n_batch=512, n_ubatch=128),
    Configuration(n_ctx=4096, n_batch=2048, n_ubatch=512),
    Configuration(n_ctx=4096, n_batch=2048, n_ubatch=2048, flash_attn=False),
    Configuration(n_ctx=2048, type_k="q8_0", type_v="q8_0"),
    Configuration(n_ctx=2048, type_k="q4_0", type_v="f16", flash_attn=False),
    Configuration(n_ctx=1000, n_batch=4096, n_ubatch=8192),  # padded and clamped
    Configuration(n_ctx=512, op_offload=False),
)


@pytest.fixture(scope="module")
def forecaster():
    with Forecaster() as running:
        yield running


def test_slots_share_a_context_that_is_as_large_as_all_of_theirs(nano, forecaster):
    four = forecaster.forecast(nano, Configuration(n_ctx=512, n_parallel=4))
    assert four.kv_mib == forecaster.forecast(nano, Configuration(n_ctx=2048)).kv_mib


@pytest.mark.parametrize("name", ["nano", "nano_moe", "nano_q4"])
def test_the_forecast_is_what_a_real_load_takes(name, request, forecaster):
    path = request.getfixturevalue(name)
    done = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).with_name("real_load.py")), "buffers", str(path)),
            *(json.dumps(configuration.to_dict()) for configuration in CONFIGURATIONS),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
    )
    for configuration, real in zip(CONFIGURATIONS, json.loads(done.stdout), strict=True):
        forecast = forecaster.forecast(path, configuration)
        assert forecast.weights_mib[HOST] == pytest.approx(real["weights"], abs=0.06)
        assert forecast.kv_mib[HOST] == pytest.approx(real["kv"], abs=0.02)
        assert forecast.compute_mib[HOST] == pytest.approx(real["compute"], abs=0.02)


def test_a_context_beyond_memory_is_planned_without_taking_it(forecaster, nano):
    forecast = forecaster.forecast(nano, Configuration(n_ctx=4_000_000, type_k="f32", type_v="f32"))
    assert forecast.kv_mib[HOST] == pytest.approx(4_000_000 * 2048 / 2**20, rel=0.01)
    used = forecast.free_mib[HOST] - 5_000  # as if other programs had taken all but 5 GB
    assert "KV cache 7812 and compute" in str(forecast.fits({HOST: -used}))
    assert "MiB on host, where 5000 MiB are free" in str(forecast.fits({HOST: -used}))


def test_a_small_model_fits(forecaster, nano):
    forecast = forecaster.forecast(nano, Configuration())
    assert forecast.fits() is None
    assert forecast.devices == (HOST,)
    assert forecast.needed_mib() < 100


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type_v": "q8_0", "flash_attn": False}, "quantized V cache requires flash_attn"),
        ({"n_batch": 0}, "n_batch=0"),
        ({"n_ctx": 0}, "n_ctx=0"),
        ({"n_ctx": 400_000_000}, "n_ctx=400000000"),
        ({"type_k": "q8_1"}, "type_k=q8_1"),
        ({"type_k": "i8"}, "type_k=i8"),
        ({"split_mode": "diagonal"}, "split_mode=diagonal"),
    ],
)
def test_what_the_engine_refuses_or_dies_of_is_a_reason(forecaster, nano, changes, words):
    with pytest.raises(EngineRefused, match=words):
        forecaster.forecast(nano, Configuration(n_ctx=512).with_(**changes))
    assert forecaster.forecast(nano, Configuration(n_ctx=512)).fits() is None


def test_absurd_threads_do_not_reach_the_engine(forecaster, nano):
    forecaster.forecast(nano, Configuration(n_threads=1_000_000, n_threads_batch=1_000_000))


def test_models_that_are_not_there_or_not_models(forecaster, tmp_path):
    with pytest.raises(ModelMissingError):
        forecaster.forecast(tmp_path / "no.gguf", Configuration())
    (tmp_path / "junk.gguf").write_bytes(b"junk")
    with pytest.raises(ModelFileError):
        forecaster.forecast(tmp_path / "junk.gguf", Configuration())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"llama", b"qwenx", "unknown model architecture: 'qwenx'"),
        (b"llama.context_length", b"llama.context_lengtX", r"key not found in model: llama\.context_length"),
        (b"output_norm.weight", b"output_norx.weight", r"tensor 'output_norm\.weight' not found"),
    ],
)
def test_a_model_that_llama_cpp_cannot_read_is_refused_with_its_reason(
    forecaster, nano, tmp_path, old, new, words
):
    forecaster.demand_generator(nano)
    other = tmp_path / "new.gguf"
    other.write_bytes(nano.read_bytes().replace(old, new))
    with pytest.raises(ModelFileError, match=rf"new\.gguf cannot be tuned: .*{words}.*; give another file"):
        forecaster.demand_generator(other)
    with pytest.raises(EngineRefused, match=words):
        forecaster.forecast(other, Configuration())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"encodes": True}, "has an encoder"),
        ({"keeps_context": False}, "embedding or diffusion model"),
        ({"tokenises": False}, "has no vocabulary"),
    ],
)
def test_a_model_that_generates_no_text_is_refused(monkeypatch, answer, words):
    found = {"encodes": False, "keeps_context": True, "tokenises": True} | answer
    forecaster = Forecaster()
    monkeypatch.setattr(forecaster, "ask", lambda *_, **__: found)
    with pytest.raises(ModelFileError, match=rf"m\.gguf.* {words}"):
        forecaster.demand_generator(Path("m.gguf"))


@pytest.mark.parametrize("failure", [OutOfMemory, EngineTimeout, EngineCrashed, EngineRefused])
def test_a_model_that_llama_cpp_cannot_examine_is_refused_however_that_fails(monkeypatch, failure):
    def fail(*_, **__):
        raise failure("llama.cpp gave up")

    forecaster = Forecaster()
    monkeypatch.setattr(forecaster, "ask", fail)
    with pytest.raises(
        ModelFileError, match=r"m\.gguf cannot be tuned: llama\.cpp gave up; give another file"
    ):
        forecaster.demand_generator(Path("m.gguf"))


@pytest.mark.parametrize(
    ("failure", "why"), [(OutOfMemory, "gave up"), (EngineRefused, "gave up"), (EngineCrashed, None)]
)
def test_a_plan_that_fails_never_ends_the_sweep(monkeypatch, nano, failure, why):
    def fail(*_, **__):
        raise failure("gave up")

    forecaster = Forecaster()
    monkeypatch.setattr(forecaster, "ask", fail)
    assert why_it_does_not_fit(forecaster, LlamaCppEngine({None: nano}), Configuration()) == why


def test_a_file_that_changed_is_read_again(forecaster, nano, nano_q4, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(nano.read_bytes())
    before = forecaster.forecast(path, Configuration(n_ctx=512))
    path.write_bytes(nano_q4.read_bytes())
    os.utime(path, ns=(1, 1))
    assert forecaster.forecast(path, Configuration(n_ctx=512)).weights_mib[HOST] < before.weights_mib[HOST]


# As llama.cpp 0c1e57098 words it (llama-model.cpp, llama-kv-cache.cpp, llama-context.cpp) with one of two
# repeating layers and the output on a GPU.
GPU_LOAD = """\
load_tensors: layer   0 assigned to device CPU, is_swa = 0
load_tensors: layer   1 assigned to device CUDA0, is_swa = 0
load_tensors: layer   2 assigned to device CUDA0, is_swa = 0
load_tensors: offloaded 2/3 layers to GPU
""".splitlines()
GPU_CONTEXT = """\
llama_context:  CUDA_Host  output buffer size =     0.12 MiB
llama_kv_cache: layer   0: dev = CPU
llama_kv_cache: layer   1: dev = CUDA0
llama_kv_cache:        CPU KV buffer size =     0.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =     0.00 MiB
llama_kv_cache: size =    8.00 MiB (  4096 cells,   2 layers,  1/1 seqs), K (f16):    4.00 MiB, V …
sched_reserve:      CUDA0 compute buffer size =    65.50 MiB
sched_reserve:  CUDA_Host compute buffer size =    12.01 MiB
""".splitlines()


def test_layers_on_a_gpu_are_counted_there(nano):
    layers = layer_devices(GPU_LOAD)
    assert layers == {0: "CPU", 1: "CUDA0", 2: "CUDA0"}
    header = read_header(nano)
    weights = weights_by_device(header, layers)
    by_name = {tensor.name: tensor.bytes / 2**20 for tensor in header.tensors}
    on_gpu = sum(size for name, size in by_name.items() if name.startswith(("blk.1.", "output")))
    assert weights == pytest.approx({HOST: sum(by_name.values()) - on_gpu, "CUDA0": on_gpu})
    assert kv_by_device(GPU_CONTEXT) == {"CPU": 4.0, "CUDA0": 4.0}
    assert compute_by_device(GPU_CONTEXT) == pytest.approx({"CUDA0": 65.5, "CUDA_Host": 12.13})


def test_tied_embeddings_lie_on_the_host_and_on_the_gpu(tmp_path):
    shape = replace(NANO, tied_embeddings=True)
    header = read_header(write_synthetic(shape, tmp_path / "tied.gguf"))
    embeddings = shape.vocab_size * shape.embedding_length * 2 / 2**20
    total = sum(tensor.bytes for tensor in header.tensors) / 2**20
    on_gpu = weights_by_device(header, dict.fromkeys(range(3), "CUDA0"))
    assert on_gpu == pytest.approx({HOST: embeddings, "CUDA0": total})
    assert weights_by_device(header, dict.fromkeys(range(3), "CPU")) == pytest.approx({HOST: total})


def test_each_device_must_have_room():
    forecast = MemoryForecast(
        weights_mib={HOST: 100.0, "CUDA0": 7_000.0},
        kv_mib={"CUDA0": 500.0},
        compute_mib={HOST: 10.0, "CUDA0": 100.0},
        free_mib={HOST: 100_000.0, "CUDA0": 8_000.0},
    )
    assert forecast.devices == (HOST, "CUDA0")
    assert "weights 7000, KV cache 500 and compute 100 MiB need" in str(forecast.fits())
    assert "on CUDA0, where 8000 MiB are free" in str(forecast.fits())
    assert forecast.fits({"CUDA0": 300.0}) is None


def test_a_device_that_does_not_say_is_not_judged():
    assert MemoryForecast({HOST: 1e9}, {}, {}, {}).fits() is None
    assert MemoryForecast({HOST: 1.0}, {}, {}, {HOST: HOST_OVERHEAD_MIB}).fits() is not None


def system(folder, available_kib, group="/a/b"):
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {available_kib} kB\n")
    (folder / "proc" / "self" / "cgroup").write_text(f"0::{group}\n")
    return folder / "proc", folder / "groups"


def limit(folder, most, used, cache):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\nactive_file {cache}\n")


def test_memory_is_what_system_and_groups_leave(tmp_path):
    proc, groups = system(tmp_path, 2048 * 1024)
    assert host_available_mib(proc, groups) == 2048
    limit(groups / "a" / "b", "max", 0, 0)
    limit(groups / "a", 1 << 30, 512 << 20, 128 << 20)
    assert host_available_mib(proc, groups) == 1024 - 512 + 2 * 128
    limit(groups / "a", 1 << 30, 2 << 30, 0)
    assert host_available_mib(proc, groups) == 0


def test_a_process_gives_back_what_only_it_holds(tmp_path):
    status = tmp_path / "7" / "status"
    status.parent.mkdir()
    status.write_text("Name: x\nVmLck: 0 kB\nRssAnon: 2048 kB\nRssFile: 4096 kB\nRssShmem: 1024 kB\n")
    assert given_back_mib(7, tmp_path) == 3
    status.write_text(status.read_text().replace("VmLck: 0", "VmLck: 4096"))
    assert given_back_mib(7, tmp_path) == 7
    assert given_back_mib(8, tmp_path) == 0


def test_memory_that_nobody_states_is_none(tmp_path):
    assert host_available_mib(tmp_path, tmp_path) is None
    proc, groups = system(tmp_path, "many", group="/../../etc")
    assert host_available_mib(proc, groups) is None
