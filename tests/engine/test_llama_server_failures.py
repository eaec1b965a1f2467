"""Whatever a llama-server does wrong is one clear line, and no server is left running."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import sweeper.engine.llama_server as module
from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.errors import (
    EngineCrashed,
    EngineMissingError,
    EngineRefused,
    EngineTimeout,
    ModelFileError,
    OutOfMemory,
    UsageError,
)
from sweeper.records import Configuration

GOOD = Configuration(n_ctx=512, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1)


@pytest.fixture
def engine(llama_server: str, smallest_model: Path) -> Iterator[LlamaServerEngine]:
    with LlamaServerEngine(llama_server, {None: smallest_model}, window_grace_seconds=1.0) as engine:
        yield engine


def works(engine: LlamaServerEngine) -> None:
    assert engine.load(GOOD).reloaded
    assert engine.decode(4, 0, 0.01, 1.0).tokens >= 4


def script(folder: Path, body: str) -> str:
    """A program of a few lines of shell."""
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def behind(llama_server: str, body: str) -> str:
    """The shell lines of a program that answers as the real server, and does ``body`` where it should serve."""
    return f'case "$1" in --help|--version|--list-devices) exec "{llama_server}" "$1";; esac\n{body}'


# -- the program


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    for binary in (str(tmp_path / "none"), "no-such-llama-server", [str(tmp_path / "none"), "run"]):
        with pytest.raises(
            EngineMissingError, match=r"engine\.binary: cannot start .*: install llama\.cpp"
        ) as e:
            LlamaServerEngine(binary, {}).record  # noqa: B018
        assert e.value.exit_code == 3
    with pytest.raises(EngineMissingError, match="is a folder"):
        LlamaServerEngine(str(tmp_path), {}).record  # noqa: B018
    for binary in ("", []):
        with pytest.raises(UsageError, match=r"engine\.binary: it is empty"):
            LlamaServerEngine(binary, {}).record  # noqa: B018


def test_a_program_that_cannot_run(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("hello")
    with pytest.raises(EngineMissingError, match=r"is not executable: `chmod \+x"):
        LlamaServerEngine(str(plain), {}).record  # noqa: B018
    plain.write_bytes(b"\x7fELF" + bytes(60))  # of no processor
    plain.chmod(0o755)
    with pytest.raises(EngineMissingError, match=r"cannot start .* for this machine"):
        LlamaServerEngine(str(plain), {}).record  # noqa: B018
    with pytest.raises(EngineMissingError, match="was built for another processor"):
        LlamaServerEngine(script(tmp_path, "kill -ILL $$"), {}).record  # noqa: B018


@pytest.mark.parametrize("body", ["exit 0", "echo usage: something else", "cat /dev/zero | head -c 1000"])
def test_a_program_that_is_no_llama_server(tmp_path: Path, body: str) -> None:
    with pytest.raises(EngineMissingError, match=r"is not a llama-server \(its --help names no --ctx-size\)"):
        LlamaServerEngine(script(tmp_path, body), {}).record  # noqa: B018


def test_a_program_that_dies_of_sigill_later_ends_the_sweep(
    llama_server: str, smallest_model: Path, tmp_path: Path
) -> None:
    binary = script(tmp_path, behind(llama_server, "kill -ILL $$"))
    with (
        LlamaServerEngine(binary, {None: smallest_model}) as engine,
        pytest.raises(EngineMissingError, match="another processor"),
    ):
        engine.load(GOOD)


# -- arguments and environment


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--no-such-thing", "1"], r"knows no --no-such-thing"),
        (["--port", "8080"], r"sweeper sets --port itself: leave it out"),
        (["--host=0.0.0.0"], r"sweeper sets --host itself"),
        (["-m", "x.gguf"], r"sweeper sets -m itself"),
        (["--api-key", "x"], r"sweeper sets --api-key itself"),
        (["--tools", "all"], r"sweeper sets --tools itself"),
        (["--agent"], r"sweeper sets --agent itself"),
        (["--models-dir", "x"], r"sweeper sets --models-dir itself"),
        (["-ngl", "3"], r"sweeper sets -ngl itself: set space\.n_gpu_layers"),
        (["-nkvo"], r"sweeper sets -nkvo itself: set space\.offload_kqv"),
        (["--jinja", "-c", "4096"], r"sweeper sets -c itself: set space\.n_ctx"),
    ],
)
def test_arguments_that_the_server_lacks_or_sweeper_sets(
    llama_server: str, arguments: list[str], says: str
) -> None:
    with pytest.raises(UsageError, match=rf"^engine\.arguments: .*{says}") as failure:
        LlamaServerEngine(llama_server, {}, arguments=arguments).record  # noqa: B018
    assert failure.value.exit_code == 2


def test_arguments_reach_the_server(llama_server: str, smallest_model: Path) -> None:
    arguments = ["--seed", "7", "--no-context-shift"]
    with LlamaServerEngine(llama_server, {None: smallest_model}, arguments=arguments) as engine:
        engine.load(GOOD)
        assert engine.server_pid is not None
        assert psutil.Process(engine.server_pid).cmdline()[-3:] == arguments
        assert "--seed 7" in engine.record.build


def test_a_wrong_value_of_an_argument(llama_server: str, smallest_model: Path) -> None:
    with (
        LlamaServerEngine(llama_server, {None: smallest_model}, arguments=["--numa", "sideways"]) as engine,
        pytest.raises(UsageError, match=r'engine\.arguments: .*error while handling argument "--numa"'),
    ):
        engine.load(GOOD)


def test_variables_that_would_change_the_server_are_removed(
    engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_N_PREDICT", "2")
    monkeypatch.setenv("LLAMA_API_KEY", "secret")  # it would refuse every request of ours
    monkeypatch.setenv("LLAMA_ARG_NOT_KNOWN_YET", "1")
    assert engine.ignored_variables == ("LLAMA_API_KEY", "LLAMA_ARG_NOT_KNOWN_YET", "LLAMA_ARG_N_PREDICT")
    engine.load(GOOD)
    assert engine.decode(64, 0, 0.0, 1.0).tokens > 2
    assert engine.server_pid is not None
    environment = psutil.Process(engine.server_pid).environ()
    assert not any(name.startswith(("LLAMA_ARG", "LLAMA_API")) for name in environment)


# -- the load


def test_a_taken_port_is_changed(engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1]] * 2 + [module.free_port()]
        monkeypatch.setattr(module, "free_port", lambda: ports.pop(0))
        works(engine)
        assert ports == []
        engine.unload()
        monkeypatch.setattr(module, "free_port", lambda: taken.getsockname()[1])
        with pytest.raises(EngineRefused, match="could not bind a port, 3 times"):
            engine.load(GOOD)
    monkeypatch.undo()
    works(engine)


def test_another_server_on_the_port_is_not_ours(
    llama_server: str, engine: LlamaServerEngine, smallest_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LlamaServerEngine(llama_server, {None: smallest_model}) as other:
        other.load(GOOD)
        assert other._running is not None
        port = int(other._running.url.rpartition(":")[2])
        ports = [port, module.free_port()]
        monkeypatch.setattr(module, "free_port", lambda: ports.pop(0))
        works(engine)
        assert engine._running is not None
        assert engine._running.url != other._running.url
        assert other.decode(4, 0, 0.01, 1.0).tokens > 0


def test_a_server_that_never_answers_is_ended(
    llama_server: str, smallest_model: Path, tmp_path: Path
) -> None:
    binary = script(tmp_path, behind(llama_server, "sleep 6161 & wait"))
    with LlamaServerEngine(binary, {None: smallest_model}, load_timeout_seconds=0.5) as engine:
        with pytest.raises(EngineTimeout, match=r"did not answer «load» within 0\.5 s"):
            engine.load(GOOD)
        assert engine.server_pid is None
    assert not running_with(str(tmp_path))
    assert not running_with("sleep 6161")


def test_a_load_that_is_refused_says_why(engine: LlamaServerEngine) -> None:
    with pytest.raises(EngineRefused, match="quantized V cache requires flash_attn"):
        engine.load(GOOD.with_(type_v="q8_0", flash_attn=False))
    works(engine)


def test_a_load_that_dies_is_a_crash(engine: LlamaServerEngine) -> None:
    def dies() -> None:  # while it loads, or at the first token
        engine.load(GOOD.with_(n_threads=100_000))
        engine.decode(4, 0, 0.1, 5.0)

    with pytest.raises(EngineCrashed) as failure:
        dies()
    assert failure.value.signal_name in ("SIGABRT", "SIGSEGV")
    assert failure.value.log_tail
    works(engine)


def test_a_context_beyond_memory_is_out_of_memory(engine: LlamaServerEngine) -> None:
    bytes_a_token = 2 * 128 * (4 + 2)
    tokens = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total) // bytes_a_token
    with pytest.raises(OutOfMemory, match="failed to allocate"):
        engine.load(GOOD.with_(n_ctx=min(tokens // 256 * 256, 2**31 - 256), type_k="f32"))
    works(engine)


@pytest.mark.parametrize("kind", ["architecture", "weights"])
def test_a_model_that_no_configuration_can_run_ends_the_sweep(
    llama_server: str, smallest_model: Path, tmp_path: Path, kind: str
) -> None:
    data = smallest_model.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(data.replace(b"llama", b"qwenx") if kind == "architecture" else data[:-100_000])
    with (
        LlamaServerEngine(llama_server, {None: other}) as engine,
        pytest.raises(ModelFileError, match=r"other\.gguf"),
    ):
        engine.load(GOOD)


# -- the windows


def test_a_hang_is_ended(engine: LlamaServerEngine) -> None:
    engine.load(GOOD)
    pid = engine.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineTimeout, match="did not answer within 2 s"):
        engine.decode(4, 0, 0.1, 0.5)
    assert not psutil.pid_exists(pid)
    works(engine)


def test_a_kill_from_outside_is_a_crash_and_not_out_of_memory(engine: LlamaServerEngine) -> None:
    engine.load(GOOD)
    pid = engine.server_pid
    assert pid is not None
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(EngineCrashed, match="SIGKILL"):
        engine.decode(16, 0, 20.0, 30.0)
    works(engine)


def test_a_kill_by_the_kernel_for_want_of_memory(
    engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the kernel's count tells this kill from any other, so the test raises the count."""
    engine.load(GOOD)
    assert engine.server_pid is not None
    monkeypatch.setattr("sweeper.processes.oom_kills", lambda: 10**9)
    os.kill(engine.server_pid, signal.SIGKILL)
    with pytest.raises(OutOfMemory, match="the kernel ended llama-server for want of memory"):
        engine.decode(16, 0, 0.1, 1.0)


