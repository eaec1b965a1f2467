import os
import signal
from pathlib import Path

import psutil
import pytest

from sweeper import processes
from sweeper.errors import EngineCrashed, EngineRefused, EngineTimeout, OutOfMemory
from sweeper.processes import WorkerProcess


@pytest.fixture
def worker():
    with WorkerProcess("misbehaving_worker", {"PYTHONPATH": str(Path(__file__).parent)}) as running:
        yield running


def test_what_the_engine_prints_is_no_answer(worker):
    assert worker.ask("echo", 20, value="é \n x")["value"] == "é \n x"
    assert worker.ask("echo", 20, value=2)["value"] == 2


def test_an_answer_of_many_megabytes_arrives_whole(worker):
    assert len(worker.ask("large", 20, count=5_000_000)["value"]) == 5_000_000


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGBUS"])
def test_death_by_signal_is_a_clear_error_and_not_the_end(worker, name):
    first = worker.ask("echo", 20, value=1)["pid"]
    with pytest.raises(
        EngineCrashed, match=rf"died of {name} during «die»: src/a\.cpp:7: GGML_ASSERT"
    ) as caught:
        worker.ask("die", 20, number=int(getattr(signal, name)))
    assert caught.value.signal_name == name
    assert "GGML_ASSERT" in caught.value.log_tail[-1]
    assert worker.ask("echo", 20, value=1)["pid"] != first


@pytest.mark.parametrize(
    ("words", "shown"), [("a\nb\x1b[31m", "a\ufffdb\ufffd[31m"), ("x" * 70_000, "x" * 400 + "…")]
)
def test_a_refusal_is_one_plain_line_whatever_the_engine_said(worker, words, shown):
    with pytest.raises(EngineRefused) as caught:
        worker.ask("refuse", 20, words=words)
    assert str(caught.value) == shown


def test_a_kill_from_outside_is_a_crash_while_the_kernel_killed_nothing_for_memory(worker):
    with pytest.raises(EngineCrashed, match="SIGKILL"):
        worker.ask("die", 20, number=9)


def test_a_kill_for_want_of_memory_is_told_from_any_other(worker, monkeypatch):
    kills = iter((4, 5))  # of the kernel's, before the worker starts and after it died
    monkeypatch.setattr(processes, "oom_kills", lambda: next(kills))
    with pytest.raises(OutOfMemory, match=r"the kernel ended llama.cpp for want of memory during «die»"):
        worker.ask("die", 20, number=9)


def test_an_assertion_after_a_refused_allocation_is_want_of_memory():
    tail = (
        "ggml_aligned_malloc: insufficient memory (attempted to allocate  64.00 MB)",
        "ggml.c:1643: GGML_ASSERT(ctx->mem_buffer != NULL) failed",
    )
    assert isinstance(processes.death_of("llama-server", -6, "load", tail, 0), OutOfMemory)
    assert isinstance(processes.death_of("llama-server", -6, "load", tail[1:], 0), EngineCrashed)


def test_an_exit_and_a_mistake_of_ours_say_what_was_printed(worker):
    with pytest.raises(EngineCrashed, match="exit code 3 during «leave»: RuntimeError: it is broken"):
        worker.ask("leave", 20, code=3)
    with pytest.raises(EngineCrashed, match="ValueError: a mistake of ours"):
        worker.ask("fail", 20)


def test_a_hang_is_ended(worker):
    pid = worker.ask("echo", 20, value=1)["pid"]
    with pytest.raises(EngineTimeout, match="did not answer «hang»"):
        worker.ask("hang", 0.2)
    assert not psutil.pid_exists(pid)
    assert worker.ask("echo", 20, value=3)["value"] == 3


def test_a_refusal_leaves_the_worker_alive(worker):
    pid = worker.ask("echo", 20, value=1)["pid"]
    with pytest.raises(EngineRefused, match=r"^no$"):
        worker.ask("refuse", 20)
    assert worker.ask("echo", 20, value=1)["pid"] == pid


def test_a_worker_killed_between_requests_is_replaced(worker):
    os.kill(worker.ask("echo", 20, value=1)["pid"], signal.SIGKILL)
    psutil.Process(worker.pid).wait(10)
    assert worker.ask("echo", 20, value=4)["value"] == 4


def test_close_ends_it_and_may_be_called_twice(worker):
    pid = worker.ask("echo", 20, value=1)["pid"]
    worker.close()
    worker.close()
    assert not psutil.pid_exists(pid)


def test_a_module_that_is_not_there_says_so():
    with WorkerProcess("no_such_worker") as missing, pytest.raises(EngineCrashed, match="No module named"):
        missing.ask("echo", 20)


def test_a_long_task_tells_how_much_is_done(worker):
    told = []
    assert worker.ask("count", 20, told.append, to=3, pause_seconds=0.0) == {"value": 3}
    assert told == [1, 2, 3]
    assert worker.ask("echo", 20, value=4)["value"] == 4


def test_a_task_that_goes_on_telling_is_no_hang(worker):
    told = []
    worker.ask("echo", 20, value=1)  # it has started
    assert worker.ask("count", 2.0, told.append, to=8, pause_seconds=0.3)["value"] == 8  # 2.4 s in all
    assert len(told) == 8
    with pytest.raises(EngineTimeout, match=r"did not answer «hang» within 0 s"):
        worker.ask("hang", 0.2)
