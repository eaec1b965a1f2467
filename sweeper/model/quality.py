"""Measures the quality loss of a quantisation or a smaller KV cache, over several kinds of text.

The loss is the mean KL divergence per token of the candidate's next-token distribution from the reference's. Beside it
stands the top-token agreement: the share of tokens for which both have the same most likely next token. The reference
is the most precise file, with an f16 cache. With a synthetic model, the numbers are real but say nothing about real
models. ``docs/models.md`` describes the protocol.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Protocol, Self

from sweeper import files, machine, stats
from sweeper.errors import ConfigError, EngineRefused, StoreError
from sweeper.model.digest import sha256_of_model
from sweeper.model.ggml_types import CACHE_TYPES
from sweeper.model.header import parts_of, read_header
from sweeper.model.texts import Texts
from sweeper.processes import WorkerProcess
from sweeper.system import temporary_file

CHUNK_TOKENS = 512  # that a block reads; the last 256 count
SCORED_TOKENS = 256
LEAST_BLOCKS = 2  # with one block, the spread between blocks is unknown
# More text is measured while the interval contains a bound, up to this length. It takes four times the default's time.
MOST_TOKENS = 16_384
# A kept result that the time cut short is good enough for a sweep with less than this many times the time.
MUCH_MORE_TIME = 2.0
TIMEOUT_SECONDS = (
    3600.0  # for what no limit of time covers: a 34B model takes 6 minutes for the least number of blocks
)
# What kept results depend on beside files, texts and settings.
_PROTOCOL = {"schema": 2, "chunk_tokens": CHUNK_TOKENS, "scored_tokens": SCORED_TOKENS}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much text is measured.

    ``tokens`` are measured at first. While the interval of the divergence contains one of the ``bounds`` (nats/token),
    that number is doubled, up to `MOST_TOKENS`. A model, be it the reference or a candidate, never takes more than
    ``seconds``, but at least two blocks. With ``takes_kept``, a kept result is never extended.
    """

    tokens: int = 4096
    seconds: float = 600.0
    bounds: tuple[float, ...] = ()
    takes_kept: bool = False

    @property
    def blocks(self) -> int:
        """The number of blocks at first."""
        return max(LEAST_BLOCKS, -(-self.tokens // SCORED_TOKENS))

    def next(self, blocks: int) -> int:
        """The number of blocks in all after ``blocks`` did not suffice."""
        if blocks < self.blocks:
            return self.blocks
        return min(2 * blocks, max(self.blocks, MOST_TOKENS // SCORED_TOKENS))

    def decides(self, found: Divergence) -> bool:
        """Whether the interval lies wholly on one side of every bound."""
        return all(found.high <= bound or found.low > bound for bound in self.bounds)


@dataclass(frozen=True, slots=True)
class Divergence:
    """A candidate's divergence from the reference, over ``tokens`` predictions, with 95 % intervals.

    The divergence ``mean`` is in nats per token. The ``agreement`` of the most likely tokens is in percent.
    """

    mean: float
    low: float
    high: float
    agreement: float
    agreement_low: float
    agreement_high: float
    tokens: int

    @classmethod
    def of(
        cls, divergences: list[float], shares: list[float], block_tokens: int = SCORED_TOKENS
    ) -> Divergence:
        """From the mean divergence and the share of the same most likely token in each block.

        Blocks are interleaved over the kinds of text, so their scatter contains the difference between kinds.
        """
        tokens = block_tokens * len(divergences)
        low, high = stats.mean_interval(divergences)
        agreement = [100 * share for share in shares]
        least, most = stats.mean_interval(agreement)
        if least == most == 100 and any(divergences):
            least = 100 * (1 - 3 / tokens)  # the rule of three: rarer differences would not have been seen
        mean = statistics.fmean(agreement)
        return cls(statistics.fmean(divergences), low, high, mean, least, min(100.0, most), tokens)


class Meter(Protocol):
    """Compares files with one reference."""

    program: str  # that compares, with its version
    spent_seconds: float  # so far, on what was not kept

    def divergence(self, candidate: Path, type_k: str = "f16", type_v: str = "f16") -> Divergence:
        """The divergence of ``candidate``, run with these cache types, from the reference."""

    def is_kept(self, candidate: Path, type_k: str = "f16", type_v: str = "f16") -> bool:
        """Whether `divergence` would answer without running a model."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(slots=True)
class _Kept:
    """The blocks measured so far, the number that the texts hold, and the time that ended the measurement, else 0."""

    divergences: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    available: int | None = None
    allowed_seconds: float = 0.0

    def wanted(self, effort: Effort) -> int:
        """The number of blocks in all that should be measured; 0 if there are enough."""
        have = len(self.divergences)
        if have >= effort.blocks and effort.decides(Divergence.of(self.divergences, self.shares)):
            return 0
        if have and effort.seconds < MUCH_MORE_TIME * self.allowed_seconds:
            return 0  # the time ended that measurement
        wanted = min(effort.next(have), self.available or effort.next(have))
        return wanted if wanted > have else 0


class QualityMeter(WorkerProcess):
    """Compares GGUF files with one reference by llama.cpp's library, in a worker process, and keeps the results.

    Args:
        reference: the most precise file.
        root: results go to ``root/quality/``.
        texts: the texts to measure on.
        n_gpu_layers: layers on the GPU, for the reference and every candidate.
        make_room: called with the larger file before the worker loads any.
        effort: how much text is measured.
    """

    def __init__(
        self,
        reference: Path,
        root: Path,
        texts: Texts | None = None,
        n_gpu_layers: int = 0,
        make_room: Callable[[Path], None] = lambda _: None,
        effort: Effort | None = None,
    ) -> None:
        super().__init__("sweeper.model.quality_worker")
        self.program = f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
        self.spent_seconds = 0.0
        self._predictions: _Predictions | None = None
        self._reference = reference
        self._make_room = make_room
        self._root = root
        self._folder = root / "quality"
        self._texts = texts or Texts()
        self._effort = effort or Effort()
        self._machine = {"threads": machine.usable_threads(), "n_gpu_layers": n_gpu_layers}

    def divergence(self, candidate: Path, type_k: str = "f16", type_v: str = "f16") -> Divergence:
        """The divergence of ``candidate``, run with these cache types, from the reference.

        That of the reference itself is 0 by definition, and shows whether the reference can predict the texts.

        Raises:
            ConfigError: the cache type does not exist, or the user's text is too short.
            ModelMissingError, ModelFileError: a file cannot be read.
            StoreError: ``root`` cannot be written.
            EngineRefused: llama.cpp cannot run a file over the text, or the file is another model.
            EngineCrashed, EngineTimeout, OutOfMemory: the worker failed.
        """
        terms, path, kept = self._entry(candidate, type_k, type_v)
        is_reference = (terms["candidate"], type_k, type_v) == (terms["reference"], "f16", "f16")
        if not self._suffices(kept):
            read_header(candidate)
            self._make_room(candidate if self._has_reference else self._reference)
            with store_errors(path):
                self._folder.mkdir(parents=True, exist_ok=True)
                began = time.monotonic()
                try:
                    self._measure(kept, candidate, type_k, type_v, is_reference)
                finally:
                    super().close()  # otherwise the worker would hold a model's memory during trials
                    self.spent_seconds += time.monotonic() - began
                files.replace(path, json.dumps({"terms": terms, "result": _plain(kept)}, indent=1))
        return Divergence.of(kept.divergences, kept.shares)

    def is_kept(self, candidate: Path, type_k: str = "f16", type_v: str = "f16") -> bool:
        """Whether `divergence` would answer without running a model. It raises the same errors of bad input."""
        return self._suffices(self._entry(candidate, type_k, type_v)[2])

    def _entry(self, candidate: Path, type_k: str, type_v: str) -> tuple[dict[str, Any], Path, _Kept]:
        """What a divergence depends on, the file of its result, and the result as far as it was measured."""
        terms = self._terms() | terms_of(candidate, type_k, type_v, self._root)
        path = self._folder / f"{digest(terms)}.json"
        return terms, path, _read(path)

    def _suffices(self, kept: _Kept) -> bool:
        return (self._effort.takes_kept and bool(kept.divergences)) or not kept.wanted(self._effort)

    def close(self) -> None:
        """End the worker and delete the reference's predictions. May be called twice."""
        super().close()
        if self._predictions is not None:
            self._predictions.file.close()
            self._predictions = None

    @property
    def _has_reference(self) -> bool:
        return self._predictions is not None and self._predictions.blocks > 0

    def _measure(self, kept: _Kept, candidate: Path, type_k: str, type_v: str, is_reference: bool) -> None:
        """Measure blocks until the effort says that they suffice, or until the time is over."""
        left_seconds = self._effort.seconds
        kept.allowed_seconds = 0.0
        while wanted := kept.wanted(self._effort):
            is_first, began = not self._has_reference, time.monotonic()
            reference = self._reference_upto(wanted, left_seconds)
            if not is_first:  # else the reference has the time of a model for itself
                left_seconds -= time.monotonic() - began
            began, have = time.monotonic(), len(kept.divergences)
            upto = min(wanted, reference.blocks)
            found = []
            if is_reference:
                found = [(0.0, 1.0)] * (upto - have)
            elif upto > have and (left_seconds > 0 or have < LEAST_BLOCKS):
                answer = self._ask(
                    f"cannot compare {candidate.name} with {self._reference.name}",
                    "compare",
                    model=str(candidate),
                    type_k=type_k,
                    type_v=type_v,
                    file=reference.path,
                    available=reference.available,
                    n_vocab=reference.n_vocab,
                    first=have,
                    blocks=upto,
                    least=LEAST_BLOCKS - have,
                    seconds=left_seconds,
                )
                found = answer["blocks"]
            left_seconds -= time.monotonic() - began
            kept.available = reference.available
            kept.divergences += [divergence for divergence, _ in found]
            kept.shares += [share for _, share in found]
            if len(kept.divergences) < min(wanted, reference.available):
                kept.allowed_seconds = self._effort.seconds  # the time is over
                return

    def _reference_upto(self, wanted: int, seconds: float) -> _Predictions:
        """The reference's predictions of ``wanted`` blocks, or of as many as the texts and the time allow."""
        if self._predictions is None:
            self._predictions = _Predictions(*temporary_file(self._folder))
        known = self._predictions
        enough = known.blocks >= min(wanted, known.available) or known.is_cut or seconds <= 0
        if known.blocks and enough:
            return known
        answer = self._ask(
            f"cannot run {self._reference.name} over {self._texts.name}",
            "reference",
            model=str(self._reference),
            texts=self._texts.read(),
            file=known.path,
            available=known.available,
            first=known.blocks,
            blocks=wanted,
            least=LEAST_BLOCKS - known.blocks,
            seconds=seconds,
        )
        if answer["available"] < LEAST_BLOCKS:
            raise too_short(self._texts)
        known.blocks, known.available = answer["blocks"], answer["available"]
        known.is_cut = known.blocks < min(wanted, known.available)
        known.n_vocab = answer["n_vocab"]
        return known

    def _ask(self, failed: str, what: str, **arguments: Any) -> dict[str, Any]:
        try:
            return self.ask(what, TIMEOUT_SECONDS + self._effort.seconds, **arguments, **self._machine)
        except EngineRefused as refused:
            raise EngineRefused(f"{failed}: {refused}", refused.log_tail) from None

    def _terms(self) -> dict[str, Any]:
        """Everything that the reference's predictions depend on."""
        return _PROTOCOL | {
            "reference": sha256_of_model(parts_of(self._reference), self._root),
            "text": self._texts.sha256(),
            "n_gpu_layers": self._machine["n_gpu_layers"],
            "engine": importlib.metadata.version("llama-cpp-python"),
        }


@dataclass(slots=True)
class _Predictions:
    """The reference's predictions, in a file that is open in this process and disappears when it is closed."""

    file: IO[bytes]
    path: str
    blocks: int = 0
    available: int = 0  # blocks that texts and disk allow
    n_vocab: int = 0
    is_cut: bool = False  # the time ended the last run


def terms_of(candidate: Path, type_k: str, type_v: str, root: Path) -> dict[str, str]:
    """What a divergence depends on beside the reference and the texts. Raises ConfigError for no such cache type."""
    for key, name in (("type_k", type_k), ("type_v", type_v)):
        if name not in CACHE_TYPES:
            raise ConfigError(f"{key}={name}: choose from {', '.join(CACHE_TYPES)}")
    return {"candidate": sha256_of_model(parts_of(candidate), root), "type_k": type_k, "type_v": type_v}


def too_short(texts: Texts, least: int = CHUNK_TOKENS + SCORED_TOKENS) -> ConfigError | EngineRefused:
    """The error of texts of too few tokens. The bundled ones are long enough for every real vocabulary."""
    message = f"model.text: {texts.name} has fewer than {least:,} tokens: give a longer text"
    return ConfigError(message) if texts.own else EngineRefused(message)


def digest(terms: Mapping[str, Any]) -> str:
    """The name of a kept result."""
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:24]


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a StoreError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from None


def _plain(kept: _Kept) -> dict[str, Any]:
    return {each.name: getattr(kept, each.name) for each in fields(_Kept)}


def _read(path: Path) -> _Kept:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))["result"]
        kept = _Kept(**{each.name: result[each.name] for each in fields(_Kept)})
        if len(kept.divergences) == len(kept.shares) >= LEAST_BLOCKS:
            Divergence.of(kept.divergences, kept.shares)
            return kept
    except (OSError, ValueError, TypeError, KeyError):
        pass  # missing or damaged: measure again
    return _Kept()
