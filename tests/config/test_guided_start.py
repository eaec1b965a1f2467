"""`sweeper` alone: models on their usual paths, the command that answers make, and a talk in a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeper import cli, start
from sweeper.cli import main
from sweeper.config import compose, run_hydra
from sweeper.start import Answers, find_models, words_of

WEIGHTS = b"\0" * start.LEAST_BYTES


def model_at(path: Path, content: bytes = WEIGHTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_models_are_found_where_each_program_keeps_them(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    model_at(here / "mine.gguf")
    model_at(here / "vocab.gguf", b"small")
    model_at(home / ".cache/llama.cpp/org_m-00001-of-00002.gguf")
    model_at(home / ".cache/llama.cpp/org_m-00002-of-00002.gguf")
    model_at(home / ".cache/llama.cpp/mmproj-x.gguf")
    model_at(home / ".lmstudio/models/org/repo/studio.gguf")
    snapshot = home / ".cache/huggingface/hub/models--a--b/snapshots/c0ffee"
    blob = model_at(home / ".cache/huggingface/hub/models--a--b/blobs/123")
    snapshot.mkdir(parents=True)
    (snapshot / "hub.gguf").symlink_to(blob)
    (snapshot / "gone.gguf").symlink_to(blob.parent / "gone")
    ollama = home / ".ollama/models"
    weights = model_at(ollama / "blobs/sha256-abc")
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:def"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:abc"},
    ]
    model_at(
        ollama / "manifests/registry.ollama.ai/library/gemma3/270m", json.dumps({"layers": layers}).encode()
    )
    model_at(ollama / "manifests/registry.ollama.ai/library/broken/latest", b"{")
    found = find_models(home, here, {})
    assert [(one.name, one.keeper) for one in found] == [
        ("mine.gguf", "this folder"),
        ("org_m-00001-of-00002.gguf", "llama.cpp"),
        ("gemma3:270m", "Ollama"),
        ("studio.gguf", "LM Studio"),
        ("hub.gguf", "Hugging Face"),
    ]
    assert found[2].path == weights


def test_the_variables_of_the_programs_move_their_folders(tmp_path: Path) -> None:
    model_at(tmp_path / "llama/a.gguf")
    model_at(tmp_path / "hf/hub/models--a--b/snapshots/1/b.gguf")
    places = {"LLAMA_CACHE": str(tmp_path / "llama"), "HF_HOME": str(tmp_path / "hf")}
    assert {one.name for one in find_models(tmp_path, tmp_path, places)} == {"a.gguf", "b.gguf"}


@pytest.mark.parametrize("aim", start.AIMS)
@pytest.mark.parametrize("minutes", [3.0, 45.0, None])
def test_every_answer_makes_a_command_that_sweeper_takes(aim: str, minutes: float | None) -> None:
    path = Path("/models/it's (1), a.gguf")
    words = words_of(Answers(path, "llama-server", aim, minutes))
    assert words[0] == "sweep"
    settings = compose(words[1:]).settings
    assert (settings.model.path, settings.minutes) == (str(path), minutes)
    assert run_hydra(words[1:], lambda one: 0) == 0
    assert ("n_ctx" in settings.objectives.targets) == (aim == "context")


class Terminal:
    """`sweeper` in a pseudo-terminal."""

    def __init__(self, home: Path, *words: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "HOME": str(home), "TERM": "dumb", "COLUMNS": "100"}
        environment = {k: v for k, v in environment.items() if not k.startswith(("HF_", "XDG_", "LLAMA_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from sweeper.cli import entry; entry()", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=home,
            env=environment,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.seen = ""

    def until(self, text: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0], self.seen
            self.seen += os.read(self.master, 4096).decode()

    def type(self, text: str) -> None:
        self.seen = ""
        os.write(self.master, text.encode())

    def end(self, key: str = "") -> int:
        """Read to the end. ``key`` is typed again while nothing comes: Python loses a signal just before it waits."""
        try:
            while True:
                if key and not select.select([self.master], [], [], 5.0)[0]:
                    os.write(self.master, key.encode())
                elif piece := os.read(self.master, 4096):
                    self.seen += piece.decode()
                else:
                    break
        except OSError:  # the terminal's other end is closed
            pass
        os.close(self.master)
        return self.process.wait(60)


def _own_terminal() -> None:
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts its background jobs without it
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches the process


def answer_all(terminal: Terminal) -> None:
    for question, answer in (
        ("a GGUF file [1]: ", "\n"),
        ("Which server", "1\n"),
        ("What matters?", "speed\n"),
        ("How long", "45m\n"),
    ):
        terminal.until(question)
        terminal.type(answer)
    terminal.until("Press Enter")


def test_the_talk_shows_the_command_and_enter_runs_it(tmp_path: Path) -> None:
    model_at(tmp_path / "empty.gguf")
    terminal = Terminal(tmp_path)
    answer_all(terminal)
    assert "sweeper sweep model.path=empty.gguf search.pick=fastest minutes=45" in terminal.seen
    terminal.type("\n")
    assert terminal.end() == 2
    assert "empty.gguf" in terminal.seen
    assert "GGUF" in terminal.seen


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x04", 0)], ids=["ctrl-c", "end of input"])
def test_the_talk_ends_when_the_user_leaves(key: str, code: int, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.until("a GGUF file [1]: ")
    terminal.type(key)
    assert terminal.end(key) == code
    assert "Traceback" not in terminal.seen
    assert not (tmp_path / "mlruns").exists()


def test_wrong_answers_are_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    answers = iter(["99", "no.gguf", "1", "x", "2", "9", "context", "-4m", "short", ""])
    asked = start.ask(said.append, lambda _: next(answers))
    assert asked is not None
    assert asked[0][:3] == ["sweep", "search=quick", "experiment=longest_context"]
    assert sum("There is no file" in line for line in said) == 2


def test_a_pipe_gets_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: object) -> None:
        raise AssertionError("asked in a pipe")

    monkeypatch.setattr(start, "ask", never)
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: sweeper")


def test_help_does_not_load_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, sweeper.cli; sys.exit('sweeper.start' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert callable(cli._guided)
