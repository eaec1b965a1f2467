"""Quality by a real llama-perplexity beside a real llama-server, where llama-cpp-python is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sweeper.engine.perplexity import SCORED_TOKENS, PerplexityMeter
from sweeper.engine.server_dialect import Dialect, dialect_of, perplexity_tool, program_of
from sweeper.errors import ConfigError, EngineRefused
from sweeper.model.quality import Divergence, Effort, QualityMeter
from sweeper.model.quantise import quantised
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic
from sweeper.model.texts import Texts

ENVIRONMENT = dict(os.environ)
LITTLE = Effort(tokens=512)  # three chunks of 255 tokens
Open = Callable[..., PerplexityMeter]


@pytest.fixture(scope="module")
def tool(llama_server: str) -> Dialect:
    found = perplexity_tool(dialect_of(program_of(llama_server), ENVIRONMENT), ENVIRONMENT)
    if found is None:
        pytest.skip("no llama-perplexity beside the llama-server")
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlruns")


@pytest.fixture
def opened(tool: Dialect, smallest_model: Path, tmp_path: Path) -> Iterator[Open]:
    """Opens a meter with the smallest model as its reference."""
    meters: list[PerplexityMeter] = []

    def open_(
        effort: Effort = LITTLE, texts: Texts | None = None, folder: Path = tmp_path
    ) -> PerplexityMeter:
        made = PerplexityMeter(tool, {}, smallest_model, folder, texts or Texts(), 0, lambda _: None, effort)
        meters.append(made)
        return made

    yield open_
    for meter in meters:
        meter.close()


def level(model: Path, name: str, root: Path) -> Path:
    return Path(quantised(model, name, root).file.path)


def test_it_agrees_with_llama_cpps_library(opened: Open, smallest_model: Path, root: Path) -> None:
    candidate = level(smallest_model, "Q4_K_M", root)
    theirs = opened(Effort(2048)).divergence(candidate)
    with QualityMeter(smallest_model, root, effort=Effort(2048)) as meter:
        ours = meter.divergence(candidate)
    assert theirs.tokens == 9 * SCORED_TOKENS
    # The chunks begin elsewhere in the text, so the tokens are not the same ones.
    assert theirs.mean == pytest.approx(ours.mean, rel=0.1)
    assert theirs.agreement == pytest.approx(ours.agreement, abs=5)
    assert theirs.low < theirs.mean < theirs.high
    assert theirs.agreement_low < theirs.agreement < theirs.agreement_high


def test_the_reference_is_nothing_and_fewer_bits_are_more(
    opened: Open, smallest_model: Path, root: Path
) -> None:
    meter = opened()
    assert meter.divergence(smallest_model) == Divergence(0, 0, 0, 100, 100, 100, 3 * SCORED_TOKENS)
    q8, q2 = (meter.divergence(level(smallest_model, name, root)) for name in ("Q8_0", "Q2_K"))
    assert 0 < q8.mean < 0.1 * q2.mean
    assert q8.agreement > q2.agreement
    cached = meter.divergence(smallest_model, "q4_0", "q4_0")
    assert cached.mean > 0
    assert meter.spent_seconds > 0
    assert not [p for p in psutil.Process().children(recursive=True) if "perplexity" in p.name()]


def test_a_result_is_kept_and_needs_no_program(opened: Open, smallest_model: Path) -> None:
    assert not opened().is_kept(smallest_model, "q8_0", "q8_0")
    first = opened().divergence(smallest_model, "q8_0", "q8_0")
    again = opened()
    assert again.is_kept(smallest_model, "q8_0", "q8_0")
    assert again.divergence(smallest_model, "q8_0", "q8_0") == first
    assert again.spent_seconds == 0


def test_too_little_time_gives_the_least_text(opened: Open, smallest_model: Path) -> None:
    hurried = opened(Effort(4096, seconds=0.001)).divergence(smallest_model, "q4_0", "q4_0")
    assert hurried.tokens == 2 * SCORED_TOKENS
    content = opened(Effort(1024, takes_kept=True))
    assert content.divergence(smallest_model, "q4_0", "q4_0") == hurried
    assert content.spent_seconds == 0
    patient = opened(Effort(1024, seconds=3600)).divergence(smallest_model, "q4_0", "q4_0")
    assert patient.tokens == 5 * SCORED_TOKENS


def test_bad_input_is_one_line(
    opened: Open, smallest_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("four letters " * 30)
    monkeypatch.setattr("sweeper.model.texts.LEAST_BYTES", 1)
    with pytest.raises(
        ConfigError, match=r"model\.text: words\.txt has fewer than 1,024 tokens: give a longer text"
    ):
        opened(texts=Texts((words,), own=True)).divergence(smallest_model)
    other = ModelShape(2, 256, 512, 4, 2, 1024, 2048)
    foreign = write_synthetic(other, tmp_path / "foreign.gguf", "F16", seed=2)
    with pytest.raises(
        EngineRefused, match=r"cannot compare foreign\.gguf with .*: they are different models"
    ):
        opened().divergence(foreign)
    with pytest.raises(ConfigError, match="type_v=q8_1"):
        opened().divergence(smallest_model, "f16", "q8_1")


def test_a_server_without_the_program_beside_it_measures_no_quality(
    tool: Dialect, llama_server: str, tmp_path: Path
) -> None:
    (tmp_path / "llama-server").symlink_to(llama_server)
    alone = dialect_of(program_of(str(tmp_path / "llama-server")), ENVIRONMENT)
    assert perplexity_tool(alone, ENVIRONMENT) is None
    wrapped = replace(tool, program=("docker", "run", *tool.program))
    assert perplexity_tool(wrapped, ENVIRONMENT) is None
    (tmp_path / "llama-perplexity").write_text("#!/bin/sh\necho '--perplexity'\n")
    (tmp_path / "llama-perplexity").chmod(0o755)
    assert perplexity_tool(alone, ENVIRONMENT) is None  # an old one, which cannot compare
