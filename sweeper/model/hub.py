"""Fetches a GGUF from the Hugging Face hub, pinned to a commit, and compares its SHA-256 with the hub's.

The file goes where huggingface_hub keeps its files (``HF_HOME``), so other programs find it as well. sweeper notes
each fetched file under ``root/hub/``. Without a network, it reuses a file that it fetched before, after checking its
SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeper import files
from sweeper.errors import ConfigError, ModelFileError, ModelMissingError
from sweeper.model.digest import combined, sha256_of
from sweeper.model.header import split_names

_LIST_AT_MOST = 10


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file of the hub on this machine."""

    path: Path
    commit: str  # the commit of the revision
    sha256: str


def fetch(
    repo: str,
    file: str | None,
    revision: str | None,
    root: Path,
    endpoint: str | None = None,
    token: bool | str | None = None,
    cache_dir: Path | None = None,
) -> Fetched:
    """The GGUF ``file`` of ``repo`` at ``revision``, downloaded if it is not on this machine.

    Args:
        repo: ``OWNER/NAME``.
        file: the path in the repository; None if the repository has only one GGUF. For a split model, name the first
            part; all parts are fetched.
        revision: commit, tag or branch; None is the default branch. The function resolves it to a commit.
        root: notes about fetched files go to ``root/hub/``.
        endpoint: another hub; None is ``HF_ENDPOINT`` or the public hub.
        token: as huggingface_hub accepts it; None is the token of the user's login.
        cache_dir: None is huggingface_hub's own folder.

    Raises:
        ConfigError: the name of the repository or file is impossible, or the repository has several GGUF files.
        ModelMissingError: the hub does not have the file, refuses it, or cannot be reached.
        ModelFileError: the fetched file differs from the hub's.
    """
    from huggingface_hub import HfApi, errors

    digest = hashlib.sha256(json.dumps([repo, file, revision, endpoint]).encode()).hexdigest()[:24]
    note = root / "hub" / f"{digest}.json"
    try:
        api = HfApi(endpoint=endpoint, token=token, library_name="sweeper")
        with named_errors(repo, revision):
            fetched = _download(api, repo, file, revision, root, cache_dir)
    # The server or the network has a problem. HF_HUB_OFFLINE raises a ConnectionError.
    except (errors.LocalEntryNotFoundError, errors.HTTPError, ConnectionError) as error:
        known = _known(note, root)
        if known is None:
            raise ModelMissingError(
                f"cannot reach the hub for {repo} ({first_line(error)}): give a file with model.path=FILE, "
                "or try again with a network"
            ) from None
        return known
    except OSError as error:
        raise ModelMissingError(f"cannot fetch {repo}: {first_line(error)}") from None
    # Without the note, the file cannot be reused without a network; nothing else is lost.
    with suppress(OSError):
        files.replace(note, json.dumps(asdict(fetched) | {"path": str(fetched.path)}, indent=1))
    return fetched


@contextmanager
def named_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's refusals into errors in one line; errors of the network pass."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError:
        raise ConfigError(f"model.repo={repo}: give OWNER/NAME, as in the hub's address") from None
    except errors.GatedRepoError:
        raise ModelMissingError(
            f"{repo} is gated: accept its terms on the hub and run `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelMissingError(f"{repo} has no revision {revision}: correct model.revision") from None
    except errors.RepositoryNotFoundError:
        raise ModelMissingError(
            f"the hub has no repository {repo}, or hides it: correct model.repo, or run `hf auth login`"
        ) from None


def resolved(api: Any, repo: str, file: str | None, revision: str | None) -> tuple[str, str]:
    """The path of the GGUF in the repository (None: the only one), and the commit of the revision."""
    info = api.model_info(repo, revision=revision)
    return _chosen(file, [str(entry.rfilename) for entry in info.siblings or []], repo), str(info.sha)


def _download(
    api: Any, repo: str, file: str | None, revision: str | None, root: Path, cache_dir: Path | None
) -> Fetched:
    stated, commit = _stated(api, repo, file, revision)
    paths = []
    for name, expected in stated.items():
        path = Path(api.hf_hub_download(repo, name, revision=commit, cache_dir=cache_dir))
        if expected is not None and sha256_of(path, root) != expected:
            raise ModelFileError(
                f"{path} differs from the hub's file with SHA-256 {expected[:12]}…: delete it, and fetch it again"
            )
        paths.append(path)
    return Fetched(paths[0], commit, sha256_of(paths[0], root))


def _stated(api: Any, repo: str, file: str | None, revision: str | None) -> tuple[dict[str, str | None], str]:
    """The SHA-256 that the hub states for each part of the GGUF, None where it states none; and the commit."""
    chosen, commit = resolved(api, repo, file, revision)
    names = split_names(chosen) or (chosen,)
    entries = {entry.path: entry for entry in api.get_paths_info(repo, list(names), revision=commit)}
    for name in names:
        if name not in entries:
            raise ModelMissingError(
                f"{repo} has no file {name} at {commit[:12]}: check its file list, and correct model.file"
            )
    return {name: getattr(getattr(entries[name], "lfs", None), "sha256", None) for name in names}, commit


def stated_digest(
    repo: str,
    file: str | None,
    revision: str | None,
    endpoint: str | None = None,
    token: bool | str | None = None,
) -> str | None:
    """The digest of a model as the hub states it, equal to `sha256_of_model` of its files; nothing is downloaded.

    None if the hub cannot be reached or states none. Arguments and errors are those of `fetch`.
    """
    from huggingface_hub import HfApi, errors

    try:
        with named_errors(repo, revision):
            stated, _ = _stated(
                HfApi(endpoint=endpoint, token=token, library_name="sweeper"), repo, file, revision
            )
    except (errors.HTTPError, OSError):  # `fetch` says it, or uses the file that it fetched before
        return None
    digests = [digest for digest in stated.values() if digest is not None]
    return combined(digests) if len(digests) == len(stated) else None


def _chosen(file: str | None, names: list[str], repo: str) -> str:
    if file is not None:
        if not file.endswith(".gguf") or file.startswith("/") or ".." in file.split("/"):
            raise ConfigError(f"model.file={file}: give the path of a .gguf file in {repo}")
        return file
    models = [name for name in names if name.endswith(".gguf")]
    firsts = [name for name in models if (split_names(name) or (name,))[0] == name]
    if len(firsts) == 1:
        return firsts[0]
    if not firsts:
        raise ModelMissingError(f"{repo} has no .gguf file: choose a repository of GGUF files")
    shown = ", ".join(firsts[:_LIST_AT_MOST]) + (", …" if len(firsts) > _LIST_AT_MOST else "")
    raise ConfigError(f"{repo} has {len(firsts)} GGUF files; choose one with model.file=…: {shown}")


def first_line(error: Exception) -> str:
    """The first line of an error's words, or the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _known(note: Path, root: Path) -> Fetched | None:
    """The file that was fetched before with the same arguments, if it is still there unchanged."""
    try:
        data = json.loads(note.read_text(encoding="utf-8"))
        known = Fetched(Path(data["path"]), data["commit"], data["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not known.path.is_file() or sha256_of(known.path, root) != known.sha256:
        return None
    return known
