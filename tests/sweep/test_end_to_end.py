"""The main job on real inference, from the command line to a running server with the recommended settings.

This sweep alone leaves out no wait and no repeat (see tests/hurry.py).
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from fast_sweep import FAST
from hurry import run_here

from sweeper.cli import main

EXPERIMENT = "evenings of été"


@pytest.fixture(scope="module")
def words(smallest_model: Path) -> tuple[str, ...]:
    return (*FAST, f"model.path='{smallest_model}'", "search.full_depth=true")


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, words: tuple[str, ...]
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder, with a space and non-ASCII letters in its name, in which one real sweep ran."""
    folder = tmp_path_factory.mktemp("swept") / "dossier d'été 測試"
    folder.mkdir()
    named = ("name=first", f"tracking.experiment='{EXPERIMENT}'")
    done = subprocess.run(
        [sys.executable, "-m", "sweeper", "sweep", *words, *named],
        cwd=folder,
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "estimated" in done.stdout  # this container has no power sensor; a figure says what it is
    assert "Traceback" not in done.stderr
    return folder, done


@pytest.fixture(scope="module")
def swept(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return ran[0]


def test_a_sweep_says_the_guess_first_and_a_later_guess_uses_the_sweep(
    ran: tuple[Path, subprocess.CompletedProcess[str]], words: tuple[str, ...]
) -> None:
    folder, done = ran
    assert "computed by llama.cpp's own memory plan" in done.stderr
    assert done.stderr.index("no figure here was measured") < done.stderr.index("trials at most")
    later = run_here("guess", *words, "--json", cwd=folder)
    (found,) = json.loads(later.stdout)["guesses"]
    assert found["tokens_per_second"]["label"] == "from earlier sweeps"
    assert "first" in found["tokens_per_second"]["reason"]
    assert found["watts"]["label"] == "from earlier sweeps"


def test_front_and_recommendation_are_whole(swept: Path) -> None:
    folder = swept / "mlruns" / "reports" / "first"
    front = json.loads((folder / "front.json").read_text())
    recommendation = yaml.safe_load((folder / "recommendation.yaml").read_text())
    assert front["schema"] == recommendation["schema"] == 1
    assert front["sweep"] == "first"
    assert len(front["model"]["sha256"]) == 64
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (folder / "report.html").read_text()[:200]


def test_every_trial_stands_once_in_optuna_and_in_mlflow(swept: Path) -> None:
    from sweeper.results.assemble import assemble
    from sweeper.search.study import SweepStudy

    record = assemble(SweepStudy.load(swept / "mlruns", "first"))
    assert record.state == "complete"
    assert [t.state for t in record.trials] == ["complete"] * 4, [t.reason for t in record.trials]
    assert sum(t.remeasured for t in record.trials) >= 2
    assert record.trial(record.recommended).remeasured
    children = _children(swept / "mlruns", "first")
    assert sorted(children) == [str(t.number) for t in record.trials]


def test_report_and_apply_answer_in_every_form(
    swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(swept)
    for form in ("table", "markdown", "json", "csv"):
        assert main(["report", "first", "--format", form]) == 0
        assert capsys.readouterr().out
    assert main(["apply", "first", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "llama-server"
    assert not (swept / "llama-server.ini").exists()


def test_the_recommended_file_starts_a_real_server(swept: Path) -> None:
    port = _free_port()
    config = swept / "server.json"
    target = ("--to", "llama-cpp-python", "--port", str(port), "--file", str(config))
    assert run_here("apply", "first", *target, "--write", cwd=swept).returncode == 0
    recommended = yaml.safe_load((swept / "mlruns/reports/first/recommendation.yaml").read_text())[
        "recommended"
    ]
    settings = json.loads(config.read_text())["models"][0]
    for key in ("n_threads", "n_threads_batch", "n_ubatch", "n_ctx", "flash_attn"):
        assert settings[key] == recommended["configuration"][key], key
    # What llama.cpp itself says is in force stands in its log, which the written file keeps quiet.
    loud = swept / "loud.json"
    told = json.loads(config.read_text())
    told["models"][0]["verbose"] = True
    loud.write_text(json.dumps(told))
    server = subprocess.Popen(
        [sys.executable, "-m", "llama_cpp.server", "--config_file", str(loud)],
        cwd=swept,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        answer = _complete(port, server)
        assert answer["usage"]["completion_tokens"] > 0
    finally:
        server.terminate()
        _, log = server.communicate(timeout=20)
    said = log.decode("utf-8", "replace")
    for key in ("n_ctx", "n_ubatch"):
        found = re.findall(rf"llama_context:\s+{key}\s+=\s+(\d+)", said)
        assert found, said[-3000:]
        assert int(found[-1]) == settings[key], key


def _children(root: Path, sweep: str) -> list[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{(root / 'mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`sweeper.sweep` = '{sweep}' and tags.`sweeper.kind` = 'trial'"
    )
    return [run.data.tags["sweeper.trial"] for run in found]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _complete(port: int, server: subprocess.Popen[bytes]) -> dict:
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 8}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.load(reply)
        except urllib.error.URLError:
            time.sleep(0.3)
    raise AssertionError("the server did not answer")
