"""Puts one entry into a YAML file that others wrote, and leaves every other byte as it is.

PyYAML says where each entry stands; the text is cut there. The result is read again and compared with what
it should mean. A file in a layout that sweeper cannot handle is therefore refused and never damaged.

ruamel.yaml is no substitute: its round trip rewrites CRLF, mixed indentation, folded scalars, the spacing of
``{a: 1,b: 2}``, ``~``, escapes and document markers, and it cannot read a tab before a comment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sweeper.apply.base import FileChange, change, read_text
from sweeper.errors import UsageError

# PyYAML counts these ends of lines in its marks.
_YAML_LINE = re.compile("[^\r\n\x85\u2028\u2029]*(?:\r\n|[\r\n\x85\u2028\u2029])|[^\r\n\x85\u2028\u2029]+")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
# Words that YAML 1.1 takes for something else than text.
_NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


class _Writer(yaml.SafeDumper):
    """Quotes every string that is not a plain word, so that no reader takes it for a number or a date."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def check_simple_key(self) -> bool:
        return True  # else PyYAML gives a key of 128 characters a line of its own


def _represent_string(writer: _Writer, text: str) -> yaml.ScalarNode:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT
    return writer.represent_scalar("tag:yaml.org,2002:str", text, None if plain else '"')


_Writer.add_representer(str, _represent_string)


def entry_change(path: Path, parent: str | None, key: str, entry: Mapping[str, Any]) -> FileChange:
    """The change that sets one entry of a YAML file; see `with_entry`."""
    existing = read_text(path)
    place = f"{parent}.{key}" if parent else key
    says = "a new file" if existing is None else f"sets {place} and keeps the rest byte for byte"
    return change(path, with_entry(existing or "", parent, key, entry, str(path)), says)


def with_entry(text: str, parent: str | None, key: str, entry: Mapping[str, Any], where: str) -> str:
    """``text`` with ``key`` set to ``entry``; an existing entry keeps the keys that ``entry`` does not hold.

    Args:
        text: The file.
        parent: The name of the top-level mapping that holds the entry; None for the top level itself.
        key: The entry's name.
        entry: What it shall hold.
        where: The file's name, for messages.

    Raises:
        UsageError: the file is not YAML, or is laid out so that the entry cannot be put in.
    """
    old = _load(text, where)
    held = old.get(parent) if parent and isinstance(old, dict) else old
    if not all(mapping is None or isinstance(mapping, dict) for mapping in (old, held)):
        raise UsageError(f"{where} holds no mapping where sweeper's entry goes: name another file")
    before = (held or {}).get(key)
    merged = {**(before if isinstance(before, dict) else {}), **entry}
    if before == merged:
        return text
    new = _insert(text, parent, key, merged, where)
    expected = {**(held or {}), key: merged}
    if _load(new, where) != ({**(old or {}), parent: expected} if parent else expected):
        raise UsageError(
            f"{where} is laid out so that sweeper cannot change one entry of it: "
            "name another file and copy it over"
        )
    return new


def _load(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = "" if line is None else f" (line {line + 1})"
        raise UsageError(f"{where} is not YAML{place}: mend it, or name another file") from error


def _insert(text: str, parent: str | None, key: str, entry: Mapping[str, Any], where: str) -> str:
    end = "\r\n" if "\r\n" in text else "\n"
    lines = _YAML_LINE.findall(text)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += end
    first = stop = len(lines)  # the new lines replace lines[first:stop]
    indent, data = 0, {key: entry}
    mapping: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    if parent:
        pairs = mapping.value if mapping is not None else ()
        name, mapping = next((pair for pair in pairs if pair[0].value == parent), (None, None))
        if not isinstance(mapping, yaml.MappingNode) or not mapping.value:  # missing, null or {}
            data = {parent: data}
            if name is not None:
                first, stop = name.start_mark.line, name.start_mark.line + 1
                if mapping.end_mark.line != first:
                    raise UsageError(
                        f"{where}: cannot put an entry into {parent!r}: "
                        f"write it as `{parent}:` on a line of its own"
                    )
            mapping = None
    if mapping is not None:
        if mapping.flow_style:
            raise UsageError(
                f"{where} holds its entries in one line ({{…}}): write them one a line, or name another file"
            )
        indent = mapping.value[0][0].start_mark.column
        names = [name.value for name, _ in mapping.value]
        number = names.index(key) if key in names else -1
        stop = _line_after(lines, mapping, number, indent)
        first = mapping.value[number][0].start_mark.line if key in names else stop
    block = yaml.dump(
        data, Dumper=_Writer, sort_keys=False, default_flow_style=False, allow_unicode=True, width=10**9
    )
    new = [" " * indent + line + end for line in block.splitlines()]
    return "".join([*lines[:first], *new, *lines[stop:]])


def _line_after(lines: list[str], mapping: yaml.MappingNode, number: int, indent: int) -> int:
    """The line after an entry. Blank lines and comments before the next entry belong to the next one."""
    starts = [name.start_mark.line for name, _ in mapping.value]
    end = mapping.end_mark  # where the next key begins, in column 0, or the end of the file
    stop = [*starts[1:], min(end.line + (end.column > 0), len(lines))][number]
    while stop > starts[number] + 1:
        line = lines[stop - 1]
        is_comment = line.lstrip().startswith("#") and len(line) - len(line.lstrip(" ")) <= indent
        if line.strip() not in ("", "...", "---") and not is_comment:
            break
        stop -= 1
    return int(stop)
