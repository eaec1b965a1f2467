"""The header of a GGUF file: architecture, sizes, tensors, and the bytes that decoding a token reads.

A split model (``…-00001-of-00003.gguf``) is read as one model through its first part. All parts must be present.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import ModelFileError, ModelMissingError
from sweeper.model.digest import sha256_of
from sweeper.model.ggml_types import CACHE_TYPES, FILE_TYPES, TYPE_BY_NUMBER
from sweeper.model.metadata import BadHeader, RawHeader, RawTensor, Value, read_raw

__all__ = [
    "GgufHeader",
    "Tensor",
    "bytes_per_token",
    "kv_bytes_per_token",
    "read_header",
    "sha256_of",
    "split_names",
]

_SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$")
_DEFAULT_ALIGNMENT = 32  # the specification's
_MAX_BYTES = 1 << 53  # no model is larger; this bounds products of dimensions


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. ``shape`` has ggml's order: the row's length first."""

    name: str
    shape: tuple[int, ...]
    type: str  # F16, Q4_K, …
    bytes: int

    @property
    def elements(self) -> int:
        """Number of weights in the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A model's header. A number that the file does not state is 0 if 0 means "none", else None."""

    path: Path
    size_bytes: int  # all parts together
    version: int
    architecture: str
    name: str
    n_layer: int
    n_ctx_train: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    vocab_size: int
    expert_count: int
    expert_used_count: int
    file_type: str
    parameters: int
    tensor_bytes: int
    tensors: tuple[Tensor, ...]
    key_length: int  # of one attention head
    value_length: int
    head_count_kv_by_layer: tuple[int, ...]
    parts: tuple[Path, ...]
    metadata: Mapping[str, Value]  # scalars, strings and short arrays; never the vocabulary

    def kv_bytes_per_token(self, type_k: str = "f16", type_v: str = "f16") -> float:
        """Bytes of one token in the KV cache of full attention; see :func:`kv_bytes_per_token`."""
        return kv_bytes_per_token(self, type_k, type_v)

    def bytes_per_token(self, context: int = 0, type_k: str = "f16", type_v: str = "f16") -> float:
        """Bytes that decoding one token reads; see :func:`bytes_per_token`."""
        return bytes_per_token(self, context, type_k, type_v)


def kv_bytes_per_token(header: GgufHeader, type_k: str = "f16", type_v: str = "f16") -> float:
    """Bytes of one token in the KV cache of all layers.

    This is an upper bound if layers attend through a sliding window or keep a recurrent state instead.

    Raises:
        ModelFileError: llama.cpp does not accept the cache type.
    """
    heads = sum(header.head_count_kv_by_layer)
    total = 0.0
    for name, length in ((type_k, header.key_length), (type_v, header.value_length)):
        if name not in CACHE_TYPES:
            raise ModelFileError(
                f"a KV cache cannot have the type {name}: choose from {', '.join(CACHE_TYPES)}"
            )
        cache = CACHE_TYPES[name]
        total += heads * length * cache.block_bytes / cache.block_elements
    return total


