"""The parent side of a worker process that holds llama.cpp: its death is an exception here, never ours.

A worker is a fresh interpreter, never a fork: after OpenMP has run, a forked child hangs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, Self

from sweeper.errors import EngineCrashed, EngineRefused, EngineTimeout, OutOfMemory

_LOG_TAIL_LINES = 20
_LOG_TAIL_BYTES = 65_536
_MOST_LETTERS = 400  # of the engine's words in a message; the log keeps them all
_MOST_READ = 4_000  # of the engine's words; looking for paths in 70,000 letters would take seconds
_END_SECONDS = 5.0  # a worker that reads the end of its input has nothing left to do
_SOURCES = re.compile(r"\S*/llama\.cpp/")  # where the library was built, which assertions name
_REASON_WORDS = ("error", "failed", "assert", "abort", "unable", "out of memory", "no module named")
# What llama.cpp, its backends and Python print when memory is short (ggml.c, ggml-alloc.c, ggml-backend.cpp,
# ggml-cuda.cu, ggml-vulkan.cpp, llama-kv-cache.cpp). The only place where their words are matched.
_MEMORY_WORDS = (
    "out of memory",
    "failed to allocate",
    "unable to allocate",
    "insufficient memory",
    "cannot allocate memory",
    "outofdevicememory",
    "outofhostmemory",
    "bad_alloc",
    "memoryerror",
)


class WorkerProcess:
    """One worker, started at the first :meth:`ask` and again after it died.

    Args:
        module: the module that is run as the worker, for example ``sweeper.model.forecast_worker``.
        environment: variables set for the worker only.
        name: what the messages call the worker.
    """

    def __init__(
        self, module: str, environment: Mapping[str, str] | None = None, name: str = "llama.cpp"
    ) -> None:
        self._module = module
        self._name = name
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._unread = b""
        self._oom_kills = 0

    @property
    def pid(self) -> int | None:
        """The worker's process id; None while there is none."""
        return None if self._process is None else self._process.pid

    def ask(
        self,
        what: str,
        timeout_seconds: float,
        tell: Callable[[int], None] | None = None,
        /,
        **arguments: Any,
    ) -> dict[str, Any]:
        """The worker's answer to one request.

        ``tell`` gets how much is done, as often as the worker says so. Each time, ``timeout_seconds`` begin anew.

        Raises:
            EngineRefused: with the worker's reason and its last words; it lives on.
            EngineTimeout: where it did not answer in time; it is ended.
            EngineCrashed: where it died, with the signal and its last words.
            OutOfMemory: where it refused or died for want of memory.
        """
        process = self._running()
        assert process.stdin is not None
        request = {"do": what, "with": arguments} | ({"tells": True} if tell else {})
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer = json.loads(self._answer(process, what, timeout_seconds))
            while tell is not None and "done" in answer:
                tell(answer["done"])
                answer = json.loads(self._answer(process, what, timeout_seconds))
        except BrokenPipeError:
            raise self._death(process, what) from None
        except BaseException:
            self.kill()  # an answer that comes later must not be taken for that to the next request
            raise
        if "refused" in answer:
            tail = self._log_tail()
            raise (OutOfMemory if speaks_of_memory(tail) else EngineRefused)(_plain(answer["refused"]), tail)
        ok: dict[str, Any] = answer["ok"]
        return ok

    def kill(self) -> None:
        """End the worker at once; the next :meth:`ask` starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def close(self) -> None:
        """Let the worker end by itself, or end it. May be called twice."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.kill()
        self._log = tempfile.TemporaryFile(prefix="sweeper-worker-")  # noqa: SIM115 - closed by kill
        self._unread = b""
        self._oom_kills = oom_kills()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Without a backtrace: ggml would start a debugger and wait for it.
            env=os.environ | {"GGML_NO_BACKTRACE": "1", "PYTHONUNBUFFERED": "1"} | self._environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the sweep, which ends its workers
        )
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], what: str, timeout_seconds: float) -> bytes:
        """The next line of the worker's output. Raises BrokenPipeError if the output ends before it."""
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        deadline = time.monotonic() + timeout_seconds
        while b"\n" not in self._unread:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise EngineTimeout(
                    f"{self._name} did not answer «{what}» within {timeout_seconds:.0f} s", self._log_tail()
                )
            piece = os.read(descriptor, 65_536)
            if not piece:
                raise BrokenPipeError
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _death(self, process: subprocess.Popen[bytes], what: str) -> EngineCrashed | OutOfMemory:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        tail = self._log_tail()
        self.kill()
        return death_of(self._name, process.returncode, what, tail, self._oom_kills)

    def _log_tail(self) -> tuple[str, ...]:
        if self._log is None:
            return ()
        size = os.fstat(self._log.fileno()).st_size
        return last_of(os.pread(self._log.fileno(), _LOG_TAIL_BYTES, max(0, size - _LOG_TAIL_BYTES)))


def last_of(output: bytes) -> tuple[str, ...]:
    """The last lines of what a process printed, oldest first, without empty ones."""
    lines = output.decode("utf-8", "replace").splitlines()
    return tuple(line for line in lines if line.strip())[-_LOG_TAIL_LINES:]


def death_of(
    program: str, code: int, what: str, tail: tuple[str, ...], oom_kills_before: int
) -> EngineCrashed | OutOfMemory:
    """The failure that the death of a process is.

    Args:
        program: what the message calls it.
        code: its exit code; below 0 the number of its signal.
        what: what it was doing.
        tail: the last lines that it printed.
        oom_kills_before: `oom_kills` when it started.
    """
    if code == -signal.SIGKILL and oom_kills() > oom_kills_before:
        return OutOfMemory(f"the kernel ended {program} for want of memory during «{what}»", tail)
    name = signal.Signals(-code).name if code < 0 else None
    how = f"died of {name}" if name else f"ended with exit code {code}"
    text = f"{program} {how} during «{what}»: {reason_in(tail)}"
    return OutOfMemory(text, tail) if speaks_of_memory(tail) else EngineCrashed(text, tail, name)


def reason_in(tail: tuple[str, ...]) -> str:
    """The last line that gives a reason, else the last line."""
    reasons = (line for line in reversed(tail) if any(word in line.lower() for word in _REASON_WORDS))
    return _plain(next(reasons, tail[-1] if tail else "it said nothing"))


def _plain(words: str) -> str:
    """The engine's words as part of one line. They may hold any text of a model's header."""
    words = words.strip()[:_MOST_READ]
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in _SOURCES.sub("", words))
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"


def speaks_of_memory(lines: tuple[str, ...]) -> bool:
    """Whether a process printed that memory was short."""
    text = "\n".join(lines).lower()
    return any(words in text for words in _MEMORY_WORDS)


def oom_kills() -> int:
    """Processes that the kernel has ended for want of memory since boot; 0 where it does not say."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0
