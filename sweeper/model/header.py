"""The header of a GGUF file: architecture, sizes and tensors.

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
from sweeper.model.ggml_types import FILE_TYPES
from sweeper.model.metadata import BadHeader, RawHeader, Tensor, Value, read_raw, whole

_SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$")
_ARCHITECTURE = re.compile(r"[\w.+-]{1,64}", re.ASCII)
_MAX_LAYERS = 100_000  # far above any real model
# GGUF files that lie beside models, by general.type or, in older files, by architecture.
_NOT_A_MODEL = {
    "adapter": "an adapter (LoRA)",
    "mmproj": "a vision or audio projector (mmproj)",
    "clip": "a vision or audio projector (mmproj)",
    "imatrix": "an importance matrix",
    "controlvector": "a control vector",
}


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A model's header. A number that the file does not state is 0."""

    path: Path
    parts: tuple[Path, ...]  # of a split model; otherwise only ``path``
    size_bytes: int  # all parts together
    architecture: str
    n_layer: int
    n_ctx_train: int
    embedding_length: int
    vocab_size: int
    expert_count: int
    file_type: str
    parameters: int
    tensors: tuple[Tensor, ...]
    expert_used_count: int = 0
    active_share: float | None = None  # of the weights, which each token reads; None if the file does not say
    kv_elements: int | None = (
        None  # keys and values of one token in all layers; None if the file does not say
    )
    mtp_layers: int = 0  # layers that predict further tokens, if the file has their tensors


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, version 2 or 3, and of the other parts of a split model.

    The function compares the file with its header: every tensor must lie inside the file.

    Raises:
        ModelMissingError: there is no such file.
        ModelFileError: the file is not a GGUF, is truncated, has an impossible header, or is no model that generates
            text.
    """
    path = Path(path)
    first = _read_part(path)
    parts = _parts(path, first)
    tensors = [*first.tensors]
    for part in parts[1:]:
        tensors += _read_part(part).tensors
    values = first.values
    architecture = values.get("general.architecture")
    _demand_language_model(path, values.get("general.type"), architecture)
    if not isinstance(architecture, str) or not architecture:
        raise ModelFileError(f"{path}: its header names no architecture (general.architecture)")
    if not _ARCHITECTURE.fullmatch(architecture):  # messages and records show this name
        raise ModelFileError(
            f"{path}: its header names an impossible architecture, {architecture[:40]!r} (general.architecture)"
        )
    n_layer = whole(values, f"{architecture}.block_count")
    if not 0 < n_layer <= _MAX_LAYERS:
        raise ModelFileError(
            f"{path}: its header states {n_layer or 'no'} layers ({architecture}.block_count)"
        )
    if values.get(f"{architecture}.attention.causal") is False:
        raise ModelFileError(
            f"{path} is an embedding model ({architecture}): give a model that generates text"
        )
    embeddings = [tensor.shape[-1] for tensor in tensors if tensor.name == "token_embd.weight"]
    return GgufHeader(
        path=path,
        parts=parts,
        size_bytes=sum(part.stat().st_size for part in parts),
        architecture=architecture,
        n_layer=n_layer,
        n_ctx_train=whole(values, f"{architecture}.context_length"),
        embedding_length=whole(values, f"{architecture}.embedding_length"),
        vocab_size=whole(values, f"{architecture}.vocab_size") or sum(embeddings),
        expert_count=whole(values, f"{architecture}.expert_count"),
        file_type=_file_type(values, tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        tensors=tuple(tensors),
        expert_used_count=whole(values, f"{architecture}.expert_used_count"),
        active_share=_active_share(values, architecture, tensors),
        kv_elements=_kv_elements(values, architecture, n_layer),
        mtp_layers=_mtp_layers(values, architecture, tensors),
    )


def _active_share(values: Mapping[str, Value], architecture: str, tensors: Sequence[Tensor]) -> float | None:
    """The share of the weights' bytes that one token reads: of the experts, only those in use."""
    experts = whole(values, f"{architecture}.expert_count")
    used = whole(values, f"{architecture}.expert_used_count")
    if not experts:
        return 1.0
    total = sum(tensor.bytes for tensor in tensors)
    of_experts = sum(tensor.bytes for tensor in tensors if "_exps" in tensor.name)
    return 1 - of_experts / total * (1 - used / experts) if total and 0 < used <= experts else None


def _mtp_layers(values: Mapping[str, Value], architecture: str, tensors: Sequence[Tensor]) -> int:
    """The layers of multi-token prediction. Converters may keep their number and leave out their tensors."""
    has_tensors = any(".nextn." in tensor.name for tensor in tensors)
    return whole(values, f"{architecture}.nextn_predict_layers") if has_tensors else 0


def _kv_elements(values: Mapping[str, Value], architecture: str, n_layer: int) -> int | None:
    """The keys and values of one token in all layers; None where heads differ between layers or are not stated."""
    heads = whole(values, f"{architecture}.attention.head_count")
    kv_heads = whole(values, f"{architecture}.attention.head_count_kv", heads)
    width = whole(values, f"{architecture}.embedding_length") // heads if heads else 0
    each = sum(whole(values, f"{architecture}.attention.{part}_length", width) for part in ("key", "value"))
    return n_layer * kv_heads * each or None


def split_names(name: str) -> tuple[str, ...]:
    """The names of all parts of the split model that ``name`` belongs to; empty if the model is not split."""
    match = _SPLIT_NAME.match(name)
    if match is None:
        return ()
    count = int(match["count"])
    return tuple(f"{match['stem']}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1))


def parts_of(path: Path) -> tuple[Path, ...]:
    """The parts of the split model at ``path``, if all of them lie beside it; else the file itself."""
    parts = tuple(path.with_name(name) for name in split_names(path.name))
    return parts if parts and all(part.is_file() for part in parts) else (path,)


def _demand_language_model(path: Path, *kinds: Value) -> None:
    """Raise ModelFileError if the header says that the file is another kind of GGUF than a model."""
    for kind in kinds:
        if isinstance(kind, str) and kind in _NOT_A_MODEL:
            raise ModelFileError(f"{path} is {_NOT_A_MODEL[kind]}: give the language model's own file")


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
    count = whole(raw.values, "split.count", 1)
    if count <= 1:
        return (path,)
    match = _SPLIT_NAME.match(path.name)
    if match is None or int(match["count"]) != count:
        raise ModelFileError(
            f"{path} is one of {count} parts, but its name is not NAME-00001-of-{count:05d}.gguf: rename it, or "
            "give the link of that name (in the Hugging Face cache, below snapshots/)"
        )
    names = split_names(path.name)
    if int(match["part"]) != 1:
        raise ModelFileError(f"{path} is part {int(match['part'])} of {count}: give the first, {names[0]}")
    parts = tuple(path.with_name(name) for name in names)
    for part in parts:
        if not part.is_file():
            raise ModelMissingError(f"{path.name} is one of {count} parts, and {part} is missing")
    return parts


def _file_type(values: Mapping[str, Value], tensors: Sequence[Tensor]) -> str:
    """The name of the quantisation; if the file does not state it, the type of most of its bytes."""
    stated = FILE_TYPES.get(whole(values, "general.file_type", -1))
    if stated is not None:
        return stated
    by_type: Counter[str] = Counter()
    for tensor in tensors:
        by_type[tensor.type] += tensor.bytes
    return by_type.most_common(1)[0][0] if by_type else "F32"
