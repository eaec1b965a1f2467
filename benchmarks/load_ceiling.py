"""How many tokens a second the load generator can count: against a stub, and against a real server.

The stub sends prepared events of llama-server as fast as the kernel takes them, from processes of their own, so it is
far faster than any model. The load generator must count every token of it, and its speed is the ceiling.

    python benchmarks/load_ceiling.py --llama-server PATH
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import threading
from pathlib import Path

from sweeper.client.load_client import LoadClient
from sweeper.client.requests import Ids, Target
from sweeper.errors import EngineMissingError
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic
from sweeper.servers import HOST, free_port, started

TOKENS = 512
PROMPT_TOKENS = 64
TINY = ModelShape(2, 256, 512, 4, 2, vocab_size=512, n_ctx_train=4096)


def _event(number: int, last: bool) -> bytes:
    event = {"index": 0, "content": "" if last else " word", "tokens": [] if last else [317], "stop": last}
    event |= {"id_slot": -1, "tokens_predicted": number, "tokens_evaluated": PROMPT_TOKENS}
    body = f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _stub(listener: socket.socket, one_by_one: bool) -> None:
    """Answers every request with its ``n_predict`` tokens: in one piece, or with one system call for each token."""
    events = [_event(number, False) for number in range(1, TOKENS + 1)]

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65_536)
            head, _, body = request.partition(b"\r\n\r\n")
            length = int(
                next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length")).split(b":")[1]
            )
            while len(body) < length:
                body += connection.recv(65_536)
            count = json.loads(body)["n_predict"]
            pieces = [HEAD, *events[:count], _event(count, True), b"0\r\n\r\n"]
            try:
                for piece in pieces if one_by_one else [b"".join(pieces)]:
                    connection.sendall(piece)
            except OSError:
                pass  # the test is over

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def _show(name: str, url: str, users: int, seconds: float) -> float:
    with LoadClient(Target(url, "llama-server")) as client:
        before = os.times()
        run = client.users(Ids(PROMPT_TOKENS, 3, 500), users, TOKENS, seconds, seconds * 4, 60.0)
        client.close()
        after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    print(
        f"{name:42} {users:3} users {run.tokens_per_second:9,.0f} tok/s  "
        f"client {1e6 * cpu / max(run.tokens, 1):5.1f} µs/token  {run.served.requests} requests"
    )
    return run.tokens_per_second


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-server", type=Path, help="also measure this server on a tiny model")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    found: dict[bool, list[float]] = {False: [], True: []}
    for one_by_one in (False, True):
        with socket.create_server((HOST, 0), backlog=128) as listener:
            stubs = [
                multiprocessing.Process(target=_stub, args=(listener, one_by_one), daemon=True)
                for _ in range(2)
            ]
            for stub in stubs:
                stub.start()
            url = f"http://{HOST}:{listener.getsockname()[1]}"
            name = "stub, one system call a token" if one_by_one else "stub, an answer in one piece"
            try:
                for users in options.users:
                    found[one_by_one].append(_show(name, url, users, options.seconds))
            finally:
                for stub in stubs:
                    stub.kill()
    if options.llama_server is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        model = write_synthetic(TINY, Path(folder) / "tiny.gguf", "F16", seed=1)
        port = free_port()
        argv = [str(options.llama_server), "-m", str(model), "--port", str(port), "-c", "16384", "-np", "16"]
        argv += ["-kvu", "-t", "1", "--cache-ram", "0"]
        url = f"http://{HOST}:{port}"
        with started(
            argv, f"{url}/health", Path(folder) / "log", 60, environment={}, failure=EngineMissingError
        ):
            fastest = max(
                _show("real server, tiny model", url, users, options.seconds) for users in options.users
            )
    ceiling = min(found[True])
    print(
        f"the ceiling (slowest stub with one call a token) is {ceiling / fastest:.1f} times the fastest real server"
    )


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
