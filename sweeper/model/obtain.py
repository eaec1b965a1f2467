"""Gets the model that the configuration names: a user's file, a file of a hub, or a synthetic model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sweeper.errors import ConfigError
from sweeper.model.digest import sha256_of_model
from sweeper.model.draft import demand_alike, kind_of, read_draft
from sweeper.model.header import GgufHeader, read_header
from sweeper.model.llama_params import is_expert
from sweeper.model.shapes import ModelShape
from sweeper.records import DraftModel, ModelFile, ModelRecord

RANDOM_WEIGHTS = "this model's weights are random, so the share of drafts that it accepts would mean nothing"


@dataclass  # not frozen, because it is part of the configuration's schema
class ModelConfig:
    """The model: a file (``path``), a file on a hub (``repo``, ``file``), or a synthetic model of ``shape``."""

    name: str | None = None
    path: str | None = None
    repo: str | None = None
    file: str | None = None
    revision: str | None = None
    seed: int = 0
    quant: str = "F16"
    shape: dict[str, Any] | None = None
    text: Any = None  # the user's own text for the quality check: a file or a list of files
    quality_tokens: int = 4096  # of text that each candidate's quality is measured on, at first
    quality_minutes: float | None = None  # for all comparisons of quality; None: `Settings.quality_seconds`
    files: dict[str, str] = field(default_factory=dict)  # quantisation -> the user's own file
    draft: str | None = None  # the GGUF file of a draft model, for speculative decoding


def obtain(wanted: ModelConfig, root: Path, say: Callable[[str], None] = lambda text: None) -> ModelRecord:
    """Get the model; fetch or write it if it is not on this machine yet.

    Args:
        wanted: a path takes precedence over a repository, and a repository over a shape.
        root: the folder of sweeps. ``models/`` keeps synthetic models, ``hub/`` notes about fetched ones.
        say: tells in one line what takes long.

    Raises:
        ConfigError: no model was requested, the shape is wrong, or the draft model does not suit the model.
        ModelMissingError, ModelFileError: the file does not exist, or is not a model.
        StoreError: the model could not be fetched or written.
    """
    source: Literal["synthetic", "file", "hub"]
    repo = revision = None
    drafting = _read_draft(wanted) if wanted.draft else None  # before a model is downloaded
    if wanted.path:
        source, path = "file", Path(wanted.path).expanduser()
        name = path.stem
    elif wanted.repo:
        from sweeper.model.hub import fetch

        source, repo = "hub", wanted.repo
        fetched = fetch(repo, wanted.file, wanted.revision, root)
        path, revision = fetched.path, fetched.commit
        name = wanted.name or path.stem
    elif wanted.shape:
        source, path = "synthetic", _synthetic(wanted, wanted.shape, root, say)
        name = wanted.name or path.stem
    else:
        raise ConfigError(
            "model: give model.path=FILE, or model.repo=… model.file=…, or choose one of conf/model"
        )
    header = read_header(path)
    files = {header.file_type: _model_file(header.file_type, header, root)}
    for quant, text in wanted.files.items():
        other = read_header(Path(text).expanduser())
        if _kind(other) != _kind(header):
            raise ConfigError(f"model.files.{quant}: {other.path.name} is a different model than {path.name}")
        files[quant] = _model_file(quant, other, root)
    return ModelRecord(
        name=_clean(name),
        architecture=header.architecture,
        parameters=header.parameters,
        n_layer=header.n_layer,
        n_ctx_train=header.n_ctx_train,
        source=source,
        base_quant=header.file_type,
        files=files,
        expert_count=header.expert_count,
        expert_size_bytes=sum(tensor.bytes for tensor in header.tensors if is_expert(tensor.name)),
        active_share=header.active_share,
        kv_elements=header.kv_elements,
        repo=repo,
        revision=revision,
        mtp_layers=header.mtp_layers,
        draft=_draft(drafting, header, root) if drafting else None,
    )


def _synthetic(wanted: ModelConfig, given: dict[str, Any], root: Path, say: Callable[[str], None]) -> Path:
    """The synthetic model's file, written if it is not there yet."""
    from sweeper.model.synthetic import write_synthetic

    try:
        shape = ModelShape(**given)
    except TypeError as error:
        raise ConfigError(f"model.shape: {str(error).replace('ModelShape.__init__() ', '')}") from None
    path = synthetic_path(wanted, root)
    if not path.exists():
        say(f"writing {path.name} with random weights … (once; a large model takes minutes)")
        write_synthetic(shape, path, wanted.quant, wanted.seed, wanted.name)
        say(f"wrote {path.name}")
    return path


def synthetic_path(wanted: ModelConfig, root: Path) -> Path:
    """The path of a synthetic model. Its name contains a digest of its shape, quantisation and seed."""
    terms = json.dumps([wanted.shape, wanted.quant, wanted.seed], sort_keys=True)
    digest = hashlib.sha256(terms.encode()).hexdigest()[:8]
    return root / "models" / f"{_clean(wanted.name or 'synthetic')}-{wanted.quant}-{digest}.gguf"


def _read_draft(wanted: ModelConfig) -> GgufHeader:
    if not wanted.path and not wanted.repo:
        raise ConfigError(f"model.draft: {RANDOM_WEIGHTS}; give a real model with model.path=FILE")
    return read_draft(Path(wanted.draft or "").expanduser())


def _draft(draft: GgufHeader, model: GgufHeader, root: Path) -> DraftModel:
    demand_alike(draft, model)
    return DraftModel(_model_file(draft.file_type, draft, root), kind_of(draft))


def _model_file(quant: str, header: GgufHeader, root: Path) -> ModelFile:
    digest = sha256_of_model(header.parts, root)
    return ModelFile(quant, str(header.path.absolute()), digest, header.size_bytes)


def _kind(header: GgufHeader) -> tuple[object, ...]:
    """The properties that all quantisations of a model share."""
    return header.architecture, header.n_layer, header.embedding_length, header.vocab_size


def _clean(name: str) -> str:
    """A name without characters that cause problems in MLflow, file systems or terminals."""
    return re.sub(r"[/\\\x00-\x1f:]+", "-", name).strip() or "model"
