"""Speculative decoding on a real llama-server: a model drafts for itself, a stranger does, and a wrong vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sharp_models import write_sharp

from sweeper.client import llama_log
from sweeper.client.llama_log import loads
from sweeper.client.prompt_file import bundled_prompts
from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.errors import EngineRefused, UsageError
from sweeper.model.forecast import HOST, Forecaster, of_draft
from sweeper.model.shapes import ModelShape
from sweeper.records import Configuration, DraftModel, Drafts, ModelFile

SHAPE = ModelShape(
    n_layer=2,
    embedding_length=256,
    feed_forward_length=512,
    head_count=4,
    head_count_kv=2,
    vocab_size=512,
    n_ctx_train=2048,
)
PLAIN = Configuration(n_ctx=1024, n_batch=256, n_ubatch=256, n_threads=1, n_threads_batch=1)
DRAFTED = PLAIN.with_(spec_type="draft-simple")


def as_draft(path: Path, kind: str = "draft-simple") -> DraftModel:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return DraftModel(ModelFile("F16", str(path), digest, path.stat().st_size), kind)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharp(SHAPE, tmp_path_factory.mktemp("models") / "model.gguf", seed=1)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of another seed, with the same vocabulary."""
    return write_sharp(SHAPE, tmp_path_factory.mktemp("models") / "stranger.gguf", seed=2)


@pytest.fixture
def engine(llama_server: str, model: Path) -> Iterator[LlamaServerEngine]:
    with LlamaServerEngine(llama_server, {None: model}) as engine:
        engine.use_texts(bundled_prompts().prompts)
        yield engine


def drafts_of(engine: LlamaServerEngine, windows: int = 4) -> Drafts:
    """The drafts of some windows, each after another text."""
    found = []
    for _ in range(windows):
        engine.prefill(32, 0, 0.0, 10.0)
        run = engine.decode(48, 0, 0.1, 60.0)
        assert run.drafts is not None
        found.append(run.drafts)
    return Drafts(sum(d.drafted for d in found), sum(d.accepted for d in found))


def test_a_model_accepts_its_own_drafts_with_the_sampling_of_the_server(
    engine: LlamaServerEngine, model: Path
) -> None:
    engine.use_draft(as_draft(model))
    report = engine.load(DRAFTED)
    assert report.in_force["spec_type"] == "draft-simple"
    drafts = drafts_of(engine)
    assert drafts.drafted > 100
    assert drafts.accepted / drafts.drafted >= 0.8


def test_a_model_refuses_the_drafts_of_random_weights(engine: LlamaServerEngine, stranger: Path) -> None:
    engine.use_draft(as_draft(stranger))
    engine.load(DRAFTED)
    drafts = drafts_of(engine)
    assert drafts.drafted > 100
    assert drafts.accepted / drafts.drafted <= 0.05


def test_what_is_read_back_is_the_models_and_not_the_drafts(engine: LlamaServerEngine, model: Path) -> None:
    wanted = PLAIN.with_(type_k="q8_0")
    alone = engine.load(wanted).in_force
    assert "spec_type" not in alone
    engine.use_draft(as_draft(model))
    beside = engine.load(wanted.with_(spec_type="draft-simple")).in_force
    assert beside == {**alone, "spec_type": "draft-simple"}


def test_a_draft_takes_memory(engine: LlamaServerEngine, model: Path) -> None:
    engine.use_draft(as_draft(model))
    alone, beside = (engine.load(c).memory_mib for c in (PLAIN, DRAFTED))
    assert alone is not None
    assert beside is not None
    assert beside - alone > 1  # its cache and its compute buffers, at least


def test_the_forecast_counts_the_draft_as_the_server_loads_it(engine: LlamaServerEngine, model: Path) -> None:
    configuration = DRAFTED.with_(type_k="q8_0", type_v="q8_0", n_parallel=2)
    engine.use_draft(as_draft(model))
    engine.load(configuration)
    assert engine._running is not None
    found = [llama_log.buffers(log)["KV"]["CPU"] for log in loads(engine._running.log.read_text(), 2)]
    with Forecaster() as forecaster:
        alone = forecaster.forecast(model, configuration)
        of_its_draft = forecaster.forecast(model, of_draft(configuration))
    assert found == pytest.approx([alone.kv_mib[HOST], of_its_draft.kv_mib[HOST]], rel=0.02)
    assert found[1] > found[0]  # the draft's cache is not quantised
    both = alone.beside(of_its_draft)
    assert both.kv_mib[HOST] == pytest.approx(sum(found), rel=0.02)
    assert both.weights_mib[HOST] == pytest.approx(2 * alone.weights_mib[HOST])
    assert both.needed_mib() == pytest.approx(alone.needed_mib() + of_its_draft.needed_mib())
    assert both.free_mib == alone.free_mib


