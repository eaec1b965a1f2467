"""The small form of benchmarks/gpu.py: against the fake NVML library, a CPU build and a stand-in nvidia-smi."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import H200, FakeNvml
from gpu_path import bytes_per_token, planned_on
from gpu_record import Deadline, OutOfTime, StepFile
from hurry import HURRIED

from sweeper.errors import SweeperError, TrialFailed, UsageError
from sweeper.lab.tables import read_table
from sweeper.model.header import read_header
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic
from sweeper.records import Configuration

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parents[1] / "benchmarks" / "gpu.py"
WITHOUT_SWEEP = ("mlflow", "optuna", "hydra", "omegaconf", "sweeper.limits.control")


@dataclass(frozen=True)
class Ran:
    """One benchmark in three runs: killed at once, gone on with without mlflow, and gone on with."""

    out: Path
    killed_rows: list[dict[str, Any]]
    table_bytes: bytes
    without_mlflow: dict[str, Any]
    said: str
    sets: int
    uuid: str

    def step(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / f"{name}.json").read_text())
        return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("gpu")
    smi = folder / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{HERE / 'nvidia_smi_stand_in.py'}' \"$@\"\n")
    smi.chmod(0o755)
    out = folder / "out"
    words = [str(PROGRAM), "--out", str(out), "--small"]
    command = [sys.executable, *words]
    # A card that does not warm up: a sweep waits for its temperature.
    with FakeNvml.create(folder, [replace(H200, celsius_per_watt=0.0)]) as nvml:
        nvml.gpus[0].load(compute=0.5, memory=1.0)
        environment = os.environ | nvml.environment() | {"PATH": f"{smi.parent}:{os.environ['PATH']}"}
        killed = _killed_after_a_row(command, environment, out)
        _run(command, environment | {"PYTHONPATH": _blocking(folder, WITHOUT_SWEEP)})
        without_mlflow = json.loads((out / "sweep.json").read_text())
        table = (out / "tiny-gpu.csv.gz").read_bytes()
        said = _run([*HURRIED, *words], environment)
        yield Ran(out, killed, table, without_mlflow, said, nvml.gpus[0].sets, nvml.gpus[0].uuid)


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _killed_after_a_row(command: list[str], environment: dict[str, str], out: Path) -> list[dict[str, Any]]:
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not (out / "path.json").exists() or not json.loads((out / "path.json").read_text())["rows"]:
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < until, "no row came"
            time.sleep(0.02)
        process.kill()
    rows: list[dict[str, Any]] = json.loads((out / "path.json").read_text())["rows"]
    return rows


def _blocking(folder: Path, names: tuple[str, ...]) -> str:
    """A PYTHONPATH on which these modules cannot be imported, in workers neither."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({names!r}))\n")
    return os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_every_step_is_complete_and_says_that_its_sensor_is_simulated(ran: Ran) -> None:
    for name in ("machine", "path", "nvml", "table", "sweep"):
        step = ran.step(name)
        assert step["state"] == "complete", (name, step["reason"])
        assert step["simulated_sensor"] is True
        assert step["gpu"] == "NVIDIA H200"
        assert step["driver"] == "580.95.05"
    assert "**The sensor is simulated" in (ran.out / "summary.md").read_text()


def test_no_setting_of_the_card_is_touched(ran: Ran) -> None:
    assert ran.sets == 0
    assert ran.step("machine")["settings_changed"] is False


def test_a_killed_run_is_gone_on_with(ran: Ran) -> None:
    rows = ran.step("path")["rows"]
    assert rows[: len(ran.killed_rows)] == ran.killed_rows
    assert len(rows) == 3


def test_only_the_sweep_needs_mlflow_optuna_and_hydra(ran: Ran) -> None:
    assert ran.without_mlflow["state"] == "skipped"
    assert "mlflow, optuna, hydra, omegaconf" in ran.without_mlflow["reason"]
    for name in ("path", "nvml", "table"):
        assert f"{name}: is there already" in ran.said
    assert (ran.out / "tiny-gpu.csv.gz").read_bytes() == ran.table_bytes


