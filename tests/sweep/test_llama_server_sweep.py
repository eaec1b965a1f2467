"""A sweep of a real llama-server, from the command line to a verified server, and what a user gets wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fast_sweep import FAST
from hurry import HURRIED, run_here

from sweeper.cli import main
from sweeper.results.assemble import assemble
from sweeper.search.study import SweepStudy

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SWEEP = ("sweep", "engine=llama_server")


def sweep(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_here(*SWEEP, *words, cwd=folder, hurry=True, **environment)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, smallest_model: Path, llama_server: str) -> Path:
    """A folder in which one sweep of a llama-server ran."""
    folder = tmp_path_factory.mktemp("swept")
    model = shutil.copy(smallest_model, folder / "own.gguf")  # no server of another test has it
    named = f"engine.binary={llama_server}", f"model.path='{model}'", "name=served"
    done = sweep(folder, *FAST, *named, LLAMA_ARG_CTX_SIZE="99")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(model) in (p.info["cmdline"] or ())]
    return folder


def test_the_baseline_is_what_the_user_has_without_sweeper(swept: Path) -> None:
    record = assemble(SweepStudy.load(swept / "mlruns", "served"))
    assert record.engine.name == "llama_server"
    assert "temperature 0.80" in record.engine.build
    assert [t.state for t in record.trials] == ["complete"] * 4, [t.reason for t in record.trials]
    assert record.baseline == 0
    assert [t.configuration.fit for t in record.trials] == [True, False, False, False]
    assert record.trial(record.recommended).remeasured
    assert any("LLAMA_ARG_CTX_SIZE" in note for note in record.notes)
    assert all(t.in_force["n_ctx"] == 256 for t in record.trials)
    assert all(t.metrics["memory_mib"].median > 1 for t in record.trials)
    assert all("vram_mib" not in t.metrics for t in record.trials)
    assert record.trial(0).load_seconds is not None


def test_report_apply_and_verify_know_the_server(
    swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(swept)
    assert main(["report", "served"]) == 0
    assert "fit=" not in capsys.readouterr().out  # only the baseline has it, and its row says what it is
    assert main(["apply", "served", "--pick", "0"]) == 0
    plan = capsys.readouterr().out
    assert "+fit = on" in plan
    assert "+n-gpu-layers = auto" in plan
    assert main(["verify", "served", "--pick", "0", "--json", "--no-watts", "--repeats", "2"]) in (0, 5)
    found = json.loads(capsys.readouterr().out)
    assert found["server"] == "llama-server"
    assert {s["name"]: s["in_force"] for s in found["settings"]}["fit"] is True
    assert {s["verdict"] for s in found["settings"]} == {"kept"}


def _without_library(tmp_path: Path) -> str:
    """A PYTHONPATH with which nothing finds llama-cpp-python, as where it was never installed."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: (\n"
        "    None if name.partition('.')[0] == 'llama_cpp' else find(name, *rest))\n"
    )
    return os.pathsep.join(filter(None, (str(hidden), os.environ.get("PYTHONPATH"))))


