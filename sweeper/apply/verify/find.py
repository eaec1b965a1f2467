"""Finds a running server that offers the model, or starts one for the measurement."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sweeper.apply.base import Request
from sweeper.apply.fresh import model_file
from sweeper.apply.llama_options import server_argv
from sweeper.apply.run import environment_of
from sweeper.apply.targets.llama_cpp_python import model_settings
from sweeper.apply.verify.client_speed import REPEAT_SECONDS
from sweeper.apply.verify.servers import LlamaCppPythonServer, LlamaServer, Server, detect
from sweeper.errors import EngineMissingError, ModelMissingError, SweeperError, UsageError, VerifyError
from sweeper.records import SweepRecord, TrialRecord
from sweeper.servers import HOST, free_port, started

TOLERANCE = 0.05  # a promise is kept if speed is at most this fraction below it, or power above it

# The default address of each kind of server.
_USUAL_URLS = {
    "llama-server": "http://127.0.0.1:8080",
    "llama-cpp-python": "http://127.0.0.1:8000",
    "ollama": "http://127.0.0.1:11434",
}


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """Which server to measure, and how; `found_or_started` chooses for None and ``auto``."""

    server: Literal["auto", "llama-server", "llama-cpp-python", "ollama"] = "auto"
    url: str | None = None  # a running server; None: one at its usual address, else verify starts one
    name: str | None = None  # the model's name there
    program: Path | None = None  # of llama-server
    repeats: int = 5
    repeat_seconds: float = REPEAT_SECONDS
    tolerance: float = TOLERANCE
    start: bool | None = None  # True: always start one; False: never
    start_timeout_seconds: float = 1800.0  # a 40 GB model from a slow disk


@contextlib.contextmanager
def found_or_started(
    record: SweepRecord,
    trial: TrialRecord,
    name: str,
    options: VerifyOptions,
    progress: Callable[[str], None],
) -> Iterator[tuple[Server, str, bool]]:
    """The server to measure, the model's name there, and whether sweeper started it.

    Raises:
        UsageError: the server at ``options.url`` does not offer the model.
        EngineMissingError: no server answers, or none can be started.
        ModelMissingError: the model's file is gone.
        VerifyError: the server that was started does not answer.
    """
    path = str(Path(model_file(record, trial).path).expanduser().absolute())
    found = None if options.start else _find(path, name, options)
    if found is not None:
        progress(f"found {found[0].kind} at {found[0].url}")
        yield (*found, False)
        return
    if options.start is False:
        places = options.url or ", ".join(_USUAL_URLS.values())
        raise EngineMissingError(
            f"no server that offers {name!r} answers at {places}: start it, or let verify do it"
        )
    if not Path(path).is_file():
        raise ModelMissingError(f"the model {path} is not there: put it back, or run the sweep again")
    with _start(record, trial, path, name, options, progress) as server:
        yield server, name, True


def _find(path: str, name: str, options: VerifyOptions) -> tuple[Server, str] | None:
    if options.url is not None:
        server = detect(options.url)
        chosen = _name_there(server, path, name, options)
        if chosen is None:
            offered = ", ".join(server.offered()) or "no model"
            raise UsageError(f"{server.url} offers {offered}, and not {name!r}: choose one with --name")
        return server, chosen
    for kind, url in _USUAL_URLS.items():
        if options.server not in ("auto", kind):
            continue
        with contextlib.suppress(SweeperError):  # no server there, or one that sweeper does not know
            server = detect(url)
            chosen = _name_there(server, path, name, options)
            if chosen is not None and server.kind in (kind, options.server):
                return server, chosen
    return None


def _name_there(server: Server, path: str, name: str, options: VerifyOptions) -> str | None:
    """The name under which a server offers the model: the one asked for, else that of the same file."""
    offered = server.offered()
    if name in offered:
        return name
    if options.name is not None:
        return None
    return next((other for other, file in offered.items() if file == path), None)


@contextlib.contextmanager
def _start(
    record: SweepRecord,
    trial: TrialRecord,
    path: str,
    name: str,
    options: VerifyOptions,
    progress: Callable[[str], None],
) -> Iterator[Server]:
    """Run a server on a free port of 127.0.0.1 while the block lasts."""
    if options.server == "ollama":
        raise EngineMissingError(
            f"no Ollama answers at {options.url or _USUAL_URLS['ollama']}: start it first"
        )
    kind = options.server
    if kind == "auto":
        kind = "llama-server" if options.program else "llama-cpp-python"
    port = free_port()
    url = f"http://{HOST}:{port}"
    environment = dict(environment_of(record))
    progress(f"starting {kind}")
    with tempfile.TemporaryDirectory(prefix="sweeper-verify-") as folder:
        log = Path(folder) / "log"
        if kind == "llama-server":
            program = options.program or shutil.which("llama-server")
            if program is None:
                raise EngineMissingError(
                    "no llama-server on PATH: install llama.cpp, or name it with --program"
                )
            argv = server_argv(Request(record, trial, path, name, port, Path(folder)), str(program))
            page = f"{url}/health"
        else:
            config = Path(folder) / "config.json"
            settings = model_settings(trial.configuration, path, name)
            models = [{**settings, "verbose": True}]  # its log tells the settings in force
            config.write_text(json.dumps({"host": HOST, "port": port, "models": models}), "utf-8")
            argv = (sys.executable, "-m", "llama_cpp.server", "--config_file", str(config))
            # The server prefers these three variables to its file.
            environment |= {"HOST": HOST, "PORT": str(port), "CONFIG_FILE": str(config)}
            page = f"{url}/v1/models"
        with started(
            argv, page, log, options.start_timeout_seconds, environment=environment, failure=VerifyError
        ) as process:
            if kind == "llama-server":
                yield LlamaServer(url, pid=process.pid)
            else:
                yield LlamaCppPythonServer(url, pid=process.pid, log=log)
