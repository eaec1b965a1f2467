"""Measures quality with the user's own ``llama-perplexity``, where llama-cpp-python is not installed.

``--kl-divergence-base`` writes a model's predictions to a file. sweeper lets it write those of the reference and of
each candidate, and compares the files. Chunks have 512 tokens, of which 255 count.

The program can compare a candidate with the file itself (``--kl-divergence``), but its result is in the last lines that
it prints. A thread of its own prints, and llama.cpp does not wait for it (common/log.cpp): on a busy machine with two
cores, these lines were missing in 10 of 20 runs with a small model. The file is always whole. The divergence is
computed as the program computes it: tokens less likely than e^-16 do not count.
"""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from sweeper import files, machine
from sweeper.client.llama_options import options_of
from sweeper.engine.server_dialect import Dialect
from sweeper.errors import EngineRefused, EngineTimeout
from sweeper.model.digest import sha256_of_model
from sweeper.model.header import parts_of, read_header
from sweeper.model.quality import (
    CHUNK_TOKENS,
    LEAST_BLOCKS,
    MUCH_MORE_TIME,
    TIMEOUT_SECONDS,
    Divergence,
    Effort,
    digest,
    store_errors,
    terms_of,
    too_short,
)
from sweeper.model.texts import Texts
from sweeper.processes import death_of, last_of, oom_kills
from sweeper.records import Configuration
from sweeper.servers import ServerProcess
from sweeper.system import temporary_file

SCORED_TOKENS = CHUNK_TOKENS - CHUNK_TOKENS // 2 - 1  # of a chunk: the last one has no token that follows it
# The file of predictions: a magic word, then n_ctx, the size of the vocabulary and the number of chunks.
_HEAD = struct.Struct("<8s3i")
_MAGIC = b"_logits_"
_LEAST_LOG_PROBABILITY = -16.0
_ROWS_AT_ONCE = 32


class TooShort(ValueError):
    """The text has fewer tokens than two chunks."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """A file of predictions.

    ``tokens`` has shape (chunks, 512). ``rows`` has shape (chunks, 255, width): a scale and an offset (float32), then a
    number for each token of the vocabulary, and padding. Scale times number plus offset is a log probability.
    """

    tokens: NDArray[np.int32]
    rows: NDArray[np.uint16]
    n_vocab: int

    @classmethod
    def read(cls, path: str) -> Predictions:
        """Open a file.

        Raises:
            TooShort: the program stopped after the beginning of the head, because the text has too few tokens.
            ValueError: the file is not whole, or a prediction is not a finite number.
        """
        with open(path, "rb") as stream:
            head = stream.read(_HEAD.size)
            if not head.startswith(_MAGIC):
                raise ValueError("llama-perplexity wrote no predictions")
            if len(head) < _HEAD.size:
                raise TooShort
            _, n_ctx, n_vocab, chunks = _HEAD.unpack(head)
            tokens = np.fromfile(stream, np.int32, n_ctx * chunks)
        shape = (chunks, SCORED_TOKENS, 2 * ((n_vocab + 1) // 2) + 4)
        start = _HEAD.size + tokens.nbytes
        if n_ctx != CHUNK_TOKENS or os.stat(path).st_size != start + 2 * math.prod(shape):
            raise ValueError("llama-perplexity did not write all predictions")
        found = cls(tokens.reshape(chunks, n_ctx), np.memmap(path, np.uint16, "r", start, shape), n_vocab)
        if not np.isfinite(_scales(found.rows.reshape(-1, shape[2]))).all():
            raise ValueError("its predictions are not finite numbers: the file is damaged")
        return found

    def compared(self, other: Predictions) -> tuple[list[float], list[float]]:
        """The mean divergence of ``other`` in each chunk, in nats/token, and the share of the same top tokens."""
        means, shares = [], []
        for mine, theirs in zip(self.rows, other.rows, strict=True):
            parts = [slice(at, at + _ROWS_AT_ONCE) for at in range(0, SCORED_TOKENS, _ROWS_AT_ONCE)]
            found = [_compared(mine[rows], theirs[rows], self.n_vocab) for rows in parts]
            means.append(max(0.0, float(np.concatenate([each for each, _ in found]).mean())))
            shares.append(float(np.concatenate([same for _, same in found]).mean()))
        return means, shares


def _scales(rows: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The scale and the offset of each row."""
    return np.ascontiguousarray(rows[:, :4]).view(np.float32)


