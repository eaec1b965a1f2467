"""JSON over HTTP to a server on this machine, with errors that say which server and what to do."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from sweeper.errors import EngineMissingError, UsageError, VerifyError

# A proxy from the environment must not stand between a client and a server on the same machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_MOST_BYTES = 64 * 1024 * 1024  # an answer longer than this is no answer to what is asked here


class NoSuchPageError(VerifyError):
    """The server answers, and knows no such address: it is another kind of server."""


def get(url: str, seconds: float = 10.0) -> Any:
    """The JSON at ``url``. Raises as `post` does."""
    return _fetch(urllib.request.Request(url), seconds)  # noqa: S310 - checked in _fetch


def post(url: str, body: dict[str, Any], seconds: float = 3600.0) -> Any:
    """The JSON that answers ``body``.

    Raises:
        EngineMissingError: nobody listens there.
        NoSuchPageError: the server has no such page.
        VerifyError: the server refuses, breaks off, takes too long, or answers with something else.
    """
    data = json.dumps(body).encode("utf-8")
    return _fetch(urllib.request.Request(url, data, {"Content-Type": "application/json"}), seconds)  # noqa: S310


def _fetch(request: urllib.request.Request, seconds: float) -> Any:
    if request.type not in ("http", "https"):
        raise UsageError(f"{request.full_url} is no http address: write it as http://127.0.0.1:8080")
    try:
        with _OPENER.open(request, timeout=seconds) as answer:
            return json.loads(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(500).decode("utf-8", "replace").strip()
        if error.code in (404, 405, 501):
            raise NoSuchPageError(f"{request.full_url} is not there ({error.code})") from error
        raise VerifyError(f"{request.full_url} answered {error.code}: {text}") from error
    except (urllib.error.URLError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise EngineMissingError(
            f"no server answers at {request.full_url} ({reason}): start it first"
        ) from error
    except (TimeoutError, OSError) as error:
        raise VerifyError(
            f"{request.full_url} gave no whole answer within {seconds:g} s ({error})"
        ) from error
    except json.JSONDecodeError as error:
        raise NoSuchPageError(f"{request.full_url} answers with something else than JSON") from error
