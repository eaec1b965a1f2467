"""Measures the quality loss of a quantisation or a smaller KV cache: mean KL divergence per token.

The divergence compares the candidate's next-token distribution with the reference's, over a text. The reference is the
most precise file, with an f16 cache. With a synthetic model, the number is real but says nothing about real models. The
bundled text is Lincoln's Gettysburg Address (1863, the Bliss copy) and the beginning of Lewis
Carroll's "Alice's Adventures in Wonderland" (1865), both in the public domain.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sweeper import files
from sweeper.errors import ConfigError, EngineRefused, ModelMissingError, StoreError
from sweeper.model.digest import sha256_of
from sweeper.model.ggml_types import CACHE_TYPES
from sweeper.model.header import read_header
from sweeper.processes import WorkerProcess

BUNDLED_TEXT = Path(__file__).with_name("text.txt")
# 256 scored tokens. On the default 110M model, a chunk takes 1.4 s on one core, or 2.1 s with a quantised cache. Three
# levels with two caches take 12 s, and the standard error is below 1 % of the mean. On real models, divergence varies
# more from token to token, so every mean comes with its standard error.
DEFAULT_CHUNKS = 1
# The reference's logits are kept as float32, so a model compared with itself gives exactly 0.
MAX_KEPT_BYTES = 2 << 30
_SCORED_TOKENS = 256
_TIMEOUT_SECONDS = 3600.0  # two chunks of a 34B model on two slow cores take some minutes
_SCHEMA = 1
_PARTIAL = "partial-"


@dataclass(frozen=True, slots=True)
class Divergence:
    """A candidate's KL divergence from the reference, in nats per token, over ``tokens`` predictions."""

    mean: float
    standard_error: float
    tokens: int
    chunks: int
    same_top_share: float  # share of predictions with the same most likely token as the reference
    type_k: str
    type_v: str
    text_sha256: str
    cached: bool = False


