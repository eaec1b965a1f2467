"""A `mlruns/` recorded by the version before the rooms were redrawn opens, and its unfinished sweep resumes.

`tests/fixtures/recorded/mlruns.tar.xz` holds a simulated sweep (`demo`), a real one (`real`) and a real one that was
killed during its final stage (`cut`), without the model files, which sweeper writes again from their seed.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from hurry import run_here

STORE = Path(__file__).parent.parent / "fixtures" / "recorded" / "mlruns.tar.xz"
# The overrides that `cut` was started with, and one that keeps a test from waiting for the other work of a machine.
CUT = (
    "search.wait_for_quiet=false",
    "model.quality_tokens=512",
    *("experiment=quick", "model=tiny_15m", "name=cut", "search.trials=6", "search.minutes=null"),
    *("space.type_k=f16", "space.n_ubatch=[32,64]", "space.n_threads=[1,2]", "space.n_threads_batch=1"),
    *("space.quant=[F16,Q8_0]", "search.finalists=2", "workload.prompt_tokens=64", "workload.n_ctx=256"),
    *("workload.generated_tokens=16", "workload.warmup_seconds=0.1", "workload.screening_seconds=0.2"),
    *("workload.screening_repeats=2", "workload.final_seconds=0.6", "workload.final_repeats=3"),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the recorded sweeps; a test may go on with ``cut``, and reads the others."""
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(STORE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("sweep", ["demo", "real"])
def test_a_recorded_sweep_is_reported(recorded: Path, sweep: str) -> None:
    said = run_here("report", sweep, "--json", cwd=recorded)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["sweep"] == sweep
    assert found["front"]


def test_recorded_sweeps_are_compared_and_applied(recorded: Path) -> None:
    said = run_here("compare", "demo", "real", "--json", cwd=recorded)
    assert said.returncode == 0, said.stderr
    said = run_here("apply", "demo", "--to", "env", "--json", "--force", cwd=recorded)
    assert said.returncode == 0, said.stderr
    assert "LLAMA_ARG_" in said.stdout


@pytest.mark.slow
def test_a_recorded_sweep_that_was_killed_resumes(recorded: Path) -> None:
    from sweeper.search.study import SweepStudy

    root = recorded / "mlruns"
    before = SweepStudy.load(root, "cut").trials()
    said = run_here("sweep", *CUT, cwd=recorded, hurry=True)
    assert said.returncode == 0, said.stderr
    study = SweepStudy.load(root, "cut")
    assert study.trials()[: len(before)] == before
    header = study.header()
    assert header.state == "complete"
    assert header.engine.sampling == ""  # its other figures were measured without
    assert "began without sampling tokens, and goes on so" in said.stderr
    # Its trials have a quality over 256 tokens of the text of that time, and a note tells them apart from later ones.
    assert any(
        note.startswith("the KL divergence of trials up to #") and "over 256 tokens of another text" in note
        for note in header.notes
    )
    assert header.quality.startswith("against F16 on prose, code and dialogue (")
    assert all(Path(file.path).is_relative_to(recorded) for file in header.model.files.values())
