"""Runs models over texts and compares their predictions: `python -m sweeper.model.quality_worker`.

Requests: ``reference`` (store a model's predictions) and ``compare`` (compare another model's with them). A text is
read in blocks, each like one chunk of llama.cpp's perplexity tool: 512 tokens, of which the last 256 count, so each
prediction has at least 256 tokens of context. The blocks of a text overlap by half, so each of its tokens counts once.

Predictions are logits below the largest one of their row, in steps of 32/65,535 nats. They take two bytes instead of
four, and the rounding adds 1e-8 nats to a divergence. A token that is 32 nats less likely than the first one counts as
exactly that much less likely, in both models.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sweeper.model.ggml_types import CACHE_TYPES
from sweeper.model.llama_library import Library
from sweeper.model.quality import CHUNK_TOKENS, LEAST_BLOCKS, SCORED_TOKENS
from sweeper.model.texts import interleaved
from sweeper.serving import Refused, serve

# 4 MiB of logits with a vocabulary of 32,000 tokens, which fit in the processor's cache.
_ROWS_AT_ONCE = 32
_MMAP = 1  # LLAMA_LOAD_MODE_MMAP
_STEP_NATS = np.float32(32 / 65_535)
# Of the disk: the predictions of 4,096 tokens with a vocabulary of 262,144 are 2 GiB.
_MOST_BYTES = 4 << 30
_MOST_OF_FREE_DISK = 0.5

Logits = NDArray[np.float32]
Codes = NDArray[np.uint16]
Tokens = NDArray[np.int32]


class QualityWorker:
    """Holds one model at a time."""

    def __init__(self) -> None:
        self._llama = Library()
        self._n_vocab = 0

    def reference(
        self,
        model: str,
        texts: Sequence[str],
        file: str,
        available: int,
        first: int,
        blocks: int,
        least: int,
        seconds: float,
        threads: int,
        n_gpu_layers: int,
    ) -> dict[str, Any]:
        """Write the model's predictions of blocks ``first`` to ``blocks`` to ``file``.

        The first call, with ``available=0``, also writes the tokens of all blocks. The call ends before a block that
        would exceed ``seconds``, but not before ``least`` blocks.

        Returns:
            ``blocks``: the number that the file has now; ``available``: the number that texts and disk allow;
            ``n_vocab``: the size of the vocabulary.
        """
        self._load(model, n_gpu_layers)
        cut = self._blocks_of(texts)
        try:
            with open(file, "r+b") as stream:
                if not available:
                    available = min(len(cut), _room(stream, self._n_vocab))
                    np.array(cut[:available], dtype=np.int32).tofile(stream)
                wanted = cut[first : min(blocks, available)] if available >= LEAST_BLOCKS else []
                done = first
                for codes in _in_time(self._codes(wanted, "f16", "f16", threads), least, seconds):
                    stream.seek(_place(available, done, self._n_vocab))
                    codes.tofile(stream)
                    done += 1
        except OSError as error:
            raise Refused(f"its predictions cannot be stored: {error.strerror or error}") from None
        return {"blocks": done, "available": available, "n_vocab": self._n_vocab}

    def compare(
        self,
        model: str,
        type_k: str,
        type_v: str,
        file: str,
        available: int,
        n_vocab: int,
        first: int,
        blocks: int,
        least: int,
        seconds: float,
        threads: int,
        n_gpu_layers: int,
    ) -> dict[str, Any]:
        """Compare the model's predictions of blocks ``first`` to ``blocks`` with those in ``file``.

        It stops as `reference` does.

        Returns:
            ``blocks``: for each block the mean KL divergence in nats/token, and the share of tokens of which both
            models predict the same most likely one.
        """
        self._load(model, n_gpu_layers)
        if self._n_vocab != n_vocab:
            raise Refused(
                f"its vocabulary has {self._n_vocab} tokens, the reference's {n_vocab}: they are different models"
            )
        found: list[tuple[float, float]] = []
        with open(file, "rb") as stream:
            shape = (available, CHUNK_TOKENS)
            cut = np.fromfile(stream, np.int32, available * CHUNK_TOKENS).reshape(shape)[first:blocks]
            for codes in _in_time(self._codes(cut, type_k, type_v, threads), least, seconds):
                stream.seek(_place(available, first + len(found), n_vocab))
                expected = np.fromfile(stream, np.uint16, SCORED_TOKENS * n_vocab).reshape(codes.shape)
                found.append(compared(expected, codes))
        return {"blocks": found}

    def _load(self, path: str, n_gpu_layers: int) -> None:
        api = self._llama.api
        params = api.llama_model_default_params()
        params.n_gpu_layers, params.load_mode = n_gpu_layers, _MMAP
        self._llama.load(path, params, (path, n_gpu_layers))
        self._n_vocab = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._llama.model)))

    def _blocks_of(self, texts: Sequence[str]) -> list[Tokens]:
        """The blocks of all texts, one of each text in turn."""
        tokens = [self._tokens(text) for text in texts]
        starts = (range(0, len(of) - CHUNK_TOKENS + 1, SCORED_TOKENS) for of in tokens)
        blocks = [[of[i : i + CHUNK_TOKENS] for i in at] for of, at in zip(tokens, starts, strict=True)]
        return [self._begun(block) for block in interleaved(blocks)]

    def _tokens(self, text: str) -> Tokens:
        api = self._llama.api
        raw = text.encode()
        room = (api.llama_token * (len(raw) + 8))()
        vocabulary = api.llama_model_get_vocab(self._llama.model)
        count = api.llama_tokenize(vocabulary, raw, len(raw), room, len(room), False, False)
        if count < 0:
            raise Refused("the text could not be tokenised")
        return np.array(room[:count], dtype=np.int32)

    def _begun(self, block: Tokens) -> Tokens:
        """The block with the model's begin token in place of its first one, if the model has one."""
        api = self._llama.api
        vocabulary = api.llama_model_get_vocab(self._llama.model)
        if not api.llama_vocab_get_add_bos(vocabulary):
            return block
        return np.concatenate(([api.llama_vocab_bos(vocabulary)], block[1:])).astype(np.int32)

    def _codes(
        self, blocks: Sequence[Tokens] | Tokens, type_k: str, type_v: str, threads: int
    ) -> Iterator[Codes]:
        """The predictions of each block's last 256 tokens, shape (256, vocabulary)."""
        api = self._llama.api
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = CHUNK_TOKENS
        params.n_outputs_max = SCORED_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1  # a quantised V cache needs it, and all runs must be alike
        params.type_k, params.type_v = CACHE_TYPES[type_k].number, CACHE_TYPES[type_v].number
        context = self._llama.new_context(params)
        batch = api.llama_batch_init(CHUNK_TOKENS, 0, 1)
        try:
            batch.n_tokens = CHUNK_TOKENS
            for block in blocks:
                api.llama_memory_clear(api.llama_get_memory(context), True)
                for i, token in enumerate(block.tolist()):
                    batch.token[i], batch.pos[i] = token, i
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                    batch.logits[i] = i >= CHUNK_TOKENS - SCORED_TOKENS
                status = api.llama_decode(context, batch)
                if status != 0:
                    raise Refused(self._llama.log.reason(f"llama_decode answered {status}"))
                yield encoded(
                    np.ctypeslib.as_array(api.llama_get_logits(context), shape=(SCORED_TOKENS, self._n_vocab))
                )
        finally:
            api.llama_batch_free(batch)
            api.llama_free(context)


