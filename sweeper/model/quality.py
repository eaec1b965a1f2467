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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

from sweeper import files, machine
from sweeper.errors import ConfigError, EngineRefused, ModelMissingError, StoreError
from sweeper.model.digest import sha256_of_model
from sweeper.model.ggml_types import CACHE_TYPES
from sweeper.model.header import parts_of, read_header
from sweeper.processes import WorkerProcess
from sweeper.system import temporary_file

BUNDLED_TEXT = Path(__file__).with_name("text.txt")
CHUNK_TOKENS = 512  # that the worker reads; the last 256 count
_TIMEOUT_SECONDS = 3600.0  # a 34B model on two slow cores takes some minutes
# What kept results depend on beside the files. One chunk, of which 256 tokens count, takes 1.4 s on one core with the
# default 110M model. The standard error is below 1 % of the mean; on real models it is larger.
_PROTOCOL = {"schema": 1, "chunks": 1}


@dataclass(frozen=True, slots=True)
class Divergence:
    """A candidate's KL divergence from the reference, in nats per token, over ``tokens`` predictions."""

    mean: float
    standard_error: float
    tokens: int


class QualityMeter(WorkerProcess):
    """Compares GGUF files with one reference on one text, in a worker process, and keeps the results.

    Args:
        reference: the most precise file.
        root: results go to ``root/quality/``.
        text: the text; None is the bundled one.
        n_gpu_layers: layers on the GPU, for the reference and every candidate.
        make_room: called with the larger file before the worker loads any.
    """

    def __init__(
        self,
        reference: Path,
        root: Path,
        text: Path | None = None,
        n_gpu_layers: int = 0,
        make_room: Callable[[Path], None] = lambda _: None,
    ) -> None:
        super().__init__("sweeper.model.quality_worker")
        self._predictions: tuple[IO[bytes], str] | None = None
        self._reference = reference
        self._make_room = make_room
        self._root = root
        self._folder = root / "quality"
        self._text = text or BUNDLED_TEXT
        self._machine = {"threads": machine.usable_threads(), "n_gpu_layers": n_gpu_layers}

    def divergence(self, candidate: Path, type_k: str = "f16", type_v: str = "f16") -> Divergence:
        """The divergence of ``candidate``, run with these cache types, from the reference.

        Raises:
            ConfigError: the cache type does not exist, or the user's text is too short.
            ModelMissingError, ModelFileError: a file cannot be read.
            StoreError: ``root`` cannot be written.
            EngineRefused: llama.cpp cannot run a file over the text, or the file is another model.
            EngineCrashed, EngineTimeout, OutOfMemory: the worker failed.
        """
        for key, name in (("type_k", type_k), ("type_v", type_v)):
            if name not in CACHE_TYPES:
                raise ConfigError(f"{key}={name}: choose from {', '.join(CACHE_TYPES)}")
        terms = self._reference_terms() | {
            "candidate": sha256_of_model(parts_of(candidate), self._root),
            "type_k": type_k,
            "type_v": type_v,
        }
        kept = self._folder / f"{_digest(terms)}.json"
        known = _read(kept)
        if known is not None:
            return known
        read_header(candidate)
        self._make_room(self._reference if self._predictions is None else candidate)
        with _store_errors(kept):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                answer = self._ask(
                    f"cannot compare {candidate.name} with {self._reference.name}",
                    "divergence",
                    model=str(candidate),
                    type_k=type_k,
                    type_v=type_v,
                    reference=self._reference_file(),
                )
            finally:
                super().close()  # otherwise the worker would hold a model's memory during trials
            files.replace(kept, json.dumps({"terms": terms, "result": answer}, indent=1))
        return Divergence(**answer)

    def close(self) -> None:
        """End the worker and delete the reference's predictions. May be called twice."""
        super().close()
        if self._predictions is not None:
            self._predictions[0].close()
            self._predictions = None

    def _ask(self, failed: str, what: str, **arguments: str) -> dict[str, Any]:
        try:
            return self.ask(what, _TIMEOUT_SECONDS, **arguments, **self._machine)
        except EngineRefused as refused:
            raise EngineRefused(f"{failed}: {refused}", refused.log_tail) from None

    def _reference_terms(self) -> dict[str, Any]:
        """Everything that the reference's predictions depend on."""
        try:
            text_sha256 = hashlib.sha256(self._text.read_bytes()).hexdigest()
        except OSError as error:
            raise ModelMissingError(f"cannot read model.text={self._text}: {error.strerror}") from None
        return _PROTOCOL | {
            "reference": sha256_of_model(parts_of(self._reference), self._root),
            "text": text_sha256,
            "n_gpu_layers": self._machine["n_gpu_layers"],
            "engine": importlib.metadata.version("llama-cpp-python"),
        }

    def _reference_file(self) -> str:
        """The path of a file with the reference's predictions and the text's tokens.

        The file is open in this process, and disappears when the process ends.
        """
        file, path = self._predictions or temporary_file(self._folder)
        if self._predictions is None:
            answer = self._ask(
                f"cannot run {self._reference.name} over {self._text.name}",
                "reference",
                model=str(self._reference),
                text=str(self._text),
                reference=path,
            )
            if answer["tokens"] < CHUNK_TOKENS:
                error = EngineRefused if self._text == BUNDLED_TEXT else ConfigError
                raise error(
                    f"model.text={self._text} has {answer['tokens']} of {CHUNK_TOKENS} tokens: give a longer text"
                )
            self._predictions = file, path
        return path


def _digest(terms: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:24]


def _read(path: Path) -> Divergence | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))["result"]
        return Divergence(**{field.name: result[field.name] for field in fields(Divergence)})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # missing or damaged: measure again


@contextlib.contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from None