def test_layers_are_those_that_llama_cpp_assigned_and_not_those_that_were_asked_for(ran: Ran) -> None:
    for row in ran.step("path")["rows"]:
        assert (row["layers_on_gpu"], row["layers_in_all"]) == (0, 3), "a CPU build offloads nothing"
        assert row["vram_mib"] is None
        assert row["ceiling_is"].startswith("measured now")
        speed, watts = row["decode"]["tokens_per_second"]["median"], row["decode"]["watts"]["median"]
        assert row["share_of_ceiling"] == pytest.approx(speed / row["ceiling_tokens_per_second"])
        assert row["decode"]["joules_per_token"]["median"] == pytest.approx(watts / speed, rel=0.2)
    assert [row["n_gpu_layers_asked"] for row in ran.step("path")["rows"]] == [3, 2, 0]


def test_three_readings_of_one_window_stand_side_by_side(ran: Ran) -> None:
    row = next(row for row in ran.step("nvml")["rows"] if row["key"].startswith("window"))
    assert row["counter"]["interface"] == "nvmlDeviceGetTotalEnergyConsumption"
    assert "POWER_INSTANT" in row["instant_power"]["interface"]
    assert row["nvidia_smi"]["stamped_by"] == "nvidia-smi"
    names = ["instant_power", *(f"nvidia-smi power.draw{end}" for end in ("", ".instant", ".average"))]
    assert list(row["over_counter"]) == names
    for name, found in row["over_counter"].items():
        # The fake draws a steady power, so all agree but for the edges of a window of half a second.
        assert found["ratio"] == pytest.approx(1.0, abs=0.15), name
        assert found["within_2_percent"] == (abs(found["ratio"] - 1) <= 0.02)
    assert row["resident_watts"]["median"] > 0
    assert row["capped_share"] == 0


def test_update_periods_are_found_under_load(ran: Ran) -> None:
    trust = ran.step("nvml")["rows"][-1]["under_load"]
    # A busy machine polls late, and sees a refresh too few; never one too many.
    assert trust["counter_period_seconds"] == pytest.approx(H200.energy_period_seconds, rel=1.0)


def test_the_table_answers_replays_and_names_no_card_and_no_folder(ran: Ran) -> None:
    table = read_table(ran.out / "tiny-gpu.csv.gz")
    assert len(table.rows) == ran.step("table")["measured"] == len(list(table.header.space.grid()))
    assert "simulated" in table.header.note
    assert table.header.model.file(None).path == "tiny-Q4_K_M.gguf"


def test_nothing_that_is_kept_names_the_card_or_a_folder_of_this_machine(ran: Ran) -> None:
    kept = [p for p in ran.out.rglob("*") if p.is_file() and ran.out / "work" not in p.parents]
    assert {"summary.md", "front.json", "report.html", "pareto.png"} <= {p.name for p in kept}
    for path in kept:
        text = path.read_bytes()
        assert ran.uuid.encode() not in text, path
        assert str(ran.out.parent).encode() not in text, path


def test_the_sweep_is_a_real_one(ran: Ran) -> None:
    step = ran.step("sweep")
    assert step["trials"] == 2
    assert step["sweep_state"] == "complete"
    assert all(name not in step["space"] for name in ("power_limit_watts", "clock_limit_mhz", "n_gpu_layers"))


def test_a_machine_without_a_card_is_told_what_is_missing(tmp_path: Path) -> None:
    with FakeNvml.create(tmp_path, [H200]) as nvml:
        nvml.unload_driver()
        done = subprocess.run(
            [sys.executable, str(PROGRAM), "--out", str(tmp_path / "out")],
            env=os.environ | nvml.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr.startswith("gpu.py: no NVIDIA GPU can be read here")


def test_a_build_that_offloads_nothing_is_refused_in_the_whole_form(tmp_path: Path) -> None:
    with FakeNvml.create(tmp_path, [H200]) as nvml:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), "--out", str(tmp_path / "out")],
            env=os.environ | nvml.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert "LLAMA_CPP_LIB_PATH" in done.stderr
    assert not list((tmp_path / "out").rglob("*.gguf"))


