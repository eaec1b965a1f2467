"""The draft model of speculative decoding: its kind, and whether it can draft for the model.

llama-server itself goes on without speculation if the vocabularies differ, so sweeper compares them before a sweep.
The rules are those of llama.cpp (``common/speculative.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import ConfigError, MissingError, ModelFileError
from sweeper.model.header import GgufHeader, read_header
from sweeper.model.metadata import Value, read_raw

# A draft model with its own vocabulary. The other kinds share the model's own embeddings.
SIMPLE = "draft-simple"
MTP = "draft-mtp"
_KEY = "model.draft"
_TOKENS = "tokenizer.ggml.tokens"
# llama.cpp allows for so many more or fewer tokens (padding), and for other special tokens at the beginning.
MOST_MORE_TOKENS = 128
FIRST_COMPARED = 5
# Names of tokenizers that llama.cpp runs as the same type.
_TYPES = dict.fromkeys(("gpt2", "gemma4", "hybriddna", "whitespace"), "BPE")


@dataclass(frozen=True, slots=True)
class _Words:
    """The vocabulary in a GGUF file, as far as the file states it."""

    tokens: tuple[bytes, ...]
    values: Mapping[str, Value]

    def stated(self, name: str) -> Value:
        return self.values.get(f"tokenizer.ggml.{name}")


def read_draft(path: Path) -> GgufHeader:
    """The header of a draft model. Raises ConfigError if the file is missing, or is no model."""
    if not path.exists():
        raise ConfigError(
            f"{_KEY}: there is no file {path}; give the GGUF of a small model with the same vocabulary"
        )
    try:
        return read_header(path)
    except (MissingError, ModelFileError) as error:
        raise ConfigError(f"{_KEY}: {error}") from error


def demand_alike(draft: GgufHeader, model: GgufHeader) -> None:
    """Raise ConfigError if llama.cpp would not let ``draft`` draft for ``model``."""
    why = _why_unlike(_words(model), _words(draft)) if kind_of(draft) == SIMPLE else None
    if why is not None:
        raise ConfigError(
            f"{_KEY}: {draft.path.name} cannot draft for {model.path.name}, because {why}; "
            "give a small model with the same vocabulary"
        )


def kind_of(draft: GgufHeader) -> str:
    """The ``spec_type`` that uses this file."""
    names = {tensor.name for tensor in draft.tensors}
    if draft.architecture == "eagle3":
        return "draft-eagle3"
    if draft.architecture == "dflash":
        return "draft-dspark" if "markov_w1.weight" in names else "draft-dflash"
    return MTP if f"blk.{draft.n_layer - 1}.nextn.eh_proj.weight" in names else SIMPLE


def _words(header: GgufHeader) -> _Words:
    with header.path.open("rb") as stream:
        raw = read_raw(stream, header.path.stat().st_size, keep=(_TOKENS,))
    return _Words(raw.strings.get(_TOKENS, ()), raw.values)


def _why_unlike(model: _Words, draft: _Words) -> str | None:
    """The reason why llama.cpp would not let one draft for the other; None if it would.

    A property that one of the files does not state has a default in llama.cpp, so it is not compared.
    """
    types = [_TYPES.get(str(name), name) for name in (words.stated("model") for words in (model, draft))]
    if types[0] != types[1]:
        return f"its tokenizer is {draft.stated('model')}, and that of the model is {model.stated('model')}"
    for name in ("bos", "eos"):
        added = [words.stated(f"add_{name}_token") for words in (model, draft)]
        if None not in added and added[0] != added[1]:
            return f"only one of them adds a {name.upper()} token to prompts"
        ids = [words.stated(f"{name}_token_id") for words in (model, draft)]
        if added == [True, True] and None not in ids and ids[0] != ids[1]:
            return f"its {name.upper()} token is number {ids[1]}, and that of the model is {ids[0]}"
    sizes = len(model.tokens), len(draft.tokens)
    if abs(sizes[0] - sizes[1]) > MOST_MORE_TOKENS:
        return f"its vocabulary has {sizes[1]} tokens, and that of the model has {sizes[0]}"
    for number in range(FIRST_COMPARED, min(sizes)):
        if model.tokens[number] != draft.tokens[number]:
            theirs, its = (words.tokens[number].decode("utf-8", "replace") for words in (model, draft))
            return f"its token {number} is {its!r}, and that of the model is {theirs!r}"
    return None
