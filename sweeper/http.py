"""JSON over HTTP to a server, with errors that say which server and what to do."""

from __future__ import annotations

import http.client
import ipaddress
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from sweeper.errors import (
    EngineMissingError,
    RightMissingError,
    SweeperError,
    UsageError,
    VerifyError,
)


def direct_opener(*handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """An opener that ignores the proxies of the environment, for servers on this machine or in its network."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)


_DIRECT = direct_opener()
KEY_VARIABLE = "SWEEPER_API_KEY"
_MOST_BYTES = 64 * 1024 * 1024  # a longer answer cannot be the one that sweeper asked for


def is_loopback(url: str) -> bool:
    """Whether the host of ``url`` is this machine by its loopback address."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may be of any machine


class NoSuchPageError(VerifyError):
    """The server answers, but has no such page: it is another kind of server."""


def get(url: str, seconds: float = 10.0, key: str | None = None) -> Any:
    """The JSON at ``url``. Raises as `post` does."""
    return post(url, None, seconds, key)


def post(url: str, body: dict[str, Any] | None, seconds: float = 3600.0, key: str | None = None) -> Any:
    """The JSON that answers ``body``. ``key`` is sent to this server alone, as a bearer token.

    Raises:
        EngineMissingError: nothing listens there.
        RightMissingError: the server needs a key, or another one.
        NoSuchPageError: the server has no such page.
        VerifyError: the server refuses, breaks off, takes too long, or answers with something else.
    """
    answer = _fetch(url, None if body is None else json.dumps(body).encode("utf-8"), seconds, key)
    try:
        return json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise NoSuchPageError(f"{url} answers with something else than JSON") from error


def answers(url: str, seconds: float = 5.0) -> bool:
    """Whether a server on this machine answers this page without an error; the content does not matter."""
    try:
        _fetch(url, None, seconds)
    except SweeperError:
        return False
    return True


def _fetch(url: str, data: bytes | None, seconds: float, key: str | None = None) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url} is no http address: write it as http://127.0.0.1:8080")
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - checked
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # never to another server
        with _DIRECT.open(request, timeout=seconds) as answer:
            return bytes(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            text = _reason(error)
        if error.code in (401, 403):
            verb = "refuses the key in" if key else "needs a key: set"
            raise RightMissingError(
                f"{url} {verb} the environment variable {KEY_VARIABLE} ({error.code})"
            ) from error
        if error.code in (404, 405, 501):
            raise NoSuchPageError(f"{url} is not there ({error.code})") from error
        raise VerifyError(f"{url} answered {error.code}: {text}") from error
    except (urllib.error.URLError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason  # without the number of the error
        raise EngineMissingError(f"no server answers at {url} ({reason}): start it first") from error
    except (http.client.InvalidURL, ValueError) as error:
        raise UsageError(f"{url} is no http address ({error}): write it as http://127.0.0.1:8080") from error
    except http.client.BadStatusLine as error:
        raise NoSuchPageError(f"{url} answers with something else than HTTP") from error
    except (OSError, http.client.HTTPException) as error:
        raise VerifyError(f"{url} gave no whole answer within {seconds:g} s ({error!r})") from error


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(500).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):  # the status alone says that the server refuses
        return error.reason
