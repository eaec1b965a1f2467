"""A context is filled ahead of its windows: timed once, with its progress, and not again by the windows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweeper.engine.llama_server as server_module
import sweeper.engine.worker as worker_module
from sweeper.client.llama_log import prompt_share
from sweeper.engine.base import FillsContexts
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.engine.worker import Worker
from sweeper.errors import EngineRefused, TimeOver
from sweeper.lab.simulator import MACHINES, QUIET, SimulatedEngine, default_configuration
from sweeper.lab.virtual_time import VirtualClock
from sweeper.parameters import CONTEXT_KEYS, MODEL_KEYS
from sweeper.records import Configuration

GOOD = Configuration(n_ctx=1024, n_batch=256, n_ubatch=64, n_threads=1, n_threads_batch=1)
DEPTH = 640


def ignore(_: int) -> None:
    """Nobody listens."""


def give_up(_: int) -> None:
    raise TimeOver("the time is over")


def test_a_worker_tells_how_far_it_is_between_batches(
    smallest_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "TOLD_EVERY_SECONDS", 0.0)
    worker, told = Worker(), []
    wanted = GOOD.to_dict()
    worker.load(
        str(smallest_model),
        {k: wanted[k] for k in MODEL_KEYS if k != "quant"},
        {k: wanted[k] for k in CONTEXT_KEYS},
    )
    assert worker.fill(DEPTH, told.append)["seconds"] > 0
    assert told == list(range(64, DEPTH + 1, 64))
    assert worker.api.llama_memory_seq_pos_max(worker.memory_handle, 0) == DEPTH - 1
    told.clear()
    assert worker.fill(DEPTH, told.append) == {"seconds": None}  # it is full
    assert told == []
    assert worker.fill(DEPTH + 128, told.append) == {"seconds": None}  # a part is not the time of the whole
    assert told == [DEPTH + 64, DEPTH + 128]
    assert worker.decode(4, DEPTH, 0.0, 1.0)["tokens"] == 4


def test_a_restored_context_has_no_time_of_filling(smallest_model: Path, tmp_path: Path) -> None:
    with LlamaCppEngine({None: smallest_model}, keep_in=tmp_path, keep_from_seconds=0.0) as engine:
        engine.load(GOOD)
        fill = engine.fill(DEPTH, ignore)
        assert fill is not None
        assert (fill.tokens, fill.seconds > 0) == (DEPTH, True)
        assert engine.restores(GOOD.with_(n_ubatch=32), DEPTH)
        assert not engine.restores(GOOD, DEPTH + 1)
        assert not engine.restores(GOOD.with_(type_k="q8_0"), DEPTH)
        engine.load(GOOD.with_(n_ubatch=32))
        assert engine.fill(DEPTH, ignore) is None
        assert engine.decode(4, DEPTH, 0.0, 1.0).tokens == 4


def test_nothing_is_restored_that_was_not_kept(smallest_model: Path, tmp_path: Path) -> None:
    with (
        LlamaCppEngine({None: smallest_model}, keep_in=tmp_path, keep_from_seconds=600.0) as soon,
        LlamaCppEngine({None: smallest_model}) as nowhere,
    ):
        for engine in (soon, nowhere):
            engine.load(GOOD)
            assert engine.fill(64, ignore) is not None
            assert not engine.restores(GOOD, 64)


def test_a_fill_that_is_given_up_ends_its_worker_and_the_next_load_starts_another(
    smallest_model: Path,
) -> None:
    with LlamaCppEngine({None: smallest_model}) as engine:
        engine.load(GOOD.with_(n_ctx=65536))  # long enough to tell of its progress
        with pytest.raises(TimeOver):
            engine.fill(65000, give_up)
        assert engine.worker_pid is None
        engine.load(GOOD)
        assert engine.fill(DEPTH, ignore) is not None


@pytest.fixture
def served(llama_server: str, smallest_model: Path) -> Iterator[LlamaServerEngine]:
    with LlamaServerEngine(llama_server, {None: smallest_model}) as engine:
        engine.load(GOOD)
        yield engine


def test_a_server_fills_once_by_its_own_clock(served: LlamaServerEngine) -> None:
    fill = served.fill(DEPTH, ignore)
    assert fill is not None
    assert (fill.tokens, fill.seconds > 0) == (DEPTH, True)
    assert served.fill(DEPTH, ignore) is None
    assert served.decode(4, DEPTH, 0.0, 1.0).tokens >= 1


def test_the_log_of_a_server_tells_how_far_it_is(
    served: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "TOLD_EVERY_SECONDS", 0.001)
    told: list[int] = []
    heard = threading.Event()
    fill = served._go_to

    def tell(done: int) -> None:
        if done:  # nothing is known before the first line
            told.append(done)
            heard.set()

    def slow(running, tokens):
        """As a slow server logs it, and no answer before it was heard."""
        with running.log.open("a") as log:
            log.write(
                "slot print_timing: id  0 | task 1 | prompt processing, n_tokens =    160, progress = 0.25, t\n"
            )
        assert heard.wait(60)
        return fill(running, tokens)

    monkeypatch.setattr(served, "_go_to", slow)
    assert served.fill(DEPTH, tell) is not None
    assert told[0] == 160
    assert not any(thread.name == "sweeper-fill" for thread in threading.enumerate())


def test_a_fill_that_is_given_up_ends_its_server_and_the_next_load_starts_another(
    served: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "TOLD_EVERY_SECONDS", 0.001)
    began, answered = served.server_pid, threading.Event()
    ask = served._ask

    def slow(running, tokens, *more, **others):
        """As a server that needs longer than anybody waits: it answers only once it is dead."""
        assert running.process.process.wait(60) is not None
        answered.set()
        return ask(running, tokens, *more, **others)

    monkeypatch.setattr(served, "_ask", slow)
    with pytest.raises(TimeOver):
        served.fill(DEPTH, give_up)
    assert answered.is_set()
    assert not any(thread.name == "sweeper-fill" for thread in threading.enumerate())
    monkeypatch.undo()
    served.load(GOOD)
    assert served.server_pid != began
    assert served.fill(64, ignore) is not None


def test_an_old_log_is_not_taken_for_progress(
    served: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "TOLD_EVERY_SECONDS", 0.001)
    assert served._running is not None
    with served._running.log.open("a") as log:
        log.write("prompt processing, n_tokens = 9, progress = 0.99, t = 1 s\n")
    told: list[int] = []
    served.fill(64, told.append)
    assert round(0.99 * 64) not in told


@pytest.mark.parametrize(
    ("log", "share"),
    [
        (
            "slot x: id 0 | prompt processing, n_tokens =   1536, progress = 0.10, t =   3.42 s / 448.61 t",
            0.10,
        ),
        (
            "slot update_slots: prompt processing progress, n_past = 512, n_tokens = 2048, progress = 0.25",
            0.25,
        ),
        (
            "prompt processing, n_tokens = 1, progress = 0.1, t\nprompt processing, n_tokens = 2, progress = 1.00, t",
            1.0,
        ),
        ("prompt eval time =   31213.84 ms / 72795 tokens", None),
        ("", None),
    ],
)
def test_progress_is_read_from_logs_of_old_and_new_builds(log: str, share: float | None) -> None:
    assert prompt_share(log) == share


def test_a_simulated_machine_takes_the_time_of_its_prompts() -> None:
    clock, told = VirtualClock(), []
    engine = SimulatedEngine(MACHINES["minipc"], clock, QUIET)
    assert isinstance(engine, FillsContexts)
    with pytest.raises(EngineRefused):
        engine.fill(DEPTH, told.append)
    engine.load(default_configuration(engine.machine))
    began = clock()
    fill = engine.fill(DEPTH, told.append)
    assert fill is not None
    assert fill.seconds == pytest.approx(clock() - began)
    assert told[-1] == DEPTH
    assert told == sorted(set(told))
    assert len(told) == pytest.approx(fill.seconds, abs=1)  # about every second
    assert engine.fill(DEPTH, told.append) is None
    assert engine.restores(default_configuration(engine.machine), DEPTH)


def test_nothing_is_filled_without_a_load(smallest_model: Path) -> None:
    with LlamaCppEngine({None: smallest_model}) as engine, pytest.raises(EngineRefused):
        engine.fill(DEPTH, ignore)
