"""Reads the header of a GGUF file on a server by HTTP ranges, into a sparse file of the model's full size.

The sparse file takes only the header's bytes on the disk. `read_header` reads it as the model itself, and llama.cpp can
plan its memory from it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sweeper.errors import ConfigError, ModelFileError, ModelMissingError, StoreError
from sweeper.model.header import split_names
from sweeper.model.hub import first_line, named_errors, resolved
from sweeper.model.metadata import BadHeader, read_raw

_FIRST_BYTES, _MORE_BYTES = 1 << 20, 4 << 20
_MOST_BYTES = 256 << 20  # the longest headers of 2026 have 16 MB, of which most is vocabulary
_SECONDS = 20.0


class _RemoteBytes:
    """The beginning of a remote file as a stream; it fetches more whenever a read goes beyond."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url, self._headers = url, headers
        self._position = 0
        self.fetched = b""
        self.size = 0
        self._fetch(_FIRST_BYTES)

    def read(self, count: int) -> bytes:
        self._have(self._position + count)
        piece = self.fetched[self._position : self._position + count]
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (self._position if whence == os.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def _have(self, end: int) -> None:
        end = min(end, self.size)
        while len(self.fetched) < end:
            if end > _MOST_BYTES:
                raise BadHeader(f"its header is longer than {_MOST_BYTES >> 20} MiB")
            self._fetch(max(_MORE_BYTES, end - len(self.fetched)))

    def _fetch(self, count: int) -> None:
        from huggingface_hub import get_session

        start = len(self.fetched)
        headers = {**self._headers, "Range": f"bytes={start}-{start + count - 1}"}
        session: Any = get_session()  # it follows redirects, and gives a token to the hub only
        with session.stream("GET", self._url, headers=headers, timeout=_SECONDS) as answer:
            if answer.status_code != 206:
                raise ModelMissingError(_refusal(self._url, answer.status_code))
            total = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            if total is None or int(total[1]) != start:
                raise ModelMissingError(f"{self._url}: the server does not say which bytes it sends")
            self.size = int(total[2])
            pieces = b"".join(answer.iter_bytes())
        if not pieces:
            raise ModelMissingError(f"{self._url}: the server broke off")
        self.fetched += pieces


def copy_header(url: str, target: Path, headers: Mapping[str, str] | None = None) -> Path:
    """Copy the header of the GGUF at ``url`` to the sparse file ``target``.

    Raises:
        ModelMissingError: the server cannot be reached, refuses, or does not answer requests for a range.
        ModelFileError: the file is no GGUF, or its header is impossible.
        StoreError: the sparse file cannot be written.
    """
    try:
        stream = _RemoteBytes(url, headers or {})
        read_raw(cast(Any, stream), stream.size)
    except BadHeader as bad:
        raise ModelFileError(f"{url}: {bad}") from None
    except _network_errors() as error:
        raise ModelMissingError(
            f"cannot read {url} ({first_line(error)}): correct it, or try again"
        ) from None
    try:
        with target.open("wb") as file:
            file.write(stream.fetched[: stream.tell()])
            file.truncate(stream.size)
    except OSError as error:
        raise StoreError(f"cannot write the model's header {target}: {error.strerror or error}") from None
    return target


def copy_url(url: str, folder: Path) -> Path:
    """The sparse file of the GGUF at ``url``, with those of all parts of a split model.

    Raises:
        ConfigError: it is not the address of a .gguf file.
        ModelMissingError, ModelFileError, StoreError: as `copy_header`.
    """
    address, question, query = url.partition("?")
    base, _, name = address.replace("/blob/", "/resolve/").rpartition("/")  # a page of the hub, and its file
    if not name.lower().endswith(".gguf"):
        raise ConfigError(f"{url}: give the address of a .gguf file")
    names = split_names(name) or (name,)
    paths = [copy_header(f"{base}/{part}{question}{query}", folder / part) for part in names]
    return paths[0]


def copy_from_hub(repo: str, file: str | None, revision: str | None, folder: Path) -> tuple[Path, str]:
    """The sparse file of a GGUF on the Hugging Face hub, with those of all its parts, and its path in the repository.

    Raises:
        ConfigError: the name of the repository or file is impossible, or the repository has several GGUF files.
        ModelMissingError, ModelFileError, StoreError: as `copy_header`.
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    api = HfApi(library_name="sweeper")
    try:
        with named_errors(repo, revision):
            chosen, commit = resolved(api, repo, file, revision)
    except _network_errors() as error:
        raise ModelMissingError(
            f"cannot reach the hub for {repo} ({first_line(error)}): give a file, or try again with a network"
        ) from None
    paths = []
    for name in split_names(chosen) or (chosen,):
        url = hf_hub_url(repo, name, revision=commit, endpoint=api.endpoint)
        paths.append(copy_header(url, folder / Path(name).name, build_hf_headers(library_name="sweeper")))
    return paths[0], chosen


def _network_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    http: type[Exception] = errors.HTTPError
    return (http, OSError)


def _refusal(url: str, status: int) -> str:
    if status == 200:
        return f"{url}: the server cannot send a part of a file; download the file and give its path"
    advice = {
        401: "log in with `hf auth login`",
        403: "accept the model's terms on the hub and log in with `hf auth login`",
        404: "correct the address",
    }
    return f"{url}: the server answered {status}; {advice.get(status, 'try again later')}"
