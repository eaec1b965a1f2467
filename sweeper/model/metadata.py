"""Reads the bytes of a GGUF header within bounds, because a header is untrusted input.

Before it allocates anything, the reader compares each count from the file with the remaining bytes. It skips arrays
such as the vocabulary. It limits the work as well as the memory, so that a sparse file of terabytes cannot keep it
busy.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from sweeper.model.ggml_types import TYPE_BY_NUMBER

Value = int | float | bool | str | None

# Bounds far above any real file (the largest in 2026: about 60 keys, 3,000 tensors, 260,000 tokens twice).
MAX_KEYS = 65_536
MAX_TENSORS = 200_000
MAX_NAME_BYTES = 65_535  # the specification's own bound for keys
MAX_ELEMENTS_WALKED = 1 << 22  # total elements of string arrays; walking so many takes seconds
MAX_NESTING = 3
MAX_WEIGHTS = 1 << 53  # of one tensor; this bounds products of dimensions
DEFAULT_ALIGNMENT = 32  # the specification's
MAX_KEPT_BYTES = 1 << 26  # of one array of strings; a vocabulary of 262,144 tokens takes 2 MiB
KEEP_STRING_BYTES = 65_536  # longer strings are skipped (chat templates have up to 20 kB)

_STRING, _ARRAY = 8, 9
_SCALARS = {  # type number -> struct format
    **dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"))),
    **dict(enumerate(("<Q", "<q", "<d"), start=10)),
}


class BadHeader(Exception):
    """The reason why a header is impossible. It becomes a ModelFileError that names the file."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. ``shape`` has ggml's order: the row's length first."""

    name: str
    shape: tuple[int, ...]
    type: str  # F16, Q4_K, …
    bytes: int
    offset: int  # from the beginning of the data


@dataclass(frozen=True, slots=True)
class RawHeader:
    """A header as in the file. ``values`` holds None for an array or a very long string.

    ``strings`` holds the arrays of strings that the caller asked for.
    """

    values: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    strings: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)


