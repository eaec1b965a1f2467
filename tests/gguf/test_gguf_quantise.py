import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import gguf_bytes as raw
import pytest
from nano_models import NANO

from sweeper.errors import ConfigError, EngineRefused, ModelMissingError, StoreError, UsageError
from sweeper.model import quantise
from sweeper.model.digest import sha256_of
from sweeper.model.ggml_types import FILE_TYPE_BY_NAME
from sweeper.model.header import read_header
from sweeper.model.quantise import LEVELS, LEVELS_NEEDING_IMPORTANCE, quantised
from sweeper.model.synthetic import write_synthetic
from sweeper.processes import WorkerProcess


def test_a_level_is_made_once_and_kept_by_the_sources_digest(nano, tmp_path):
    first = quantised(nano, "Q8_0", tmp_path)
    assert first.made
    assert first.file.path == str(tmp_path / "quantised" / sha256_of(nano, tmp_path)[:16] / "Q8_0.gguf")
    assert read_header(first.file.path).file_type == "Q8_0"
    assert first.file.sha256 == sha256_of(first.file.path, tmp_path)
    assert first.file.size_bytes < nano.stat().st_size * 0.6
    stamp = os.stat(first.file.path).st_mtime_ns
    second = quantised(nano, "Q8_0", tmp_path)
    assert not second.made
    assert (second.file, second.seconds) == (first.file, first.seconds)
    assert os.stat(first.file.path).st_mtime_ns == stamp


def test_the_level_of_the_source_is_the_source(nano, nano_q4, tmp_path):
    for path, level in ((nano, "F16"), (nano_q4, "Q4_K_M")):
        same = quantised(path, level, tmp_path)
        assert same.file.path == str(path)
        assert not same.made
    assert not (tmp_path / "quantised").exists()


@pytest.mark.parametrize("level", ["BF16", "Q4_K_M", "IQ4_XS", "Q2_K"])
def test_a_level_is_what_it_says(nano, root, level):
    assert read_header(quantised(nano, level, root).file.path).file_type == level


def test_the_table_says_which_levels_need_an_importance_matrix(nano, nano_moe, tmp_path):
    needing = set()
    with WorkerProcess("sweeper.model.quantise_worker") as worker:
        for source in (nano, nano_moe):
            for level in (*LEVELS, *LEVELS_NEEDING_IMPORTANCE):
                job = {"source": str(source), "target": str(tmp_path / "t"), "threads": 1}
                answer = worker.ask("size", 60, ftype=FILE_TYPE_BY_NAME[level], **job)
                assert answer["mib"] > 0
                if answer["needs_importance"]:
                    needing.add(level)
    assert needing <= set(LEVELS_NEEDING_IMPORTANCE)
    # IQ2_M is of types that want none in a small model; it is refused all the same.
    assert needing >= set(LEVELS_NEEDING_IMPORTANCE) - {"IQ2_M"}


def test_a_level_that_wants_a_matrix_for_this_model_only_is_refused(nano, tmp_path, monkeypatch):
    monkeypatch.setattr(quantise, "check_level", lambda _: None)  # as if the table did not know
    with pytest.raises(ConfigError, match=r"space\.quant=IQ3_XXS: .*only with an importance matrix"):
        quantised(nano, "IQ3_XXS", tmp_path)


@pytest.mark.parametrize(
    ("level", "words"),
    [("IQ2_XXS", "only with an importance matrix"), ("Q9_K", "no such level"), ("q8_0", "no such")],
)
def test_a_level_that_cannot_be_made_is_refused_by_its_key(nano, tmp_path, level, words):
    with pytest.raises(ConfigError, match=rf"space\.quant={level}: .*{words}"):
        quantised(nano, level, tmp_path)


def test_what_was_quantised_is_not_quantised_again(nano_q4, tmp_path):
    with pytest.raises(UsageError, match=r"is Q4_K_M: Q8_0 can be made only from F32, F16, BF16"):
        quantised(nano_q4, "Q8_0", tmp_path)


def test_a_float_file_with_quantised_tensors_is_not_quantised_again(tmp_path):
    """Like gpt-oss on the hub: its file type is F16, and its experts are MXFP4."""
    keys = (*raw.LLAMA, raw.number("general.file_type", 1))
    tensors = (raw.tensor("a", (32,), kind=1), raw.tensor("b_exps", (32, 2), kind=39, offset=64))
    source = tmp_path / "oss.gguf"
    source.write_bytes(raw.whole(keys, tensors, bytes(128)))
    with pytest.raises(EngineRefused, match=r"oss\.gguf holds MXFP4 tensors"):
        quantised(source, "Q8_0", tmp_path)
    assert quantised(source, "F16", tmp_path).file.path == str(source)


def test_tensors_that_fell_back_are_told_of_each_time(tmp_path):
    odd = replace(NANO, embedding_length=128, head_count=2)
    source = write_synthetic(odd, tmp_path / "odd.gguf")
    first, second = quantised(source, "Q4_K_M", tmp_path), quantised(source, "Q4_K_M", tmp_path)
    assert first.warnings == second.warnings
    assert any("not divisible by 256" in w and "falling back to" in w for w in first.warnings)
    assert any("required fallback" in warning for warning in first.warnings)


def test_two_processes_at_once_make_it_once(nano, tmp_path):
    code = (
        "import sys; from pathlib import Path; from sweeper.model.quantise import quantised\n"
        "print(quantised(Path(sys.argv[1]), 'Q6_K', Path(sys.argv[2])).made)"
    )
    command = [sys.executable, "-c", code, str(nano), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted(process.communicate(timeout=120)[0].strip() for process in running)
    assert said == ["False", "False", "True"]


def test_what_a_killed_run_left_is_not_taken_for_a_level(nano, tmp_path):
    folder = tmp_path / "quantised" / sha256_of(nano, tmp_path)[:16]
    folder.mkdir(parents=True)
    (folder / ".Q8_0.part").write_bytes(b"half a file")
    (folder / "Q8_0.gguf").write_bytes(b"without its notes")
    result = quantised(nano, "Q8_0", tmp_path)
    assert result.made
    assert sorted(os.listdir(folder)) == ["Q8_0.gguf", "Q8_0.json", "Q8_0.lock"]
    assert json.loads((folder / "Q8_0.json").read_text())["source"] == "nano.gguf"


def test_a_source_that_the_engine_refuses_gives_its_reason(nano, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(nano.read_bytes()[:-2] + b"\xff\x7f")  # the last weight is not a number
    with pytest.raises(EngineRefused, match=r"cannot make Q8_0 of damaged\.gguf: .*output\.weight.* invalid"):
        quantised(damaged, "Q8_0", tmp_path)
    folder = next((tmp_path / "quantised").iterdir())
    assert os.listdir(folder) == ["Q8_0.lock"]


def test_a_missing_source_and_a_full_disk(nano, tmp_path, monkeypatch):
    with pytest.raises(ModelMissingError):
        quantised(tmp_path / "nowhere.gguf", "Q8_0", tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=r"Q8_0 needs \d MiB in .*, where 1 MiB are free"):
        quantised(nano, "Q8_0", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write in"):
        quantised(nano, "Q8_0", tmp_path / "file")
