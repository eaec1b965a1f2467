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
from sweeper.metrics import OBJECTIVES
from sweeper.parameters import TUNABLES
from sweeper.spelling import number

# The keys whose values are files or folders, in which ``~`` stands for the home folder.
PATHS = (
    "root",
    "model.path",
    "model.text",
    "model.files",
    "model.draft",
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
    top = {**get_type_hints(schema), **groups}
    spelled = [_spelled(word, several) for word in _joined(words)]
    models = [word for word in spelled if word.startswith("model.path=")]
    if len(models) > 1:
        paths = [word.partition("=")[2] for word in models]
        raise ConfigError(
            f"{len(paths)} models are named: give one, or sweep one after the other with "
            f"-m model.path={','.join(paths)}"
        )
    # A repository without its group would leave the default model's name and vocabulary in place.
    keys = [word.lstrip("+").partition("=")[0] for word in spelled]
    if "model.repo" in keys and "model" not in keys:
        spelled.append("model=hub")
    return [new for word in spelled for new in _override(word, top, can_parse, several)]


def flags_as_overrides(words: Sequence[str], schema: type, groups: Mapping[str, Any]) -> list[str]:
    """``words`` with ``--root FOLDER`` and ``--search.trials=3`` as overrides, which Hydra wants without dashes."""
    top = {**get_type_hints(schema), **groups}
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        key, equals, _ = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if key.partition(".")[0] not in top:
            found.append(word)
        elif equals:
            found.append(word[2:])
        else:
            found.append("=".join([key, *([value] if (value := next(rest, None)) is not None else [])]))
    return found


def _joined(words: Sequence[str]) -> list[str]:
    """``words`` with ``KEY = VALUE`` and ``KEY =VALUE`` as one word."""
    found: list[str] = []
    open_end = False  # the last word was a lone `=`, whose value is still to come
    for word in words:
        if found and (open_end or word.startswith("=")):
            found[-1] += word
        else:
            found.append(word)
        open_end = word == "="
    return found


def _spelled(word: str, several: bool) -> str:
    """``word`` with its key, if it is a bare path, a path in place of a model's name, or a metric with a bound."""
    if is_model_path(word):
        return f"model.path={word}"
    key, _, value = word.partition("=")
    if key.lstrip("+") == "model" and all(map(is_model_path, value.split(",") if several else [value])):
        return f"model.path={value}"
    bounded = re.fullmatch(r"\+*(objectives\.constraints\.)?(\w+)\s*((?:<=|>=|<|>|≤|≥).+)", word)
    if bounded and (bounded[1] or bounded[2] in OBJECTIVES):
        return f"objectives.constraints.{bounded[2]}={bounded[3]}"
    return word


def is_model_path(text: str) -> bool:
    """Whether a word without a key can only be the path of a model."""
    begins = text.startswith(("/", "./", "../", "~/"))
    return begins or (text.lower().endswith(".gguf") and not re.match(r"\+*[\w.]+=", text))


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
    if kind is str or (key in PATHS and kind is Any and not value.startswith("[")):
        value = _text(key, value, top, several, can_parse)
    elif (plain := _plain_value(key, value, kind, several)) is not None:
        value = plain
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


def _plain_value(key: str, value: str, kind: Any, several: bool) -> str | None:
    """A number or a parameter's value as Hydra's grammar has it; None where Hydra shall read what was typed."""
    parts = value.split(",") if several and not re.search(r"[\[{(]", value) else [value]
    if kind in (int, float):
        found = [number(key, part.strip().removeprefix("="), whole=kind is int) for part in parts]
        return ",".join(part for part in found if part is not None) if None not in found else None
    if kind is bool:
        return ",".join(_FLAGS.get(part.strip().removeprefix("=").lower(), part) for part in parts)
    group, _, name = key.partition(".")
    if group != "space" or name not in TUNABLES:
        return None
    if re.match(r"[\[{]", value) and not several:
        return _parameter_values(name, value)
    return ",".join(_parameter_value(name, part.strip()) for part in parts)


def _parameter_values(name: str, value: str) -> str | None:
    """A list or a range of a parameter, each value of it as `_parameter_value` has it."""
    try:
        plain = yaml.safe_load(value)
    except yaml.YAMLError:
        return None
    if isinstance(plain, dict):
        return _written(
            {k: _kept(_parameter_value(name, str(v))) for k, v in plain.items() if k != "log"}
            | {k: v for k, v in plain.items() if k == "log"}
        )
    return _written([_kept(_parameter_value(name, _word(item))) for item in plain])


def _parameter_value(name: str, text: str) -> str:
    """One value of a parameter: ``16k`` as 16384, ``1-8`` as a range, ``on`` as true, ``q4_k_m`` as Q4_K_M."""
    tunable = TUNABLES[name]
    if text.lower() in ("auto", "null") or "${" in text:
        return text.lower() if "${" not in text else text
    if tunable.kind == "flag":
        return _FLAGS.get(text.lower(), text)
    if tunable.kind == "word":
        by_lower = {word.lower(): word for word in tunable.words}
        return text.upper() if name == "quant" else by_lower.get(text.lower(), text)
    ends = re.fullmatch(r"\s*([^\s.-]+)\s*(?:-|–|\.\.)\s*([^\s.-]+)\s*", text)
    low, high = (number(name, end, whole=True) for end in ends.groups()) if ends else (None, None)
    if low is not None and high is not None:
        return f"{{low: {low}, high: {high}}}"
    return number(name, text, whole=True) or text


_FLAGS = {"on": "true", "yes": "true", "true": "true", "off": "false", "no": "false", "false": "false"}


def _word(item: Any) -> str:
    return str(item).lower() if isinstance(item, bool) else "null" if item is None else str(item)


def _kept(text: str) -> Any:
    """The value that ``text`` stands for in a list: a number, true, false, null or a word."""
    return yaml.safe_load(text) if re.fullmatch(r"-?\d+|true|false|null", text) else text


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
