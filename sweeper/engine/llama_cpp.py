"""The parent side of the llama.cpp engine: starts the worker, speaks JSON lines with it, survives its death.

The worker runs in a session of its own, so that Ctrl-C in the terminal reaches the sweep and not the
inference, and dies with its parent. What it prints is kept in a temporary file as the engine's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from sweeper.engine.base import LoadReport, Run
from sweeper.errors import (
    EngineCrashed,
    EngineMissingError,
    EngineRefused,
    EngineTimeout,
    OutOfMemory,
    TrialFailed,
)
from sweeper.records import CONTEXT_KEYS, MODEL_KEYS, Configuration, EngineRecord

LOG_TAIL_LINES = 20
# A worker that only has to import the library and name its build: 0.3 s when quiet, so this is a hang.
START_TIMEOUT_SECONDS = 60.0
# How long past its own time limit a window may take: one prompt batch on a slow machine cannot be cut.
WINDOW_GRACE_SECONDS = 600.0
LOAD_TIMEOUT_SECONDS = 1800.0

# What llama.cpp and its backends print when memory is short (ggml-alloc.c, ggml-backend.cpp, ggml-cuda.cu,
# ggml-vulkan.cpp, llama-kv-cache.cpp, llama-context.cpp). The only place where their words are matched.
OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "failed to allocate",
    "unable to allocate",
    "cannot allocate memory",
    "outofdevicememory",
    "outofhostmemory",
    "std::bad_alloc",
)


class LlamaCppEngine:
    """llama.cpp through llama-cpp-python, in a worker process. Implements the `Engine` Protocol.

    Args:
        model_files: path of the GGUF file for each value that ``Configuration.quant`` takes.
        environment: variables set for the worker only, for example ``OMP_WAIT_POLICY``.
        window_grace_seconds: a window is a hang when it lasts this much longer than its limit.
    """

    def __init__(
        self,
        model_files: Mapping[str | None, Path],
        environment: Mapping[str, str] | None = None,
        window_grace_seconds: float = WINDOW_GRACE_SECONDS,
        load_timeout_seconds: float = LOAD_TIMEOUT_SECONDS,
    ) -> None:
        self._files: dict[str | None, Path] = dict(model_files)
        self._environment = dict(environment or {})
        self._window_grace_seconds = window_grace_seconds
        self._load_timeout_seconds = load_timeout_seconds
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None
        self._loaded: Configuration | None = None
        self._oom_kills = 0
        self._hello: dict[str, Any] | None = None
        self._held_mib = (0.0, 0.0)

    @property
    def record(self) -> EngineRecord:
        """Version and build as the worker says them. Raises EngineMissingError where it cannot start."""
        if self._hello is None:
            try:
                self._start()
            except TrialFailed as failure:
                raise EngineMissingError(_missing(failure)) from failure
        hello = self._hello
        assert hello is not None
        return EngineRecord(
            name="llama_cpp",
            version=f"llama-cpp-python {hello['version']}",
            build=hello["build"],
            gpu_offload=hello["gpu_offload"],
        )

    def use_files(self, model_files: Mapping[str, Path]) -> None:
        """Know further files of the model, by quantisation."""
        self._files.update(model_files)

    def path_of(self, configuration: Configuration) -> Path:
        """The file that this configuration runs."""
        return self._files[configuration.quant]

    def held_mib(self) -> tuple[float, float]:
        """Memory that ending the present worker would free, on the host and on each device, in MiB."""
        return self._held_mib

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return None if self._process is None else self._process.pid

    def load(self, configuration: Configuration) -> LoadReport:
        """Make ``configuration`` the one in force; see the Protocol."""
        wanted = configuration.to_dict()
        if self._process is None or self._process.poll() is not None:
            self._start()
        had = self._loaded
        reload = had is None or any(getattr(had, k) != wanted[k] for k in MODEL_KEYS)
        self._loaded = None  # whatever goes wrong below, nothing is known to be loaded
        if reload and had is not None:
            self._start()  # a fresh process: peak memory and device memory are then this model's
        reply = self._ask(
            "load",
            self._load_timeout_seconds,
            model_path=str(self.path_of(configuration)) if reload else None,
            model={k: wanted[k] for k in MODEL_KEYS if k != "quant"},
            context={k: wanted[k] for k in CONTEXT_KEYS},
        )
        self._loaded = configuration
        memory_mib, vram_mib = self.memory()
        self._held_mib = (memory_mib or 0.0, vram_mib or 0.0)
        in_force = {k: wanted[k] for k in MODEL_KEYS} | reply["in_force"]
        return LoadReport(in_force, float(reply["seconds"]), reload, memory_mib, vram_mib)

    def prefill(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """See the Protocol."""
        return self._window("prefill", tokens, depth, min_seconds, max_seconds)

    def decode(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """See the Protocol."""
        return self._window("decode", tokens, depth, min_seconds, max_seconds)

    def memory(self) -> tuple[float | None, float | None]:
        """See the Protocol."""
        reply = self._ask("memory", START_TIMEOUT_SECONDS)
        return reply["memory_mib"], reply["vram_mib"]

    def close(self) -> None:
        """End the worker. May be called twice."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the worker -------------------------------------------------------------------------------------

    def _window(self, what: str, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        if self._loaded is None:
            raise EngineRefused("nothing is loaded")
        reply = self._ask(
            what,
            max_seconds + self._window_grace_seconds,
            tokens=tokens,
            depth=depth,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
        )
        rounds = tuple(reply["round_seconds"])
        return Run(reply["tokens"], reply["seconds"], reply["started"], reply["ended"], len(rounds), rounds)

    def _start(self) -> None:
        self._end()
        self._log = tempfile.TemporaryFile(prefix="sweeper-engine-")  # noqa: SIM115 - closed by _end
        environment = os.environ | {"GGML_NO_BACKTRACE": "1", "PYTHONUNBUFFERED": "1"} | self._environment
        self._oom_kills = _oom_kills()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sweeper.engine.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env=environment,
            start_new_session=True,
        )
        self._hello = self._ask("hello", START_TIMEOUT_SECONDS)

    def _end(self) -> None:
        process, self._process, self._loaded = self._process, None, None
        self._held_mib = (0.0, 0.0)
        if process is not None:
            process.kill()  # it holds nothing that could be lost, and a window cannot be cut otherwise
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close_quietly(pipe)
        if self._log is not None:
            self._log.close()
            self._log = None

    def _ask(self, what: str, timeout_seconds: float, **arguments: Any) -> dict[str, Any]:
        process = self._process
        if process is None:
            raise EngineRefused("the engine is closed")
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"do": what, "with": arguments}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._death(what) from None
        line = self._reply_line(what, timeout_seconds)
        if not line.endswith("\n"):
            raise self._death(what)
        reply: dict[str, Any] = json.loads(line)
        if "refused" in reply:
            raise self._refusal(str(reply["refused"]))
        ok: dict[str, Any] = reply["ok"]
        return ok

    def _reply_line(self, what: str, timeout_seconds: float) -> str:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], timeout_seconds)
        if not ready:
            tail = self._log_tail()
            self._end()
            raise EngineTimeout(f"the engine did not answer «{what}» within {timeout_seconds:.0f} s", tail)
        return process.stdout.readline()

    def _log_tail(self) -> tuple[str, ...]:
        if self._log is None:
            return ()
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 65536, max(0, size - 65536)).decode("utf-8", "replace")
        return tuple(line for line in text.splitlines() if line.strip())[-LOG_TAIL_LINES:]

    def _refusal(self, message: str) -> TrialFailed:
        tail = self._log_tail()
        self._end()
        words = _reason_in(tail)
        text = f"{message}: {words}" if words else message
        if _speaks_of_memory(tail):
            return OutOfMemory(text, tail)
        return EngineRefused(text, tail)

    def _death(self, what: str) -> TrialFailed:
        """What the end of the worker was, from its signal and its last words."""
        process = self._process
        assert process is not None
        code = _wait(process)
        tail = self._log_tail()
        killed_for_memory = code == -signal.SIGKILL and _oom_kills() > self._oom_kills
        self._end()
        words = _reason_in(tail)
        if killed_for_memory:
            return OutOfMemory(f"the kernel ended the engine for want of memory during «{what}»", tail)
        name = signal.Signals(-code).name if code < 0 else None
        how = f"died of {name}" if name else f"ended with exit code {code}"
        text = f"the engine {how} during «{what}»" + (f": {words}" if words else "")
        if _speaks_of_memory(tail):
            return OutOfMemory(text, tail)
        return EngineCrashed(text, tail, name)


def _wait(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(timeout=10)  # it closed its pipe, so it is on its way out
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _close_quietly(pipe: IO[str]) -> None:
    with contextlib.suppress(BrokenPipeError):  # what is still buffered was for a worker that is gone
        pipe.close()


def _speaks_of_memory(lines: tuple[str, ...]) -> bool:
    text = "\n".join(lines).lower()
    return any(words in text for words in OUT_OF_MEMORY_WORDS)


def _reason_in(lines: tuple[str, ...]) -> str:
    """The line of the log that most likely says why: the last that speaks of an error."""
    for line in reversed(lines):
        low = line.lower()
        if any(word in low for word in ("error", "failed", "assert", "unable", "out of memory", "abort")):
            return line.strip()
    return lines[-1].strip() if lines else ""


def _oom_kills() -> int:
    """Processes that the kernel has ended for want of memory since boot; 0 where it does not say."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def _missing(failure: TrialFailed) -> str:
    why = failure.log_tail[-1] if failure.log_tail else str(failure)
    return f"llama-cpp-python cannot be loaded ({why}): install it with `pip install llama-cpp-python`"
