"""Runs models over a text and compares their predictions: `python -m sweeper.model.quality_worker`.

Requests: ``reference`` (store a model's logits) and ``divergence`` (compare another model with them). The protocol is
that of one chunk of llama.cpp's perplexity tool. It has 512 tokens, and the last 256 count, so each prediction has at
least 256 tokens of context.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper.model.ggml_types import CACHE_TYPES
from sweeper.model.llama_library import Library
from sweeper.model.quality import CHUNK_TOKENS
from sweeper.serving import Refused, serve

SCORED_TOKENS = 256
# 4 MiB of logits with a vocabulary of 32,000 tokens, which fit in the processor's cache.
_ROWS_AT_ONCE = 32
_MMAP = 1  # LLAMA_LOAD_MODE_MMAP

Logits = NDArray[np.float32]


class QualityWorker:
    """Holds one model at a time."""

    def __init__(self) -> None:
        self._llama = Library()
        self._n_vocab = 0

    def reference(
        self, model: str, text: str, reference: str, threads: int, n_gpu_layers: int
    ) -> dict[str, Any]:
        """Write the model's logits, shape (256, vocabulary), and the text's tokens to the file ``reference``.

        Logits are float32, so a model compared with itself gives exactly 0. The answer is
        the number of tokens; with fewer than 512, nothing is written.
        """
        self._load(model, n_gpu_layers)
        tokens = self._first_chunk(Path(text).read_text(encoding="utf-8", errors="replace"))
        if len(tokens) < CHUNK_TOKENS:
            return {"tokens": len(tokens)}
        with open(reference, "wb") as stream:
            np.save(stream, tokens)
            np.save(stream, self._scored(tokens, "f16", "f16", threads))
        return {"tokens": len(tokens)}

    def divergence(
        self, model: str, type_k: str, type_v: str, reference: str, threads: int, n_gpu_layers: int
    ) -> dict[str, Any]:
        """Mean KL divergence per token of the model from the reference's logits, in nats."""
        self._load(model, n_gpu_layers)
        with open(reference, "rb") as stream:
            tokens, expected = np.load(stream), np.load(stream)
        if expected.shape != (SCORED_TOKENS, self._n_vocab):
            raise Refused(
                f"its vocabulary has {self._n_vocab} tokens, the reference's {expected.shape[1]}: "
                "they are different models"
            )
        scored = self._scored(tokens, type_k, type_v, threads)
        parts = range(0, SCORED_TOKENS, _ROWS_AT_ONCE)
        each = np.concatenate(
            [divergence_of(expected[i : i + _ROWS_AT_ONCE], scored[i : i + _ROWS_AT_ONCE]) for i in parts]
        )
        return {
            "mean": max(0.0, float(each.mean())),  # rounding can give -1e-9 instead of nearly 0
            "standard_error": float(each.std(ddof=1) / np.sqrt(len(each))),
            "tokens": len(each),
        }

    def _load(self, path: str, n_gpu_layers: int) -> None:
        api = self._llama.api
        params = api.llama_model_default_params()
        params.n_gpu_layers, params.load_mode = n_gpu_layers, _MMAP
        self._llama.load(path, params, (path, n_gpu_layers))
        self._n_vocab = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._llama.model)))

    def _first_chunk(self, text: str) -> NDArray[np.int32]:
        """At most 512 tokens of the text, beginning with the model's begin token if it has one."""
        api = self._llama.api
        vocabulary = api.llama_model_get_vocab(self._llama.model)
        raw = text.encode()
        room = (api.llama_token * (len(raw) + 8))()
        count = api.llama_tokenize(vocabulary, raw, len(raw), room, len(room), False, False)
        if count < 0:
            raise Refused("the text could not be tokenised")
        begin = [api.llama_vocab_bos(vocabulary)] if api.llama_vocab_get_add_bos(vocabulary) else []
        return np.array((begin + room[:count])[:CHUNK_TOKENS], dtype=np.int32)

    def _scored(self, chunk: NDArray[np.int32], type_k: str, type_v: str, threads: int) -> Logits:
        """The logits of the chunk's last 256 tokens, shape (256, vocabulary)."""
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
            for i, token in enumerate(chunk.tolist()):
                batch.token[i], batch.pos[i] = token, i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = i >= CHUNK_TOKENS - SCORED_TOKENS
            status = api.llama_decode(context, batch)
            if status != 0:
                raise Refused(self._llama.log.reason(f"llama_decode answered {status}"))
            logits = np.ctypeslib.as_array(
                api.llama_get_logits(context), shape=(SCORED_TOKENS, self._n_vocab)
            )
            scored: Logits = logits.copy()  # the context owns the original
        finally:
            api.llama_batch_free(batch)
            api.llama_free(context)
        if not np.isfinite(scored).all():
            raise Refused("its predictions are not finite numbers: the file is damaged")
        return scored


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
    serve({"reference": worker.reference, "divergence": worker.divergence})
