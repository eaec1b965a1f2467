"""Gets the model that the configuration names: a user's file, a file of a hub, or a synthetic model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sweeper.errors import ConfigError
from sweeper.model.digest import sha256_of
from sweeper.model.header import GgufHeader, read_header
from sweeper.model.shapes import ModelShape
from sweeper.records import ModelFile, ModelRecord


@dataclass(frozen=True, slots=True)
class Wanted:
    """The requested model; see ``conf/model/``. ``files`` are the user's other quantisations."""

    name: str | None = None
    path: str | None = None
    repo: str | None = None
    file: str | None = None
    revision: str | None = None
    seed: int = 0
    quant: str = "F16"
    shape: Mapping[str, Any] | None = None
    files: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model on this machine: its record, its header and its original file."""

    record: ModelRecord
    header: GgufHeader
    path: Path


def obtain(wanted: Wanted, root: Path) -> Model:
    """Get the model; fetch or write it if it is not on this machine yet.

    Args:
        wanted: a path takes precedence over a repository, and a repository over a shape.
        root: the folder of sweeps. ``models/`` keeps synthetic models, ``hub/`` notes about fetched ones.

    Raises:
        ConfigError: no model was requested, or the shape is wrong.
        ModelMissingError, ModelFileError: the file does not exist, or is not a model.
        StoreError: the model could not be fetched or written.
    """
    source: Literal["synthetic", "file", "hub"]
    revision = wanted.revision
    if wanted.path:
        source, path, revision = "file", Path(wanted.path).expanduser(), None
    elif wanted.repo:
        source = "hub"
        path, revision = _fetched(wanted, root)
    elif wanted.shape:
        source, path = "synthetic", _synthetic(wanted, root)
    else:
        raise ConfigError(
            "model: give model.path=FILE, or model.repo=… model.file=…, or choose one of conf/model"
        )
    header = read_header(path)
    given = ModelFile(header.file_type, str(path.resolve()), sha256_of(path, root), header.size_bytes)
    files = {header.file_type: given} | _further(wanted.files or {}, header, root)
    named = wanted.name if source == "synthetic" else None
    return Model(
        ModelRecord(
            name=_clean(named or (path.stem if source == "file" else wanted.name) or path.stem),
            architecture=header.architecture,
            parameters=header.parameters,
            n_layer=header.n_layer,
            n_ctx_train=header.n_ctx_train,
            source=source,
            base_quant=header.file_type,
            files=files,
            expert_count=header.expert_count,
            repo=wanted.repo if source == "hub" else None,
            revision=revision if source == "hub" else None,
        ),
        header,
        path,
    )


def _fetched(wanted: Wanted, root: Path) -> tuple[Path, str]:
    from sweeper.model.hub import fetch

    fetched = fetch(str(wanted.repo), wanted.file, wanted.revision, root)
    return fetched.path, fetched.commit


def _synthetic(wanted: Wanted, root: Path) -> Path:
    """The synthetic model's file. Its name contains a digest of its shape, quantisation and seed."""
    from sweeper.model.synthetic import write_synthetic

    given = dict(wanted.shape or {})
    try:
        shape = ModelShape(**given)
    except TypeError as error:
        raise ConfigError(f"model.shape: {str(error).replace('ModelShape.__init__() ', '')}") from None
    digest = hashlib.sha256(
        json.dumps([given, wanted.quant, wanted.seed], sort_keys=True).encode()
    ).hexdigest()
    path = root / "models" / f"{_clean(wanted.name or 'synthetic')}-{wanted.quant}-{digest[:8]}.gguf"
    if not path.exists():
        write_synthetic(shape, path, wanted.quant, wanted.seed, wanted.name)
    return path


def _further(files: Mapping[str, str], header: GgufHeader, root: Path) -> dict[str, ModelFile]:
    """The user's files of other quantisations. Each must be the same model."""
    found = {}
    for quant, text in files.items():
        path = Path(text).expanduser()
        other = read_header(path)
        if (other.architecture, other.n_layer, other.embedding_length, other.vocab_size) != (
            header.architecture,
            header.n_layer,
            header.embedding_length,
            header.vocab_size,
        ):
            raise ConfigError(
                f"model.files.{quant}: {path.name} is a different model than {header.path.name}"
            )
        found[quant] = ModelFile(quant, str(path.resolve()), sha256_of(path, root), other.size_bytes)
    return found


def _clean(name: str) -> str:
    """A name without characters that cause problems in MLflow, file systems or terminals."""
    return re.sub(r"[/\\\x00-\x1f:]+", "-", name).strip() or "model"