def bytes_per_token(header: GgufHeader, context: int = 0, type_k: str = "f16", type_v: str = "f16") -> float:
    """Bytes that decoding one token reads from memory. This is the denominator of the ceiling.

    It counts every weight once, but only the active experts of a mixture. Of the token embeddings it counts one row,
    unless they also serve as the output. It adds the cache of ``context`` tokens.
    """
    share = header.expert_used_count / header.expert_count if header.expert_count else 1.0
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    total = context * kv_bytes_per_token(header, type_k, type_v)
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight":
            total += tensor.bytes if tied else tensor.bytes / tensor.shape[-1]
        elif "_exps." in tensor.name:
            total += tensor.bytes * share
        else:
            total += tensor.bytes
    return total


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, version 2 or 3, and of the other parts of a split model.

    The function compares the file with its header: every tensor must lie inside the file.

    Raises:
        ModelMissingError: there is no such file.
        ModelFileError: the file is not a GGUF, is truncated, or has an impossible header.
    """
    path = Path(path)
    first = _read_part(path)
    parts = _parts(path, first)
    raws = [first, *(_read_part(part) for part in parts[1:])]
    try:
        tensors = tuple(
            tensor
            for part, raw in zip(parts, raws, strict=True)
            for tensor in _tensors(raw, part.stat().st_size)
        )
        return _header(path, parts, first, tensors)
    except BadHeader as bad:
        raise ModelFileError(f"{path}: {bad}") from None


def split_names(name: str) -> tuple[str, ...]:
    """The names of all parts of the split model that ``name`` belongs to; empty if the model is not split."""
    match = _SPLIT_NAME.match(name)
    if match is None:
        return ()
    count = int(match["count"])
    return tuple(f"{match['stem']}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1))


def _read_part(path: Path) -> RawHeader:
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder: give the GGUF file in it")
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if size == 0:
                raise ModelFileError(f"{path} is empty: download or copy it again")
            stream.seek(0)
            return read_raw(stream, size)
    except FileNotFoundError:
        raise ModelMissingError(
            f"no model at {path}: give model.path=FILE, or choose another model"
        ) from None
    except BadHeader as bad:
        raise ModelFileError(f"{path}: {bad}") from None
    except OSError as error:
        raise ModelMissingError(f"cannot read {path}: {error.strerror}") from None


def _parts(path: Path, raw: RawHeader) -> tuple[Path, ...]:
    count = _whole(raw.values.get("split.count"), 1)
    if count <= 1:
        return (path,)
    match = _SPLIT_NAME.match(path.name)
    if match is None or int(match["count"]) != count:
        raise ModelFileError(
            f"{path} is one of {count} parts, but its name is not NAME-00001-of-{count:05d}.gguf: rename it"
        )
    names = split_names(path.name)
    if int(match["part"]) != 1:
        raise ModelFileError(f"{path} is part {int(match['part'])} of {count}: give the first, {names[0]}")
    parts = tuple(path.with_name(name) for name in names)
    for part in parts:
        if not part.is_file():
            raise ModelMissingError(f"{path.name} is one of {count} parts, and {part} is missing")
    return parts


def _tensors(raw: RawHeader, size: int) -> tuple[Tensor, ...]:
    alignment = _whole(raw.values.get("general.alignment"), _DEFAULT_ALIGNMENT)
    if alignment <= 0 or alignment & (alignment - 1):
        raise BadHeader(f"general.alignment is {alignment}, which is not a power of two")
    data_start = -(-raw.header_bytes // alignment) * alignment
    seen: set[str] = set()
    tensors = []
    for entry in raw.tensors:
        if entry.name in seen:
            raise BadHeader(f"the tensor {entry.name[:80]!r} is in its header twice")
        seen.add(entry.name)
        tensor = _tensor(entry)
        end = data_start + entry.offset + tensor.bytes
        if end > size:
            raise BadHeader(
                f"it is truncated: {entry.name[:80]!r} ends at byte {end}, the file at {size}; "
                "download or copy it again"
            )
        tensors.append(tensor)
    return tuple(tensors)


def _tensor(entry: RawTensor) -> Tensor:
    name = entry.name[:80]
    kind = TYPE_BY_NUMBER.get(entry.type_number)
    if kind is None:
        raise BadHeader(f"the tensor {name!r} has the unknown type {entry.type_number}")
    elements = math.prod(entry.shape)
    if elements <= 0 or elements > _MAX_BYTES:
        raise BadHeader(f"the tensor {name!r} has the impossible shape {list(entry.shape)}")
    if entry.shape[0] % kind.block_elements:
        raise BadHeader(
            f"the tensor {name!r} has rows of {entry.shape[0]}, not a multiple of {kind.name}'s block"
        )
    return Tensor(entry.name, entry.shape, kind.name, kind.row_bytes(elements))


def _header(path: Path, parts: tuple[Path, ...], raw: RawHeader, tensors: tuple[Tensor, ...]) -> GgufHeader:
    values = raw.values
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise BadHeader("its header names no architecture (general.architecture)")

    def whole(key: str, default: int = 0) -> int:
        return _whole(values.get(f"{architecture}.{key}"), default)

    n_layer = whole("block_count")
    if n_layer <= 0:
        raise BadHeader(f"its header states no layers ({architecture}.block_count)")
    head_count = whole("attention.head_count")
    embedding = whole("embedding_length")
    head_length = embedding // head_count if head_count else 0
    kv_by_layer = _per_layer(values.get(f"{architecture}.attention.head_count_kv"), n_layer, head_count)
    return GgufHeader(
        path=path,
        size_bytes=sum(part.stat().st_size for part in parts),
        version=raw.version,
        architecture=architecture,
        name=str(values.get("general.name") or path.stem),
        n_layer=n_layer,
        n_ctx_train=whole("context_length"),
        embedding_length=embedding,
        feed_forward_length=whole("feed_forward_length"),
        head_count=head_count,
        head_count_kv=max(kv_by_layer, default=0),
        vocab_size=_vocab_size(raw, tensors, architecture),
        expert_count=whole("expert_count"),
        expert_used_count=whole("expert_used_count"),
        file_type=_file_type(values, tensors),
        parameters=sum(tensor.elements for tensor in tensors),
        tensor_bytes=sum(tensor.bytes for tensor in tensors),
        tensors=tensors,
        key_length=whole("attention.key_length", head_length),
        value_length=whole("attention.value_length", head_length),
        head_count_kv_by_layer=kv_by_layer,
        parts=parts,
        metadata=values,
    )


def _whole(value: Value | None, default: int) -> int:
    """A whole number of the header; the largest one if there is one for each layer."""
    if isinstance(value, tuple):
        value = max((int(item) for item in value if math.isfinite(item)), default=default)
    if isinstance(value, bool) or not isinstance(value, int):
        return default
    return value


def _per_layer(value: Value | None, n_layer: int, default: int) -> tuple[int, ...]:
    # A layer count far beyond the tensor table's bound cannot be true.
    if n_layer > 100_000:
        raise BadHeader(f"its header states {n_layer} layers")
    if isinstance(value, tuple):
        return tuple(max(0, int(item)) for item in value[:n_layer] if math.isfinite(item))
    return (_whole(value, default),) * n_layer


def _vocab_size(raw: RawHeader, tensors: Sequence[Tensor], architecture: str) -> int:
    stated = _whole(raw.values.get(f"{architecture}.vocab_size"), 0)
    if stated:
        return stated
    for tensor in tensors:
        if tensor.name == "token_embd.weight":
            return tensor.shape[-1]
    return raw.lengths.get("tokenizer.ggml.tokens", 0)


def _file_type(values: Mapping[str, Value], tensors: Sequence[Tensor]) -> str:
    """The name of the quantisation; if the file does not state it, the type of most of its bytes."""
    stated = FILE_TYPES.get(_whole(values.get("general.file_type"), -1))
    if stated is not None:
        return stated
    by_type: Counter[str] = Counter()
    for tensor in tensors:
        by_type[tensor.type] += tensor.bytes
    return by_type.most_common(1)[0][0] if by_type else "F32"
