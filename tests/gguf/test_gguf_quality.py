import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nano_models import NANO
from scipy.special import log_softmax

from sweeper.errors import ConfigError, EngineRefused, ModelFileError, ModelMissingError, StoreError
from sweeper.model.quality import BUNDLED_TEXT, QualityMeter
from sweeper.model.quality_worker import divergence_of
from sweeper.model.quantise import quantised
from sweeper.model.synthetic import write_synthetic

logits = arrays(np.float32, (3, 17), elements=st.floats(-30, 30, width=32))


@given(logits, logits)
def test_divergence_is_that_of_the_textbook(a, b):
    wanted, given_ = log_softmax(a.astype(float), axis=1), log_softmax(b.astype(float), axis=1)
    textbook = (np.exp(wanted) * (wanted - given_)).sum(axis=1)
    assert divergence_of(a, b) == pytest.approx(textbook, abs=2e-5, rel=1e-5)


@given(logits, st.floats(-5, 5, width=16))
def test_divergence_from_itself_is_exactly_nothing(a, shift):
    assert (divergence_of(a, a) == 0).all()
    assert divergence_of(a, a + np.float32(shift)) == pytest.approx(0, abs=2e-5)


@pytest.fixture(scope="module")
def level(nano, root):
    return lambda name: Path(quantised(nano, name, root).file.path)


@pytest.fixture(scope="module")
def meter(nano, root):
    with QualityMeter(nano, root) as running:
        yield running


def test_a_model_against_itself_is_exactly_nothing(meter, nano):
    result = meter.divergence(nano)
    assert (result.mean, result.standard_error) == (0.0, 0.0)
    assert result.tokens == 256


def test_fewer_bits_are_further_away(meter, level):
    means = [meter.divergence(level(name)).mean for name in ("Q8_0", "Q4_K_M", "Q2_K")]
    assert means == sorted(means)
    assert 1e-5 < means[0] < 0.01
    assert means[-1] > 20 * means[0]


def test_a_smaller_cache_costs_too_and_v_apart_from_k(meter, nano):
    q8, q4 = (meter.divergence(nano, kind, kind).mean for kind in ("q8_0", "q4_0"))
    assert 0 < q8 < q4
    assert 0 < meter.divergence(nano, "f16", "q4_0").mean != meter.divergence(nano, "q4_0", "f16").mean > 0


def test_a_result_is_kept_and_needs_no_engine(meter, nano, level, root):
    first = meter.divergence(level("Q8_0"), "q8_0", "f16")
    with QualityMeter(nano, root) as other:
        again = other.divergence(level("Q8_0"), "q8_0", "f16")
        assert other.pid is None
    assert again == first


def test_a_damaged_entry_is_measured_anew(meter, nano, root):
    before = meter.divergence(nano, "q5_0", "q5_0")
    kept = [json.loads(path.read_text()) for path in (root / "quality").glob("*.json")]
    assert [entry["result"]["mean"] for entry in kept if entry["terms"]["type_k"] == "q5_0"] == [before.mean]
    for path in (root / "quality").glob("*.json"):
        if json.loads(path.read_text())["terms"]["type_k"] == "q5_0":
            path.write_text('{"result": {"mean": 0}}')
    assert meter.divergence(nano, "q5_0", "q5_0") == before


def test_a_text_of_the_users_is_another_result(nano, level, root, tmp_path):
    text = tmp_path / "mon texte.txt"
    text.write_text("".join(reversed(BUNDLED_TEXT.read_text())))
    with (
        QualityMeter(nano, root, text=text) as own,
        QualityMeter(nano, root) as bundled,
    ):
        assert own.divergence(level("Q4_K_M")).mean != bundled.divergence(level("Q4_K_M")).mean


def test_the_bundled_text_is_long_enough_for_real_vocabularies():
    # A token of a real vocabulary has about 4 letters; the synthetic ones have fewer.
    assert len(BUNDLED_TEXT.read_text()) / 4.5 > 2 * 512


def test_bad_input_is_one_line(nano, root, tmp_path, meter):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with QualityMeter(nano, root, text=short) as bad, pytest.raises(ConfigError, match="of 512 tokens"):
        bad.divergence(nano)
    with QualityMeter(nano, root, text=tmp_path / "no.txt") as bad, pytest.raises(ModelMissingError):
        bad.divergence(nano)
    with pytest.raises(ConfigError, match=r"type_k=q8_1: choose from"):
        meter.divergence(nano, "q8_1")
    with pytest.raises(ModelMissingError):
        meter.divergence(tmp_path / "no.gguf")
    foreign = write_synthetic(replace(NANO, vocab_size=2048), tmp_path / "foreign.gguf")
    with pytest.raises(EngineRefused, match=r"foreign\.gguf with nano\.gguf: its vocabulary has 2048"):
        meter.divergence(foreign)
    (tmp_path / "junk.gguf").write_bytes(b"junk, not a model")
    with pytest.raises(ModelFileError):
        meter.divergence(tmp_path / "junk.gguf")


def test_a_folder_that_cannot_be_written_is_named(nano, tmp_path):
    (tmp_path / "quality").write_text("a file where a folder should be")
    with QualityMeter(nano, tmp_path) as meter, pytest.raises(StoreError, match="quality"):
        meter.divergence(nano)


def test_no_worker_holds_a_model_between_comparisons(nano, tmp_path):
    asked = []
    with QualityMeter(nano, tmp_path, make_room=asked.append) as meter:
        meter.divergence(nano)
        assert meter.pid is None
        meter.divergence(nano, "q8_0")
        meter.divergence(nano, "q8_0")  # kept, so nothing is loaded
    assert asked == [nano, nano]


def test_the_references_predictions_disappear_with_the_meter(nano, level, tmp_path):
    with QualityMeter(nano, tmp_path) as meter:
        meter.divergence(level("Q8_0"))
        assert meter._predictions is not None
        file, _ = meter._predictions
        assert os.fstat(file.fileno()).st_size > 256 * NANO.vocab_size * 4
    assert file.closed
    assert [path.suffix for path in (tmp_path / "quality").iterdir()] == [".json"]
