"""The texts over which quality is measured: the bundled ones, or the user's own files (``model.text``).

The bundled texts are of several kinds, because a quantisation loses more on one kind than on another. They were written
for sweeper and published with it only, so that no model has learned them by heart.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sweeper.errors import ConfigError, ModelMissingError

T = TypeVar("T")

BUNDLED = tuple(Path(__file__).with_name("texts") / f"{kind}.txt" for kind in ("prose", "code", "dialogue"))
# A token of real text has about 4 bytes, and fewer than 768 tokens are less than two blocks.
LEAST_BYTES = 4096
# Of a longer file, the beginning counts: a MiB has about 250,000 tokens, and more change no figure.
MOST_BYTES = 1 << 20
# Pieces of this size are about as long as one chunk of llama-perplexity.
_PIECE_BYTES = 2048
_KEY = "model.text"


@dataclass(frozen=True, slots=True)
class Texts:
    """Some texts, each of one kind. Without ``own``, they are the bundled ones."""

    paths: tuple[Path, ...] = BUNDLED
    own: bool = False

    @property
    def name(self) -> str:
        """The texts in words: ``prose, code and dialogue`` or the names of the user's files."""
        names = [path.name if self.own else path.stem for path in self.paths]
        return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))

    def read(self) -> list[str]:
        """The content of each file, at most its first MiB.

        Raises:
            ModelMissingError: a file does not exist or cannot be read.
            ConfigError: a file is not UTF-8, or all of them together are too short.
        """
        found = [_read(path) for path in self.paths]
        size = sum(len(text.encode()) for text in found)
        if size < LEAST_BYTES:
            raise ConfigError(
                f"{_KEY}: {self.name} has {size:,} bytes: give at least {LEAST_BYTES:,} bytes of text"
            )
        return found

    def sha256(self) -> str:
        """A digest of the content, without the names. Raises as `read`."""
        each = (hashlib.sha256(text.encode()).hexdigest() for text in self.read())
        return hashlib.sha256("\n".join(each).encode()).hexdigest()

    def mixed(self) -> str:
        """One text with short pieces of each file in turn, so that any beginning of it holds every kind."""
        return "".join(interleaved([_pieces(text) for text in self.read()]))


def texts_of(value: Any) -> Texts:
    """The texts that ``model.text`` names: nothing, one file or a list of files.

    Raises:
        ConfigError: the value is something else.
    """
    if value is None:
        return Texts()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise ConfigError(f"{_KEY}: {value!r} is neither a file nor a list of files: write [a.txt,b.txt]")
    return Texts(tuple(map(Path, names)), own=True)


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """The first item of each part, then the second of each, and so on; a part that has ended is left out."""
    longest = max(map(len, parts), default=0)
    return [part[turn] for turn in range(longest) for part in parts if turn < len(part)]


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES)
    except OSError as error:
        raise ModelMissingError(f"{_KEY}: cannot read {path} ({error.strerror}): name a text file") from error
    try:  # a character that the limit cuts in two is no mistake
        return codecs.getincrementaldecoder("utf-8-sig")().decode(raw, final=len(raw) < MOST_BYTES)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_KEY}: {path} is not UTF-8 text (byte {error.start:,})") from None


def _pieces(text: str) -> list[str]:
    """The text in pieces of whole lines, each of at least 2 KiB except for the last one."""
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece.encode()) >= _PIECE_BYTES:
            pieces.append(piece)
            piece = ""
    return [*pieces, piece] if piece else pieces