# -- the records --------------------------------------------------------------------------------------------


def test_a_row_that_failed_keeps_its_reason_and_is_tried_again(tmp_path: Path) -> None:
    def fails() -> dict[str, Any]:
        raise TrialFailed("the card fell off the bus")

    step = StepFile(tmp_path / "path.json", {"machine": "a"})
    step.row("one", fails)
    step.row("two", lambda: {"speed": 1.0})
    step.finish("complete")
    again = StepFile(tmp_path / "path.json", {"machine": "a"})
    assert again.data["state"] == "incomplete"
    assert again.rows[0]["error"] == "TrialFailed: the card fell off the bus"
    assert not again.complete
    again.row("two", fails)  # it is there, so it is not measured again
    again.row("one", lambda: {"speed": 2.0})
    again.finish("complete")
    assert again.complete
    assert {row["key"]: row["speed"] for row in again.rows} == {"one": 2.0, "two": 1.0}


def test_records_of_another_machine_are_not_mixed(tmp_path: Path) -> None:
    StepFile(tmp_path / "path.json", {"machine": "a"}).save()
    with pytest.raises(UsageError, match="another machine"):
        StepFile(tmp_path / "path.json", {"machine": "b"})


def test_no_row_is_begun_that_the_time_does_not_allow() -> None:
    deadline = Deadline.after(5.0, Deadline.after(1000.0))
    deadline.demand(1.0)
    with pytest.raises(OutOfTime, match="needs about 60 s"):
        deadline.demand(60.0)
    assert not issubclass(OutOfTime, SweeperError)  # a row must not keep it as its error


@pytest.mark.parametrize(("asked", "assigned"), [(0, 0), (1, 1), (2, 2), (3, 3), (99, 3)])
def test_layers_on_the_card_are_counted_from_llama_cpps_own_words(
    asked: int, assigned: int, smallest_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the stand-in for a build that offloads (gpu_build/llama_cpp)."""
    monkeypatch.setenv("PYTHONPATH", str(HERE / "gpu_build"), prepend=":")
    monkeypatch.setenv("STAND_IN_GPUS", "1")
    monkeypatch.setenv("STAND_IN_GPU_MIB", "100")
    header = read_header(smallest_model)
    found = planned_on(smallest_model, header, Configuration(n_gpu_layers=asked, n_ctx=256))
    assert (found["layers_on_gpu"], found["layers_in_all"]) == (assigned, 3)
    size = smallest_model.stat().st_size / 2**20
    assert (found["planned_vram_mib"] == 0) == (assigned == 0)
    assert found["planned_vram_mib"] < size, "token embeddings stay on the host"


@pytest.mark.parametrize("experts", [0, 8])
def test_bytes_read_for_a_token_count_one_embedding_and_the_experts_in_use(
    experts: int, tmp_path: Path
) -> None:
    shape = ModelShape(
        2, 256, 512, 4, 2, vocab_size=512, expert_count=experts, expert_used_count=experts // 4
    )
    header = read_header(write_synthetic(shape, tmp_path / "m.gguf"))
    weights = sum(tensor.bytes for tensor in header.tensors)
    embeddings = (shape.vocab_size - 1) * shape.embedding_length * 2
    unused = shape.n_layer * 3 * shape.embedding_length * shape.feed_forward_length * 2 * experts * 3 // 4
    assert bytes_per_token(header, shape) == weights - embeddings - unused
    # K and V of 2 layers, 2 heads of 64, 2 bytes each
    assert bytes_per_token(header, shape, 100) - bytes_per_token(header, shape) == 100 * 2 * 2 * (2 * 64) * 2
