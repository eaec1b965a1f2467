"""Whatever ends the worker is a failed trial with its reason; the worker comes back."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.engine.worker import _in_force
from sweeper.errors import EngineCrashed, EngineRefused, EngineTimeout, OutOfMemory
from sweeper.records import Caveat, Configuration

GOOD = Configuration(n_ctx=512, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1)


@pytest.fixture
def engine(smallest_model: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine({None: smallest_model}, window_grace_seconds=1.0) as engine:
        yield engine


def _works(engine: LlamaCppEngine) -> None:
    assert engine.load(GOOD).reloaded
    assert engine.decode(4, 0, 0.01, 1.0).tokens >= 4


def test_what_is_in_force_is_read_back(engine: LlamaCppEngine) -> None:
    report = engine.load(GOOD.with_(n_ctx=300, n_batch=4096, n_ubatch=2048, n_gpu_layers=3))
    assert report.in_force["n_gpu_layers"] == 0  # whatever is asked of a build without GPU
    assert report.in_force["n_ctx"] == 512  # padded to a multiple of 256
    assert report.in_force["n_batch"] == report.in_force["n_ubatch"] == 300  # clamped to the context as asked
    assert report.memory_mib is not None
    assert report.memory_mib > 1
    assert report.vram_mib is None  # there is no device, and 0 would be a figure


def test_a_context_beyond_training_has_a_caveat(engine: LlamaCppEngine) -> None:
    assert engine.load(GOOD.with_(n_ctx=2048)).caveats == ()
    assert engine.load(GOOD.with_(n_ctx=2304)).caveats == (Caveat.BEYOND_TRAINING,)


def _lock_nothing() -> None:
    """Take the right to lock memory from a new process, even from one of root."""
    drop, ipc_lock = 24, 14  # PR_CAPBSET_DROP, CAP_IPC_LOCK
    ctypes.CDLL(None).prctl(drop, ipc_lock, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65_536, 65_536))


def test_a_lock_that_the_system_refused_is_not_in_force(smallest_model: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from sweeper.engine.llama_cpp import LlamaCppEngine\n"
        "from sweeper.records import Configuration\n"
        "asked = Configuration(n_ctx=512, use_mlock=True)\n"
        "with LlamaCppEngine({None: Path(sys.argv[1])}) as engine:\n"
        "    for n_ctx in (512, 1024):\n"
        "        report = engine.load(asked.with_(n_ctx=n_ctx))\n"
        "        print(report.in_force['use_mlock'], *(caveat.name for caveat in report.caveats))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(smallest_model)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        preexec_fn=_lock_nothing,
    )
    assert done.stdout.splitlines() == ["False NOT_LOCKED"] * 2


def test_what_llama_cpp_loaded_but_could_not_lock() -> None:
    log = ["load_tensors: offloaded 2/3 layers to GPU"]
    assert _in_force(log, {"use_mlock": True}) == {"n_gpu_layers": 2, "use_mlock": True}
    log.append("warning: failed to mlock 74993664-byte buffer (after previously locking 0 bytes): x")
    assert _in_force(log, {"use_mlock": True}) == {"n_gpu_layers": 2, "use_mlock": False}


def test_a_load_that_fails_says_why(smallest_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "new.gguf"
    other.write_bytes(smallest_model.read_bytes().replace(b"llama", b"qwenx"))
    with (
        LlamaCppEngine({None: other}) as engine,
        pytest.raises(EngineRefused, match="unknown model architecture: 'qwenx'"),
    ):
        engine.load(GOOD)


def test_an_unloaded_engine_holds_nothing(engine: LlamaCppEngine) -> None:
    engine.load(GOOD.with_(n_ctx=65_536))
    host_mib, device_mib = engine.held_mib()
    assert host_mib > 32  # at least the KV cache
    assert device_mib == 0
    engine.unload()
    assert engine.held_mib() == (0, 0)
    _works(engine)


def test_an_abort_is_a_crash_with_its_signal_and_last_words(engine: LlamaCppEngine) -> None:
    engine.load(GOOD.with_(n_threads=100_000))
    with pytest.raises(EngineCrashed) as failure:
        engine.decode(4, 0, 0.1, 5.0)
    assert failure.value.signal_name in ("SIGABRT", "SIGSEGV")
    assert failure.value.log_tail
    _works(engine)


def test_a_clean_no_carries_the_engines_own_words(engine: LlamaCppEngine) -> None:
    with pytest.raises(EngineRefused, match="flash_attn"):
        engine.load(GOOD.with_(type_v="q8_0", flash_attn=False))
    _works(engine)


def test_a_context_beyond_memory_is_out_of_memory(engine: LlamaCppEngine) -> None:
    # Twice what the machine has. llama.cpp's bookkeeping of far more tokens fills the memory itself.
    bytes_a_token = 2 * 128 * (4 + 2)
    tokens = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total) // bytes_a_token
    with pytest.raises(OutOfMemory, match="failed to allocate"):
        engine.load(GOOD.with_(n_ctx=min(tokens // 256 * 256, 2**31 - 256), type_k="f32"))
    _works(engine)


def test_a_kill_from_outside_is_a_crash_and_not_out_of_memory(engine: LlamaCppEngine) -> None:
    engine.load(GOOD)
    pid = engine.worker_pid
    assert pid is not None
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(EngineCrashed, match="SIGKILL"):
        engine.decode(16, 0, 20.0, 30.0)
    _works(engine)


def test_a_hang_is_ended(engine: LlamaCppEngine) -> None:
    engine.load(GOOD)
    pid = engine.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineTimeout, match="did not answer"):
        engine.decode(4, 0, 0.1, 0.5)
    assert not psutil.pid_exists(pid)
    _works(engine)


def test_the_worker_dies_with_its_parent(smallest_model: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time; from sweeper.engine.llama_cpp import LlamaCppEngine\n"
        "engine = LlamaCppEngine({}); engine.record; print(engine.worker_pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


def test_depth_is_filled_and_kept(engine: LlamaCppEngine) -> None:
    engine.load(GOOD)
    assert engine.prefill(32, 128, 0.02, 1.0).tokens % 32 == 0
    assert engine.decode(8, 256, 0.02, 1.0).tokens % 8 == 0
    assert engine.decode(8, 0, 0.02, 1.0).tokens % 8 == 0


def test_more_than_the_context_holds_is_refused(engine: LlamaCppEngine) -> None:
    engine.load(GOOD)
    with pytest.raises(EngineRefused, match="llama_decode"):
        engine.prefill(1024, 0, 0.02, 1.0)
    _works(engine)
