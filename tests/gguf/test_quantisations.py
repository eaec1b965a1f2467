"""A level that cannot be made or compared never ends the sweep. Quality is measured where memory allows."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bare_rig import rig_of

from sweeper.config import Settings, compose
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.errors import (
    ConfigError,
    EngineCrashed,
    ModelFileError,
    OutOfMemory,
    QualityUnknown,
    StoreError,
)
from sweeper.model import forecast, quality, quantise
from sweeper.model.forecast import Forecaster
from sweeper.records import Configuration
from sweeper.rig.llama_cpp import make_room
from sweeper.rig.quantisations import with_quality, with_quality_of_files, with_quantisations
from sweeper.space.space import SearchSpace, Traits, build_space


@pytest.fixture
def settings() -> Settings:
    return compose(["model.path=x.gguf", "model.quality_tokens=512"]).settings


def space_of(*quants: str) -> SearchSpace:
    spec = {"quant": list(quants), "n_threads": [1, 2]}
    return build_space(spec, Configuration(n_ctx=1024, quant="F16"), Traits())


def never_mind(_: str) -> None:
    """Lines are read in other tests."""


@pytest.fixture
def damaged(nano: Path, tmp_path: Path) -> Path:
    """A model whose last weight is not a number: it runs, and neither quantises nor predicts."""
    path = tmp_path / "damaged.gguf"
    path.write_bytes(nano.read_bytes()[:-2] + b"\xff\x7f")
    return path


def test_a_model_that_cannot_be_quantised_is_swept_as_it_is(
    damaged: Path, tmp_path: Path, settings: Settings
) -> None:
    rig, space = with_quantisations(
        rig_of(damaged, tmp_path), space_of("F16", "Q8_0", "Q6_K"), tmp_path, never_mind
    )
    assert set(space.parameters) == {"n_threads"}
    assert space.base.quant == "F16"
    assert [note.partition(": cannot make")[0] for note in rig.notes] == [
        "quant is not searched for Q8_0",
        "quant is not searched for Q6_K",
    ]
    with pytest.raises(ModelFileError, match=r"cannot make Q8_0 of damaged\.gguf: .*: set space\.quant=F16"):
        with_quantisations(rig_of(damaged, tmp_path), space_of("Q8_0"), tmp_path, never_mind)


def test_a_reference_that_does_not_predict_leaves_the_sweep_without_quality(
    damaged: Path, tmp_path: Path, settings: Settings
) -> None:
    space = build_space({"type_k": ["f16", "q8_0", "q4_0"]}, Configuration(n_ctx=1024, quant="F16"), Traits())
    lines: list[str] = []
    with ExitStack() as held:
        rig = with_quality(rig_of(damaged, tmp_path), space, settings, tmp_path, held, lines.append)
        for type_k in ("q8_0", "q4_0", "q8_0"):
            with pytest.raises(QualityUnknown, match=r"^cannot run damaged\.gguf"):
                rig.quality(space.base.with_(type_k=type_k))
        exact = rig.quality(space.base)
    assert exact["kl_divergence"].median == 0
    assert [line.partition(" … ")[0].partition(": ")[0] for line in lines] == [
        "measuring the quality loss against F16",
        "the quality loss is not measured, and the sweep goes on without it",
    ]


def test_nothing_is_run_before_a_level_is_asked_for(
    nano: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, space = with_quantisations(rig_of(nano, tmp_path), space_of("F16", "Q8_0"), tmp_path, lambda _: None)
    small = space.base.with_(quant="Q8_0")
    lines: list[str] = []
    with monkeypatch.context() as patched, ExitStack() as held:
        patched.setattr(quality.QualityMeter, "divergence", lambda *_: pytest.fail("a model ran"))
        rig = with_quality(rig, space, settings, tmp_path, held, lines.append)
        losses = [rig.quality(c) for c in (space.base, space.base.with_(n_threads=2))]
        assert [rig.quality_is_known(c) for c in (space.base, small)] == [True, False]
    assert losses[0] == losses[1]
    assert {name: reading.median for name, reading in losses[0].items()} == {
        "kl_divergence": 0.0,
        "top_token_agreement_percent": 100.0,
    }
    assert lines == []
    assert not (tmp_path / "quality").exists()


def test_what_an_earlier_sweep_measured_is_known_and_runs_nothing(
    nano: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, space = with_quantisations(rig_of(nano, tmp_path), space_of("F16", "Q8_0"), tmp_path, lambda _: None)
    small = space.base.with_(quant="Q8_0")
    lines: list[str] = []
    with ExitStack() as held:
        first = with_quality(rig, space, settings, tmp_path, held, never_mind).quality(small)
    with monkeypatch.context() as patched, ExitStack() as held:
        patched.setattr(quality.QualityMeter, "ask", lambda *_, **__: pytest.fail("a model ran"))
        rig = with_quality(rig, space, settings, tmp_path, held, lines.append)
        assert rig.quality_is_known(small)
        assert rig.quality(small) == rig.quality(small) == first
    assert len(lines) == 1
    assert lines[0].startswith("quality of Q8_0 over 512 tokens: KL divergence ")
    assert lines[0].endswith(" %; kept from an earlier measurement")


def test_a_recording_has_the_loss_of_each_file_that_can_be_compared(
    nano: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = quality.QualityMeter.divergence

    def divergence(self: quality.QualityMeter, candidate: Path, *types: str) -> quality.Divergence:
        if candidate.stem == "Q8_0":
            raise EngineCrashed("it died")
        return real(self, candidate, *types)

    monkeypatch.setattr(quality.QualityMeter, "divergence", divergence)
    rig, space = with_quantisations(
        rig_of(nano, tmp_path), space_of("F16", "Q8_0", "Q4_0"), tmp_path, never_mind
    )
    with ExitStack() as held:
        rig = with_quality_of_files(with_quality(rig, space, settings, tmp_path, held, never_mind), space)
    loss = {quant: file.kl_divergence for quant, file in rig.model.files.items()}
    assert (loss["F16"], loss["Q8_0"]) == (0, None)
    assert loss["Q4_0"] is not None
    assert loss["Q4_0"] > 0


@pytest.mark.parametrize("failure", [EngineCrashed("it died"), StoreError("Q6_K needs 9 MiB in x")])
def test_one_level_that_fails_is_left_out(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    real = quantise.quantised

    def quantised(source: Path, level: str, root: Path) -> quantise.Quantised:
        if level == "Q6_K":
            raise failure
        return real(source, level, root)

    monkeypatch.setattr(quantise, "quantised", quantised)
    rig, space = with_quantisations(
        rig_of(nano, tmp_path), space_of("F16", "Q8_0", "Q6_K"), tmp_path, lambda _: None
    )
    assert space.parameters["quant"].values == ("F16", "Q8_0")
    assert rig.notes == (f"quant is not searched for Q6_K: {failure}",)


def test_a_level_that_does_not_exist_is_still_bad_input(nano: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"space\.quant=Q9"):
        with_quantisations(rig_of(nano, tmp_path), space_of("F16", "Q9"), tmp_path, never_mind)


def test_one_level_that_cannot_be_compared_rules_out_that_level(
    nano: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, died = quality.QualityMeter.divergence, []

    def divergence(self: quality.QualityMeter, candidate: Path, *types: str) -> quality.Divergence:
        if candidate.stem == "Q8_0":
            died.append(candidate)
            raise EngineCrashed("it died")
        return real(self, candidate, *types)

    monkeypatch.setattr(quality.QualityMeter, "divergence", divergence)
    lines: list[str] = []
    rig, space = with_quantisations(
        rig_of(nano, tmp_path), space_of("F16", "Q8_0", "Q4_0"), tmp_path, lambda _: None
    )
    with ExitStack() as held:
        rig = with_quality(rig, space, settings, tmp_path, held, lines.append)
        for _ in range(2):
            with pytest.raises(EngineCrashed, match="it died"):
                rig.quality(space.base.with_(quant="Q8_0"))
        loss = rig.quality(space.base.with_(quant="Q4_0"))
    assert len(died) == 1
    assert loss["kl_divergence"].median > 0
    assert 0 < loss["top_token_agreement_percent"].median < 100
    assert {reading.n for reading in loss.values()} == {512}
    assert lines[0].startswith("measuring the quality loss against F16 … (once: 512 tokens with each file")
    assert "Q8_0 is left out, because its quality loss cannot be measured: it died" in lines
    cost = next(line for line in lines if line.startswith("quality of Q4_0"))
    assert re.fullmatch(
        r"quality of Q4_0 over 512 tokens: KL divergence \d\.\d{4} nats/token, same most likely token \d+\.\d %; "
        r"\d+\.\d s",
        cost,
    )
    assert sum("Q8_0 is left out" in line for line in lines) == 1


def test_the_cost_of_a_cache_type_is_shown_once(nano: Path, tmp_path: Path, settings: Settings) -> None:
    space = build_space({"type_k": ["f16", "q4_0"]}, Configuration(n_ctx=1024, quant="F16"), Traits())
    lines: list[str] = []
    with ExitStack() as held:
        rig = with_quality(rig_of(nano, tmp_path), space, settings, tmp_path, held, lines.append)
        losses = [rig.quality(space.base.with_(type_k="q4_0")) for _ in range(2)]
        exact = rig.quality(space.base)
    assert losses[0] == losses[1]
    assert [line.partition(":")[0].partition(" … ")[0] for line in lines] == [
        "measuring the quality loss against F16",
        "F16 itself over 512 tokens",
        "quality of F16 with type_k=q4_0 type_v=f16 over 512 tokens",
    ]
    assert {name: reading.median for name, reading in exact.items()} == {
        "kl_divergence": 0.0,
        "top_token_agreement_percent": 100.0,
    }
    assert rig.quality_record.startswith("against F16 on prose, code and dialogue (")


class FixedMeter:
    """Gives one divergence, at a cost of 38 s."""

    program = "a fixed meter"

    def __init__(self, found: quality.Divergence) -> None:
        self.found, self.spent_seconds = found, 0.0

    def __enter__(self) -> FixedMeter:
        return self

    def __exit__(self, *_: object) -> None: ...

    def is_kept(self, *_: object) -> bool:
        return False

    def divergence(self, *_: object) -> quality.Divergence:
        self.spent_seconds += 38
        return self.found


@pytest.mark.parametrize(("low", "high", "is_said"), [(0.04, 0.06, False), (0.09, 0.12, True)])
def test_a_loss_too_close_to_the_limit_is_said(
    nano: Path, tmp_path: Path, settings: Settings, low: float, high: float, is_said: bool
) -> None:
    found = quality.Divergence((low + high) / 2, low, high, 93.0, 92.0, 94.0, 16_384)
    lines: list[str] = []
    space = build_space({"type_k": ["f16", "q4_0"]}, Configuration(n_ctx=1024, quant="F16"), Traits())
    efforts = []

    def meter(*given: Any) -> FixedMeter:
        efforts.append(given[-1])
        return FixedMeter(found)

    with ExitStack() as held:
        rig = replace(rig_of(nano, tmp_path), quality_meter=meter)
        rig = with_quality(rig, space, settings, tmp_path, held, lines.append)
        loss = rig.quality(space.base.with_(type_k="q4_0"))
    assert efforts == [quality.Effort(512, 300.0, (0.1,))]  # 10 minutes for two files and cache types
    assert (loss["kl_divergence"].low, loss["kl_divergence"].high) == (low, high)
    said = (
        "quality of F16 with type_k=q4_0 type_v=f16 over 16,384 tokens: "
        f"KL divergence {(low + high) / 2:.4f} nats/token, same most likely token 93.0 %; 38 s"
    )
    doubt = f"; its KL divergence of {low:.4f} to {high:.4f} may be on either side of your constraint"
    assert lines[-1] == said + (doubt if is_said else "")


@pytest.fixture
def loaded(nano: Path) -> Any:
    with LlamaCppEngine({None: nano, "F16": nano}) as engine, Forecaster() as forecaster:
        engine.load(Configuration(n_ctx=512, n_threads=1, n_threads_batch=1))
        yield engine, forecaster


def test_the_engine_is_ended_where_a_model_does_not_fit_beside_it(
    nano: Path, loaded: tuple[LlamaCppEngine, Forecaster], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, forecaster = loaded
    monkeypatch.setattr(forecast, "host_available_mib", lambda: 8_000.0)
    make_room(forecaster, engine, nano, 0)
    assert engine.worker_pid is not None  # both fit
    monkeypatch.setattr(forecast, "host_available_mib", lambda: 50.0 if engine.worker_pid else 8_000.0)
    make_room(forecaster, engine, nano, 0)
    assert engine.worker_pid is None


def test_quality_is_skipped_where_its_model_does_not_fit_at_all(
    nano: Path,
    tmp_path: Path,
    settings: Settings,
    loaded: tuple[LlamaCppEngine, Forecaster],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, forecaster = loaded
    monkeypatch.setattr(forecast, "host_available_mib", lambda: 50.0)
    with pytest.raises(OutOfMemory, match=r"need .* MiB on host, where 50 MiB are free"):
        make_room(forecaster, engine, nano, 0)
    rig = replace(
        rig_of(nano, tmp_path), make_room=lambda path, layers: make_room(forecaster, engine, path, layers)
    )
    rig, space = with_quantisations(rig, space_of("F16", "Q8_0"), tmp_path, never_mind)
    lines: list[str] = []
    with ExitStack() as held:
        rig = with_quality(rig, space, settings, tmp_path, held, lines.append)
        with pytest.raises(QualityUnknown, match=r"^weights "):
            rig.quality(space.base.with_(quant="Q8_0"))
    assert lines[-1].startswith(
        "the quality loss is not measured, and the sweep goes on without it: weights "
    )
