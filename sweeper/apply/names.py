"""Checks names and paths for other programs' files, and makes safe names."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from sweeper.errors import UsageError

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_LINE_ENDS = "\u0085\u2028\u2029"  # YAML and str.splitlines take them for ends of lines

# The word that a pick adds to the model's name, so that one file can hold two picks.
_PICK_WORDS = {
    "longest": "long",
    "fastest": "fast",
    "greenest": "green",
    "knee": "knee",
    "within": "eco",
    "at-most": "capped",
    "at-least": "paced",
}


def check_text(what: str, value: str) -> str:
    """``value`` itself, if one line of a file can hold it.

    Raises:
        UsageError: it is empty, holds a line end, NUL or another control character, or is not UTF-8.
    """
    if not value:
        raise UsageError(f"{what} is empty: give it a name")
    for character in value:
        if character in _LINE_ENDS or unicodedata.category(character) == "Cc":
            raise UsageError(
                f"{what} {value!r} holds the control character {character!r}, "
                "which no configuration file can hold safely: rename it"
            )
        if "\ud800" <= character <= "\udfff":
            raise UsageError(
                f"{what} {value!r} is not UTF-8, which configuration files are written in: rename it"
            )
    return value


def refuse_characters(what: str, value: str, characters: str, why: str) -> None:
    """Raise UsageError, which tells ``why``, if ``value`` holds one of ``characters``."""
    found = next((c for c in value if c in characters), None)
    if found is not None:
        raise UsageError(f"{what} {value!r} holds {found!r}: {why}")


def refuse_outer_spaces(what: str, value: str, why: str) -> None:
    """Raise UsageError, which tells ``why``, if ``value`` begins or ends with a space."""
    if value != value.strip():
        raise UsageError(f"{what} {value!r} begins or ends with a space: {why}")


def slug(text: str) -> str:
    """A name of ASCII letters, digits, ``.``, ``_`` and ``-`` that every server and URL takes.

    If letters are lost, a digest of the whole text follows, so that two models never share a name.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    cleaned = _UNSAFE.sub("-", ascii_text).strip("-._")
    if cleaned == text:
        return cleaned
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{cleaned}-{digest}" if cleaned else f"model-{digest}"


def alias_for(model: str, quant: str | None, pick: str) -> str:
    """The default name under which a server offers the tuned model, as ``codebooga-34b-q4_k_m-eco``."""
    word = _PICK_WORDS.get(pick.split(":", 1)[0], "tuned")
    parts = [slug(model)]
    if quant and quant.lower() not in model.lower():
        parts.append(slug(quant).lower())
    return "-".join([*parts, word])
