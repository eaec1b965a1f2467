"""A sweep that tries a draft model on a real llama-server, from the command line to a verified server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from fast_sweep import FAST
from hurry import run_here
from sharp_models import write_sharp

from sweeper.cli import main
from sweeper.client.prompt_file import BUNDLED
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic
from sweeper.results.assemble import assemble
from sweeper.search.study import SweepStudy

SHAPE = ModelShape(
    n_layer=2,
    embedding_length=256,
    feed_forward_length=512,
    head_count=4,
    head_count_kv=2,
    vocab_size=512,
    n_ctx_train=2048,
)
# The kinds that the draft makes possible, and nothing else. So many tokens are drafted that a draft model whose drafts
# are refused is far slower than none, however much a busy machine disturbs both.
WORDS = (
    *FAST,
    *("space.n_ubatch=64", "space.quant=F16", "space.spec_draft_n_max=8", "workload.n_ctx=1024"),
    "workload.generated_tokens=48",
)


def sweep(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run_here("sweep", *words, cwd=folder, hurry=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a draft model of random weights, and one with another vocabulary."""
    folder = tmp_path_factory.mktemp("speculation")
    write_sharp(SHAPE, folder / "model.gguf", seed=1)
    write_sharp(SHAPE, folder / "stranger.gguf", seed=2)
    write_synthetic(ModelShape(2, 256, 512, 4, 2, vocab_size=1024), folder / "other.gguf", "F16", 1)
    return folder


@pytest.fixture(scope="module")
def swept(folder: Path, llama_server: str) -> Path:
    """The folder after a sweep with the draft model of random weights."""
    named = f"engine.binary={llama_server}", "model.path=model.gguf", "name=drafted"
    done = sweep(folder, "engine=llama_server", *WORDS, *named, "model.draft=stranger.gguf")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_draft_of_random_weights_is_not_chosen(swept: Path) -> None:
    record = assemble(SweepStudy.load(swept / "mlruns", "drafted"))
    trials = {trial.configuration.spec_type: trial for trial in record.trials}
    assert set(trials) == {"none", "draft-simple"}
    assert all(trial.state == "complete" for trial in record.trials), [t.reason for t in record.trials]
    drafted = trials["draft-simple"]
    assert drafted.in_force["spec_type"] == "draft-simple"
    assert drafted.metrics["draft_acceptance"].median <= 0.05
    assert "draft_acceptance" not in trials["none"].metrics
    assert record.trial(record.recommended or 0).configuration.spec_type == "none"


def test_the_record_names_the_draft_and_the_text(swept: Path) -> None:
    record = assemble(SweepStudy.load(swept / "mlruns", "drafted"))
    assert record.model.draft is not None
    assert record.model.draft.file.path == str(swept / "stranger.gguf")
    assert record.workload.prompts is not None
    assert record.workload.prompts.name == BUNDLED
    assert any("your own prompts" in note for note in record.notes)


def test_report_apply_and_verify_know_the_draft(
    swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(swept)
    record = assemble(SweepStudy.load(swept / "mlruns", "drafted"))
    number = next(t.number for t in record.trials if t.configuration.spec_type != "none")
    assert main(["report", "drafted", "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert "draft-simple accepted 0 % of its drafts, " in shown
    assert "passages of sweeper's bundled text" in shown
    draft = swept / "stranger.gguf"
    words = ["drafted", "--pick", str(number)]
    assert main(["apply", *words, "--write"]) == 0
    assert f"+spec-draft-model = {draft}" in capsys.readouterr().out
    assert main(["verify", *words, "--json", "--no-watts", "--repeats", "2"]) in (0, 5)
    settings = {s["name"]: s for s in json.loads(capsys.readouterr().out)["settings"]}
    assert settings["spec_type"]["in_force"] == "draft-simple"
    assert settings["draft"]["in_force"] == str(draft)
    assert settings["draft"]["verdict"] == "kept"
    assert main(["rollback"]) == 0
    assert not (swept / "llama-server.ini").exists()


def test_another_draft_is_another_sweep(swept: Path, llama_server: str) -> None:
    words = ("engine=llama_server", *WORDS, f"engine.binary={llama_server}", "model.path=model.gguf")
    done = sweep(swept, *words, "name=drafted", "model.draft=model.gguf")
    assert done.returncode == 2
    assert (
        "model.draft: the sweep 'drafted' was started with stranger.gguf, and now it is model.gguf"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("model.path=model.gguf", "model.draft=none.gguf"), "model.draft: there is no file"),
        (("model.path=model.gguf", "model.draft=other.gguf"), "its vocabulary has 1024 tokens"),
        (("model.path=model.gguf", "space.spec_type=[none,draft-simple]"), "set model.draft=FILE"),
        (("model=tiny_15m", "space.spec_type=[none,ngram-mod]"), "weights are random"),
        (("model=tiny_15m", "model.draft=stranger.gguf"), "weights are random"),
    ],
)
def test_what_cannot_speculate_is_one_line(
    folder: Path, llama_server: str, words: tuple[str, ...], says: str
) -> None:
    done = sweep(folder, "engine=llama_server", *WORDS, f"engine.binary={llama_server}", *words)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sweeper: ")
    assert says in last
    assert "Traceback" not in done.stderr
