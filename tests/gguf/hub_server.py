"""A small hub on loopback: the few answers of the Hugging Face hub that fetching one file needs."""

import contextlib
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    repo: str
    files: dict[str, bytes]
    stated_sha256: dict[str, str] = field(default_factory=dict)  # where the hub lies
    status: int = 200  # other than 200: what every request is answered with
    error_code: str | None = None  # the hub's X-Error-Code
    requests: list[str] = field(default_factory=list)
    ranges: bool = True  # whether requests for a part of a file get one
    sent_bytes: int = 0  # of the contents of files
    endpoint: str = ""

    def sha256(self, name):
        return self.stated_sha256.get(name) or hashlib.sha256(self.files[name]).hexdigest()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def _send(self, status, body=b"", headers=()):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(ConnectionError):  # a client that reads only the header leaves early
                    self.wfile.write(body)

        def _json(self, data):
            self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

        def _error(self, status, code):
            self._send(status, b"{}", {"X-Error-Code": code, "Content-Type": "application/json"})

        def _answer(self):
            path = unquote(self.path.split("?")[0])
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            hub.requests.append(f"{self.command} {path}")
            if hub.status != 200:
                return self._error(hub.status, hub.error_code or "Unavailable")
            if path.startswith("/api/models/"):
                return self._api(path.removeprefix("/api/models/"), body)
            repo, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            if repo != hub.repo or revision != COMMIT or name not in hub.files:
                return self._error(404, "EntryNotFound")
            content = hub.files[name]
            headers = {"ETag": f'"{hub.sha256(name)}"', "X-Repo-Commit": COMMIT}
            if self.command == "HEAD":
                headers["Content-Length"] = str(len(content))
                return self._send(200, content, headers)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted is None or not hub.ranges:
                hub.sent_bytes += len(content)
                return self._send(200, content, headers)
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            hub.sent_bytes += last + 1 - first
            return self._send(206, content[first : last + 1], headers)

        def _api(self, path, body):
            if not path.startswith(hub.repo):
                return self._error(404, "RepoNotFound")
            rest = path.removeprefix(hub.repo).strip("/").split("/")
            if rest[0] == "paths-info":
                wanted = parse_qs(body.decode())["paths"]
                return self._json([self._entry(name) for name in wanted if name in hub.files])
            if rest[0] == "revision" and rest[1] not in ("main", "v1", COMMIT):
                return self._error(404, "RevisionNotFound")
            siblings = [{"rfilename": name} for name in hub.files]
            return self._json({"id": hub.repo, "sha": COMMIT, "siblings": siblings, "tags": []})

        @staticmethod
        def _entry(name):
            size = len(hub.files[name])
            lfs = {"size": size, "oid": hub.sha256(name), "pointerSize": 134}
            return {"type": "file", "path": name, "size": size, "oid": "0" * 40, "lfs": lfs}

        do_GET = do_HEAD = do_POST = _answer  # noqa: N815 - the names that http.server calls

    return Handler


@contextmanager
def hub_serving(hub):
    """Serve ``hub`` on a free port; its ``endpoint`` is set."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
