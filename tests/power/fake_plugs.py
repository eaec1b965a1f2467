"""Network plugs as real HTTP servers on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote_plus

SHELLY_PATH = "/rpc/Switch.GetStatus?id=0"
TASMOTA_PATH = "/cm?cmnd=Status%2010"


PASSWORD = "s&cret é"  # what a URL and a header must encode


class FakePlug:
    """What a plug shows: power in W, a total that may drift, and how it misbehaves."""

    def __init__(self, kind: str, watts: Callable[[float], float] | float) -> None:
        self.kind = kind
        self.watts = watts
        self.total_gain = 1.0
        self.delay_seconds = 0.0
        self.body: bytes | None = None  # answered instead
        self.bodies: list[bytes] = []  # answered first, one each
        self.login: str | None = (
            None  # basic, digest MD5, digest SHA-256 or query: admin's password is PASSWORD
        )
        self.url = ""
        self.questions = 0
        self._began = time.monotonic()
        self._joules = 0.0
        self._then = self._began

    def answer(self) -> bytes:
        self.questions += 1
        now = time.monotonic()
        watts = self.watts(now - self._began) if callable(self.watts) else self.watts
        self._joules += watts * (now - self._then)
        self._then = now
        if self.bodies:
            return self.bodies.pop(0)
        if self.body is not None:
            return self.body
        total_wh = self._joules * self.total_gain / 3600 + 1234.5
        if self.kind == "shelly":
            # The fields of Switch.GetStatus as Shelly's API documents them.
            energy = {"total": round(total_wh, 3), "by_minute": [0.0, 0.0, 0.0], "minute_ts": 1700000000}
            shown = {"id": 0, "source": "init", "output": True, "apower": round(watts, 1), "voltage": 230.1,
                     "current": 0.2, "aenergy": energy, "temperature": {"tC": 31.2, "tF": 88.1}}  # fmt: skip
        else:
            # The fields of `Status 10` as Tasmota documents them.
            energy = {"TotalStartTime": "2026-01-01T00:00:00", "Total": round(total_wh / 1000, 3),
                      "Yesterday": 0.5, "Today": 0.1, "Power": round(watts), "ApparentPower": round(watts),
                      "ReactivePower": 0, "Factor": 1.0, "Voltage": 230, "Current": 0.2}  # fmt: skip
            shown = {"StatusSNS": {"Time": "2026-01-01T00:00:00", "ENERGY": energy}}
        return json.dumps(shown).encode()


def digest_is_right(algorithm: str, header: str, path: str) -> bool:
    """RFC 7616 with qop=auth, as a Shelly checks it."""
    fields = {name: word for name, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|(\w+))', header)
              for word in (quoted or plain,)}  # fmt: skip

    def h(*words: str) -> str:
        return hashlib.new(algorithm.replace("-", ""), ":".join(words).encode()).hexdigest()

    first, second = h("admin", "shellyplus-1", PASSWORD), h("GET", path)
    wanted = h(first, fields["nonce"], fields["nc"], fields["cnonce"], "auth", second)
    return fields["uri"] == path and fields["nonce"] == "60dc2c68" and fields["response"] == wanted


@contextmanager
def serving(plug: FakePlug) -> Iterator[FakePlug]:
    """The plug on a free port of loopback while the block runs."""
    expected = SHELLY_PATH if plug.kind == "shelly" else TASMOTA_PATH

    class Handler(BaseHTTPRequestHandler):
        def may(self) -> bool:
            header = self.headers.get("Authorization") or ""
            if plug.login == "basic":
                return header == "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
            if plug.login == "query":
                return self.path == f"{expected}&user=admin&password={quote_plus(PASSWORD)}"
            if plug.login is not None:
                return header.startswith("Digest ") and digest_is_right(
                    plug.login.split()[1], header, self.path
                )
            return True

        def do_GET(self) -> None:
            time.sleep(plug.delay_seconds)
            if not self.may():
                self.send_response(401)
                if plug.login == "basic":
                    self.send_header("WWW-Authenticate", 'Basic realm="shelly1pm"')
                elif plug.login != "query":
                    algorithm = str(plug.login).split()[1]
                    words = (
                        f'Digest qop="auth", realm="shellyplus-1", nonce="60dc2c68", algorithm={algorithm}'
                    )
                    self.send_header("WWW-Authenticate", words)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            is_known = self.path.partition("&user=")[0] == expected
            body = plug.answer() if is_known else b"no"
            self.send_response(200 if is_known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that gave up waiting
    plug.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield plug
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
