"""A real llama-server as an engine: the contract, depth, read-back, and what a client's request is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engine_contract import EngineContract

from sweeper.engine.base import ServesUsers
from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.errors import EngineRefused, TrialFailed
from sweeper.records import Caveat, Configuration

GOOD = Configuration(n_ctx=512, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1)


@pytest.fixture
def engine(llama_server: str, smallest_model: Path) -> Iterator[LlamaServerEngine]:
    with LlamaServerEngine(llama_server, {None: smallest_model}) as engine:
        yield engine


class TestLlamaServerEngine(EngineContract):
    keeps_model = False

    @pytest.fixture
    def engine(self, llama_server: str, smallest_model: Path) -> LlamaServerEngine:
        return LlamaServerEngine(llama_server, {None: smallest_model})

    @pytest.fixture
    def configuration(self) -> Configuration:
        return GOOD


def test_the_record_says_how_it_samples(engine: LlamaServerEngine) -> None:
    record = engine.record
    assert record.name == "llama_server"
    assert record.version.startswith("llama-server ")
    assert "temperature 0.80, top-k 40, top-p 0.95, min-p 0.05" in record.build
    assert not record.gpu_offload  # --list-devices names none


def test_what_is_in_force_is_read_back_from_the_log(engine: LlamaServerEngine) -> None:
    report = engine.load(
        GOOD.with_(n_ctx=300, n_batch=4096, n_ubatch=2048, n_gpu_layers=3, type_k="q8_0", use_mmap=False)
    )
    assert dict(report.in_force) == {
        "n_ctx": 512,  # padded to a multiple of 256
        "n_batch": 300,  # clamped to the context as asked
        "n_ubatch": 300,
        "n_threads": 1,
        "n_threads_batch": 1,
        "flash_attn": True,
        "type_k": "q8_0",
        "type_v": "f16",
        "n_gpu_layers": 0,  # whatever is asked of a machine without GPU
        "use_mmap": False,
        "use_mlock": False,
    }
    assert report.memory_mib is not None
    assert report.memory_mib > 1
    assert report.vram_mib is None  # there is no device, and 0 would be a figure


def test_the_servers_own_placement_changes_nothing_without_a_gpu(engine: LlamaServerEngine) -> None:
    own, asked = engine.load(GOOD.with_(fit=True)), engine.load(GOOD)
    assert own.in_force == asked.in_force


def test_a_context_beyond_training_has_a_caveat(engine: LlamaServerEngine) -> None:
    assert engine.load(GOOD.with_(n_ctx=2048)).caveats == ()
    assert engine.load(GOOD.with_(n_ctx=2304)).caveats == (Caveat.BEYOND_TRAINING,)


def test_depth_is_filled_once_and_proved(engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.load(GOOD)
    seen = requests_of(engine, monkeypatch)
    assert engine.prefill(32, 128, 0.02, 1.0).tokens % 32 == 0
    assert engine.decode(8, 128, 0.02, 1.0).tokens > 0
    fill, *rest = seen
    assert (fill["cached"], fill["prompt"]) == (0, 128)
    assert {r["cached"] for r in rest} == {128}
    assert {r["prompt"] for r in rest} <= {32, 1}
    seen.clear()
    assert engine.decode(8, 0, 0.02, 1.0).tokens > 0
    assert {r["cached"] for r in seen} == {0}
    seen.clear()
    assert engine.decode(8, 256, 0.02, 1.0).tokens > 0  # after depth 0, the slot is empty
    assert seen[0]["cached"] + seen[0]["prompt"] == 256
    assert {(r["cached"], r["prompt"]) for r in seen[1:]} == {(256, 1)}


def test_prompts_are_fresh_and_sampling_is_the_servers(
    engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(GOOD)
    seen = requests_of(engine, monkeypatch)
    for depth in (0, 0, 64, 64):
        engine.prefill(
            16, depth, 0.0, 1.0
        )  # one round each, so that only a window before could have cached it
    seen = [r for r in seen if r["prompt"] == 16]
    prompts = [tuple(r["body"]["prompt"][-16:]) for r in seen]
    assert len(set(prompts)) == 4
    assert [r["cached"] for r in seen] == [0, 0, 64, 64]
    assert all(r["body"]["n_predict"] == 1 for r in seen)
    assert not {"temperature", "top_k", "samplers"} & set(seen[0]["body"])


def test_a_model_that_forgets_its_context_is_refilled_between_rounds(
    engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server does whose model cannot go back: it processes the whole prompt again."""
    engine.load(GOOD)
    ask, seen = engine._ask, []
    state = {"tokens": 0}

    def recurrent(running, prompt, new_tokens, seconds, *, keep):
        if keep and len(prompt) <= state["tokens"]:
            ask(running, [1], 0, seconds, keep=False)  # empties the slot
        timings = ask(running, prompt, new_tokens, seconds, keep=keep)
        state["tokens"] = len(prompt) + new_tokens
        seen.append((timings.cached_tokens, timings.prompt_tokens))
        return timings

    monkeypatch.setattr(engine, "_ask", recurrent)
    run = engine.decode(8, 64, 1.0, 30.0)
    assert run.rounds > 1
    assert engine._running is not None
    assert engine._running.refills
    timed = [s for s in seen if s[1] == 1]
    assert len(timed) >= run.rounds
    assert {s[0] for s in timed} == {64}


