import json
import os
import shutil
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
from sweeper.model.quality import MOST_TOKENS, Divergence, Effort, QualityMeter
from sweeper.model.quality_worker import compared, divergence_of, encoded
from sweeper.model.quantise import quantised
from sweeper.model.synthetic import write_synthetic
from sweeper.model.texts import BUNDLED, Texts
from sweeper.serving import Refused

LITTLE = Effort(tokens=512)
logits = arrays(np.float32, (3, 17), elements=st.floats(-15, 15, width=32))


@given(logits, logits)
def test_divergence_is_that_of_the_textbook(a, b):
    wanted, given_ = log_softmax(a.astype(float), axis=1), log_softmax(b.astype(float), axis=1)
    textbook = (np.exp(wanted) * (wanted - given_)).sum(axis=1)
    assert divergence_of(a, b) == pytest.approx(textbook, abs=2e-5, rel=1e-5)
    # In two bytes, a logit is off by 0.00025, and so is the difference of two of them by twice as much.
    assert compared(encoded(a), encoded(b))[0] == pytest.approx(textbook.mean(), abs=1e-3)


@given(logits, st.floats(-5, 5, width=16))
def test_divergence_from_itself_is_exactly_nothing(a, shift):
    assert (divergence_of(a, a) == 0).all()
    assert divergence_of(a, a + np.float32(shift)) == pytest.approx(0, abs=2e-5)
    assert compared(encoded(a), encoded(a)) == (0.0, 1.0)


def test_storing_predictions_in_two_bytes_costs_nothing_that_a_report_shows():
    draw = np.random.default_rng(5)
    a = draw.normal(0, 4, (256, 32_000)).astype(np.float32)
    b = a + draw.normal(0, 0.02, a.shape).astype(np.float32)  # about as far as Q8_0
    exact = divergence_of(a, b).mean()
    assert compared(encoded(a), encoded(b))[0] == pytest.approx(exact, rel=1e-3)
    assert 1e-5 < exact < 1e-3


def test_the_most_likely_tokens_are_compared():
    a = np.array([[3, 1, 0], [0, 5, 1], [2, 0, 9], [1, 0, 0]], np.float32)
    b = np.array([[2, 1, 0], [6, 5, 1], [2, 0, 3], [0, 0, 8]], np.float32)
    assert compared(encoded(a), encoded(b))[1] == 0.5


def test_predictions_that_are_no_numbers_are_refused():
    with pytest.raises(Refused, match="not finite"):
        encoded(np.array([[0, np.nan]], np.float32))


def test_the_interval_comes_from_the_scatter_of_blocks():
    found = Divergence.of([0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.9, 0.8])
    assert (found.mean, found.tokens) == (pytest.approx(0.25), 1024)
    assert found.high - found.mean == pytest.approx(
        3.182 * 0.12910 / 2, rel=1e-3
    )  # Student, 3 degrees of freedom
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.agreement == pytest.approx(85)
    assert found.agreement_high - found.agreement == pytest.approx(3.182 * 5.7735 / 2, rel=1e-3)


def test_agreement_everywhere_does_not_show_that_no_token_ever_differs():
    assert Divergence.of([0.001, 0.002], [1.0, 1.0]).agreement_low == pytest.approx(100 * (1 - 3 / 512))
    assert Divergence.of([0.0, 0.0], [1.0, 1.0]).agreement_low == 100  # the same predictions


@pytest.mark.parametrize(
    ("low", "high", "bounds", "decided"),
    [
        (0.02, 0.09, (), True),
        (0.02, 0.09, (0.1,), True),
        (0.02, 0.1, (0.1,), True),  # a limit that is reached is kept
        (0.11, 0.2, (0.1,), True),
        (0.09, 0.11, (0.1,), False),
        (0.02, 0.09, (0.1, 0.05), False),
        (0.0, 0.0, (0.0,), True),
    ],
)
def test_an_interval_that_contains_a_bound_decides_nothing(low, high, bounds, decided):
    found = Divergence((low + high) / 2, low, high, 90, 80, 95, 4096)
    assert Effort(bounds=bounds).decides(found) is decided