def _in_time(blocks: Iterator[Codes], least: int, seconds: float) -> Iterator[Codes]:
    """The blocks that ``seconds`` allow, by the time of the last one; at least ``least``."""
    started = last = time.monotonic()
    for done, codes in enumerate(blocks, 1):
        yield codes
        now = time.monotonic()
        if done >= least and 2 * now - last > started + seconds:
            return
        last = now


def _room(stream: IO[bytes], n_vocab: int) -> int:
    """The number of blocks whose predictions may lie on the disk. Raises Refused if that is too few."""
    disk = os.fstatvfs(stream.fileno())
    most = min(_MOST_BYTES, _MOST_OF_FREE_DISK * disk.f_bavail * disk.f_frsize)
    each = SCORED_TOKENS * n_vocab * np.dtype(np.uint16).itemsize
    if most < LEAST_BLOCKS * each:
        raise Refused(
            f"its predictions take {LEAST_BLOCKS * each / 2**20:,.0f} MiB, and no more than half of the free disk "
            f"({most / 2**20:,.0f} MiB) may be used for them"
        )
    return int(most / each)


def _place(available: int, block: int, n_vocab: int) -> int:
    """The place of a block's predictions in the file, in bytes."""
    tokens = available * CHUNK_TOKENS * np.dtype(np.int32).itemsize
    return tokens + block * SCORED_TOKENS * n_vocab * np.dtype(np.uint16).itemsize


def encoded(logits: Logits) -> Codes:
    """Each row's distances from its largest logit, in steps. Raises Refused if a logit is not a finite number."""
    found = np.empty(logits.shape, np.uint16)
    for rows in _parts(len(logits)):
        part = logits[rows]
        if not np.isfinite(part).all():
            raise Refused("its predictions are not finite numbers: the file is damaged")
        below = (part.max(axis=1, keepdims=True) - part) / _STEP_NATS
        found[rows] = np.minimum(np.rint(below), np.float32(65_535))
    return found


def compared(expected: Codes, codes: Codes) -> tuple[float, float]:
    """The mean divergence of a block in nats/token, and the share of its rows with the same most likely token."""
    parts = _parts(len(codes))
    each = [divergence_of(_decoded(expected[rows]), _decoded(codes[rows])) for rows in parts]
    same = [expected[rows].argmin(axis=1) == codes[rows].argmin(axis=1) for rows in parts]
    # Rounding can give -1e-9 instead of nearly 0.
    return max(0.0, float(np.concatenate(each).mean())), float(np.concatenate(same).mean())


def _decoded(codes: Codes) -> Logits:
    return codes.astype(np.float32) * -_STEP_NATS


def _parts(rows: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, rows, _ROWS_AT_ONCE)]


def divergence_of(expected: Logits, scored: Logits) -> NDArray[np.float64]:
    """KL(expected ‖ scored) of each row of logits, in nats; exactly 0 for equal rows.

    With p = exp(a) / A, the divergence is Σ exp(a)·(a − b) / A − ln A + ln B. Single precision is enough for the terms
    (1e-9 nats); the sums use double precision.
    """
    a = expected - expected.max(axis=1, keepdims=True)
    b = scored - scored.max(axis=1, keepdims=True)
    weights = np.exp(a)
    total = weights.sum(axis=1, dtype=np.float64)
    total_scored = np.exp(b).sum(axis=1, dtype=np.float64)
    terms = weights * (a - b)
    result: NDArray[np.float64] = terms.sum(axis=1, dtype=np.float64) / total
    result += np.log(total_scored) - np.log(total)
    return result


if __name__ == "__main__":
    worker = QualityWorker()
    serve({"reference": worker.reference, "compare": worker.compare})