def test_the_draft_is_loaded_only_where_a_configuration_uses_it(
    engine: LlamaServerEngine, model: Path
) -> None:
    engine.use_draft(as_draft(model))
    for configuration, drafts in ((PLAIN, None), (PLAIN.with_(spec_type="ngram-mod"), Drafts(0, 0))):
        engine.load(configuration)
        assert engine._running is not None
        assert "loading draft model" not in engine._running.log.read_text()
        run = engine.decode(8, 0, 0.0, 10.0)
        assert run.drafts is None if drafts is None else run.drafts is not None


def test_a_draft_of_another_vocabulary_never_measures_as_speculation(
    engine: LlamaServerEngine, tmp_path: Path
) -> None:
    """sweeper refuses such a file before a sweep. If it comes this far, the server itself would just not draft."""
    other = write_sharp(replace(SHAPE, vocab_size=1024), tmp_path / "other.gguf", seed=1)
    engine.use_draft(as_draft(other))
    with pytest.raises(
        EngineRefused, match="llama-server does not speculate with draft-simple: draft model vocab"
    ):
        engine.load(DRAFTED)
    assert engine.load(PLAIN).reloaded
    assert engine.decode(8, 0, 0.0, 10.0).tokens > 0


def test_several_users_draft_too(engine: LlamaServerEngine, model: Path) -> None:
    engine.use_draft(as_draft(model))
    engine.load(DRAFTED.with_(n_parallel=2))
    run = engine.serve(2, 64, 16, 0, 0.5, 60.0)
    assert run.drafts is not None
    assert run.drafts.drafted > 20
    assert run.drafts.accepted / run.drafts.drafted >= 0.8


def test_one_user_goes_on_with_real_text_at_depth(
    engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(PLAIN)
    ask, seen = engine._ask, []

    def recorded(running, prompt, new_tokens, seconds, *, keep):
        timings = ask(running, prompt, new_tokens, seconds, keep=keep)
        seen.append((tuple(prompt), running.seed, timings))
        return timings

    monkeypatch.setattr(engine, "_ask", recorded)
    windows = []
    for depth in (0, 0, 64):
        engine.prefill(16, depth, 0.0, 10.0)
        seen.clear()
        for _ in range(2):
            engine.decode(4, depth, 0.0, 10.0)
        fill, *rounds = seen
        assert fill[0] == rounds[0][0][:-1]  # the text is processed before the windows, and once
        assert {timings.prompt_tokens for *_, timings in rounds} == {1}
        assert len({prompt for prompt, *_ in rounds}) == 1
        assert len({seed for _, seed, _ in rounds[-2:]}) == 2  # each round goes on differently
        windows.append(rounds[0][0])
    assert len({*windows}) == 3  # another text after each prompt
    assert windows[2][:64] == tuple(engine._prompt(engine._running, 64))
    assert engine._running is not None
    texts = engine._running.texts
    assert texts is not None
    assert list(windows[2][64:]) in [text[-len(windows[2][64:]) :] for text in texts]


def test_one_user_sends_prompts_of_the_users_own(llama_server: str, model: Path) -> None:
    with LlamaServerEngine(llama_server, {None: model}, prompts=("tell me", "x " * 8000)) as engine:
        engine.load(PLAIN)
        assert engine.decode(8, 0, 0.0, 10.0).tokens > 0
        assert engine._running is not None
        assert engine._running.texts is not None
        assert len(engine._running.texts) == 1  # the other one does not fit


@pytest.mark.parametrize("word", ["--model-draft", "-md", "--spec-draft-model"])
def test_the_draft_is_named_by_its_key(llama_server: str, model: Path, word: str) -> None:
    arguments = (word, str(model))
    with (
        LlamaServerEngine(llama_server, {None: model}, arguments=arguments) as engine,
        pytest.raises(UsageError, match=rf"engine\.arguments: sweeper sets {word} itself: set model\.draft"),
    ):
        engine.load(PLAIN)


def test_a_build_lists_its_kinds(engine: LlamaServerEngine) -> None:
    listed = engine.dialect.speculation()
    assert {"none", "draft-simple", "ngram-mod"} <= listed
