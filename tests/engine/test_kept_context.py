"""A context that took long to fill is kept and restored: the same context, in less time, and nothing left behind."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.engine.worker import Worker
from sweeper.parameters import CONTEXT_KEYS, MODEL_KEYS
from sweeper.records import Configuration

GOOD = Configuration(n_ctx=512, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1)
DEPTH = 100


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker()


def load(
    worker: Worker,
    model: Path,
    kept: Path | None = None,
    configuration: Configuration = GOOD,
    *,
    anew: bool = False,
    keep_from_seconds: float = 0.0,
) -> None:
    wanted = configuration.to_dict()
    worker.load(
        str(model) if anew or worker.model is None else None,
        {k: wanted[k] for k in MODEL_KEYS if k != "quant"},
        {k: wanted[k] for k in CONTEXT_KEYS},
        None if kept is None else str(kept),
        keep_from_seconds,
    )


def new_context(worker: Worker, model: Path, kept: Path | None, **changes) -> None:
    """A context that shares nothing with the one before."""
    worker.context_params = {}
    load(worker, model, kept, GOOD.with_(**changes))


def tokens_seen(worker: Worker) -> list[list[int]]:
    """Lengths of what is processed from now on."""
    seen: list[list[int]] = []
    process = type(worker)._process
    worker._process = lambda tokens, *tell: (seen.append(len(tokens)), process(worker, tokens, *tell))[1]
    return seen


def logits_of_next(worker: Worker) -> list[float]:
    """What the model makes of one given token on top of its context."""
    one = (ctypes.c_int32 * 1)(7)
    assert worker.api.llama_decode(worker.context, worker.api.llama_batch_get_one(one, 1)) == 0
    logits = worker.api.llama_get_logits(worker.context)
    return [logits[i] for i in range(worker.n_vocab)]


@pytest.fixture(autouse=True)
def own_process(worker: Worker):
    yield
    worker.__dict__.pop("_process", None)


def test_a_restored_context_is_the_one_that_was_filled(worker, smallest_model, tmp_path):
    kept = tmp_path / "kept"
    kept.touch()
    load(worker, smallest_model, kept, anew=True)
    worker._go_to_depth(DEPTH)
    assert kept.stat().st_size > 0
    filled = logits_of_next(worker)
    new_context(worker, smallest_model, kept, n_ubatch=32, n_ctx=1024)
    seen = tokens_seen(worker)
    worker._go_to_depth(DEPTH)
    assert seen == []
    restored = logits_of_next(worker)
    assert restored == pytest.approx(filled, abs=1e-4)
    assert max(filled) - min(filled) > 0.1  # else anything would be equal
    # On top of another context the same token means something else.
    new_context(worker, smallest_model, None)
    worker._go_to_depth(DEPTH)
    assert logits_of_next(worker) != pytest.approx(filled, abs=1e-4)


def test_windows_run_on_a_restored_context_and_leave_it_at_its_depth(worker, smallest_model, tmp_path):
    kept = tmp_path / "kept"
    kept.touch()
    load(worker, smallest_model, kept, anew=True)
    worker.decode(8, DEPTH, 0.0, 1.0)
    new_context(worker, smallest_model, kept)
    seen = tokens_seen(worker)
    assert worker.prefill(16, DEPTH, 0.0, 1.0)["tokens"] == 16
    assert worker.decode(8, DEPTH, 0.0, 1.0)["tokens"] == 8
    assert seen == [16]
    assert worker.api.llama_memory_seq_pos_max(worker.memory_handle, 0) == DEPTH - 1


@pytest.mark.parametrize("depth", [DEPTH - 1, DEPTH + 50])
def test_another_depth_is_filled_anew(worker, smallest_model, tmp_path, depth):
    kept = tmp_path / "kept"
    kept.touch()
    load(worker, smallest_model, kept, anew=True)
    worker._go_to_depth(DEPTH)
    new_context(worker, smallest_model, kept)
    seen = tokens_seen(worker)
    worker._go_to_depth(depth)
    assert seen == [depth]
    assert worker.api.llama_memory_seq_pos_max(worker.memory_handle, 0) == depth - 1


@pytest.mark.parametrize("content", [b"", b"no context at all", b"\0" * 4096])
def test_what_is_no_kept_context_is_filled_anew_and_written_over(worker, smallest_model, tmp_path, content):
    kept = tmp_path / "kept"
    kept.write_bytes(content)
    load(worker, smallest_model, kept, anew=True)
    seen = tokens_seen(worker)
    worker._go_to_depth(DEPTH)
    assert seen == [DEPTH]
    new_context(worker, smallest_model, kept)
    worker._go_to_depth(DEPTH)
    assert seen == [DEPTH]


def test_a_context_of_another_layout_is_refused_by_llama_cpp_and_filled_anew(
    worker, smallest_model, tmp_path
):
    kept = tmp_path / "kept"
    kept.touch()
    load(worker, smallest_model, kept, anew=True)
    worker._go_to_depth(DEPTH)
    new_context(worker, smallest_model, kept, type_k="q8_0")
    seen = tokens_seen(worker)
    worker._go_to_depth(DEPTH)
    assert seen == [DEPTH]
    assert worker.api.llama_memory_seq_pos_max(worker.memory_handle, 0) == DEPTH - 1


def test_what_filled_quickly_and_what_would_fill_the_disk_is_not_kept(
    worker, smallest_model, tmp_path, monkeypatch
):
    kept = tmp_path / "kept"
    kept.touch()
    load(worker, smallest_model, kept, anew=True, keep_from_seconds=60.0)
    worker._go_to_depth(DEPTH)
    assert kept.stat().st_size == 0
    monkeypatch.setattr("sweeper.engine.worker.MOST_OF_FREE_DISK", 0.0)
    new_context(worker, smallest_model, kept)
    worker._go_to_depth(DEPTH)
    assert kept.stat().st_size == 0


def test_a_file_that_cannot_be_used_costs_nothing_but_time(worker, smallest_model, tmp_path):
    load(worker, smallest_model, tmp_path / "none" / "kept", anew=True)
    assert worker.decode(8, DEPTH, 0.0, 1.0)["tokens"] == 8


def test_a_model_that_cannot_forget_a_part_is_restored_between_rounds(worker, smallest_model, tmp_path):
    """Recurrent models say no to ``llama_memory_seq_rm``."""

    class Recurrent:
        def __getattr__(self, name):
            return (lambda *_: False) if name == "llama_memory_seq_rm" else getattr(api, name)

    api, kept = worker.api, tmp_path / "kept"
    kept.touch()
    load(worker, smallest_model, kept, anew=True)
    worker.api = Recurrent()
    try:
        seen = tokens_seen(worker)
        worker.decode(4, DEPTH, 0.0, 1.0)
        worker.decode(4, DEPTH, 0.0, 1.0)
        assert seen == [DEPTH]
        assert worker.api.llama_memory_seq_pos_max(worker.memory_handle, 0) == DEPTH - 1
    finally:
        worker.api = api


def test_the_engine_keeps_contexts_without_a_name_and_beyond_its_worker(smallest_model, tmp_path):
    with LlamaCppEngine({None: smallest_model}, keep_in=tmp_path, keep_from_seconds=0.0) as engine:
        sizes = {}
        for changes in ({}, {"type_k": "q8_0"}, {"use_mmap": False}, {"n_ubatch": 32}):
            engine.load(GOOD.with_(**changes))
            assert engine.decode(4, DEPTH, 0.0, 1.0).tokens == 4
            sizes[len(engine._kept)] = [os.fstat(f.fileno()).st_size for f in engine._kept.values()]
        assert list(tmp_path.iterdir()) == []
        assert len(engine._kept) == 2  # one of each type of cache
        assert all(size > 0 for size in sizes[2])
        descriptors = [f.fileno() for f in engine._kept.values()]
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_without_a_folder_or_at_depth_0_nothing_is_kept(smallest_model, tmp_path):
    for keep_in, depth in ((None, DEPTH), (tmp_path / "not there", DEPTH), (tmp_path, 0)):
        with LlamaCppEngine({None: smallest_model}, keep_in=keep_in, keep_from_seconds=0.0) as engine:
            engine.load(GOOD)
            assert engine.decode(4, depth, 0.0, 1.0).tokens == 4
            assert sum(os.fstat(f.fileno()).st_size for f in engine._kept.values()) == 0