class _Reader:
    """Reads forward through a file, never beyond ``size`` bytes."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self.walked = 0  # elements of string arrays so far

    @property
    def left(self) -> int:
        return self._size - self._stream.tell()

    def take(self, count: int) -> bytes:
        piece = self._stream.read(count) if count <= self.left else b""
        if len(piece) < count:
            raise BadHeader("the header is truncated")
        return piece

    def skip(self, count: int) -> None:
        if count > self.left:
            raise BadHeader("the header is truncated")
        self._stream.seek(count, os.SEEK_CUR)

    def skip_strings(self, count: int) -> None:
        """Skip strings. A vocabulary has 100,000 or more, so this loop calls no other method."""
        read, seek = self._stream.read, self._stream.seek
        for _ in range(count):
            piece = read(8)
            length = int.from_bytes(piece, "little")
            if len(piece) < 8 or length > self._size:
                raise BadHeader("the header is truncated")
            seek(length, os.SEEK_CUR)
        self.skip(0)  # checks that the last string ends inside the file

    def strings(self, count: int) -> tuple[bytes, ...]:
        """Strings of at most `MAX_KEPT_BYTES` together; the caller has compared their number with the file's size."""
        found, left = [], MAX_KEPT_BYTES
        for _ in range(count):
            length = self.count()
            left -= length
            if left < 0:
                raise BadHeader(f"an array of strings in its header takes more than {MAX_KEPT_BYTES} bytes")
            found.append(self.take(length))
        return tuple(found)

    def number(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def count(self, form: str = "<Q") -> int:
        return int(self.number(form))

    def name(self, what: str) -> str:
        length = self.count()
        if length > MAX_NAME_BYTES:
            raise BadHeader(f"{what} of {length} bytes is longer than {MAX_NAME_BYTES}")
        return self.take(length).decode("utf-8", "replace")


def read_raw(stream: BinaryIO, size: int, keep: Container[str] = ()) -> RawHeader:
    """The header of a GGUF file of ``size`` bytes, version 2 or 3, little endian; all tensors lie inside the file.

    ``keep`` has the keys of arrays of strings that are worth their memory, for example a vocabulary.

    Raises:
        BadHeader: the header cannot be read or is impossible; the message contains the reason.
    """
    reader = _Reader(stream, size)
    if size < 4 or reader.take(4) != b"GGUF":
        raise BadHeader("it is not a GGUF file")
    version = reader.count("<I")
    if version not in (2, 3):
        if version & 0xFFFF == 0:
            raise BadHeader("it is a big-endian GGUF: convert it for this machine")
        raise BadHeader(
            f"its GGUF version is {version}; sweeper reads versions 2 and 3: convert the model again"
        )
    tensor_count, key_count = reader.count(), reader.count()
    # The smallest key is 8 + 4 + 1 bytes, the smallest tensor 8 + 4 + 4 + 8.
    if key_count > min(MAX_KEYS, reader.left // 13):
        raise BadHeader(f"its header claims {key_count} keys, which {size} bytes cannot hold")
    if tensor_count > min(MAX_TENSORS, reader.left // 24):
        raise BadHeader(f"its header claims {tensor_count} tensors, which {size} bytes cannot hold")
    values: dict[str, Value] = {}
    kept: dict[str, tuple[bytes, ...]] = {}
    for _ in range(key_count):
        key = reader.name("a key")
        if key in values:
            raise BadHeader(f"the key {key[:80]!r} is in its header twice")
        value = _read_value(reader, key, key in keep)
        if isinstance(value, tuple):
            kept[key], value = value, None
        values[key] = value
    tensors: dict[str, Tensor] = {}
    for _ in range(tensor_count):
        tensor = _read_tensor(reader)
        if tensor.name in tensors:
            raise BadHeader(f"the tensor {tensor.name[:80]!r} is in its header twice")
        tensors[tensor.name] = tensor
    alignment = whole(values, "general.alignment", DEFAULT_ALIGNMENT)
    if alignment <= 0 or alignment & (alignment - 1):
        raise BadHeader(f"general.alignment is {alignment}, which is not a power of two")
    data_start = -(-(size - reader.left) // alignment) * alignment
    for tensor in tensors.values():
        end = data_start + tensor.offset + tensor.bytes
        if end > size:
            raise BadHeader(
                f"it is truncated: {tensor.name[:80]!r} ends at byte {end}, the file at {size}; "
                "download or copy it again"
            )
    return RawHeader(values, tuple(tensors.values()), kept)


def whole(values: Mapping[str, Value], key: str, default: int = 0) -> int:
    """A whole number of the header; ``default`` if the header does not state it."""
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _read_value(reader: _Reader, key: str, keep: bool) -> Value | tuple[bytes, ...]:
    kind = reader.count("<I")
    if kind in _SCALARS:
        return reader.number(_SCALARS[kind])
    if kind == _STRING:
        length = reader.count()
        if length <= KEEP_STRING_BYTES:
            return reader.take(length).decode("utf-8", "replace")
        reader.skip(length)
    elif kind == _ARRAY:
        return _read_array(reader, MAX_NESTING, keep)
    else:
        raise BadHeader(f"the key {key[:80]!r} has the unknown type {kind}")
    return None


def _read_array(reader: _Reader, nesting: int, keep: bool = False) -> tuple[bytes, ...] | None:
    """The strings of an array that is to be kept; skips every other array."""
    element, count = reader.count("<I"), reader.count()
    if element in _SCALARS:
        reader.skip(count * struct.calcsize(_SCALARS[element]))
        return None
    if element not in (_STRING, _ARRAY):
        raise BadHeader(f"an array in its header has the unknown type {element}")
    if nesting == 0:
        raise BadHeader(f"arrays in its header are nested more than {MAX_NESTING} deep")
    reader.walked += count
    if count > reader.left // 8 or reader.walked > MAX_ELEMENTS_WALKED:
        raise BadHeader(f"an array in its header claims {count} elements, more than it can hold")
    if element == _STRING and keep:
        return reader.strings(count)
    if element == _STRING:
        reader.skip_strings(count)
        return None
    for _ in range(count):
        _read_array(reader, nesting - 1)
    return None


def _read_tensor(reader: _Reader) -> Tensor:
    whole_name = reader.name("a tensor's name")
    name = whole_name[:80]
    dimensions = reader.count("<I")
    if not 1 <= dimensions <= 4:
        raise BadHeader(f"the tensor {name!r} has {dimensions} dimensions; 1 to 4 are possible")
    shape = tuple(reader.count() for _ in range(dimensions))
    number, offset = reader.count("<I"), reader.count()
    kind = TYPE_BY_NUMBER.get(number)
    if kind is None:
        raise BadHeader(f"the tensor {name!r} has the unknown type {number}")
    weights = math.prod(shape)
    if not 0 < weights <= MAX_WEIGHTS:
        raise BadHeader(f"the tensor {name!r} has the impossible shape {list(shape)}")
    if shape[0] % kind.block_elements:
        raise BadHeader(f"the tensor {name!r} has rows of {shape[0]}, not a multiple of {kind.name}'s block")
    return Tensor(whole_name, shape, kind.name, kind.row_bytes(weights), offset)
