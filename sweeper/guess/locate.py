"""Finds the models that the words of `sweeper guess` name, and gives each a file with its header.

A model that is not on the disk gets a sparse file with its header, in a temporary folder.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.config import Composed, compose, conf_folder
from sweeper.errors import ConfigError, ModelMissingError, UsageError
from sweeper.model.header import GgufHeader, read_header
from sweeper.model.shapes import ModelShape

_OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@-]*=")
_URL = re.compile(r"https?://", re.I)
_HUB = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)/(?P<file>[^/].*\.gguf)", re.I)
_NOT_SHAPES = ("file", "hub")  # files of conf/model that need a path or a repository


@dataclass(frozen=True, slots=True)
class Located:
    """A model with its header and configuration, and the `sweep` command for it."""

    name: str
    header: GgufHeader  # its path may be a sparse file
    composed: Composed
    command: str


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The models and the overrides among the words. A file's name may hold ``=``."""
    models: list[str] = []
    overrides: list[str] = []
    for word in words:
        is_override = _OVERRIDE.match(word) and not _URL.match(word) and not Path(word).expanduser().is_file()
        (overrides if is_override else models).append(word)
    return models, overrides


def shapes() -> tuple[str, ...]:
    """The names of the models in conf/model that have a shape."""
    return tuple(
        sorted(file.stem for file in (conf_folder() / "model").glob("*.yaml") if file.stem not in _NOT_SHAPES)
    )


def locate(model: str | None, overrides: Sequence[str], folder: Path) -> Located:
    """The model that a word names; None stands for the model of the configuration.

    Args:
        model: a name in conf/model, a GGUF file, ``OWNER/NAME/FILE.gguf`` on the hub, or a URL.
        overrides: the ``KEY=VALUE`` words.
        folder: a temporary folder for sparse files.

    Raises:
        UsageError: no model has this name; the message lists similar names.
        ModelMissingError, ModelFileError: the file is not there, or is no model.
    """
    if model is None:
        return _configured(compose(overrides), overrides, folder)
    if _URL.match(model):
        return _from_url(model, overrides, folder)
    chosen = _words_for(model)
    return _configured(compose([*chosen, *overrides]), [*chosen, *overrides], folder)


def _words_for(model: str) -> list[str]:
    """The words of a `sweep` command that choose this model."""
    if model in shapes():
        return [f"model={model}"]
    path = Path(model).expanduser()
    if path.exists():
        return [f"model.path={model}"]
    on_hub = _HUB.fullmatch(model)
    if on_hub and not path.parent.is_dir():
        return ["model=hub", f"model.repo={on_hub['repo']}", f"model.file={on_hub['file']}"]
    if model.lower().endswith(".gguf") or "/" in model:
        raise ModelMissingError(
            f"no model at {model}: correct the path, or give OWNER/NAME/FILE.gguf of the hub"
        )
    near = difflib.get_close_matches(model, shapes(), n=3, cutoff=0.5)
    raise UsageError(
        f"there is no model {model!r}; "
        + (f"did you mean {' or '.join(near)}?" if near else f"the names are: {', '.join(shapes())}")
        + " You can also give a GGUF file, OWNER/NAME/FILE.gguf of the hub, or a URL"
    )


def _configured(composed: Composed, words: Sequence[str], folder: Path) -> Located:
    wanted = composed.settings.model
    command = shlex.join(["sweeper", "sweep", *words])
    if wanted.path:
        header = read_header(Path(wanted.path))
        return Located(header.path.stem, header, composed, command)
    if wanted.repo:
        from sweeper.model.remote_header import copy_from_hub

        path, file = copy_from_hub(wanted.repo, wanted.file, wanted.revision, _own(folder))
        return Located(wanted.name or Path(file).stem, read_header(path), composed, command)
    if wanted.shape:
        from sweeper.model.synthetic import write_synthetic_header

        name = wanted.name or "synthetic"
        try:
            shape = ModelShape(**wanted.shape)
        except TypeError as error:
            raise ConfigError(f"model.shape: {str(error).replace('ModelShape.__init__() ', '')}") from None
        path = write_synthetic_header(shape, _own(folder) / "shape.gguf", wanted.quant, name)
        return Located(name, read_header(path), composed, command)
    raise ConfigError(
        "model: name a model, for example `sweeper guess llama2_7b` or `sweeper guess FILE.gguf`"
    )


def _from_url(url: str, overrides: Sequence[str], folder: Path) -> Located:
    from sweeper.model.remote_header import copy_url

    path = copy_url(url, _own(folder))
    words = [f"model.path={path.name}", *overrides]
    fetch = shlex.join(["curl", "-LO", url])
    command = f"{fetch} && {shlex.join(['sweeper', 'sweep', *words])}"
    return Located(path.stem, read_header(path), compose(words), command)


def _own(folder: Path) -> Path:
    """A new folder for one model, since two models may have files of the same name."""
    own = folder / str(sum(1 for _ in folder.iterdir()))
    own.mkdir()
    return own
