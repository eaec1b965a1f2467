"""A complete tokenizer for a synthetic model: special tokens, one token for each byte, and syllables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from sweeper.model.shapes import BYTE_TOKENS, SPECIAL_TOKENS

UNKNOWN, BEGIN, END = 0, 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # enum llama_token_type
_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxz", "aeiouy"
_SPACE = "\u2581"  # SentencePiece's mark of a space

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens with their scores and types, index by index."""

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]


def vocabulary(size: int) -> Vocabulary:
    """A SentencePiece vocabulary of ``size`` tokens, made of pronounceable syllables."""
    count = size - SPECIAL_TOKENS - BYTE_TOKENS
    words = list(itertools.islice(_words(), count))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(BYTE_TOKENS)), *words]
    # A merge with a higher score comes first, as in trained vocabularies: shorter words before longer ones.
    scores = [0.0] * (SPECIAL_TOKENS + BYTE_TOKENS) + [-float(rank) for rank in range(count)]
    types = [_UNKNOWN, _CONTROL, _CONTROL] + [_BYTE] * BYTE_TOKENS + [_NORMAL] * count
    return Vocabulary(tuple(tokens), tuple(scores), tuple(types))


def _words() -> Iterator[str]:
    """An endless sequence of distinct words: letters and marks first, then one, two, three … syllables."""
    yield _SPACE
    yield from "etaoinshrdlucmfwypvbgkjqxz.,;:!?'\"-()\n0123456789ETAOINSHRDLUCMFWYPVBGKJQXZ"
    syllables = [first + second for first in _CONSONANTS for second in _VOWELS]
    for length in itertools.count(1):
        for parts in itertools.product(syllables, repeat=length):
            word = "".join(parts)
            yield word
            yield _SPACE + word
