"""Puts one entry into a YAML file that others wrote, and leaves every other byte as it is.

PyYAML says where each key stands; the text is cut there. The result is read again and compared with what
it should mean. A file in a layout that sweeper cannot handle is therefore refused and never damaged.

ruamel.yaml is no substitute: its round trip rewrites CRLF, mixed indentation, folded scalars, the spacing of
``{a: 1,b: 2}``, ``~``, escapes and document markers, and it cannot read a tab before a comment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
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
_CORE = "tag:yaml.org,2002:"
_COLLECTIONS = (_CORE + "map", _CORE + "seq")


@dataclass(frozen=True, slots=True)
class Tagged:
    """A value that is no string, list or mapping, as its text: a number, a flag, null, or a tag such as ``!reset``.

    The text stays as the user wrote it, because versions of YAML disagree on what ``on``, ``0777`` and ``22:22`` are.
    """

    tag: str
    value: Any

    @property
    def is_null(self) -> bool:
        """Whether it stands for no value."""
        return self.tag == _CORE + "null"


class _Reader(yaml.SafeLoader):
    """Reads strings, lists and mappings with their merge keys; leaves everything else as `Tagged` text."""

    def plain(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.tag == _CORE + "str" else Tagged(node.tag, node.value)
        value: Any
        if isinstance(node, yaml.MappingNode):
            value = self.construct_mapping(node, deep=True)
        else:
            assert isinstance(node, yaml.SequenceNode)
            value = self.construct_sequence(node, deep=True)
        return value if node.tag in _COLLECTIONS else Tagged(node.tag, value)


_Reader.yaml_constructors = {None: _Reader.plain}
_Reader.yaml_multi_constructors = {}


class _Writer(yaml.SafeDumper):
    """Quotes every string that is not a plain word, so that no reader takes it for a number or a date."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def check_simple_key(self) -> bool:
        return True  # else PyYAML gives a key of 128 characters a line of its own


def _represent_string(writer: _Writer, text: str) -> yaml.ScalarNode:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT
    return writer.represent_scalar(_CORE + "str", text, None if plain else '"')


def _represent_tagged(writer: _Writer, tagged: Tagged) -> yaml.Node:
    if isinstance(tagged.value, str):
        return writer.represent_scalar(tagged.tag, tagged.value)
    node = writer.represent_data(tagged.value)
    node.tag = tagged.tag
    return node


_Writer.add_representer(str, _represent_string)
_Writer.add_representer(Tagged, _represent_tagged)


def entry_change(
    path: Path, parent: str | None, key: str, entry: Mapping[str, Any], drop: Collection[str] = ()
) -> FileChange:
    """The change that sets one entry of a YAML file; see `with_entry`."""
    existing = read_text(path)
    place = f"{parent}.{key}" if parent else key
    says = "a new file" if existing is None else f"sets {place} and keeps the rest byte for byte"
    return change(path, with_entry(existing or "", parent, key, entry, str(path), drop), says)


def mapping_of(text: str, where: str, *path: str) -> dict[str, Any]:
    """The mapping that ``path`` leads to, empty where there is none. Values are str, list, dict or `Tagged`.

    Raises UsageError for a file that is not YAML, or that holds something else than a mapping there.
    """
    found = _load(text, where)
    for name in (None, *path):
        found = found if name is None else found.get(name)
        if found is None or (isinstance(found, Tagged) and found.is_null):
            return {}
        if not isinstance(found, dict):
            raise UsageError(f"{where} holds no mapping where sweeper's entry goes: name another file")
    return dict(found)


def with_entry(
    text: str,
    parent: str | None,
    key: str,
    entry: Mapping[str, Any],
    where: str,
    drop: Collection[str] = (),
) -> str:
    """``text`` with ``key`` set to ``entry``; an existing entry keeps the keys that ``entry`` does not hold.

    Args:
        text: The file.
        parent: The name of the top-level mapping that holds the entry; None for the top level itself.
        key: The entry's name.
        entry: What it shall hold.
        where: The file's name, for messages.
        drop: Keys that leave the entry.

    Raises:
        UsageError: the file is not YAML, or is laid out so that the entry cannot be put in.
    """
    old = mapping_of(text, where)
    held = mapping_of(text, where, *([parent] if parent else []))
    before = held.get(key)
    before = before if isinstance(before, dict) else {}
    wanted = as_read(entry)
    merged = {**{k: v for k, v in before.items() if k not in drop}, **wanted}
    if key in held and before == merged:
        return text
    changed = {name: merged.get(name) for name in (*wanted, *drop) if merged.get(name) != before.get(name)}
    new = _Editor(text, where).put(parent, key, changed, merged)
    expected = {**held, key: merged}
    try:
        is_right = _parse(new) == ({**old, parent: expected} if parent else expected)
    except yaml.YAMLError:  # an anchor left with a value, and something else still refers to it
        is_right = False
    if not is_right:
        raise UsageError(
            f"{where}: sweeper cannot change {key!r} alone, because of an anchor or an unusual "
            "layout: write the entry out, or name another file"
        )
    return new