def test_a_window_that_is_interrupted_ends_the_server(
    engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(GOOD)
    pid = engine.server_pid
    assert pid is not None

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "post", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.decode(16, 0, 0.1, 1.0)
    assert not psutil.pid_exists(pid)


# -- kill -9 of sweeper itself

PROGRAM = """
import json, sys
from pathlib import Path
from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.records import Configuration
with LlamaServerEngine(json.loads(sys.argv[1]), {None: Path(sys.argv[2])}) as engine:
    engine.record
    print("ready", flush=True)
    for turn in range(1000):
        engine.load(Configuration(n_ctx=512, n_batch=64, n_ubatch=32 + turn % 2, n_threads=1, n_threads_batch=1))
        engine.decode(16, 64, 0.05, 1.0)
"""


def running_with(words: str) -> list[psutil.Process]:
    """The processes that have these words on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and words in " ".join(
            process.info["cmdline"] or ()
        ):
            found.append(process)
    return found


@pytest.mark.parametrize("wrapped", [False, True], ids=["direct", "behind a wrapper"])
def test_no_server_outlives_a_killed_sweeper(
    llama_server: str, smallest_model: Path, tmp_path: Path, wrapped: bool
) -> None:
    """Killed at random moments: before, during and after a load, and inside a window."""
    model = tmp_path / "killed.gguf"
    model.write_bytes(smallest_model.read_bytes())
    shell = ["/bin/sh", "-c", f"'{llama_server}' \"$@\"; exit $?", "wrapper"]
    binary = json.dumps(shell if wrapped else llama_server)
    moments = random.Random(1)
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, binary, str(model)], stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0.0, 0.6))
            parent.kill()
        deadline = time.monotonic() + 15
        while left := running_with(str(model)):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


STARTS = """
import sys, time
from pathlib import Path
from sweeper.servers import ServerProcess
server = ServerProcess(sys.argv[1:2], Path(sys.argv[2]), {})
time.sleep(600)
"""


def test_a_server_that_hangs_at_the_first_signal_ends_at_the_second(tmp_path: Path) -> None:
    """As llama-server does behind a wrapper, if sweeper is killed while the server starts."""
    signals, inner = tmp_path / "signals", tmp_path / "inner"
    inner.write_text(
        f'trap \'echo TERM >> "{signals}"; [ $(wc -l < "{signals}") -lt 2 ] || exit 0\' TERM\n'
        f"echo ready > '{tmp_path}/ready'\nwhile :; do sleep 0.1; done\n"
    )
    program = script(tmp_path, f"/bin/sh '{inner}'\nexit $?")
    with subprocess.Popen([sys.executable, "-c", STARTS, program, str(tmp_path / "log")]) as parent:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.kill()
    deadline = time.monotonic() + 60
    while left := running_with(str(inner)):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert signals.read_text() == "TERM\n" * 2


DIES_AT_ONCE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from sweeper import servers

class Started(subprocess.Popen):
    def __init__(self, argv, **options):
        super().__init__(argv, **options)
        if argv[0] == sys.argv[1]:
            while not Path(sys.argv[3]).exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

servers.subprocess.Popen = Started
servers.ServerProcess(sys.argv[1:2], Path(sys.argv[2]), {})
"""


def test_no_server_outlives_a_sweeper_that_is_killed_while_it_starts_the_server(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    program = script(tmp_path, f"(echo > '{ready}'; exec sleep 7171)\nexit $?")
    words = [program, str(tmp_path / "log"), str(ready)]
    done = subprocess.run([sys.executable, "-c", DIES_AT_ONCE, *words], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while left := running_with("sleep 7171"):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
