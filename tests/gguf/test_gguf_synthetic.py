import json
import math
import os
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import yaml
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st
from nano_models import NANO, NANO_MOE

from sweeper.errors import ConfigError, StoreError
from sweeper.model.ggml_types import FILE_TYPE_BY_NAME, TYPE_BY_NAME
from sweeper.model.header import read_header
from sweeper.model.shapes import ModelShape, TensorShape
from sweeper.model.synthetic import synthetic_bytes, write_synthetic
from sweeper.model.tensor_mix import BASE_TYPES
from sweeper.model.vocabulary import vocabulary
from sweeper.model.weights import _BLOCKS, pieces
from sweeper.processes import WorkerProcess

CATALOGUE = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))


def test_the_same_seed_gives_the_same_bytes(tmp_path, nano):
    again = write_synthetic(NANO, tmp_path / "nano.gguf", "F16", seed=1)
    assert again.read_bytes() == nano.read_bytes()
    other = write_synthetic(NANO, tmp_path / "nano.gguf", "F16", seed=2)
    assert other.read_bytes() != nano.read_bytes()
    assert sorted(os.listdir(tmp_path)) == [".nano.gguf.lock", "nano.gguf"]  # nothing half-written is left


def test_what_a_killed_run_left_is_overwritten(tmp_path, nano):
    (tmp_path / ".nano.gguf.part").write_bytes(bytes(10_000_000))
    assert write_synthetic(NANO, tmp_path / "nano.gguf", "F16", seed=1).read_bytes() == nano.read_bytes()
    assert sorted(os.listdir(tmp_path)) == [".nano.gguf.lock", "nano.gguf"]


def test_two_writers_at_once_leave_one_whole_model(tmp_path, nano):
    code = (
        "import sys; from pathlib import Path; from nano_models import NANO\n"
        "from sweeper.model.synthetic import write_synthetic\n"
        "write_synthetic(NANO, Path(sys.argv[1]), 'F16', seed=1)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", code, str(tmp_path / "nano.gguf")]
    running = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert (tmp_path / "nano.gguf").read_bytes() == nano.read_bytes()
    assert sorted(os.listdir(tmp_path)) == [".nano.gguf.lock", "nano.gguf"]


def test_weights_have_the_deviation_of_their_fan_in(nano):
    for tensor in gguf.GGUFReader(nano).tensors:
        values = np.asarray(tensor.data, dtype=np.float32)
        if values.ndim == 1:
            assert (values == 1).all()
        else:
            assert values.std() == pytest.approx(1 / math.sqrt(values.shape[-1]), rel=0.02)


@pytest.mark.parametrize("name", sorted(_BLOCKS))
def test_random_blocks_decode_to_the_deviation_of_their_fan_in(name):
    kind = TYPE_BY_NAME[name]
    tensor = TensorShape("blk.0.ffn_up.weight", (64, 4096))
    blocks = np.concatenate(list(pieces(tensor, kind, seed=3)))
    values = dequantize(blocks.reshape(64, -1), gguf.GGMLQuantizationType(kind.number))
    assert values.shape == (64, 4096)
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(1 / 64, rel=0.02)
    assert abs(values.mean()) < 0.12 / 64  # Q4_0 runs from -8 to 7: half a step below zero