@pytest.fixture
def without_library(tmp_path: Path, mlflow_tables: Callable[[Path], None]) -> Run:
    """Sweeps in a process that finds no llama-cpp-python, as where it was never installed."""
    mlflow_tables(tmp_path / "mlruns")
    environment = os.environ | {"NO_COLOR": "1", "PYTHONPATH": _without_library(tmp_path)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*HURRIED, "sweeper", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    return run


def test_without_llama_cpp_python_the_model_is_tuned_as_it_is(
    tmp_path: Path, smallest_model: Path, llama_server: str, without_library: Run
) -> None:
    words = [word for word in FAST if "type_k" not in word]
    server = tmp_path / "llama-server"
    server.symlink_to(llama_server)  # without llama-perplexity beside it
    named = f"engine.binary={server}", f"model.path='{smallest_model}'", "name=alone"
    done = without_library(*SWEEP, *words, *named, "search.finalists=1")
    assert done.returncode == 0, done.stderr
    record = assemble(SweepStudy.load(tmp_path / "mlruns", "alone"))
    assert [t.state for t in record.trials] == ["complete"] * 2, [t.reason for t in record.trials]
    notes = " ".join(record.notes)
    assert (
        "without llama-cpp-python or a llama-perplexity beside the server, quality is not measured" in notes
    )
    assert "quant is not searched for Q8_0" in notes
    assert "the quality loss of a smaller KV cache cannot be measured" in notes
    assert not any("kl_divergence" in t.metrics for t in record.trials)


def test_without_llama_cpp_python_the_program_beside_the_server_measures_quality(
    tmp_path: Path, smallest_model: Path, llama_server: str, without_library: Run
) -> None:
    if not Path(llama_server).with_name("llama-perplexity").is_file():
        pytest.skip("no llama-perplexity beside the llama-server")
    words = [word for word in FAST if "type_k" not in word and "n_ubatch" not in word]
    named = f"engine.binary={llama_server}", f"model.path='{smallest_model}'", "name=beside"
    cache = ("space.n_ubatch=64", "space.type_k=[f16,q4_0]", "search.finalists=1")
    done = without_library(*SWEEP, *words, *named, *cache)
    assert done.returncode == 0, done.stderr
    assert "quality of F16 with type_k=q4_0 type_v=f16 over 765 tokens: " in done.stderr
    record = assemble(SweepStudy.load(tmp_path / "mlruns", "beside"))
    assert [t.state for t in record.trials] == ["complete"] * 2, [t.reason for t in record.trials]
    loss = {t.configuration.type_k: t.metrics["kl_divergence"] for t in record.trials}
    assert (loss["f16"].median, loss["q4_0"].n) == (0, 765)
    assert 0 < loss["q4_0"].low < loss["q4_0"].median < loss["q4_0"].high
    assert all("top_token_agreement_percent" in t.metrics for t in record.trials)
    assert "by llama-perplexity" in record.quality
    assert "quant is not searched for Q8_0" in " ".join(record.notes)


def test_without_a_quantisation_the_file_itself_is_measured(
    tmp_path: Path, smallest_model: Path, llama_server: str
) -> None:
    named = f"engine.binary={llama_server}", f"model.path='{smallest_model}'", "name=plain"
    done = sweep(tmp_path, *FAST, *named, "space.quant=null", "search.trials=1", "search.finalists=1")
    assert done.returncode == 0, done.stderr
    trials = SweepStudy.load(tmp_path / "mlruns", "plain").trials()
    assert [(t.state, t.configuration.quant) for t in trials] == [("complete", None)]


def test_without_llama_cpp_python_its_engine_names_the_other_one(
    smallest_model: Path, without_library: Run
) -> None:
    done = without_library("sweep", f"model.path='{smallest_model}'")
    assert done.returncode == 3
    assert "llama-cpp-python is not installed: install it with" in done.stderr
    assert "engine=llama_server" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["engine.binary=/no/such/llama-server"], 3, "engine.binary: cannot start /no/such/llama-server"),
        (["engine.binary=/bin/true"], 3, "is not a llama-server"),
        (["engine.binary=[]"], 2, "engine.binary: it is empty"),
        (["engine.arguments=[--port,8080]"], 2, "engine.arguments: sweeper sets --port itself"),
        (["engine.arguments=[--no-such]"], 2, "engine.arguments: "),
        (["engine.environment.LLAMA_ARG_THREADS=3"], 2, "engine.environment.LLAMA_ARG_THREADS: "),
        (["engine.name=llama_servers"], 2, "did you mean llama_server?"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, smallest_model: Path, llama_server: str, words: list[str], code: int, says: str
) -> None:
    named = [] if words[0].startswith("engine.binary") else [f"engine.binary={llama_server}"]
    done = sweep(tmp_path, *FAST, f"model.path='{smallest_model}'", *named, *words)
    assert done.returncode == code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sweeper: ")
    assert says in last
    assert "Traceback" not in done.stderr