class QualityMeter:
    """Compares GGUF files with one reference on one text, in a worker process, and keeps the results.

    Args:
        reference: the most precise file.
        root: results go to ``root/quality/``.
        text: the text; None is the bundled one.
        chunks: the maximum number of chunks of 512 tokens; fewer if the text is short.
        threads: None is the number that this process may use.
        n_gpu_layers: layers on the GPU, for the reference and every candidate.
    """

    def __init__(
        self,
        reference: Path,
        root: Path,
        text: Path | None = None,
        chunks: int = DEFAULT_CHUNKS,
        threads: int | None = None,
        n_gpu_layers: int = 0,
    ) -> None:
        if chunks < 1:
            raise ConfigError(f"quality chunks={chunks}: at least 1")
        self._reference = Path(reference)
        self._root = Path(root)
        self._folder = self._root / "quality"
        self._text = Path(text) if text is not None else BUNDLED_TEXT
        self._chunks = chunks
        self._threads = threads or len(os.sched_getaffinity(0))
        self._n_gpu_layers = n_gpu_layers
        self._worker = WorkerProcess("sweeper.model.quality_worker")

    def divergence(self, candidate: Path, type_k: str = "f16", type_v: str = "f16") -> Divergence:
        """The divergence of ``candidate``, run with these cache types, from the reference.

        Raises:
            ConfigError: the cache type does not exist, the text is too short, or the file is another model.
            ModelMissingError, ModelFileError: a file cannot be read or run.
            StoreError: ``root`` cannot be written.
            EngineCrashed, EngineTimeout, OutOfMemory: the worker failed.
        """
        for key, name in (("type_k", type_k), ("type_v", type_v)):
            if name not in CACHE_TYPES:
                raise ConfigError(f"{key}={name}: choose from {', '.join(CACHE_TYPES)}")
        text_sha256 = self._text_sha256()
        terms = self._reference_terms(text_sha256) | {
            "candidate": sha256_of(Path(candidate), self._root),
            "type_k": type_k,
            "type_v": type_v,
        }
        kept = self._folder / f"{_digest(terms)}.json"
        known = _read(kept)
        if known is not None:
            return known
        try:
            answer = self._measure(Path(candidate), type_k, type_v, text_sha256)
        finally:
            if self._n_gpu_layers:
                self._worker.close()  # otherwise it would hold the GPU's memory during trials
        result = Divergence(**answer, type_k=type_k, type_v=type_v, text_sha256=text_sha256)
        with _store_errors(kept):
            files.replace(kept, json.dumps({"terms": terms, "result": _plain(result)}, indent=1))
        return result

    def close(self) -> None:
        """End the worker. May be called twice."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _measure(self, candidate: Path, type_k: str, type_v: str, text_sha256: str) -> dict[str, Any]:
        read_header(candidate)
        logits, tokens = self._reference_logits(text_sha256)
        try:
            return self._worker.ask(
                "divergence",
                _TIMEOUT_SECONDS,
                model=str(candidate),
                type_k=type_k,
                type_v=type_v,
                logits=str(logits),
                tokens=str(tokens),
                threads=self._threads,
                n_gpu_layers=self._n_gpu_layers,
            )
        except EngineRefused as refused:
            raise ConfigError(
                f"cannot compare {candidate.name} with {self._reference.name}: {refused}"
            ) from None

    def _reference_terms(self, text_sha256: str) -> dict[str, Any]:
        """Everything that the reference's predictions depend on."""
        return {
            "schema": _SCHEMA,
            "reference": sha256_of(self._reference, self._root),
            "text": text_sha256,
            "chunks": self._chunks,
            "n_gpu_layers": self._n_gpu_layers,
            "engine": importlib.metadata.version("llama-cpp-python"),
        }

    def _reference_logits(self, text_sha256: str) -> tuple[Path, Path]:
        """The files with the reference's logits and the chunks' tokens. The method creates them if they are missing."""
        stem = _digest(self._reference_terms(text_sha256))
        folder = self._folder / "reference"
        logits, tokens = folder / f"{stem}.logits.npy", folder / f"{stem}.tokens.npy"
        if logits.is_file() and tokens.is_file():
            with contextlib.suppress(OSError):
                os.utime(logits)  # the oldest is deleted first
            return logits, tokens
        needed = self._chunks * _SCORED_TOKENS * read_header(self._reference).vocab_size * 4
        if needed > MAX_KEPT_BYTES:
            raise ConfigError(
                f"quality chunks={self._chunks}: this needs {needed >> 20} MiB for logits; use fewer"
            )
        with _store_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _make_room(folder, needed)
            with tempfile.TemporaryDirectory(dir=folder, prefix=_PARTIAL) as partial:
                self._write_reference(Path(partial) / "logits.npy", Path(partial) / "tokens.npy")
                os.replace(Path(partial) / "tokens.npy", tokens)
                os.replace(Path(partial) / "logits.npy", logits)
        return logits, tokens

    def _write_reference(self, logits: Path, tokens: Path) -> None:
        try:
            self._worker.ask(
                "reference",
                _TIMEOUT_SECONDS,
                model=str(self._reference),
                text=str(self._text),
                chunks=self._chunks,
                logits=str(logits),
                tokens=str(tokens),
                threads=self._threads,
                n_gpu_layers=self._n_gpu_layers,
            )
        except EngineRefused as refused:
            raise ConfigError(
                f"cannot run {self._reference.name} over {self._text.name}: {refused}"
            ) from None

    def _text_sha256(self) -> str:
        try:
            return hashlib.sha256(self._text.read_bytes()).hexdigest()
        except OSError as error:
            raise ModelMissingError(f"cannot read model.text={self._text}: {error.strerror}") from None


def _digest(terms: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:24]


def _plain(result: Divergence) -> dict[str, Any]:
    return {name: getattr(result, name) for name in Divergence.__slots__ if name != "cached"}


def _read(path: Path) -> Divergence | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return replace(Divergence(**data["result"]), cached=True)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # missing or damaged: measure again


def _make_room(folder: Path, needed: int) -> None:
    """Delete files that a kill left, and the oldest logits, until ``needed`` more bytes fit in the limit."""
    for left in folder.glob(f"{_PARTIAL}*"):
        if time.time() - left.stat().st_mtime > _TIMEOUT_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    kept = sorted(folder.glob("*.logits.npy"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in kept)
    for path in kept:
        if total + needed <= MAX_KEPT_BYTES:
            return
        total -= path.stat().st_size
        path.unlink(missing_ok=True)
        path.with_name(path.name.replace(".logits.", ".tokens.")).unlink(missing_ok=True)


@contextlib.contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from None
