"""Large files: their SHA-256, cached because hashing 20 GB takes half a minute, and the space that they need."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeper.errors import ModelMissingError, StoreError
from sweeper.files import replace

_CACHE_NAME = "sha256.json"
_KEEP_ENTRIES = 1_000
_SPARE_BYTES = 64 << 20  # left free on the disk


def sha256_of(path: Path, root: Path) -> str:
    """The SHA-256 of a file in hex, cached in ``root/sha256.json`` by path, size and modification time.

    Raises:
        ModelMissingError: the file cannot be read.
    """
    path = Path(path).resolve()
    try:
        stat = path.stat()
        cache = root / _CACHE_NAME
        known = _read(cache).get(str(path))
        if known and known.get("size") == stat.st_size and known.get("mtime_ns") == stat.st_mtime_ns:
            return str(known["sha256"])
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        after = path.stat()
    except OSError as error:
        raise ModelMissingError(f"cannot read {path}: {error.strerror}") from None
    if (after.st_size, after.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        _remember(cache, str(path), {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest})
    return digest


def sha256_of_model(parts: Sequence[Path], root: Path) -> str:
    """The digest of a model: the SHA-256 of its file, or of the digests of all parts if it is split."""
    return combined([sha256_of(part, root) for part in parts])


def combined(digests: Sequence[str]) -> str:
    """One digest for several: the only one, or the SHA-256 of all of them, one a line."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def demand_space(folder: Path, needed: int, what: str, otherwise: str) -> None:
    """Raise StoreError unless ``needed`` bytes and some more are free in ``folder``."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise StoreError(
            f"{what} needs {needed >> 20} MiB in {folder}, where {free >> 20} MiB are free: "
            f"free some space, or {otherwise}"
        )


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    try:
        data = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a missing or damaged cache only costs time
    return data if isinstance(data, dict) else {}


def _remember(cache: Path, key: str, entry: dict[str, Any]) -> None:
    entries = _read(cache)
    entries.pop(key, None)  # the latest entry stands last
    kept = [*entries.items(), (key, entry)][-_KEEP_ENTRIES:]
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        replace(cache, json.dumps(dict(kept), indent=0))