def as_read(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry as `mapping_of` gives it, to be compared with what a file holds."""
    return dict(_parse(_dump(entry)))


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Reader)  # noqa: S506 - it makes text, lists and mappings only


def _load(text: str, where: str) -> Any:
    try:
        return _parse(text)
    except RecursionError:
        raise UsageError(f"{where} is nested too deeply for sweeper to read: name another file") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        said = [getattr(error, name, None) for name in ("context", "problem")]
        words = ", ".join(filter(None, said)) or "a character that YAML does not allow"
        reason = f"({words})" if line is None else f"(line {line + 1}: {words})"
        if isinstance(error, yaml.constructor.ConstructorError | yaml.composer.ComposerError):
            raise UsageError(
                f"{where} is YAML that sweeper cannot read {reason}: name another file"
            ) from error
        raise UsageError(f"{where} is not YAML {reason}: mend it, or name another file") from error


def _dump(data: Any) -> str:
    return yaml.dump(
        data, Dumper=_Writer, sort_keys=False, default_flow_style=False, allow_unicode=True, width=10**9
    )


class _Editor:
    """The lines of a file, and the edits of some of them."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._size = len(text)
        self._end = "\r\n" if "\r\n" in text else "\n"
        self._lines = _YAML_LINE.findall(text)
        self._root = yaml.compose(text, Loader=yaml.SafeLoader)
        self._edits: list[tuple[int, int, list[str]]] = []  # lines[first:stop] become these

    def put(self, parent: str | None, key: str, changed: Mapping[str, Any], merged: Mapping[str, Any]) -> str:
        """The text with the entry: its ``changed`` keys (None leaves), or all of it if it cannot be edited."""
        mapping, data = self._root, {key: merged}
        if parent:
            found = self._child(mapping, parent)
            if found is None or not _is_block(*found):
                return self._put_parent(found, parent, data)
            mapping = found[1]
        entry = self._child(mapping, key)
        if entry is not None and _is_block(*entry):
            for name, value in changed.items():
                self._set(entry[1], name, value)
        else:
            self._set(mapping, key, merged)
        return self._text()

    def _child(self, mapping: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
        pairs = mapping.value if isinstance(mapping, yaml.MappingNode) else ()
        found = [(name, value) for name, value in pairs if name.value == key]
        if len(found) > 1:
            again = found[1][0].start_mark.line + 1
            raise UsageError(f"{self._where} holds {key!r} again in line {again}: keep one of them")
        return found[0] if found else None

    def _put_parent(
        self, found: tuple[yaml.Node, yaml.Node] | None, parent: str, data: Mapping[str, Any]
    ) -> str:
        if found is None:
            self._set(self._root, parent, data)
            return self._text()
        name, value = found
        line = name.start_mark.line
        if value.end_mark.line != line or (isinstance(value, yaml.MappingNode) and value.value):
            raise UsageError(
                f"{self._where}: cannot put an entry into {parent!r}, which stands in one line: "
                f"write `{parent}:` on a line of its own, and its entries below it"
            )
        self._edits.append((line, line + 1, self._block({parent: data}, name.start_mark.column)))
        return self._text()

    def _set(self, mapping: yaml.Node | None, key: str, value: Any) -> None:
        """Set one key of a mapping that stands one key a line; None takes the key away."""
        indent, first, stop = 0, len(self._lines), len(self._lines)
        if isinstance(mapping, yaml.MappingNode) and mapping.value:
            if mapping.flow_style:
                raise UsageError(
                    f"{self._where} holds its entries in one line ({{…}}): write them one a line, "
                    "or name another file"
                )
            self._child(mapping, key)
            indent = mapping.value[0][0].start_mark.column
            names = [name.value for name, _ in mapping.value]
            number = names.index(key) if key in names else -1
            if value is None and number < 0:
                raise UsageError(
                    f"{self._where}: the entry takes {key!r} from another one by a merge key (<<), so sweeper "
                    "cannot remove it: write the entry out, or choose another --name"
                )
            stop = self._line_after(mapping, number, indent)
            first = mapping.value[number][0].start_mark.line if key in names else stop
        self._edits.append((first, stop, [] if value is None else self._block({key: value}, indent)))

    def _line_after(self, mapping: yaml.MappingNode, number: int, indent: int) -> int:
        """The line after an entry. Blank lines and comments before the next entry belong to the next one."""
        starts = [name.start_mark.line for name, _ in mapping.value]
        end = mapping.end_mark  # where the next key outside begins, or the end of the file
        last = len(self._lines) if end.index >= self._size else end.line
        stop = [*starts[1:], last][number]
        while stop > starts[number] + 1:
            line = self._lines[stop - 1]
            is_comment = line.lstrip().startswith("#") and len(line) - len(line.lstrip(" ")) <= indent
            if line.strip() not in ("", "...", "---") and not is_comment:
                break
            stop -= 1
        return int(stop)

    def _block(self, data: Mapping[str, Any], indent: int) -> list[str]:
        return [" " * indent + line + self._end for line in _dump(data).splitlines()]

    def _text(self) -> str:
        lines, text, at = self._lines, [], 0
        for first, stop, new in sorted(self._edits, key=lambda edit: edit[:2]):
            text += lines[at:first]
            if text and not text[-1].endswith(("\n", "\r")):
                text.append(self._end)
            text += new
            at = stop
        return "".join([*text, *lines[at:]])


def _is_block(name: yaml.Node, value: yaml.Node) -> bool:
    """Whether a key's value is a mapping below it, one key a line; an alias stands elsewhere."""
    if not isinstance(value, yaml.MappingNode) or value.flow_style or not value.value:
        return False
    first = value.value[0][0].start_mark
    return bool(first.line > name.start_mark.line and value.start_mark.index > name.start_mark.index)
