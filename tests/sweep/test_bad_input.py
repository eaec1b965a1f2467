"""Bad input: one clear line on standard error that names the key or file, the documented exit code, no traceback."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fast_sweep import FAST
from hurry import HURRIED

from sweeper.model.obtain import ModelConfig, obtain
from sweeper.search.study import SweepStudy

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sweeper: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in last, last


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("space.n_thread=4", ("space.n_thread", "n_threads")),
        ("search.trials=many", ("search.trials", "many")),
        ("search.sampler=tpee", ("search.sampler", "tpe")),
        ("space.n_threads=[]", ("space.n_threads",)),
        ("space.n_threads={low: 4, high: 2}", ("space.n_threads", "low 4", "high 2")),
        ("space.n_threads={low: a, high: 2}", ("space.n_threads.low",)),
        ("space.type_v=[q8_1]", ("space.type_v", "q8_1")),
        ("space.quant=[Q9]", ("quant", "Q9")),
        ("+objectives.targets.speed=maximize", ("objectives.targets", "speed")),
        ("objectives.constraints.watts=lots", ("objectives.constraints.watts",)),
        ("objectives.targets.watts=down", ("objectives.targets.watts", "down")),
        ("model=gpt5", ("model=gpt5", "tinyllama_1b")),
        ("power=rapll", ("power=rapll", "rapl")),
        ("search.pick=best", ("best", "within:5%")),
        ("model=file", ("model.path",)),
    ],
)
def test_wrong_words_and_values(
    sweeper: Run, smallest_model: Path, override: str, words: tuple[str, ...]
) -> None:
    given = () if override == "model=file" else ("model=tiny_15m", f"model.path='{smallest_model}'")
    _one_line(sweeper("sweep", *given, override, hurry=True), 2, *words)


def test_no_such_model(sweeper_process: Run) -> None:
    """As a user runs it; the others run in this process."""
    _one_line(sweeper_process("sweep", "model.path=no_such.gguf"), 3, "no_such.gguf")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.gguf", b""),
        ("not_a.gguf", b"PK\x03\x04" + b"x" * 100),
        ("absurd.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62) + b"\0" * 64),
    ],
)
def test_files_that_are_no_models(sweeper: Run, tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    _one_line(sweeper("sweep", f"model.path={name}", hurry=True), 2, name)


def test_a_truncated_model(sweeper: Run, tmp_path: Path, smallest_model: Path) -> None:
    data = smallest_model.read_bytes()
    (tmp_path / "half.gguf").write_bytes(data[: len(data) // 2])
    _one_line(sweeper("sweep", "model.path=half.gguf", hurry=True), 2, "half.gguf")


def test_a_model_that_llama_cpp_does_not_know(sweeper: Run, tmp_path: Path, smallest_model: Path) -> None:
    (tmp_path / "new.gguf").write_bytes(smallest_model.read_bytes().replace(b"llama", b"qwenx"))
    done = sweeper("sweep", "model.path=new.gguf", hurry=True)
    _one_line(done, 2, "new.gguf", "unknown model architecture: 'qwenx'")


def test_a_sensor_that_is_not_there(sweeper: Run, smallest_model: Path) -> None:
    done = sweeper("sweep", f"model.path='{smallest_model}'", "power=hwmon", hurry=True)
    _one_line(done, 3, "hwmon")


def test_an_unreachable_mlflow_server_is_said_before_the_first_trial(
    sweeper: Run, smallest_model: Path
) -> None:
    words = ("space.quant=F16", "tracking.uri=http://127.0.0.1:9")
    done = sweeper("sweep", f"model.path='{smallest_model}'", *words, hurry=True)
    _one_line(done, 3, "127.0.0.1:9")
    assert "1 of" not in done.stderr


def test_a_root_that_is_a_file(sweeper: Run, tmp_path: Path, smallest_model: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    _one_line(sweeper("sweep", f"model.path='{smallest_model}'", "root=taken", hurry=True), 3, "taken")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_root_that_cannot_be_written(sweeper: Run, tmp_path: Path, smallest_model: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    _one_line(sweeper("sweep", f"model.path='{smallest_model}'", "root=locked", hurry=True), 3, "locked")


def _another_optunas(path: Path) -> None:
    import sqlite3

    with sqlite3.connect(path) as database:
        database.execute(
            "create table version_info (version_info_id integer, schema_version integer, library_version text)"
        )
        database.execute("insert into version_info values (1, 3, '0.9.0')")
    database.close()


@pytest.mark.parametrize(
    "write",
    [
        _another_optunas,
        lambda path: path.write_bytes(b"this is no database at all, and long enough to be read as one"),
    ],
    ids=["another optuna's", "no database"],
)
def test_a_database_that_cannot_be_used(sweeper: Run, tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "mlruns").mkdir()
    write(tmp_path / "mlruns" / "optuna.db")
    _one_line(sweeper("sweep", "experiment=demo", "name=x"), 3, "optuna.db")


def test_an_earlier_sweeps_name_is_kept_for_its_space_and_named_where_another_is_asked_for(
    sweeper: Run,
) -> None:
    _one_line(sweeper("report"), 3, "sweeper sweep")  # there is none yet
    assert sweeper("sweep", "experiment=demo", "name=mine", "search.trials=3").returncode == 0
    done = sweeper("sweep", "experiment=demo", "name=mine", "space.n_threads=[1,2]")
    _one_line(done, 2, "space", "name=")
    _one_line(sweeper("report", "two"), 3, "two", "mine")


@pytest.mark.parametrize("other", ["path", "shape"])
def test_a_name_of_another_model_is_refused_before_anything_is_made(
    sweeper: Run, tmp_path: Path, smallest_model: Path, other: str
) -> None:
    assert sweeper("sweep", "experiment=demo", "name=mine", "search.trials=3").returncode == 0
    root = tmp_path / "mlruns"
    study = SweepStudy.load(root, "mine")
    study.save_header(replace(study.header(), model=obtain(ModelConfig(path=str(smallest_model)), root)))
    second = tmp_path / "second.gguf"
    second.write_bytes(smallest_model.read_bytes()[:-1] + b"\x01")
    model = f"model.path={second}" if other == "path" else "model=tiny_15m"
    done = sweeper("sweep", model, "name=mine", "space.quant=[F16,Q8_0]", hurry=True)
    now = "second.gguf" if other == "path" else "tiny_15m-F16-"
    _one_line(
        done, 2, "model: ", "'mine' was started with smallest.gguf, and now it is", now, "another name="
    )
    assert not (root / "models").exists()
    assert not (root / "quantised").exists()
    assert not (root / "quality").exists()


def test_two_sweeps_that_write_the_same_sweep(
    sweeper: Run, tmp_path: Path, smallest_model: Path, mlflow_tables: Callable[[Path], None]
) -> None:
    mlflow_tables(tmp_path / "mlruns")
    words = ("sweep", *FAST, f"model.path='{smallest_model}'", "name=both", "space.quant=F16")
    words = (*words, "workload.final_seconds=90")
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen([*HURRIED, "sweeper", *words], cwd=tmp_path, stdout=log, stderr=log)
    try:
        _wait_for(lambda: re.search(r"1 of \d+ trials: #", (tmp_path / "log").read_text()) is not None, first)
        _one_line(sweeper(*words, hurry=True), 2, "both", str(first.pid))
    finally:
        first.terminate()
        first.wait()


def test_no_trial_that_counts(sweeper: Run) -> None:
    done = sweeper("sweep", "experiment=demo", "search.trials=4", 'objectives.constraints.watts="<=1"')
    _one_line(done, 4, "watts <= 1")


def test_wrong_words_of_other_commands(sweeper: Run) -> None:
    assert sweeper("no-such-command").returncode == 2
    assert sweeper("report", "--format", "pdf").returncode == 2
    assert sweeper("apply", "--to", "toaster").returncode == 2


def _wait_for(true: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, "it ended early"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)
