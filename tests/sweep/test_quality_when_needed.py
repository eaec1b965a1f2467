"""Real sweeps whose first trials need no quality measurement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fast_sweep import FAST

from sweeper.config import compose
from sweeper.prepare import prepared
from sweeper.report.progress import Progress
from sweeper.results.assemble import assemble
from sweeper.search.study import SweepStudy

Run = Callable[..., Any]
UNNAMED = tuple(word for word in FAST if not word.startswith(("space.quant=", "space.type_k=")))


def test_the_baseline_is_measured_before_any_quality(
    fast: tuple[str, ...], sweeper: Run, tmp_path: Path
) -> None:
    done = sweeper("sweep", *fast, "name=s")
    assert done.returncode == 0, done.stderr
    moments = [
        done.stderr.index(words)
        for words in (
            "1 of 4 trials: ",
            "2 of 4 trials: ",
            "measuring the quality loss against F16 … ",
            "3 of 4 trials: ",
        )
    ]
    assert moments == sorted(moments)
    assert done.stderr.count("quality of Q8_0 over 512 tokens: KL divergence ") == 1
    record = assemble(SweepStudy.load(tmp_path / "mlruns", "s"))
    assert [t.configuration.quant for t in record.trials] == ["F16", "F16", "Q8_0", "Q8_0"]
    assert [t.metrics["kl_divergence"].n for t in record.trials] == [1, 1, 512, 512]
    losses = [t.metrics["kl_divergence"].median for t in record.trials]
    assert losses[:2] == [0, 0]
    assert losses[2] == losses[3] > 0
    assert record.quality.startswith("against F16 on prose, code and dialogue (")


def test_a_reference_that_cannot_predict_costs_the_sweep_its_quality_alone(
    fast: tuple[str, ...], smallest_model: Path, sweeper: Run, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(smallest_model.read_bytes()[:-2] + b"\xff\x7f")  # a weight that is not a number
    words = [word for word in fast if not word.startswith(("model.path", "space."))]
    space = ("space.quant=F16", "space.type_k=[f16,q8_0]", "space.n_ubatch=32", "space.n_threads=1")
    done = sweeper("sweep", *words, *space, "space.n_threads_batch=1", f"model.path='{damaged}'", "name=s")
    assert done.returncode == 0, done.stderr
    said = "the quality loss is not measured, and the sweep goes on without it: cannot run damaged.gguf"
    assert done.stderr.count(said) == 1
    record = assemble(SweepStudy.load(tmp_path / "mlruns", "s"))
    assert [t.state for t in record.trials] == ["complete"] * 2, [t.reason for t in record.trials]
    assert any("was not checked in 1 of 2 trials: cannot run damaged.gguf" in note for note in record.notes)


def test_two_minutes_search_what_needs_no_quality(smallest_model: Path, sweeper: Run, tmp_path: Path) -> None:
    done = sweeper("sweep", *UNNAMED, f"model.path='{smallest_model}'", "minutes=2", "name=s")
    assert done.returncode == 0, done.stderr
    said = "quant and type_k are not searched: there is no time in 2 minutes to measure the quality of other levels"
    assert done.stderr.count(said) == 1
    assert "measuring the quality" not in done.stderr
    record = assemble(SweepStudy.load(tmp_path / "mlruns", "s"))
    assert set(record.space) == {"n_ubatch"}
    assert any(note.startswith(said) for note in record.notes)
    assert not (tmp_path / "mlruns" / "quantised").exists()
    assert not (tmp_path / "mlruns" / "quality").exists()


def test_a_sweep_that_goes_on_keeps_the_levels_with_which_it_began(
    smallest_model: Path, tmp_path: Path
) -> None:
    def searched(*words: str) -> set[str]:
        overrides = [*UNNAMED, f"model.path='{smallest_model}'", f"root='{tmp_path}'", *words]
        with prepared(compose(overrides), lambda *_: Progress(), lambda _: None) as sweep:
            return set(sweep.space.parameters)

    assert searched("name=long", "minutes=10") == {"n_ubatch", "quant", "type_k"}
    assert searched("name=long", "minutes=2") == {"n_ubatch", "quant", "type_k"}
    assert searched("name=short", "minutes=2") == {"n_ubatch"}
    assert searched("name=short", "minutes=3") == {"n_ubatch"}
