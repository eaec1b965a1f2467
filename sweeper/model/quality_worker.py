"""Runs models over a text and compares their predictions: `python -m sweeper.model.quality_worker`.

Requests: ``reference`` (store a model's logits) and ``divergence`` (compare another model with them). The protocol is
    that of llama.cpp's perplexity tool. Chunks have 512 tokens, and the last 256 count, so each prediction has at
    least 256 tokens of context.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper.model.ggml_types import CACHE_TYPES
from sweeper.model.llama_log import capture_log
from sweeper.serving import Refused, serve

CHUNK_TOKENS = 512
SCORED_TOKENS = 256
_ROWS_AT_ONCE = (
    32  # rows of logits at a time: 4 MiB with a vocabulary of 32,000 tokens, which fits in the cache
)
_MMAP = 1  # LLAMA_LOAD_MODE_MMAP

Logits = NDArray[np.float32]


class QualityWorker:
    """Keeps the last model loaded, because its cache types are compared one after the other."""

    def __init__(self) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._log = capture_log()
        llama_cpp.llama_backend_init()
        self._loaded: tuple[str, int] | None = None
        self._model: Any = None

    def reference(
        self, model: str, text: str, chunks: int, logits: str, tokens: str, threads: int, n_gpu_layers: int
    ) -> dict[str, Any]:
        """Write the model's logits, shape (chunks × 256, vocabulary), and the chunks' tokens as .npy."""
        self._load(model, n_gpu_layers)
        parts = self._chunks(Path(text).read_text(encoding="utf-8", errors="replace"), chunks)
        np.save(tokens, parts)
        with Path(logits).open("wb") as stream:
            shape = (len(parts) * SCORED_TOKENS, self._n_vocab())
            np.lib.format.write_array_header_1_0(
                stream, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
            for scored in self._run(parts, "f16", "f16", threads):
                stream.write(scored.astype("<f4", copy=False).data)
        return {"chunks": len(parts)}

    def divergence(
        self,
        model: str,
        type_k: str,
        type_v: str,
        logits: str,
        tokens: str,
        threads: int,
        n_gpu_layers: int,
    ) -> dict[str, Any]:
        """Mean KL divergence per token of the model from the kept logits, in nats."""
        self._load(model, n_gpu_layers)
        parts, kept = np.load(tokens), np.load(logits, mmap_mode="r")
        if kept.shape != (len(parts) * SCORED_TOKENS, self._n_vocab()):
            raise Refused(
                f"its vocabulary has {self._n_vocab()} tokens, the reference's {kept.shape[1]}: "
                "they are different models"
            )
        values, agreeing = [], 0
        for index, scored in enumerate(self._run(parts, type_k, type_v, threads)):
            expected = kept[index * SCORED_TOKENS : (index + 1) * SCORED_TOKENS]
            for row in range(0, SCORED_TOKENS, _ROWS_AT_ONCE):
                rows = slice(row, row + _ROWS_AT_ONCE)
                values.append(divergence_of(expected[rows], scored[rows]))
                agreeing += int((expected[rows].argmax(axis=1) == scored[rows].argmax(axis=1)).sum())
        each = np.concatenate(values)
        return {
            "mean": max(0.0, float(each.mean())),  # rounding can give -1e-9 instead of nearly 0
            "standard_error": float(each.std(ddof=1) / np.sqrt(len(each))),
            "tokens": len(each),
            "chunks": len(parts),
            "same_top_share": agreeing / len(each),
        }

    def _load(self, path: str, n_gpu_layers: int) -> None:
        if self._loaded == (path, n_gpu_layers):
            return
        if self._model:
            self._api.llama_model_free(self._model)
            self._loaded, self._model = None, None
        params = self._api.llama_model_default_params()
        params.n_gpu_layers, params.load_mode = n_gpu_layers, _MMAP
        self._log.clear()
        self._model = self._api.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise Refused(f"llama.cpp could not load {Path(path).name}: {self._reason()}")
        self._loaded = (path, n_gpu_layers)

    def _reason(self) -> str:
        errors = self._log.of_level("error")
        return errors[-1] if errors else "it gave no reason"

    def _n_vocab(self) -> int:
        return int(self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model)))

    def _chunks(self, text: str, chunks: int) -> NDArray[np.int32]:
        """The first chunks of the text, as tokens. Each begins with the model's begin token, if it has one."""
        vocabulary = self._api.llama_model_get_vocab(self._model)
        raw = text.encode()
        room = (self._api.llama_token * (len(raw) + 8))()
        count = self._api.llama_tokenize(vocabulary, raw, len(raw), room, len(room), False, False)
        if count < 0:
            raise Refused("the text could not be tokenised")
        begin = []
        if self._api.llama_vocab_get_add_bos(vocabulary):
            begin = [self._api.llama_vocab_bos(vocabulary)]
        step = CHUNK_TOKENS - len(begin)
        found = min(chunks, count // step)
        if found < 1:
            raise Refused(f"the text has {count} tokens; at least {step} are needed")
        return np.array([begin + room[i * step : (i + 1) * step] for i in range(found)], dtype=np.int32)

    def _run(self, parts: NDArray[np.int32], type_k: str, type_v: str, threads: int) -> Any:
        """The logits of each chunk's scored tokens: one array of (256, vocabulary) for each chunk."""
        context = self._context(type_k, type_v, threads)
        batch = self._api.llama_batch_init(CHUNK_TOKENS, 0, 1)
        try:
            for part in parts:
                yield self._scored(context, batch, part)
        finally:
            self._api.llama_batch_free(batch)
            self._api.llama_free(context)

    def _context(self, type_k: str, type_v: str, threads: int) -> Any:
        params = self._api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = CHUNK_TOKENS
        params.n_outputs_max = SCORED_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1  # a quantised V cache needs it, and all runs must be alike
        params.type_k, params.type_v = CACHE_TYPES[type_k].number, CACHE_TYPES[type_v].number
        self._log.clear()
        context = self._api.llama_init_from_model(self._model, params)
        if not context:
            raise Refused(f"llama.cpp could not make a context: {self._reason()}")
        return context

    def _scored(self, context: Any, batch: Any, part: NDArray[np.int32]) -> Logits:
        self._api.llama_memory_clear(self._api.llama_get_memory(context), True)
        batch.n_tokens = len(part)
        for i, token in enumerate(part.tolist()):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i >= CHUNK_TOKENS - SCORED_TOKENS
        status = self._api.llama_decode(context, batch)
        if status != 0:
            raise Refused(f"llama_decode answered {status}: {self._reason()}")
        pointer = self._api.llama_get_logits(context)
        # A copy, because the next decode overwrites the original.
        scored: Logits = np.ctypeslib.as_array(pointer, shape=(SCORED_TOKENS, self._n_vocab())).copy()
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


def main() -> None:
    """Serve requests until standard input ends."""
    worker = QualityWorker()
    serve({"reference": worker.reference, "divergence": worker.divergence})


if __name__ == "__main__":
    main()
