"""How long a context can this machine afford? A small real sweep answers, in the terminal and in its files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from fast_sweep import FAST
from hurry import run_here

from sweeper.metrics import FIRST_WHEN_FULL
from sweeper.records import SweepRecord
from sweeper.report.picks import picks_by_trial, title
from sweeper.results.assemble import assemble
from sweeper.search.study import SweepStudy

OTHER = ("experiment=", "space.quant", "search.finalists", "workload.n_ctx")
WORDS = (
    *(word for word in FAST if not word.startswith(OTHER)),
    "experiment=longest_context",
    "search=quick",
    "space=quick",
    "name=real",
    "space.quant=F16",
    "space.n_ctx=[256,512,1024]",
    "search.trials=4",
    "search.finalists=1",
    'objectives.constraints.tokens_per_second=">=0.01"',  # whatever else runs on this machine
)


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, smallest_model: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("context")
    done = run_here("sweep", *WORDS, f"model.path='{smallest_model}'", cwd=folder, hurry=True)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def record(swept: tuple[Path, subprocess.CompletedProcess[str]]) -> SweepRecord:
    return assemble(SweepStudy.load(swept[0] / "mlruns", "real"))


def test_the_first_trials_are_the_default_settings_at_each_context(record: SweepRecord) -> None:
    assert [t.configuration for t in record.trials[:3]] == list(record.ladder)
    assert [t.in_force["n_ctx"] for t in record.trials[:3]] == [256, 512, 1024]
    assert [t.state for t in record.trials[:3]] == ["complete"] * 3, [t.reason for t in record.trials]


def test_each_context_was_filled_and_timed(
    swept: tuple[Path, subprocess.CompletedProcess[str]], record: SweepRecord
) -> None:
    for trial in record.trials[:3]:
        full, prompt = trial.metrics[FIRST_WHEN_FULL], trial.metrics["time_to_first_token_seconds"]
        assert full.median > prompt.median  # 64 tokens are the end of the whole prompt
        assert trial.metrics["memory_mib"].median > 1
    windows = SweepStudy.load(swept[0] / "mlruns", "real").windows(2)
    assert {window.depth for window in windows} == {1024 - 64 - 16}  # of prompt and answer


def test_the_terminal_answers_the_question(
    swept: tuple[Path, subprocess.CompletedProcess[str]], record: SweepRecord
) -> None:
    _, done = swept
    assert "constraints: " in done.stderr
    assert "decode speed at least 0.01 tok/s" in done.stderr
    assert "the default settings at 256 to 1,024 tokens" in done.stderr
    assert "Contexts, each measured when it is full" in done.stdout
    assert "W estimated" in done.stdout  # this container has no power sensor; the table says so, too
    flat = " ".join(done.stdout.split())
    first = title(record, picks_by_trial(record)[0])  # its words depend on how noisy this machine is
    assert f"#{record.recommended}" in first
    assert "longest context" in first
    assert first in flat
    assert record.trial(record.recommended or 0).configuration.n_ctx == 1024
    assert "is the longest context that keeps the constraints" in flat


def test_the_files_have_the_same_rows(
    swept: tuple[Path, subprocess.CompletedProcess[str]], record: SweepRecord
) -> None:
    folder = swept[0] / "mlruns" / "reports" / "real"
    rows = json.loads((folder / "front.json").read_text())["contexts"]
    assert [row["n_ctx"] for row in rows if row["settings"] == "default"] == [256, 512, 1024]
    for name in ("report.md", "report.html"):
        assert "Contexts, each measured when it is full" in (folder / name).read_text("utf-8")
