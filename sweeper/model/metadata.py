"""Reads the bytes of a GGUF header within bounds, because a header is untrusted input.

Before it allocates anything, the reader compares each count from the file with the remaining bytes. It skips arrays
such as the vocabulary. It limits the work as well as the memory, so that a sparse file of terabytes cannot keep it
busy.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

Scalar = int | float | bool | str
Value = Scalar | tuple[int | float | bool, ...]

# Bounds far above any real file (the largest in 2026: about 60 keys, 3,000 tensors, 260,000 tokens twice).
MAX_KEYS = 65_536
MAX_TENSORS = 200_000
MAX_NAME_BYTES = 65_535  # the specification's own bound for keys
MAX_ELEMENTS_WALKED = 1 << 22  # total elements of string arrays; walking so many takes seconds
MAX_NESTING = 3
KEEP_STRING_BYTES = 65_536  # longer strings are skipped (chat templates have up to 20 kB)
KEEP_ARRAY_ELEMENTS = 1_024  # keeps figures for each layer, but no vocabularies

_STRING, _ARRAY = 8, 9
_SCALARS = {  # type number -> struct format
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_CHUNK = 1 << 20


class BadHeader(Exception):
    """The reason why a header is impossible. It becomes a ModelFileError that names the file."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """One entry of the tensor table, as in the file. ``shape`` has the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int


@dataclass(frozen=True, slots=True)
class RawHeader:
    """A header, as in the file. ``lengths`` holds the length of every array."""

    version: int
    values: Mapping[str, Value]
    lengths: Mapping[str, int]
    tensors: tuple[RawTensor, ...]
    header_bytes: int  # the end of the tensor table; the data begins at the next multiple of the alignment


class _Cursor:
    """Reads forward through a file in chunks, never beyond ``size`` bytes."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self._buffer = b""
        self._at = 0  # position inside the buffer
        self._start = 0  # position of the buffer in the file
        self.walked = 0

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def left(self) -> int:
        return self._size - self.position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise BadHeader("the header is truncated")
        if self._at + count > len(self._buffer):
            self._start = self.position
            self._stream.seek(self._start)
            self._buffer = self._stream.read(max(count, min(_CHUNK, self._size - self._start)))
            self._at = 0
            if len(self._buffer) < count:
                raise BadHeader("the header is truncated")
        piece = self._buffer[self._at : self._at + count]
        self._at += count
        return piece

    def skip(self, count: int) -> None:
        if count > self.left:
            raise BadHeader("the header is truncated")
        if self._at + count <= len(self._buffer):
            self._at += count
        else:
            self._start = self.position + count
            self._buffer = b""
            self._at = 0

    def number(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def unsigned(self, form: str) -> int:
        return int(self.number(form))

    def string(self, limit: int, what: str) -> str:
        length = self.unsigned("<Q")
        if length > limit:
            raise BadHeader(f"{what} of {length} bytes is longer than {limit}")
        return self.take(length).decode("utf-8", "replace")


def read_raw(stream: BinaryIO, size: int) -> RawHeader:
    """The header of a GGUF file of ``size`` bytes, version 2 or 3, little endian.

    Raises:
        BadHeader: the header cannot be read or is impossible; the message contains the reason.
    """
    cursor = _Cursor(stream, size)
    version = _version(cursor)
    tensor_count, key_count = cursor.unsigned("<Q"), cursor.unsigned("<Q")
    # The smallest key is 8 + 4 + 1 bytes, the smallest tensor 8 + 4 + 4 + 8.
    if key_count > min(MAX_KEYS, cursor.left // 13):
        raise BadHeader(f"its header claims {key_count} keys, which {size} bytes cannot hold")
    if tensor_count > min(MAX_TENSORS, cursor.left // 24):
        raise BadHeader(f"its header claims {tensor_count} tensors, which {size} bytes cannot hold")
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(key_count):
        _read_key(cursor, values, lengths)
    tensors = tuple(_read_tensor(cursor) for _ in range(tensor_count))
    return RawHeader(version, values, lengths, tensors, cursor.position)


def _version(cursor: _Cursor) -> int:
    if cursor.left < 4 or cursor.take(4) != b"GGUF":
        raise BadHeader("it is not a GGUF file")
    version = cursor.unsigned("<I")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0:
        raise BadHeader("it is a big-endian GGUF: convert it for this machine")
    raise BadHeader(f"its GGUF version is {version}; sweeper reads versions 2 and 3: convert the model again")


def _read_key(cursor: _Cursor, values: dict[str, Value], lengths: dict[str, int]) -> None:
    key = cursor.string(MAX_NAME_BYTES, "a key")
    kind = cursor.unsigned("<I")
    if key in values or key in lengths:
        raise BadHeader(f"the key {key[:80]!r} is in its header twice")
    if kind in _SCALARS:
        values[key] = cursor.number(_SCALARS[kind])
    elif kind == _STRING:
        length = cursor.unsigned("<Q")
        if length <= KEEP_STRING_BYTES:
            values[key] = cursor.take(length).decode("utf-8", "replace")
        else:
            cursor.skip(length)
    elif kind == _ARRAY:
        element, count = cursor.unsigned("<I"), cursor.unsigned("<Q")
        lengths[key] = count
        if element in _SCALARS and count <= KEEP_ARRAY_ELEMENTS:
            form = _SCALARS[element]
            values[key] = tuple(cursor.number(form) for _ in range(count))
        else:
            _skip_array(cursor, element, count, MAX_NESTING)
    else:
        raise BadHeader(f"the key {key[:80]!r} has the unknown type {kind}")


def _skip_array(cursor: _Cursor, element: int, count: int, nesting: int) -> None:
    if element in _SCALARS:
        cursor.skip(count * struct.calcsize(_SCALARS[element]))
        return
    if element not in (_STRING, _ARRAY):
        raise BadHeader(f"an array in its header has the unknown type {element}")
    if nesting == 0:
        raise BadHeader(f"arrays in its header are nested more than {MAX_NESTING} deep")
    cursor.walked += count
    if count > cursor.left // 8 or cursor.walked > MAX_ELEMENTS_WALKED:
        raise BadHeader(f"an array in its header claims {count} elements, more than it can hold")
    for _ in range(count):
        if element == _STRING:
            cursor.skip(cursor.unsigned("<Q"))
        else:
            _skip_array(cursor, cursor.unsigned("<I"), cursor.unsigned("<Q"), nesting - 1)


def _read_tensor(cursor: _Cursor) -> RawTensor:
    name = cursor.string(MAX_NAME_BYTES, "a tensor's name")
    dimensions = cursor.unsigned("<I")
    if not 1 <= dimensions <= 4:
        raise BadHeader(f"the tensor {name[:80]!r} has {dimensions} dimensions; 1 to 4 are possible")
    shape = tuple(cursor.unsigned("<Q") for _ in range(dimensions))
    return RawTensor(name, shape, cursor.unsigned("<I"), cursor.unsigned("<Q"))
