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
from sweeper.apply.llama_command import server_argv
from sweeper.apply.targets.llama_cpp_python import model_settings
from sweeper.apply.verify.client_speed import REPEAT_SECONDS
from sweeper.client.servers import LlamaCppPythonServer, LlamaServer, Server, detect
from sweeper.engine.of_record import binary_of
from sweeper.engine.server_dialect import program_of
from sweeper.errors import EngineMissingError, ModelMissingError, SweeperError, UsageError, VerifyError
from sweeper.records import SweepRecord, TrialRecord
from sweeper.servers import HOST, free_port, started

# The default address of each kind of server.
_USUAL_URLS = {
    "llama-server": "http://127.0.0.1:8080",
    "llama-cpp-python": "http://127.0.0.1:8000",
    "ollama": "http://127.0.0.1:11434",
}
_START_SECONDS = 1800.0  # a 40 GB model from a slow disk


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """Which server to measure, and how; `found_or_started` chooses for None and ``auto``."""

    server: Literal["auto", "llama-server", "llama-cpp-python", "ollama"] = "auto"
    url: str | None = None  # a running server; None: one at its usual address, else verify starts one
    name: str | None = None  # the model's name there
    program: Path | None = None  # of llama-server
    repeats: int = 5
    repeat_seconds: float = REPEAT_SECONDS
    port: int | None = None  # of the server that was applied for; None: the usual one
    start: bool = False  # start one even if one runs already


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
    draft = record.model.draft_file(trial.configuration)
    for what, file in (("model", path), ("draft model", draft.path if draft is not None else path)):
        if not Path(file).is_file():
            raise ModelMissingError(f"the {what} {file} is not there: put it back, or run the sweep again")
    if options.server == "ollama":
        raise EngineMissingError(f"no Ollama answers at {_USUAL_URLS['ollama']}: start it first")
    kind = options.server
    if kind == "auto":
        own = record.engine.name == "llama_server"
        kind = "llama-server" if options.program or own else "llama-cpp-python"
    progress(f"starting {kind} …")
    with tempfile.TemporaryDirectory(prefix="sweeper-verify-") as folder:
        request = Request(record, trial, path, name, free_port(), Path(folder))
        url, log = f"http://{HOST}:{request.port}", request.folder / "log"
        environment = dict(request.environment)
        if kind == "llama-server":
            argv, page = (*_program(record, options), *server_argv(request)[1:]), f"{url}/health"
        else:
            config = request.folder / "config.json"
            settings = model_settings(trial.configuration, path, name)
            models = [{**settings, "verbose": True}]  # its log tells the settings in force
            config.write_text(json.dumps({"host": HOST, "port": request.port, "models": models}), "utf-8")
            argv = (sys.executable, "-m", "llama_cpp.server", "--config_file", str(config))
            page = f"{url}/v1/models"
            # The server prefers these three variables to its file.
            environment |= {"HOST": HOST, "PORT": str(request.port), "CONFIG_FILE": str(config)}
        with started(
            argv, page, log, _START_SECONDS, environment=environment, failure=VerifyError
        ) as process:
            if kind == "llama-server":
                yield LlamaServer(url, pid=process.pid), name, True
            else:
                yield LlamaCppPythonServer(url, pid=process.pid, log=log), name, True


def _program(record: SweepRecord, options: VerifyOptions) -> tuple[str, ...]:
    """The words that start llama-server: the user's, else those of the sweep, else the one on the PATH."""
    if options.program is None and record.engine.name == "llama_server":
        return program_of(binary_of(record.config.get("engine") or {}))
    program = options.program or shutil.which("llama-server")
    if program is None:
        raise EngineMissingError("no llama-server on PATH: install llama.cpp, or name it with --program")
    return (str(program),)


def _find(path: str, name: str, options: VerifyOptions) -> tuple[Server, str] | None:
    """A running server, and the name there: the one asked for, else that of the same file."""

    def name_at(server: Server) -> str | None:
        offered = server.offered()
        if name in offered:
            return name
        same_file = (other for other, file in offered.items() if file == path)
        return next(same_file, None) if options.name is None else None

    if options.url is not None:
        server = detect(options.url)
        chosen = name_at(server)
        if chosen is None:
            offered = ", ".join(server.offered()) or "no model"
            raise UsageError(f"{server.url} offers {offered}, and not {name!r}: choose one with --name")
        return server, chosen
    for kind, usual in _USUAL_URLS.items():
        url = f"http://{HOST}:{options.port}" if options.port is not None else usual
        if options.server in ("auto", kind):
            with contextlib.suppress(SweeperError):  # no server there, or one that sweeper does not know
                server = detect(url)
                chosen = name_at(server)
                if chosen is not None and server.kind == kind:
                    return server, chosen
    return None
