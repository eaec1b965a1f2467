"""Turn the ``KEY=VALUE`` words of a command line into words that Hydra's grammar reads as the user means them.

Hydra refuses a key that no composed file holds, merges a mapping into what stands there, and reads ``= , ( ) #`` and
letters beyond ASCII in a value as syntax. The schema knows better: it has every key, and says which values are text.
No input or output here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from sweeper.errors import ConfigError

# The keys whose values are files or folders, in which ``~`` stands for the home folder.
PATHS = (
    "root",
    "model.path",
    "model.text",
    "model.files",
    "engine.table",
    "workload.prompts",
    "power.limits.zeusd_socket",
)

# Hydra's flags that take the next word as their value.
_VALUED = {
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
}
_VALUED |= {"--experimental-rerun"}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def split_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and the other words; Hydra itself wants all overrides in one piece."""
    flags: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if flags and flags[-1] in ("--info", "-i") and word in _INFO:
            flags.append(word)
            continue
        (flags if word.startswith("-") else others).append(word)
        if word in _VALUED:
            flags.extend(value for value in [next(rest, None)] if value is not None)
    return flags, others


def for_hydra(
    words: Sequence[str],
    schema: type,
    groups: Mapping[str, Any],
    can_parse: Callable[[str], bool],
    several: bool = False,
) -> list[str]:
    """``words`` as Hydra must see them.

    Args:
        words: overrides as typed: ``KEY=VALUE``, ``+KEY=VALUE``, ``~KEY``, ``GROUP=CHOICE``.
        schema: the dataclass of the whole configuration.
        groups: the names and types of mappings that are not in the schema, such as the space.
        can_parse: whether Hydra's grammar accepts a word.
        several: whether one sweep after the other runs, so that commas separate values.

    Raises:
        ConfigError: a path begins with ``~``, and there is no home folder.
    """
    return [
        new
        for word in words
        for new in _override(word, {**get_type_hints(schema), **groups}, can_parse, several)
    ]


def _override(
    word: str, top: Mapping[str, Any], can_parse: Callable[[str], bool], several: bool
) -> Iterator[str]:
    typed, equals, value = word.partition("=")
    key = typed.lstrip("+")
    kind = _type_at(key, top)
    if not equals or kind is None:  # a group's choice, a deletion, Hydra's own key, or an unknown key
        path = value.startswith(("/", "~/"))
        yield f"{typed}={quoted(at_home(key, value))}" if path else word
        return
    if kind is str:
        value = _text(key, value, top, several, can_parse)
    elif not can_parse(f"{key}={value}"):
        value = _by_yaml(value)
    if key.startswith("space.") and value.startswith(("[", "{")):
        yield f"++{key}=null"  # so that Hydra replaces what stands there, where it would merge
    yield f"++{key}={value}"


def _type_at(key: str, top: Mapping[str, Any]) -> Any:
    """The type of the value at ``key``: str for text, ``Any`` for what has no fixed type, None for no such key."""
    first, *others = key.split(".")
    kind = top.get(first)
    if not others and (is_dataclass(kind) or isinstance(kind, Mapping)):
        return None  # `power=rapl` chooses a file
    for part in others:
        if isinstance(kind, Mapping):
            kind = kind.get(part)
        elif is_dataclass(kind):
            kind = get_type_hints(kind).get(part)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif kind is not Any:
            return None
        kind = _without_none(kind)
    return _without_none(kind)


def _without_none(kind: Any) -> Any:
    """``X`` for ``X | None``."""
    given = [other for other in get_args(kind) if other is not NoneType]
    return given[0] if NoneType in get_args(kind) and len(given) == 1 else kind


# -- values


def _text(
    key: str, value: str, top: Mapping[str, Any], several: bool, can_parse: Callable[[str], bool]
) -> str:
    """A text value as Hydra's grammar writes it: it means what the user typed, whatever its characters are."""
    own = r"['\"]|(choice|range|interval|glob|sort|shuffle|tag)\(" if several else r"(?![/~]).*\\[][(){}:=, ]"
    if re.match(own, value) and can_parse(f"{key}={value}"):
        return value  # written for Hydra: values to sweep, or escaped signs
    if several:
        return ",".join(_one_text(key, part.strip(), top) for part in value.split(","))
    return _one_text(key, value, top)


def _one_text(key: str, value: str, top: Mapping[str, Any]) -> str:
    if value.lower() == "null" or re.fullmatch(r"'(\\.|[^\\'])*'|\"(\\.|[^\\\"])*\"", value):
        return value
    if key.startswith(PATHS):
        value = at_home(key, value)
    return quoted(re.sub(r"(?<!\\)\$\{(?!" + _references(top) + ")", r"\\${", value))


def literal(text: str) -> str:
    """``text`` as the value of a word, without references."""
    return quoted(text.replace("${", r"\${"))


def _references(top: Mapping[str, Any]) -> str:
    """What makes ``${`` the start of a reference: a resolver's name with a colon, or a key. Else it is plain text."""
    return r"\s*(\.|[\w.]+:|(" + "|".join(map(re.escape, (*top, "hydra"))) + r")[.}\[])"


def quoted(text: str) -> str:
    """``text`` in Hydra's quotes."""
    # Hydra reads a backslash as an escape only before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text) + "'"


def at_home(key: str, path: str) -> str:
    """``path`` with the home folder in place of ``~``. Raises ConfigError if there is none."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ConfigError(
            f"{key}: there is no home folder for {path!r}; write the whole path, or ./~… for a name that begins with ~"
        ) from None


def _by_yaml(value: str) -> str:
    """A list or mapping with names that only YAML reads, such as ``{Q8_0: a=b.gguf}``, in Hydra's grammar."""
    try:
        plain = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return _written(plain) if isinstance(plain, list | dict) else value


def _written(plain: Any) -> str:
    if isinstance(plain, dict):
        return "{" + ", ".join(f"{key}: {_written(value)}" for key, value in plain.items()) + "}"
    if isinstance(plain, list):
        return "[" + ", ".join(map(_written, plain)) + "]"
    if plain is None:
        return "null"
    return (
        str(plain).lower()
        if isinstance(plain, bool)
        else quoted(plain)
        if isinstance(plain, str)
        else str(plain)
    )
