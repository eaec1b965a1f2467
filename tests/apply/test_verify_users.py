"""Verify for a sweep with several users: the load, the figures beside the promise, and servers that cannot serve it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from apply_sweep import make_sweep

from sweeper import commands
from sweeper.apply.verify import check
from sweeper.apply.verify.check import Verification, speeds_of_engine, verify
from sweeper.apply.verify.client_speed import ClientSpeed
from sweeper.apply.verify.find import VerifyOptions
from sweeper.apply.verify.text import render_verification, verification_to_plain
from sweeper.cli import _parser
from sweeper.client.prompt_file import bundled_prompts, read_prompts
from sweeper.client.servers import LlamaServer, OllamaServer
from sweeper.engine import of_record
from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.errors import (
    EngineMissingError,
    EngineRefused,
    MissingError,
    UsageError,
    VerifyError,
)
from sweeper.http import get
from sweeper.records import Configuration, EngineRecord, Reading, SweepRecord, TrialRecord, Workload
from sweeper.report import heartbeat

USERS = 3
LOAD = Workload(
    prompt_tokens=24,
    generated_tokens=16,
    warmup_seconds=0.1,
    final_seconds=1.5,
    final_repeats=5,
    users=USERS,
)
C = Configuration(n_ctx=512, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1, n_parallel=2)
ALL, EACH, FIRST = (
    "tokens_per_second",
    "tokens_per_second_per_user",
    "time_to_first_token_p95_seconds",
)
PROMPTS = "prompt_tokens_per_second"


def exactly(value: float, share: float = 0.01) -> Reading:
    return Reading(value, value * (1 - share), value * (1 + share), 5)


# A promise that every server keeps: it may be as slow as it likes.
EASY = {ALL: exactly(0.3), EACH: exactly(0.1), PROMPTS: exactly(0.1), FIRST: exactly(1e6)}


def sweep_of(
    model: Path,
    promise: Mapping[str, Reading] = EASY,
    workload: Workload = LOAD,
    **config: Any,
) -> SweepRecord:
    sweep = make_sweep(model, C, workload=workload, config=config)
    engine = EngineRecord("llama_server", "llama-server 1", sampling="as llama-server samples")
    return replace(sweep, engine=engine, trials=(replace(sweep.trials[0], metrics=promise),))


def with_own_prompts(model: Path, file: Path, **config: Any) -> SweepRecord:
    file.write_text('{"prompt": "tell me a story"}\n{"messages": [{"role": "user", "content": "why"}]}\n')
    workload = replace(LOAD, prompts=read_prompts(file).record)
    sweep = sweep_of(model, workload=workload)
    return replace(sweep, config={"workload": {"prompts": str(file)}, **config})


# --- the load, by a stand-in that notes what it is asked


@dataclass
class StandIn:
    """A llama-server with two slots that notes the streamed requests, and how many of them are open at once."""

    model: Path
    n_ctx: int = 512
    streamed: list[dict[str, Any]] = field(default_factory=list)
    tokenised: list[dict[str, Any]] = field(default_factory=list)
    most: int = 0
    _open: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def load(self) -> list[dict[str, Any]]:
        """The requests of the users, without those of the warm-up and of the prompts of one user."""
        return [body for body in self.streamed if body["n_predict"] > 4 and len(body["prompt"]) > 1]

    def page(self, path: str, body: dict[str, Any]) -> Any:
        name, slots = "tiny-1-3", ["-c", str(2 * self.n_ctx), "-np", "2", "-kvu", "-m", str(self.model)]
        if path == "/models":
            return {"data": [{"id": name, "status": {"args": ["llama-server", *slots]}}]}
        if path.startswith("/props"):
            settings = {"n_ctx": 2 * self.n_ctx}
            return {"default_generation_settings": settings, "model_path": str(self.model)}
        if path == "/apply-template":
            self.tokenised.append(body)
            return {"prompt": f"<{body['messages'][0]['content']}>"}
        if path == "/tokenize":
            self.tokenised.append(body)
            return {"tokens": [500] * len(body["content"].split())}
        tokens = len(body["prompt"].split()) if isinstance(body["prompt"], str) else len(body["prompt"])
        time.sleep(0.001 * body["n_predict"] + 0.0005 * tokens)
        return {"tokens_evaluated": tokens, "tokens_predicted": body["n_predict"], "timings": {}}

    def stream(self, body: dict[str, Any], send: Callable[[bytes], Any]) -> None:
        with self._lock:
            self.streamed.append(body)
            self._open += body["n_predict"] > 4
            self.most = max(self.most, self._open)
        try:
            for made in range(1, body["n_predict"] + 1):
                time.sleep(0.004)
                event = {"content": "x", "stop": False, "tokens_predicted": made}
                send(f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode())
            timings = {"prompt_n": len(body["prompt"])}
            event = {"content": "", "stop": True, "tokens_predicted": made, "timings": timings}
            send(f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode())
        except OSError:
            pass  # the client cut the answer off, as it does at the end of a window
        finally:
            with self._lock:
                self._open -= body["n_predict"] > 4


@contextlib.contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            self.send_response(200)
            self.end_headers()
            if body.get("stream"):
                stand_in.stream(body, self.wfile.write)
            else:
                self.wfile.write(json.dumps(stand_in.page(self.path, body)).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def asked(url: str) -> VerifyOptions:
    return VerifyOptions(url=url, name="tiny-1-3", repeats=2, repeat_seconds=0.05)


@pytest.mark.parametrize("depth", [0, 40])
def test_the_server_gets_the_load_of_the_sweep(smallest_model: Path, depth: int) -> None:
    lines: list[str] = []
    server = StandIn(smallest_model)
    with serving(server) as url:
        sweep = sweep_of(smallest_model, workload=replace(LOAD, depth=depth))
        found = verify(sweep, 3, asked(url), progress=lines.append)
    full = [body for body in server.load() if len(body["prompt"]) == depth + LOAD.prompt_tokens]
    assert server.most >= USERS  # more where a window begins before the server knows that the last one ended
    assert {body["n_predict"] for body in full} == {6, 11, 16}  # each user's first answer has another length
    assert all(3 <= token < 512 for body in full for token in body["prompt"])
    assert len({tuple(body["prompt"][depth:]) for body in full}) == len(full)  # all are fresh
    assert len({tuple(body["prompt"][:depth]) for body in full}) == (USERS if depth else 1)
    assert {body["model"] for body in full} == {"tiny-1-3"}
    assert [line for line in lines if "users" in line] == ["3 users 1/2", "3 users 2/2"]
    together, each, first, *_ = found.figures
    assert together.found is not None
    assert each.found is not None
    assert first.found is not None
    assert together.found.median == pytest.approx(USERS * each.found.median)
    assert first.found.n >= 2 * USERS
    assert {s.name: s.verdict for s in found.settings if s.name in ("n_parallel", "n_ctx")} == {
        "n_parallel": "kept",
        "n_ctx": "kept",
    }


def test_the_users_send_the_users_own_prompts(smallest_model: Path, tmp_path: Path) -> None:
    server = StandIn(smallest_model)
    with serving(server) as url:
        verify(with_own_prompts(smallest_model, tmp_path / "own.jsonl"), 3, asked(url))
    assert {tuple(body["prompt"]) for body in server.streamed} == {(500,) * 4, (500,)}
    assert {body["model"] for body in server.tokenised} == {"tiny-1-3"}  # a router needs the name


def test_prompts_end_with_the_texts_that_speculation_guesses(smallest_model: Path) -> None:
    server = StandIn(smallest_model)
    workload = replace(LOAD, prompts=bundled_prompts().record)
    with serving(server) as url:
        verify(sweep_of(smallest_model, workload=workload), 3, asked(url))
    full = [body["prompt"] for body in server.load() if len(body["prompt"]) == LOAD.prompt_tokens]
    assert full
    assert all(prompt[-3:] == [500] * 3 for prompt in full)


def test_prompts_that_are_gone_are_named_before_anything_is_measured(
    smallest_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own.jsonl"
    sweep = with_own_prompts(smallest_model, file)
    file.write_text('{"prompt": "another"}\n')
    with pytest.raises(MissingError, match=r"own\.jsonl has another content: restore the file") as caught:
        verify(sweep, 3, VerifyOptions(url="http://127.0.0.1:9"))
    assert caught.value.exit_code == 3
    file.unlink()
    with pytest.raises(MissingError, match=r"cannot read .*own\.jsonl .*: restore the file"):
        verify(sweep, 3, VerifyOptions(url="http://127.0.0.1:9"))


def test_a_context_without_room_for_the_load_is_named(smallest_model: Path) -> None:
    said = r"need a context of 40 tokens for each user, and .* gives 39"
    with serving(StandIn(smallest_model, n_ctx=39)) as url, pytest.raises(UsageError, match=said):
        verify(sweep_of(smallest_model), 3, asked(url))


# --- servers that cannot serve it


@pytest.mark.parametrize(
    ("kind", "why"),
    [("llama-cpp-python", "serves one request at a time"), ("ollama", "may end answers early")],
)
def test_servers_that_cannot_serve_the_load_are_refused_with_one_line(kind: Any, why: str) -> None:
    sweep = sweep_of(Path("/models/x.gguf"))
    with pytest.raises(
        UsageError, match=rf"3 users together, and .* {why}.*: verify a llama-server"
    ) as caught:
        verify(sweep, 3, VerifyOptions(server=kind))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_server_that_turns_out_to_be_another_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[VerifyOptions] = []

    @contextlib.contextmanager
    def ollama(_record: Any, _trial: Any, name: str, options: VerifyOptions, _progress: Any) -> Iterator[Any]:
        seen.append(options)
        yield OllamaServer("http://127.0.0.1:9"), name, False

    monkeypatch.setattr(check, "found_or_started", ollama)
    with pytest.raises(UsageError, match="Ollama may end answers early"):
        verify(sweep_of(Path("/models/x.gguf")), 3, VerifyOptions(url="http://127.0.0.1:9"))
    assert seen[0].server == "llama-server"  # without a wish, no other kind is looked for or started


# --- the figures, by a stand-in for the measurement


def verified(
    monkeypatch: pytest.MonkeyPatch,
    promise: Mapping[str, Reading],
    found: Mapping[str, Reading],
    now: Mapping[str, Reading] | None = None,
    on_gpu_of_others: bool = False,
) -> Verification:
    """A verification in which the server gives ``found``, and the engine gives ``now``."""

    @contextlib.contextmanager
    def server(*_: Any) -> Iterator[Any]:
        there = LlamaServer("http://known")
        monkeypatch.setattr(LlamaServer, "generate", lambda *_: None)
        monkeypatch.setattr(LlamaServer, "in_force", lambda *_: {})
        yield there, "m", not on_gpu_of_others

    def measured(*_: Any, **__: Any) -> ClientSpeed:
        return ClientSpeed(
            decode=found[ALL],
            prefill=found.get(PROMPTS),
            watts=None,
            own_decode=None,
            own_prefill=None,
            decode_tokens=16,
            prompt_tokens=24,
            missing={},
            each_user=found[EACH],
            first_token=found.get(FIRST),
        )

    def engine(_: TrialRecord) -> Mapping[str, Reading]:
        assert now is not None, "the engine was measured for nothing"
        return now

    monkeypatch.setattr(check, "found_or_started", server)
    monkeypatch.setattr(check, "measure_users", measured)
    sweep = sweep_of(Path("/models/x.gguf"), promise)
    if on_gpu_of_others:
        (trial,) = sweep.trials
        trial = replace(trial, configuration=trial.configuration.with_(n_gpu_layers=-1))
        sweep = replace(sweep, engine=replace(sweep.engine, gpu_offload=True), trials=(trial,))
    return verify(sweep, 3, speeds_now=engine)


GOOD = {ALL: exactly(30.0), EACH: exactly(10.0), FIRST: exactly(0.5), PROMPTS: exactly(100.0)}


def of(share: float) -> dict[str, Reading]:
    """Everything as fast as this share of `GOOD`."""
    return {
        name: exactly(reading.median / share if name == FIRST else reading.median * share)
        for name, reading in GOOD.items()
    }


def test_a_promise_to_several_users_is_kept_in_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified(monkeypatch, GOOD, of(0.98))
    assert [(f.metric, f.verdict) for f in found.figures] == [
        (name, "kept") for name in (ALL, EACH, FIRST, PROMPTS)
    ]
    found.demand()
    text = render_verification(found).splitlines()
    at = {
        name: next(i for i, line in enumerate(text) if line.startswith(name)) for name in ("3 users", "n_ctx")
    }
    assert at["3 users"] < 10  # promise and measurement stand before twenty settings
    assert at["3 users"] < at["n_ctx"]
    assert text[at["3 users"]].split()[:4] == ["3", "users", "tok/s", "30"]
    assert [line.split("  ")[0] for line in text[at["3 users"] + 1 :][:3]] == [
        "each user tok/s",
        "first token p95 s",
        "prefill tok/s",
    ]
    assert text[-1].startswith("the promise is kept (tolerance 5 %)")
    plain = json.loads(json.dumps(verification_to_plain(found)))
    assert (plain["kept"], plain["users"], plain["figures"][2]["metric"]) == (True, 3, FIRST)


def test_a_slower_server_misses_in_the_unit_of_each_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified(monkeypatch, GOOD, of(0.8), now=GOOD)
    assert [figure.verdict for figure in found.figures] == ["missed"] * 4
    with pytest.raises(VerifyError, match="not kept") as caught:
        found.demand()
    assert caught.value.exit_code == 5
    first = found.figures[2].says
    assert "is 0.625 s, +25.0 % against the promised 0.5 (tolerance 5 %)" in first
    assert "sweeper's own engine gives 0.5 s now, +0.0 % against the sweep" in first


def test_a_machine_that_became_slower_has_drifted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified(monkeypatch, GOOD, of(0.8), now=of(0.8))
    assert [figure.verdict for figure in found.figures] == ["drifted"] * 4
    assert found.kept
    assert "+25.0 % against the sweep: the machine, not the server" in found.figures[2].says
    assert "the server is as fast as the engine is now" in render_verification(found)


def test_a_percentile_that_noise_may_explain_beside_a_slower_engine_has_drifted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = of(0.8) | {FIRST: Reading(0.8, 0.6, 1.0, 12)}
    found = verified(monkeypatch, GOOD, slow, now=of(0.8) | {FIRST: Reading(0.7, 0.5, 0.9, 15)})
    assert found.figures[2].verdict == "drifted"
    apart = verified(monkeypatch, GOOD, slow, now=of(0.8) | {FIRST: Reading(0.55, 0.53, 0.58, 15)})
    assert apart.figures[2].verdict == "missed"


def test_few_requests_leave_the_percentile_open_and_not_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    few = of(1.0) | {FIRST: Reading(0.51, 0.3, 0.9, 8)}
    found = verified(monkeypatch, GOOD, few)  # no engine is measured for it
    assert [figure.verdict for figure in found.figures] == ["kept", "kept", "unclear", "kept"]
    assert (
        render_verification(found)
        .splitlines()[-1]
        .startswith(
            "the promise is kept (tolerance 5 %); too few requests to tell the 95th percentile: raise --repeats"
        )
    )
    noisy = few | {ALL: Reading(30.0, 10.0, 50.0, 5)}
    assert (
        render_verification(verified(monkeypatch, GOOD, noisy, now=GOOD))
        .splitlines()[-1]
        .startswith("unclear: the measurements are too noisy")
    )


def test_a_percentile_far_below_the_promise_is_no_sign_of_a_disturbed_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = verified(monkeypatch, GOOD, of(1.0) | {FIRST: exactly(0.2)})
    assert (found.figures[2].verdict, found.figures[2].says) == ("kept", "")


def test_figures_that_the_sweep_did_not_promise_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified(monkeypatch, {ALL: GOOD[ALL]}, GOOD)
    assert [f.verdict for f in found.figures] == ["kept", "unknown", "unknown", "unknown"]
    assert found.figures[1].says == "the sweep promised no such figure"


def test_an_engine_without_room_on_the_gpu_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified(monkeypatch, GOOD, of(0.8), on_gpu_of_others=True)  # the engine is not measured
    assert not found.kept
    assert found.notes[-1] == check.NO_ROOM


def test_an_engine_that_is_gone_is_a_note_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(Path("/models/x.gguf"))
    gone = replace(sweep, config={"engine": {"name": "llama_server", "binary": "/no/llama-server"}})

    def no_engine(trial: TrialRecord) -> Mapping[str, Reading]:
        return speeds_of_engine(gone, trial)

    found, notes = check._beside_engine(
        [check.FigureCheck(ALL, GOOD[ALL], exactly(1.0), None, "missed")],
        sweep.trials[0],
        no_engine,
        lambda _: None,
    )
    assert found[0].verdict == "missed"
    assert len(notes) == 1
    assert notes[0].startswith("sweeper's own engine could not be measured: ")
    assert "/no/llama-server" in notes[0]


# --- a real llama-server


def test_a_llama_server_of_our_own_serves_the_users(smallest_model: Path, llama_server: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    options = VerifyOptions(program=Path(llama_server), start=True, repeats=2, repeat_seconds=0.05)
    lines: list[str] = []
    found = verify(sweep_of(smallest_model), 3, options, progress=lines.append)
    assert lines[0] == "starting llama-server …"
    assert (found.started, found.server, found.users) == (True, "llama-server", USERS)
    assert found.kept
    assert {check.verdict for check in found.settings} == {"kept"}
    together, each, first, _ = (figure.found for figure in found.figures)
    assert together is not None
    assert each is not None
    assert first is not None
    assert together.median == pytest.approx(USERS * each.median)
    assert first.median > 0
    with pytest.raises(EngineMissingError):
        get(f"{found.url}/health")
    assert set(psutil.Process().children(recursive=True)) <= before


def test_where_a_promise_is_missed_the_engine_serves_the_same_users(
    smallest_model: Path, llama_server: str
) -> None:
    impossible = {name: exactly(1e-9 if name == FIRST else 1e9) for name in GOOD}
    sweep = sweep_of(smallest_model, impossible, engine={"name": "llama_server", "binary": llama_server})
    options = VerifyOptions(start=True, repeats=2, repeat_seconds=0.05)
    found = verify(sweep, 3, options, speeds_now=partial(speeds_of_engine, sweep))
    of_users = found.figures[:3]  # a machine too busy to time prompts may leave the fourth one out
    assert all(figure.now is not None for figure in of_users)
    assert {figure.verdict for figure in of_users} <= {"missed", "drifted"}
    together, each, *_ = (figure.now for figure in found.figures)
    assert together is not None
    assert each is not None
    assert together.median == pytest.approx(USERS * each.median)


def test_the_engine_sends_the_users_own_prompts_as_well(
    smallest_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    class Told(LlamaServerEngine):
        def load(self, configuration: Configuration) -> Any:
            sent.append(self._prompts)
            raise EngineRefused("enough")

    monkeypatch.setattr(of_record, "LlamaServerEngine", Told)
    sweep = with_own_prompts(smallest_model, tmp_path / "own.jsonl", engine={"name": "llama_server"})
    with pytest.raises(EngineRefused, match="enough"):
        speeds_of_engine(sweep, sweep.trials[0])
    assert sent == [read_prompts(tmp_path / "own.jsonl").prompts]


# --- what goes on in long silences


def test_verify_says_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    beat = threading.Event()

    def note(line: str) -> None:
        lines.append(line)
        if line.startswith("starting llama-server, "):
            beat.set()

    def slow(*_: Any, progress: Callable[[str], None], **__: Any) -> Verification:
        progress("starting llama-server …")
        assert beat.wait(60)
        raise VerifyError("enough")

    monkeypatch.setattr(commands, "note", note)
    monkeypatch.setattr(commands, "load_record", lambda *_, **__: sweep_of(Path("/models/x.gguf")))
    monkeypatch.setattr(check, "verify", slow)
    monkeypatch.setattr(heartbeat, "Aloud", partial(heartbeat.Aloud, silence_seconds=0.01))
    options = _parser().parse_args(["verify", "S", "--no-watts", "--root", str(tmp_path)])
    with pytest.raises(VerifyError, match="enough"):
        commands.verify(options)
    assert lines[0] == "starting llama-server …"
    assert lines[1].endswith(" s …")
