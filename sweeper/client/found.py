"""The servers of this machine: those whose program is installed, and those that run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sweeper.client.servers import detect
from sweeper.errors import EngineMissingError, RightMissingError, SweeperError
from sweeper.servers import HOST

# Each server that has a program of its own, and the name of that program.
PROGRAMS = {
    "llama-server": "llama-server",
    "ollama": "ollama",
    "llama-swap": "llama-swap",
    "lm-studio": "lms",
}
# Where llama-server and llama-swap, llama-cpp-python, Ollama and LM Studio listen unless their user says otherwise.
USUAL_PORTS = (8080, 8000, 11434, 1234)
# What answers like llama-cpp-python's server, in a process that tells nothing: many servers have this interface.
OF_OPENAI = "a server of OpenAI's interface"
_SECONDS = 2.0  # of one request: something that listens and never answers must not hold up the others
_ANYWHERE = ("0.0.0.0", "::", "127.0.0.1", "::ffff:127.0.0.1")  # noqa: S104 - compared with, never listened on


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs here. ``models`` are the names that it offers; ``error`` says why they are not known."""

    kind: str
    url: str
    models: tuple[str, ...] = ()
    error: SweeperError | None = None


def installed() -> dict[str, str]:
    """The servers whose program is on the PATH, or beside the Python that runs; each with its program's path."""
    beside = Path(sys.executable).parent
    found = {name: shutil.which(word) or shutil.which(str(beside / word)) for name, word in PROGRAMS.items()}
    return {name: path for name, path in found.items() if path is not None}


def running() -> Iterator[Running]:
    """The servers that listen on this machine, in the order of their addresses.

    It looks at the usual ports, and at every port of a process that is known by its program. No key is sent.
    """
    for url, server in sorted(_listening().items()):
        try:
            found = detect(url, seconds=_SECONDS)
            kind = server or (OF_OPENAI if found.kind == "llama-cpp-python" else found.kind)
            models = tuple(dict.fromkeys(name.removesuffix(":latest") for name in found.offered()))
        except EngineMissingError:
            continue  # a program of another kind, which only listens on a usual port
        except SweeperError as error:
            if server or isinstance(error, RightMissingError):
                yield Running(server or "a server", url, error=error)
            continue
        yield Running(kind, url, models)


def _listening() -> dict[str, str]:
    """The addresses at which a server may answer, each with the server that its process is; empty if not known."""
    import psutil

    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:  # some systems show connections to an administrator only
        return {f"http://{HOST}:{port}": "" for port in USUAL_PORTS}
    found: dict[str, str] = {}
    for one in connections:
        if one.status != psutil.CONN_LISTEN or not one.laddr:
            continue
        ip, port = one.laddr[:2]
        server = _server_of(one.pid)
        if server or port in USUAL_PORTS:
            host = HOST if ip in _ANYWHERE else f"[{ip}]" if ":" in ip else ip
            url = f"http://{host}:{port}"
            found[url] = found.get(url) or server
    return found


def _server_of(pid: int | None) -> str:
    """The server that a process is, by its command line; empty if it is none, or this user may not see it."""
    import psutil

    try:
        words = [] if pid is None else psutil.Process(pid).cmdline()
    except psutil.Error:
        return ""
    if "llama_cpp.server" in words:
        return "llama-cpp-python"
    program = Path(words[0]).name if words else ""
    return next((server for server, name in PROGRAMS.items() if name == program), "")