def _compared(
    mine: NDArray[np.uint16], theirs: NDArray[np.uint16], n_vocab: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The divergence of each row, and whether the most likely token is the same."""
    a, b = (_log_probabilities(rows, n_vocab) for rows in (mine, theirs))
    terms = np.where(a > _LEAST_LOG_PROBABILITY, np.exp(a) * (a - b), 0)
    return terms.sum(axis=1, dtype=np.float64), a.argmax(axis=1) == b.argmax(axis=1)


def _log_probabilities(rows: NDArray[np.uint16], n_vocab: int) -> NDArray[np.float32]:
    scales = _scales(rows)
    found: NDArray[np.float32] = rows[:, 4 : 4 + n_vocab] * scales[:, :1] + scales[:, 1:]
    return found


class PerplexityMeter:
    """Compares GGUF files with one reference by ``llama-perplexity``, and keeps the results.

    It measures `Effort.tokens`, or as many as the time allows, and no more where a bound lies in the interval.

    Args:
        tool: the program's options.
        environment: variables besides those of this process; None removes one.
        reference, root, texts, n_gpu_layers, make_room, effort: as of `QualityMeter`.
    """

    def __init__(
        self,
        tool: Dialect,
        environment: Mapping[str, str | None],
        reference: Path,
        root: Path,
        texts: Texts,
        n_gpu_layers: int,
        make_room: Callable[[Path], None],
        effort: Effort,
    ) -> None:
        self.program = f"llama-perplexity {tool.version}"
        self.spent_seconds = 0.0
        self._tool = tool
        self._environment = environment
        self._reference = reference
        self._root = root
        self._folder = root / "quality"
        self._texts = texts
        self._n_gpu_layers = n_gpu_layers
        self._make_room = make_room
        self._effort = effort
        self._chunks = max(LEAST_BLOCKS, -(-effort.tokens // SCORED_TOKENS))
        self._file: tuple[IO[bytes], str] | None = None
        self._predictions: Predictions | None = None

    def divergence(self, candidate: Path, type_k: str = "f16", type_v: str = "f16") -> Divergence:
        """The divergence of ``candidate``, run with these cache types, from the reference.

        Raises:
            ConfigError: the cache type does not exist, or the user's text is too short.
            ModelMissingError, ModelFileError: a file cannot be read.
            StoreError: ``root`` cannot be written.
            EngineRefused: the program cannot run a file over the text, or the file is another model.
            EngineCrashed, EngineTimeout, OutOfMemory: the program failed.
        """
        terms, path = self._entry(candidate, type_k, type_v)
        known = self._kept(path)
        if known is not None:
            return known
        read_header(candidate)
        is_reference = (terms["candidate"], type_k, type_v) == (terms["reference"], "f16", "f16")
        with store_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            try:
                reference = self._reference_predictions()
                chunks = len(reference.tokens)
                if is_reference:
                    found = Divergence.of([0.0] * chunks, [1.0] * chunks, SCORED_TOKENS)
                else:
                    found = self._compare(reference, candidate, type_k, type_v)
            finally:
                self.spent_seconds += time.monotonic() - began
            cut = self._effort.seconds if chunks < self._chunks else 0.0
            result = asdict(found) | {"allowed_seconds": cut}
            files.replace(path, json.dumps({"terms": terms, "result": result}, indent=1))
        return found

    def is_kept(self, candidate: Path, type_k: str = "f16", type_v: str = "f16") -> bool:
        """Whether `divergence` would answer without running a model. It raises the same errors of bad input."""
        return self._kept(self._entry(candidate, type_k, type_v)[1]) is not None

    def _entry(self, candidate: Path, type_k: str, type_v: str) -> tuple[dict[str, Any], Path]:
        """What a divergence depends on, and the file of its result."""
        terms = self._terms() | terms_of(candidate, type_k, type_v, self._root)
        return terms, self._folder / f"{digest(terms)}.json"

    def close(self) -> None:
        """Delete the reference's predictions. May be called twice."""
        self._predictions = None
        if self._file is not None:
            self._file[0].close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kept(self, path: Path) -> Divergence | None:
        """The kept result, unless there is time for much more text than it rests on."""
        try:
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
            allowed = float(result.pop("allowed_seconds"))
            found = Divergence(**result)
            enough = (
                self._effort.takes_kept
                or found.tokens >= self._chunks * SCORED_TOKENS
                or 0 < self._effort.seconds < MUCH_MORE_TIME * allowed
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None  # missing or damaged: measure again
        return found if enough else None

    def _reference_predictions(self) -> Predictions:
        """The reference's predictions, of as many chunks as the time allows.

        A first run of the least number of chunks shows how long one takes.
        """
        if self._predictions is None:
            self._file = self._file or temporary_file(self._folder)
            began = time.monotonic()
            found = self._predict(self._reference, "f16", "f16", self._file[1], LEAST_BLOCKS)
            each = (time.monotonic() - began) / LEAST_BLOCKS
            affordable = min(self._chunks, int(self._effort.seconds / each))
            if affordable > LEAST_BLOCKS:
                found = self._predict(self._reference, "f16", "f16", self._file[1], affordable)
            self._predictions = found
        return self._predictions

    def _compare(self, reference: Predictions, candidate: Path, type_k: str, type_v: str) -> Divergence:
        """Compare a candidate with the reference."""
        file, path = temporary_file(self._folder)
        with file:
            found = self._predict(candidate, type_k, type_v, path, len(reference.tokens))
            if found.n_vocab != reference.n_vocab or not np.array_equal(found.tokens, reference.tokens):
                raise EngineRefused(
                    f"cannot compare {candidate.name} with {self._reference.name}: they are different models"
                )
            return Divergence.of(*reference.compared(found), SCORED_TOKENS)

    def _predict(self, model: Path, type_k: str, type_v: str, path: str, chunks: int) -> Predictions:
        """Write a model's predictions of so many chunks, or of as many as the text has."""
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as text:
            text.write(self._texts.mixed())
            text.flush()
            words = ["--kl-divergence-base", path, "--file", text.name, "--chunks", str(chunks)]
            output = self._run(model, type_k, type_v, words)
        try:
            return Predictions.read(path)
        except TooShort:
            raise too_short(self._texts, 2 * CHUNK_TOKENS) from None
        except ValueError as error:
            failed = f"cannot run {model.name} over {self._texts.name}: {error}"
            raise EngineRefused(failed, last_of(output)) from None

    def _run(self, model: Path, type_k: str, type_v: str, words: Sequence[str]) -> bytes:
        """What the program prints with this model and these cache types."""
        self._make_room(model)
        threads = machine.usable_threads()
        wanted = Configuration(
            n_gpu_layers=self._n_gpu_layers,
            n_ctx=CHUNK_TOKENS,
            n_batch=CHUNK_TOKENS,
            n_ubatch=CHUNK_TOKENS,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=type_k,
            type_v=type_v,
        )
        options = self._tool.words(options_of(wanted, str(model.absolute()), has_experts=False))
        kills, limit_seconds = oom_kills(), TIMEOUT_SECONDS + self._effort.seconds
        with tempfile.TemporaryDirectory(prefix="sweeper-llama-perplexity-") as folder:
            log = Path(folder) / "log"
            process = ServerProcess([*self._tool.program, *options, *words], log, self._environment)
            try:
                code = process.process.wait(limit_seconds)
            except subprocess.TimeoutExpired:
                raise EngineTimeout(
                    f"llama-perplexity did not end within {limit_seconds:.0f} s", last_of(log.read_bytes())
                ) from None
            finally:
                process.end(0.0)
            output = log.read_bytes()
        if code != 0:
            raise death_of("llama-perplexity", code, f"{model.name} over text", last_of(output), kills)
        return output

    def _terms(self) -> dict[str, Any]:
        """Everything that the reference's predictions depend on."""
        return {
            "schema": 2,
            "reference": sha256_of_model(parts_of(self._reference), self._root),
            "text": self._texts.sha256(),
            "n_gpu_layers": self._n_gpu_layers,
            "engine": self.program,
        }