def test_the_text_doubles_up_to_the_documented_length():
    steps, effort = [0], Effort()
    while effort.next(steps[-1]) > steps[-1]:
        steps.append(effort.next(steps[-1]))
    assert [256 * blocks for blocks in steps[1:]] == [4096, 8192, MOST_TOKENS]
    assert Effort(tokens=100_000).next(0) * 256 >= 100_000  # the user may ask for more
    assert Effort(tokens=1).blocks == 2


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads wait for each other on a busy machine, a hundred times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweeper.machine.usable_threads", lambda: 1)
        yield


@pytest.fixture
def short_text(tmp_path):
    """The beginning of the bundled prose, of about ten blocks."""
    text = tmp_path / "a text.txt"
    text.write_text(BUNDLED[0].read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return Texts((text,), own=True)


@pytest.fixture(scope="module")
def level(nano, root):
    return lambda name: Path(quantised(nano, name, root).file.path)


@pytest.fixture(scope="module")
def meter(nano, root):
    with QualityMeter(nano, root, effort=LITTLE) as running:
        yield running


def test_the_reference_is_nothing_by_definition(meter, nano):
    assert meter.divergence(nano) == Divergence(0.0, 0.0, 0.0, 100.0, 100.0, 100.0, 512)


def test_the_same_weights_in_another_file_are_exactly_nothing(meter, tmp_path):
    twin = write_synthetic(NANO, tmp_path / "twin.gguf", "F16", seed=1)
    assert meter.divergence(twin) == Divergence(0.0, 0.0, 0.0, 100.0, 100.0, 100.0, 512)


def test_fewer_bits_are_further_away_and_agree_less(meter, level):
    found = [meter.divergence(level(name)) for name in ("Q8_0", "Q4_K_M", "Q2_K")]
    means = [each.mean for each in found]
    assert means == sorted(means)
    assert 1e-5 < means[0] < 0.01
    assert means[-1] > 20 * means[0]
    assert all(each.low <= each.mean <= each.high for each in found)
    shares = [each.agreement for each in found]
    assert 100 >= shares[0] > shares[1] > shares[2] > 0
    assert all(each.agreement_low <= each.agreement <= each.agreement_high <= 100 for each in found)


def test_a_smaller_cache_costs_too_and_v_apart_from_k(meter, nano):
    q8, q4 = (meter.divergence(nano, kind, kind).mean for kind in ("q8_0", "q4_0"))
    assert 0 < q8 < q4
    assert 0 < meter.divergence(nano, "f16", "q4_0").mean != meter.divergence(nano, "q4_0", "f16").mean > 0


def test_a_result_is_kept_and_needs_no_engine(meter, nano, level, root):
    first = meter.divergence(level("Q8_0"), "q8_0", "f16")
    with QualityMeter(nano, root, effort=LITTLE) as other:
        again = other.divergence(level("Q8_0"), "q8_0", "f16")
        assert other.pid is None
        assert other.spent_seconds == 0
    assert again == first
    assert meter.spent_seconds > 0


OLD = {"result": {"mean": 0.1, "standard_error": 0.001, "tokens": 256}}  # of versions that read one chunk


@pytest.mark.parametrize("damage", [json.dumps(OLD), '{"result": {"divergences": [0.1]', "[]", ""])
def test_a_damaged_or_older_entry_is_measured_anew(meter, nano, root, damage):
    before = meter.divergence(nano, "q5_0", "q5_0")
    entries = {path: json.loads(path.read_text())["terms"] for path in (root / "quality").glob("*.json")}
    (mine,) = (path for path, terms in entries.items() if terms["type_k"] == "q5_0")
    mine.write_text(damage)
    assert meter.divergence(nano, "q5_0", "q5_0") == before


def test_more_text_is_measured_while_the_interval_contains_a_bound(nano, level, tmp_path, short_text):
    candidate = level("Q4_K_M")
    with QualityMeter(nano, tmp_path, short_text, effort=LITTLE) as little:
        first = little.divergence(candidate)
    before = {path: json.loads(path.read_text())["result"] for path in (tmp_path / "quality").glob("*.json")}
    near = Effort(512, bounds=(first.mean,))
    with QualityMeter(nano, tmp_path, short_text, effort=near) as undecided:
        more = undecided.divergence(candidate)
    assert first.tokens == 512
    assert more.tokens > first.tokens
    assert more.high - more.low < first.high - first.low
    kept = {path: json.loads(path.read_text())["result"] for path in before}
    assert all(kept[path]["divergences"][:2] == old["divergences"] for path, old in before.items())
    with QualityMeter(nano, tmp_path, short_text, effort=LITTLE) as again:  # what is known is never left out
        assert again.divergence(candidate) == more
        assert again.spent_seconds == 0


def test_extending_gives_what_one_run_gives(nano, level, tmp_path):
    candidate = level("Q4_K_M")
    found = []
    for folder, efforts in (("steps", (512, 1024)), ("once", (1024,))):
        for tokens in efforts:
            with QualityMeter(nano, tmp_path / folder, effort=Effort(tokens)) as meter:
                last = meter.divergence(candidate)
        found.append(last)
    assert found[0] == found[1]
    assert found[0].tokens == 1024


def test_the_time_ends_a_measurement_and_more_time_goes_on_with_it(nano, level, tmp_path):
    candidate = level("Q4_K_M")
    with QualityMeter(nano, tmp_path, effort=Effort(1024, seconds=1e-6)) as hurried:
        short = hurried.divergence(candidate)
    assert short.tokens == 512
    with QualityMeter(nano, tmp_path, effort=Effort(1024, seconds=1.5e-6)) as again:
        assert again.divergence(candidate) == short
        assert again.spent_seconds == 0
    with QualityMeter(nano, tmp_path, effort=Effort(1024, seconds=3600, takes_kept=True)) as content:
        assert content.is_kept(candidate)
        assert content.divergence(candidate) == short
        assert not content.is_kept(candidate, "q8_0")
    with QualityMeter(nano, tmp_path, effort=Effort(1024, seconds=3600)) as patient:
        assert not patient.is_kept(candidate)
        assert patient.divergence(candidate).tokens == 1024


def test_a_text_that_ends_is_measured_to_its_end_once(nano, level, tmp_path, short_text):
    with QualityMeter(nano, tmp_path, short_text) as meter:
        found = meter.divergence(level("Q4_K_M"))
        assert 512 <= found.tokens < 4096
    with QualityMeter(nano, tmp_path, short_text) as meter:
        assert meter.divergence(level("Q4_K_M")) == found
        assert meter.spent_seconds == 0


def test_blocks_take_turns_between_the_texts(nano, level, tmp_path):
    def found(*names):
        paths = tuple(tmp_path / name for name in names)
        with QualityMeter(nano, tmp_path, Texts(paths, own=True), effort=LITTLE) as meter:
            meter.divergence(level("Q2_K"))
        entries = [json.loads(path.read_text()) for path in (tmp_path / "quality").glob("*.json")]
        digest = Texts(paths, own=True).sha256()
        (mine,) = (e for e in entries if e["terms"]["text"] == digest)
        return mine["result"]["divergences"]

    for path in BUNDLED:
        shutil.copy(path, tmp_path)
    prose, code = found("prose.txt"), found("code.txt")
    assert found("prose.txt", "code.txt") == [prose[0], code[0]]
    assert found("code.txt", "prose.txt") == [code[0], prose[0]]


def test_bad_input_is_one_line(nano, root, tmp_path, meter):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with (
        QualityMeter(nano, root, Texts((short,), True)) as bad,
        pytest.raises(ConfigError, match="has 9 bytes"),
    ):
        bad.divergence(nano)
    missing = Texts((tmp_path / "no.txt",), True)
    with QualityMeter(nano, root, missing) as bad, pytest.raises(ModelMissingError, match=r"no\.txt"):
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
    with QualityMeter(nano, tmp_path, effort=LITTLE) as meter, pytest.raises(StoreError, match="quality"):
        meter.divergence(nano)


def test_no_worker_holds_a_model_between_comparisons(nano, tmp_path):
    asked = []
    with QualityMeter(nano, tmp_path, make_room=asked.append, effort=LITTLE) as meter:
        meter.divergence(nano)
        assert meter.pid is None
        meter.divergence(nano, "q8_0")
        meter.divergence(nano, "q8_0")  # kept, so nothing is loaded
    assert asked == [nano, nano]


def test_the_references_predictions_disappear_with_the_meter(nano, level, tmp_path):
    with QualityMeter(nano, tmp_path, effort=LITTLE) as meter:
        meter.divergence(level("Q8_0"))
        assert meter._predictions is not None
        file = meter._predictions.file
        assert os.fstat(file.fileno()).st_size > 512 * NANO.vocab_size * 2
    assert file.closed
    assert {path.suffix for path in (tmp_path / "quality").iterdir()} == {".json"}