def test_a_large_tensor_is_never_whole_in_memory():
    tensor = TensorShape("blk.0.ffn_up_exps.weight", (8, 4096, 4096))  # 537 MB as float32, 75 MB as Q4_K
    list(pieces(TensorShape("x.weight", (256, 256)), TYPE_BY_NAME["Q4_K"], 0))  # calibration, once
    tracemalloc.start()
    size = sum(piece.nbytes for piece in pieces(tensor, TYPE_BY_NAME["Q4_K"], 0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 8 * 4096 * 4096 // 256 * 144
    assert peak < 20 << 20


@pytest.fixture(scope="module")
def quantiser():
    with WorkerProcess("sweeper.model.quantise_worker") as running:
        yield running


@pytest.mark.parametrize(
    "shape",
    [
        NANO,
        NANO_MOE,
        replace(NANO, tied_embeddings=True),
        replace(NANO, embedding_length=128, head_count=2, n_layer=9),  # rows that are no multiple of 256
    ],
    ids=["dense", "mixture", "tied", "odd"],
)
def test_each_tensor_gets_the_type_that_llama_cpp_would_give_it(shape, quantiser, tmp_path):
    source, target = write_synthetic(shape, tmp_path / "f16.gguf"), tmp_path / "theirs.gguf"
    for quant in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"):
        job = {"source": str(source), "target": str(target), "threads": 1}
        quantiser.ask("quantise", 60, ftype=FILE_TYPE_BY_NAME[quant], **job)
        theirs = read_header(target)
        ours = read_header(write_synthetic(shape, tmp_path / "ours.gguf", quant))
        assert {t.name: t.type for t in ours.tensors} == {t.name: t.type for t in theirs.tensors}
        assert ours.file_type == theirs.file_type == quant
        assert sum(tensor.bytes for tensor in ours.tensors) == synthetic_bytes(shape, quant)


def test_models_load_and_generate_in_llama_cpp(tmp_path, nano, nano_moe, nano_q4):
    paths = [nano, nano_moe, nano_q4]
    paths += [write_synthetic(NANO_MOE, tmp_path / f"{q}.gguf", q) for q in BASE_TYPES]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("real_load.py")), "generate", *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"GGML_NO_BACKTRACE": "1", "OMP_WAIT_POLICY": "passive"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    assert len(answers) == len(paths)
    for answer in answers.values():
        assert answer["tokens"] >= 1
        assert answer["text"]
        assert answer["chat"]
        assert answer["vocabulary"] == NANO.vocab_size
        assert answer["round_trip"].strip() == "Alice & Zoë"


@given(st.integers(259, 20_000))
def test_a_vocabulary_has_no_token_twice(size):
    words = vocabulary(size)
    assert len(words.tokens) == len(words.scores) == len(words.types) == size
    assert len(set(words.tokens)) == size


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match="where 1 MiB are free"):
        write_synthetic(NANO, tmp_path / "m.gguf")
    assert os.listdir(tmp_path) == [".m.gguf.lock"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write in .*file"):
        write_synthetic(NANO, tmp_path / "file" / "m.gguf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layer": 0}, "n_layer=0"),
        ({"head_count": 3}, "head_count=3"),
        ({"head_count_kv": 3}, "head_count_kv=3"),
        ({"vocab_size": 10}, "vocab_size=10"),
        ({"n_ctx_train": 0}, "n_ctx_train=0"),
        ({"expert_count": 4}, "expert_used_count=0"),
        ({"expert_count": 4, "expert_used_count": 5}, "expert_used_count=5"),
        ({"architecture": "mamba"}, "architecture=mamba"),
    ],
)
def test_shapes_that_cannot_be_are_refused_by_their_key(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(NANO, **changes)


def test_a_quantisation_that_is_not_written_names_those_that_are(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.quant=Q3_K_M: .*Q4_K_M"):
        write_synthetic(NANO, tmp_path / "m.gguf", "Q3_K_M")


def test_the_catalogue_is_whole():
    assert {path.stem for path in CATALOGUE} >= {
        *("tiny_15m", "tiny_moe", "synthetic_110m", "tinyllama_1b", "llama_3b", "llama2_7b"),
        *("codellama_34b", "mixtral_8x7b", "file", "hub"),
    }
    keys = {frozenset(yaml.safe_load(path.read_text())) for path in CATALOGUE}
    assert keys == {
        frozenset({"name", "path", "repo", "file", "revision", "seed", "quant", "shape", "text", "draft"})
    }


@pytest.mark.parametrize(
    ("name", "millions", "gib"),
    [  # parameters and sizes of the models they take their shape from, as their files on the hub have them
        ("tiny_15m", 14.7, 0.0274),
        ("tiny_moe", 15.5, 0.0288),
        ("synthetic_110m", 109.5, 0.204),
        ("tinyllama_1b", 1100.0, 0.62),
        ("llama_3b", 3212.7, 1.87),
        ("llama2_7b", 6738.4, 3.80),
        ("codellama_34b", 33744.0, 18.83),
        ("mixtral_8x7b", 46702.8, 26.49),
    ],
)
def test_the_catalogue_has_real_shapes(name, millions, gib):
    entry = yaml.safe_load((CATALOGUE[0].parent / f"{name}.yaml").read_text())
    shape = ModelShape(**entry["shape"])
    assert entry["name"] == name
    assert shape.parameters / 1e6 == pytest.approx(millions, abs=0.06)
    assert synthetic_bytes(shape, entry["quant"]) / 2**30 == pytest.approx(gib, rel=0.01)