def test_a_model_with_a_sliding_window_is_measured_at_depth(
    engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama-server goes back to a state of 4 tokens before the end of the last prompt, as it does with Gemma 3."""
    engine.load(GOOD)
    ask = engine._ask

    def from_a_checkpoint(running, prompt, new_tokens, seconds, *, keep):
        ask(running, [*prompt[:60], 1], 0, seconds, keep=True)  # the slot now has 60 of the tokens in common
        return ask(running, prompt, new_tokens, seconds, keep=keep)

    monkeypatch.setattr(engine, "_ask", from_a_checkpoint)
    assert engine.decode(8, 64, 0.0, 30.0).tokens == 8
    assert engine.prefill(16, 64, 0.0, 30.0).tokens == 20
    assert engine._running is not None
    assert not engine._running.refills


def test_a_server_that_keeps_no_context_is_refused_at_depth(
    engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(GOOD)
    ask = engine._ask
    monkeypatch.setattr(engine, "_ask", lambda *a, keep: ask(*a, keep=False))
    with pytest.raises(EngineRefused, match=r"processed 65 tokens where 1 were new.*workload\.depth=0"):
        engine.decode(8, 64, 0.02, 1.0)


def test_more_than_the_context_holds_is_refused(engine: LlamaServerEngine) -> None:
    engine.load(GOOD)
    with pytest.raises(EngineRefused, match="exceeds the available context size"):
        engine.prefill(1024, 0, 0.02, 1.0)
    assert engine.load(GOOD).reloaded
    assert engine.decode(4, 0, 0.01, 1.0).tokens > 0


def test_a_change_of_limits_keeps_the_server(engine: LlamaServerEngine) -> None:
    engine.load(GOOD)
    pid = engine.server_pid
    assert not engine.load(GOOD.with_(power_limit_watts=100)).reloaded
    assert engine.server_pid == pid


def test_an_unloaded_engine_holds_nothing(engine: LlamaServerEngine) -> None:
    engine.load(GOOD.with_(n_ctx=65_536))
    pid = engine.server_pid
    assert pid is not None
    host_mib, device_mib = engine.held_mib()
    assert host_mib > 16
    assert device_mib == 0
    engine.unload()
    assert engine.held_mib() == (0, 0)
    assert not psutil.pid_exists(pid)
    assert engine.load(GOOD).reloaded


def test_a_wrapper_that_starts_the_server_is_not_the_server(llama_server: str, smallest_model: Path) -> None:
    """As with Docker: the program that sweeper starts is not the one whose memory counts."""
    wrapper = ["/bin/sh", "-c", f"'{llama_server}' \"$@\"; exit $?", "wrapper"]
    with LlamaServerEngine(wrapper, {None: smallest_model}) as engine:
        report = engine.load(GOOD)
        assert report.memory_mib is not None
        assert report.memory_mib > 8  # a shell takes one or two
        children = psutil.Process(engine.server_pid).children(recursive=True)
        assert children
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def requests_of(engine: LlamaServerEngine, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The bodies and timings of the engine's requests from now on."""
    import sweeper.engine.llama_server as module

    seen: list[dict] = []
    post = module.post

    def recorded(url, body, seconds):
        answer = post(url, body, seconds)
        timings = answer["timings"]
        seen.append({"body": body, "cached": timings["cache_n"], "prompt": timings["prompt_n"]})
        return answer

    monkeypatch.setattr(module, "post", recorded)
    return seen


def test_several_users_are_served_and_one_afterwards(engine: LlamaServerEngine) -> None:
    assert isinstance(engine, ServesUsers)
    others = psutil.Process().children()  # servers of other tests
    engine.load(GOOD.with_(n_parallel=2))
    for depth in (0, 32):
        run = engine.serve(3, 24, 8, depth, 0.2, 60.0)
        assert run.served.users == 3
        assert run.tokens > 0
        assert len(run.served.first_token_seconds) >= 3
    assert engine.decode(8, 32, 0.05, 5.0).tokens > 0
    workers = [process for process in psutil.Process().children() if process not in others]
    assert workers
    engine.close()
    assert not any(process.is_running() and process.status() != "zombie" for process in workers)


def test_several_users_send_the_users_own_prompts(llama_server: str, smallest_model: Path) -> None:
    chat = [{"role": "user", "content": "why"}]
    with LlamaServerEngine(
        llama_server, {None: smallest_model}, prompts=("tell me", chat, "x " * 4000)
    ) as engine:
        engine.load(GOOD)
        assert engine.serve(2, 24, 8, 0, 0.2, 60.0).tokens > 0


def test_users_of_a_server_that_died_fail_the_trial_and_the_next_load_works(
    engine: LlamaServerEngine,
) -> None:
    engine.load(GOOD)
    assert engine.server_pid is not None
    psutil.Process(engine.server_pid).kill()
    with pytest.raises(TrialFailed, match="SIGKILL"):
        engine.serve(2, 24, 8, 0, 0.2, 60.0)
    engine.load(GOOD)
    assert engine.serve(2, 24, 8, 0, 0.2, 60.0).tokens > 0
