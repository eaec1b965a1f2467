"""JSON over HTTP: each way in which a server may fail has its own error, never a traceback."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from sweeper.errors import SweeperError, UsageError, VerifyError
from sweeper.http import NoSuchPageError, answers, get


@contextlib.contextmanager
def sending(data: bytes) -> Iterator[str]:
    """A port on loopback that sends this to whoever connects; the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"SSH-2.0-dropbear_2019.78\r\n", NoSuchPageError),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200, VerifyError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", VerifyError),
        (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", VerifyError),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, NoSuchPageError),
    ],
)
def test_a_server_that_stumbles_is_named(data: bytes, error: type[SweeperError]) -> None:
    with sending(data) as url, pytest.raises(error, match=url):
        get(url)


def test_a_port_that_speaks_no_http_does_not_answer() -> None:
    with sending(b"SSH-2.0\r\n") as url:
        assert not answers(url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:http", "http://[::1", "http://127.0.0.1/a b", "http://127.0.0.1/é"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no http address"):
        get(url)
