"""The servers of this machine: real ones on loopback, known by what they answer or by their process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from sweeper import doctor
from sweeper.client import found
from sweeper.doctor import Diagnosis, server_findings
from sweeper.errors import RightMissingError, VerifyError

LLAMA = {"/props": {"model_path": "/m.gguf"}, "/models": {"data": [{"id": "tiny"}]}}
OLLAMA = {"/api/tags": {"models": [{"name": "gemma3:270m"}, {"name": "tiny:latest"}]}}
OPENAI = {"/v1/models": {"data": [{"id": "any"}]}}
Serve = Callable[..., str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a server that answers these pages, on a port that counts as a usual one; gives its address."""
    started: list[ThreadingHTTPServer] = []

    def start(pages: dict[str, object], otherwise: int = 404) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.send_response(200 if self.path in pages else otherwise)
                self.end_headers()
                self.wfile.write(json.dumps(pages.get(self.path, "no")).encode())

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        started.append(server)
        monkeypatch.setattr(found, "USUAL_PORTS", tuple(one.server_address[1] for one in started))
        return f"http://127.0.0.1:{server.server_address[1]}"

    # Other servers may run on the machine of the tests.
    known = found._server_of
    monkeypatch.setattr(found, "_server_of", lambda pid: known(pid) if pid == psutil.Process().pid else "")
    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("pages", "kind", "models"),
    [
        (LLAMA, "llama-server", ("tiny",)),
        (OLLAMA, "ollama", ("gemma3:270m", "tiny")),
        (OPENAI, found.OF_OPENAI, ("any",)),
    ],
)
def test_a_server_is_known_by_what_it_answers(
    pages: dict[str, object], kind: str, models: tuple[str, ...], serve: Serve
) -> None:
    url = serve(pages)
    assert list(found.running()) == [found.Running(kind, url, models)]


def test_what_is_no_server_of_models_is_left_out_and_a_key_is_asked_for(serve: Serve) -> None:
    serve({})
    locked = serve({}, otherwise=401)
    (one,) = found.running()
    assert (one.kind, one.url, one.models) == ("a server", locked, ())
    assert isinstance(one.error, RightMissingError)


def test_a_process_that_is_a_server_is_named_by_its_program(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = sorted([serve(OPENAI), serve({}, otherwise=503)])
    monkeypatch.setattr(found, "_server_of", lambda pid: "llama-swap" if pid == psutil.Process().pid else "")
    runs = {one.url: one for one in found.running()}
    assert sorted(runs) == urls
    assert {one.kind for one in runs.values()} == {"llama-swap"}
    assert [one.models for one in runs.values() if one.error is None] == [("any",)]
    assert [type(one.error) for one in runs.values() if one.error] == [VerifyError]


@pytest.mark.parametrize(
    ("words", "program", "server"),
    [
        (["/opt/llama-server", "60"], shutil.which("sleep"), "llama-server"),
        ([sys.executable, "-c", "input()", "llama_cpp.server"], None, "llama-cpp-python"),
        ([sys.executable, "-c", "input()"], None, ""),
    ],
)
def test_a_process_is_known_by_its_command_line(words: list[str], program: str | None, server: str) -> None:
    with subprocess.Popen(words, executable=program, stdin=subprocess.PIPE) as process:
        try:
            assert found._server_of(process.pid) == server
        finally:
            process.kill()
    assert found._server_of(process.pid) == ""
    assert found._server_of(None) == ""


def test_without_a_list_of_connections_the_usual_ports_are_asked(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(LLAMA)

    def refused(kind: str) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refused)
    assert [one.url for one in found.running()] == [url]


def test_programs_are_found_on_the_path_and_beside_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("path/ollama", "path/lms", "beside/llama-server"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("#!/bin/sh\n")
        (tmp_path / path).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "beside" / "python"))
    assert found.installed() == {
        "llama-server": str(tmp_path / "beside" / "llama-server"),
        "ollama": str(tmp_path / "path" / "ollama"),
        "lm-studio": str(tmp_path / "path" / "lms"),
    }


# -- the doctor


def diagnosed(monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], *runs: found.Running) -> Diagnosis:
    monkeypatch.setattr(doctor, "installed", lambda: programs)
    monkeypatch.setattr(doctor, "running", lambda: iter(runs))
    return Diagnosis(tuple(server_findings()))


def test_the_doctor_names_the_servers_with_the_build_of_llama_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho 'version: 6123 (abc1234)' >&2\n")
    program.chmod(0o755)
    made = diagnosed(
        monkeypatch,
        {"llama-server": str(program), "ollama": "/usr/bin/ollama"},
        found.Running("ollama", "http://127.0.0.1:11434", ("a", "b", "c", "d", "e")),
        found.Running("a server", "http://127.0.0.1:8080", error=RightMissingError("it needs a key")),
    )
    text = made.to_text()
    assert f"{program}, version 6123 (abc1234)" in text
    assert "/usr/bin/ollama is installed" in text
    assert "runs at http://127.0.0.1:11434 and offers a, b, c and 2 more" in text
    assert "listens at http://127.0.0.1:8080, but: it needs a key" in text
    plain = made.to_plain()["findings"]
    assert [one["name"] for one in plain] == ["llama-server", "ollama", "ollama", "a server"]
    assert {one["area"] for one in plain} == {"server"}
    assert [one["status"] for one in plain] == ["ok", "ok", "ok", "no_right"]


def test_the_doctor_says_that_a_program_does_not_start_or_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = str(tmp_path / "llama-server")
    (broken,) = diagnosed(monkeypatch, {"llama-server": gone}).findings
    assert broken.status == "unusable"
    assert broken.detail.startswith(f"cannot start {gone}")
    (none,) = diagnosed(monkeypatch, {}).findings
    assert none.status == "missing"
    assert "none of llama-server, ollama, llama-swap, lm-studio is on the PATH" in none.detail
