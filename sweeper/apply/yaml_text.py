"""Puts one entry into a YAML file that others wrote, and leaves every other byte as it is.

PyYAML says where each entry stands; the text is cut there. The result is read again and compared with what
it should mean, so that a file laid out in a way not foreseen here is refused and never damaged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from sweeper.apply.base import lines_of
from sweeper.errors import UsageError


def quoted(text: str) -> str:
    """``text`` as a double-quoted YAML scalar, on one line."""
    return '"' + "".join(_character(c) for c in text) + '"'


def block(data: Mapping[str, Any], indent: int = 0) -> str:
    """A mapping in block style; every string is quoted, so that none is read as a number or a date."""
    lines: list[str] = []
    for key, value in data.items():
        lines += _entry(quoted(key) if not _PLAIN.fullmatch(key) else key, value, " " * indent)
    return "".join(f"{line}\n" for line in lines)


def with_entry(text: str, path: tuple[str, ...], key: str, entry: Mapping[str, Any], where: str) -> str:
    """``text`` with ``key`` set to ``entry`` in the mapping at ``path`` (of no or one level).

    An entry of that key that is there keeps the keys that ``entry`` does not hold.

    Args:
        text: The file.
        path: Empty for the top level, else the name of a mapping there.
        key: The entry's name.
        entry: What it shall hold.
        where: The file's name, for messages.

    Raises:
        UsageError: where the file is not YAML, or is laid out so that the entry cannot be put in.
    """
    old = _load(text, where)
    parent: Any = old
    for name in (*path, None):
        if not (parent is None or isinstance(parent, dict)):
            raise UsageError(f"{where} holds no mapping where sweeper's entry goes: name another file")
        if name is not None:
            parent = (parent or {}).get(name)
    before = (parent or {}).get(key)
    merged = {**(before if isinstance(before, dict) else {}), **entry}
    new = _insert(text, path, key, merged, where)
    if _load(new, where) != _expected(old or {}, path, key, merged):
        raise UsageError(
            f"{where} is laid out so that sweeper cannot change one entry of it: "
            "name another file and copy it over"
        )
    return new


# PyYAML counts these ends of lines in its marks.
_YAML_LINE = re.compile("[^\r\n\x85\u2028\u2029]*(?:\r\n|[\r\n\x85\u2028\u2029])|[^\r\n\x85\u2028\u2029]+")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
# Words that YAML 1.1 takes for something else than text.
_NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def _character(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    if c.isprintable():
        return c
    return f"\\U{ord(c):08x}" if ord(c) > 0xFFFF else f"\\u{ord(c):04x}"


def _entry(key: str, value: Any, pad: str) -> list[str]:
    if key.lower() in _NOT_TEXT:
        key = quoted(key)
    if isinstance(value, Mapping) and value:
        inner = [line for k, v in value.items() for line in _entry(_key(k), v, pad + "  ")]
        return [f"{pad}{key}:", *inner]
    if isinstance(value, list | tuple) and value:
        return [f"{pad}{key}:", *(line for item in value for line in _item(item, pad + "  "))]
    return [f"{pad}{key}: {_scalar(value)}"]


def _key(key: Any) -> str:
    return key if isinstance(key, str) and _PLAIN.fullmatch(key) else _scalar(key)


def _item(value: Any, pad: str) -> list[str]:
    if isinstance(value, Mapping) and value:
        inner = [line for k, v in value.items() for line in _entry(_key(k), v, pad + "  ")]
        return [f"{pad}- {inner[0].lstrip()}", *inner[1:]]
    return [f"{pad}- {_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    dumped: str = yaml.safe_dump(value, default_flow_style=True, width=1_000_000, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...")


def _load(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = "" if line is None else f" (line {line + 1})"
        raise UsageError(f"{where} is not YAML{place}: mend it, or name another file") from error


def _expected(
    old: dict[str, Any], path: tuple[str, ...], key: str, entry: Mapping[str, Any]
) -> dict[str, Any]:
    if not path:
        return {**old, key: dict(entry)}
    return {**old, path[0]: {**(old.get(path[0]) or {}), key: dict(entry)}}


def _insert(text: str, path: tuple[str, ...], key: str, entry: Mapping[str, Any], where: str) -> str:
    end = "\r\n" if "\r\n" in text else "\n"
    lines = _YAML_LINE.findall(text)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += end
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    if path:
        child = _child(root, path[0])
        if child is None or not isinstance(child[1], yaml.MappingNode) or not child[1].value:
            return "".join(_with_new_parent(lines, child, path[0], key, entry, end, where))
        parent = child[1]
    elif root is None:
        return "".join([*lines, *_block_lines({key: entry}, 0, end)])
    else:
        parent = root
    if parent.flow_style:
        raise UsageError(
            f"{where} holds its entries in one line ({{…}}): write them one a line, or name another file"
        )
    indent = parent.value[0][0].start_mark.column
    new = _block_lines({key: entry}, indent, end)
    for number, (name, value) in enumerate(parent.value):
        if name.value == key:
            first = name.start_mark.line
            return "".join([*lines[:first], *new, *lines[_after(lines, parent, number, value, indent) :]])
    last = len(parent.value) - 1
    at = _after(lines, parent, last, parent.value[last][1], indent)
    return "".join([*lines[:at], *new, *lines[at:]])


def _child(root: Any, name: str) -> tuple[Any, Any] | None:
    if not isinstance(root, yaml.MappingNode):
        return None
    return next((pair for pair in root.value if pair[0].value == name), None)


def _after(lines: list[str], parent: Any, number: int, value: Any, indent: int) -> int:
    """The line after an entry. Blank lines and comments before the next entry are the next one's."""
    if number + 1 == len(parent.value) and value.start_mark.index < parent.value[number][0].start_mark.index:
        stop = parent.value[number][0].end_mark.line + 1  # an alias, whose marks are its anchor's
    elif number + 1 < len(parent.value):
        stop = parent.value[number + 1][0].start_mark.line
    else:
        stop = min(value.end_mark.line + (value.end_mark.column > 0), len(lines))
    first = parent.value[number][0].start_mark.line
    while stop > first + 1 and _is_between(lines[stop - 1], indent):
        stop -= 1
    return int(stop)


def _is_between(line: str, indent: int) -> bool:
    body = line.strip()
    depth = len(line) - len(line.lstrip(" "))
    return not body or (body.startswith("#") and depth <= indent) or body in ("...", "---")


def _with_new_parent(
    lines: list[str],
    child: tuple[Any, Any] | None,
    parent: str,
    key: str,
    entry: Mapping[str, Any],
    end: str,
    where: str,
) -> list[str]:
    """``lines`` with a mapping ``parent`` that is missing, null or empty."""
    new = _block_lines({parent: {key: entry}}, 0, end)
    if child is None:
        return [*lines, *new]
    name, value = child
    if name.start_mark.line != value.end_mark.line:
        raise UsageError(
            f"{where}: cannot put an entry into {parent!r}: write it as `{parent}:` on a line of its own"
        )
    line = name.start_mark.line
    return [*lines[:line], *new, *lines[line + 1 :]]


def _block_lines(data: Mapping[str, Any], indent: int, end: str) -> list[str]:
    return [line.rstrip("\n") + end for line in lines_of(block(data, indent))]
