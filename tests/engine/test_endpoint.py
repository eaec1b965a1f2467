"""A running server as an engine: a real llama-server, a real llama-cpp-python server, and servers that misbehave."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from engine_contract import EngineContract

from sweeper.client.requests import Target
from sweeper.client.servers import detect
from sweeper.client.steady import Answer
from sweeper.config import compose
from sweeper.engine.base import Engine, ServesUsers
from sweeper.engine.endpoint import Endpoint, EndpointEngine, _can_be_timed
from sweeper.errors import (
    ConfigError,
    EngineMissingError,
    EngineRefused,
    RightMissingError,
    SweeperError,
    VerifyError,
)
from sweeper.http import is_loopback
from sweeper.measure.trial import Stage, measure
from sweeper.meter.none import NoMeter
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic
from sweeper.prepare import measurable
from sweeper.records import Caveat, Configuration, EngineRecord, from_plain, to_plain
from sweeper.rig.base import Rig
from sweeper.rig.endpoint import _meter, checked_url, endpoint_rig
from sweeper.rig.open import open_rig
from sweeper.servers import free_port, started
from sweeper.space.auto import SERVER_KEEPS

RECORD = EngineRecord("endpoint", "llama-server", "timed at the client")
SMALL = (
    "engine=endpoint",
    "workload.prompt_tokens=48",
    "workload.generated_tokens=24",
    "workload.n_ctx=0",
    "workload.warmup_seconds=0.1",
    "workload.screening_seconds=0.4",
    "workload.screening_repeats=2",
)


# Slow enough that a busy machine hands over tokens one by one.
SLOWER = ModelShape(6, 512, 2048, 8, 4, vocab_size=512, n_ctx_train=2048)


@pytest.fixture(scope="module")
def slower_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(SLOWER, tmp_path_factory.mktemp("models") / "slower.gguf", "F16", seed=1)


@pytest.fixture(scope="module")
def server_url(
    llama_server: Path, slower_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    port = free_port()
    argv = [str(llama_server), "-m", str(slower_model), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["-c", "2048", "-np", "2", "-t", "1", "-tb", "1", "--cache-ram", "0"]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("llama-server") / "log"
    with started(argv, f"{url}/health", log, 120, environment={}, failure=VerifyError):
        yield url


class TestEndpointEngine(EngineContract):
    """Of the contract, only what concerns loading differs: a running server has its settings."""

    @pytest.fixture
    def engine(self, server_url: str) -> EndpointEngine:
        return EndpointEngine(Endpoint(Target(server_url, "llama-server"), RECORD, {}, 1024, (3, 500)))

    @pytest.fixture
    def configuration(self) -> Configuration:
        return Configuration(n_ctx=1024)

    def test_keeps_the_model_where_only_the_context_changes(
        self, engine: Engine, configuration: Configuration
    ) -> None:
        with engine:
            assert engine.load(configuration).reloaded
            assert not engine.load(configuration.with_(use_mmap=False)).reloaded

    def test_counts_the_tokens_that_the_server_evaluated(
        self, engine: Engine, configuration: Configuration
    ) -> None:
        with engine:
            engine.load(configuration)
            run = engine.prefill(64, 0, 0.05, 5.0)
            assert run.tokens == 64 * run.rounds
            deep = engine.prefill(64, 200, 0.05, 5.0)
            assert 60 * deep.rounds <= deep.tokens <= 64 * deep.rounds  # the 200 below come from its cache

    def test_serves_users(self, engine: EndpointEngine, configuration: Configuration) -> None:
        assert isinstance(engine, ServesUsers)
        with engine:
            engine.load(configuration)
            run = engine.serve(3, 24, 8, 16, 0.2, 60.0)
            assert run.served.users == 3
            assert run.tokens > 0


def test_answers_that_arrive_almost_in_one_piece_are_not_timed() -> None:
    def answer(*counts: float) -> Answer:
        return Answer(0, 0.0, [(float(at), count) for at, count in enumerate(counts)], 9.0, True)

    assert _can_be_timed(answer(1, 2, 3, 4))
    assert _can_be_timed(answer(1, 31, 32))
    assert _can_be_timed(answer(16, 32))
    assert not _can_be_timed(answer(17, 32))
    assert not _can_be_timed(answer(4))
    assert not _can_be_timed(answer())


class Told:
    """A load generator whose answers are told: each with its seconds, in one piece."""

    def __init__(self, *seconds: tuple[int, float]) -> None:
        self.seconds = dict(seconds)
        self.now = 0.0

    def rounds(self, prompts: Any, tokens: int, min_seconds: float, max_seconds: float) -> tuple[Answer, ...]:
        found = []
        for _ in range(3):
            sent, self.now = self.now, self.now + self.seconds[tokens]
            found.append(Answer(0, sent, [(self.now, float(tokens))], self.now, True))
        return tuple(found)

    def close(self) -> None:
        pass


def test_answers_in_one_piece_are_timed_by_the_difference_to_one_token() -> None:
    endpoint = Endpoint(Target("http://h", "llama-server"), RECORD, {}, None, (3, 500))
    engine = EndpointEngine(endpoint, Told((1, 0.5), (4, 0.8), (11, 1.5)))  # type: ignore[arg-type]
    engine.load(Configuration())
    run = engine.decode(11, 0, 1.0, 2.0)
    assert run.tokens == 30
    assert run.tokens_per_second == pytest.approx(10.0)
    assert run.ended - run.started == pytest.approx(4.5)
    same = EndpointEngine(endpoint, Told((1, 0.5), (4, 0.5)))  # type: ignore[arg-type]
    same.load(Configuration())
    with pytest.raises(
        EngineRefused, match=r"too short to be timed at the client: raise workload\.generated_tokens"
    ):
        same.decode(4, 0, 1.0, 2.0)


# -- the rig ------------------------------------------------------------------------------------------------


def rig_of(held: ExitStack, root: Path, url: str, *words: str) -> tuple[Rig, Any, tuple[str, ...]]:
    composed = compose([*SMALL, f"engine.url={url}", f"root='{root}'", *words])
    return open_rig(composed, held, lambda _: None)


def test_a_real_llama_server_is_measured_as_it_runs(server_url: str, tmp_path: Path) -> None:
    with ExitStack() as held:
        rig, space, notes = rig_of(held, tmp_path, server_url)
        assert rig.engine_record.name == "endpoint"
        assert rig.engine_record.version.startswith("llama-server")
        assert rig.engine_record.build == f"timed at the client, {server_url}"
        assert rig.notes[0].startswith("every speed is timed at the client")
        assert notes.count(SERVER_KEEPS) == 1
        assert set(space.parameters) <= {"power_limit_watts", "clock_limit_mhz"}
        assert space.base.n_ctx == 1024  # 2,048 tokens for two slots, as the server reports
        assert space.base.n_threads == 1
        assert (rig.model.name, rig.model.n_layer) == ("slower", 0)
        assert rig.model.n_ctx_train == 2048
        workload = compose([*SMALL, f"engine.url={server_url}"]).settings.workload_record()
        found = measure(space.base, rig.engine, rig.meter, workload, Stage.screening(workload))
        assert found.metrics["tokens_per_second"].median > 0
        assert found.metrics["prompt_tokens_per_second"].median > 0
        assert found.metrics["n_ctx"].median == 1024
        assert found.in_force["n_threads"] == 1
        assert "memory_mib" in found.missing


def test_users_of_a_real_server_get_the_metrics_of_users(server_url: str, tmp_path: Path) -> None:
    with ExitStack() as held:
        rig, space, _ = rig_of(held, tmp_path, server_url, "workload.users=3", "power=estimate")
        workload = compose(
            [*SMALL, f"engine.url={server_url}", "workload.users=3"]
        ).settings.workload_record()
        found = measure(space.base, rig.engine, rig.meter, workload, Stage.screening(workload))
    for window in (w for w in found.windows if w.phase == "decode"):
        assert window.served is not None
        assert window.served.users == 3
        assert window.energy.seconds == pytest.approx(window.seconds)  # power is that of the steady part
    whole, each = found.metrics["tokens_per_second"], found.metrics["tokens_per_second_per_user"]
    assert whole.median == pytest.approx(3 * each.median)
    assert found.metrics["time_to_first_token_p95_seconds"].median > 0
    assert Caveat.ESTIMATED in found.caveats
    assert from_plain(to_plain(found), type(found)).windows == found.windows


def test_the_users_own_prompts_are_sent(server_url: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    entries = [
        {"prompt": "tell me"},
        {"messages": [{"role": "user", "content": "why"}]},
        {"prompt": "x " * 4000},
    ]
    path.write_text("\n".join(map(json.dumps, entries)), "utf-8")
    with ExitStack() as held:
        rig, space, _ = rig_of(held, tmp_path, server_url, f"workload.prompts='{path}'")
        assert any(note.startswith("1 of 3 prompts are left out") for note in rig.notes)
        rig.engine.load(space.base)
        assert rig.engine.decode(8, 0, 0.05, 5.0).tokens > 0
        run = rig.engine.prefill(48, 0, 0.05, 5.0)
        assert 0 < run.tokens < 48 * run.rounds  # both prompts are short


def test_ollamas_and_openais_own_pages_of_a_real_server(server_url: str) -> None:
    """The same server through the interface of others: texts in place of token ids."""

    def count(text: str) -> int:
        return detect(server_url).generate("m", text, 1).prompt_tokens

    endpoint = Endpoint(
        Target(server_url, "openai", "m", extra={"ignore_eos": True}), RECORD, {}, 1024, count=count
    )
    with EndpointEngine(endpoint) as engine:
        engine.load(Configuration())
        run = engine.prefill(64, 0, 0.05, 5.0)
        assert 32 * run.rounds <= run.tokens <= 96 * run.rounds
        assert engine.decode(24, 0, 0.05, 5.0).tokens > 0


@pytest.fixture(scope="module")
def python_server(slower_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`python -m llama_cpp.server`, which reports neither settings nor its model's size."""
    pytest.importorskip("uvicorn", reason="the extra `server` is not installed")
    port = free_port()
    argv = [sys.executable, "-m", "llama_cpp.server", "--model", str(slower_model), "--model_alias", "tiny"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "512", "--n_threads", "1"]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("python-server") / "log"
    with started(argv, f"{url}/v1/models", log, 120, environment={}, failure=VerifyError):
        yield url


def test_a_real_python_server_is_measured_without_knowing_its_model(
    python_server: str, tmp_path: Path
) -> None:
    before = set(psutil.Process().children())
    with ExitStack() as held:
        rig, space, _ = rig_of(held, tmp_path, python_server)
        assert rig.engine_record.version == "llama-cpp-python"
        assert rig.model.name == "tiny"
        assert rig.model.base_quant == "unknown"
        assert from_plain(to_plain(rig.model), type(rig.model)) == rig.model
        rig.engine.load(space.base)
        assert rig.engine.decode(24, 0, 0.05, 5.0).tokens > 0
        run = rig.engine.prefill(48, 0, 0.05, 5.0)  # its streams report no counts, so sweeper asked before
        assert 24 * run.rounds <= run.tokens <= 72 * run.rounds
    assert set(psutil.Process().children()) <= before


# -- wrong addresses, names and servers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, r"engine\.url: give the server's address"),
        ("", r"engine\.url: give the server's address"),
        ("127.0.0.1:8080", r"is no http address; write it as http://127\.0\.0\.1:8080"),
        ("ftp://h", "is no http address"),
        ("http://me:secret@h", "leave user, password and query out"),
        ("http://h?key=secret", "leave user, password and query out"),
    ],
)
def test_a_wrong_address_is_refused_before_anything_is_sent(url: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        checked_url(url)
    assert "secret" not in str(caught.value)


def test_an_address_may_end_as_clients_of_openai_write_it() -> None:
    assert {checked_url(f"http://h:1{end}") for end in ("", "/", "/v1", "/v1/")} == {"http://h:1"}


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.8.8.8", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://192.0.2.1", False),
        ("https://example.org", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
    ],
)
def test_only_a_loopback_address_is_this_machine(url: str, here: bool) -> None:
    assert is_loopback(url) is here


class Pretender(BaseHTTPRequestHandler):
    """A server of OpenAI's interface that fails in the way that ``how`` names."""

    how: ClassVar[str] = ""
    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        if self.how == "key" and self.headers.get("Authorization") != "Bearer s3cret":
            self._send(401, {"error": "no key"})
        elif self.path == "/v1/models":
            names = ["one", "two"] if self.how == "two" else ["one"]
            odd = {"data": "nothing"}
            self._send(200, odd if self.how == "odd" else {"data": [{"id": name} for name in names]})
        else:
            self._send(404, {})

    def do_POST(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = len(body["prompt"].split())
        if not body.get("stream"):
            self._send(200, {"usage": {"prompt_tokens": words, "completion_tokens": body["max_tokens"]}})
            return
        self.send_response(200)
        self.end_headers()
        tokens = 0 if self.how == "silent" else 3 if self.how == "early" else 24
        for _ in range(tokens):
            self.wfile.write(b'data: {"choices":[{"text":"x","finish_reason":null}]}\n\n')
        if self.how != "early":
            usage = json.dumps(
                {"choices": [], "usage": {"prompt_tokens": words, "completion_tokens": tokens}}
            )
            self.wfile.write(f"data: {usage}\n\ndata: [DONE]\n\n".encode())

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class FakeOllama(BaseHTTPRequestHandler):
    """The pages of Ollama that sweeper reads, and answers of three tokens a request."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        pages = {
            "/api/tags": {"models": [{"name": "gemma:latest"}]},
            "/api/version": {"version": "0.30.1"},
            "/api/ps": {"models": [{"name": "gemma:latest", "context_length": 512}]},
        }
        self._answer(200 if self.path in pages else 404, [pages.get(self.path, {})])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/show":
            self._answer(200, [{"parameters": "num_thread 3", "modelfile": ""}])
            return
        self.asked.append(body)
        end = {
            "response": "",
            "done": True,
            "eval_count": 3,
            "prompt_eval_count": len(body["prompt"].split()),
        }
        pieces = [{"response": "x", "done": False}] * 3 if body["stream"] else []
        self._answer(200, [*pieces, end])

    def _answer(self, status: int, entries: list[Any]) -> None:
        self.send_response(status)
        self.end_headers()
        for entry in entries:
            self.wfile.write(json.dumps(entry).encode() + b"\n")
            self.wfile.flush()
            time.sleep(0.002)  # as a model would: not all at once

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_ollama_is_measured_with_texts_of_the_workloads_length(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeOllama) as server, ExitStack() as held:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        held.callback(server.shutdown)
        rig, space, _ = rig_of(held, tmp_path, f"http://127.0.0.1:{server.server_port}")
        assert rig.engine_record.version == "ollama 0.30.1"
        assert rig.model.name == "gemma"
        assert (space.base.n_ctx, space.base.n_threads) == (512, 3)
        rig.engine.load(space.base)
        FakeOllama.asked.clear()
        run = rig.engine.prefill(48, 0, 0.02, 5.0)
        assert run.tokens == 48 * run.rounds
        assert {body["model"] for body in FakeOllama.asked} == {"gemma"}
        assert len({body["prompt"] for body in FakeOllama.asked}) == len(FakeOllama.asked)
        assert rig.engine.decode(3, 0, 0.02, 5.0).tokens > 0


@pytest.fixture
def pretender() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pretender) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Pretender.seen.clear()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("how", "words", "error", "code", "said"),
    [
        (
            "key",
            (),
            RightMissingError,
            3,
            r"needs a key: set the environment variable SWEEPER_API_KEY \(401\)",
        ),
        ("two", (), ConfigError, 2, r"engine\.model: .* offers one, two; choose one with engine\.model=NAME"),
        ("two", ("engine.model=x",), ConfigError, 2, r"engine\.model: .* offers one, two, and not 'x'"),
        ("odd", (), EngineMissingError, 3, "answers in an unknown form"),
        ("silent", (), EngineRefused, 4, "gave no token"),
        ("early", (), EngineRefused, 4, "ended its answer early, after 3 of"),
    ],
)
def test_a_server_that_cannot_be_measured_ends_the_command_with_one_line(
    pretender: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    words: tuple[str, ...],
    error: type[SweeperError],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(Pretender, "how", how)
    with ExitStack() as held, pytest.raises(error, match=said) as caught:
        rig_of(held, tmp_path, pretender, *words)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with ExitStack() as held, pytest.raises(EngineMissingError, match="no server answers"):
        rig_of(held, tmp_path, "http://127.0.0.1:9")


def test_a_key_goes_to_the_server_and_into_no_record(
    pretender: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pretender, "how", "key")
    monkeypatch.setenv("SWEEPER_API_KEY", "s3cret")
    with ExitStack() as held:
        rig, _, _ = rig_of(held, tmp_path, pretender)
        kept = json.dumps([to_plain(rig.engine_record), to_plain(rig.model), rig.notes])
    assert {key for _, key in Pretender.seen} == {"Bearer s3cret"}
    assert "s3cret" not in kept
    assert all(
        "s3cret" not in file.read_text("utf-8", "replace") for file in tmp_path.rglob("*") if file.is_file()
    )


def test_a_context_that_is_too_small_for_the_workload_is_named(server_url: str, tmp_path: Path) -> None:
    with (
        ExitStack() as held,
        pytest.raises(ConfigError, match=r"need a context of 2088 tokens, and .* gives 1024"),
    ):
        rig_of(held, tmp_path, server_url, "workload.prompt_tokens=2048")


# -- a server on another machine ----------------------------------------------------------------------------


def test_no_sensor_of_this_machine_stands_for_another(tmp_path: Path) -> None:
    settings = compose([*SMALL, "engine.url=http://192.0.2.1"]).settings
    meter, notes = _meter(settings.power, tmp_path, here=False, gpu_used=False)
    assert isinstance(meter, NoMeter)
    assert len(notes) == 1
    assert "set power=plug or power=command" in notes[0]
    with meter.window() as window:
        reading = window.reading(1.0, 3.0)
    assert reading.joules is None
    assert "another machine" in str(reading.reason)
    for words in (["power=rapl"], ["power=estimate"], ["power=nvml"]):
        power = compose([*SMALL, "engine.url=http://192.0.2.1", *words]).settings.power
        with pytest.raises(ConfigError, match="the server runs on another machine"):
            _meter(power, tmp_path, here=False, gpu_used=False)


def test_a_command_that_the_user_names_measures_another_machine(tmp_path: Path) -> None:
    words = ["power=command", "power.command.argv=[/bin/echo,'42']"]
    settings = compose([*SMALL, "engine.url=http://192.0.2.1", *words]).settings
    meter, _ = _meter(settings.power, tmp_path, here=False, gpu_used=False)
    assert meter.source.name == "command"
    beside = compose([*SMALL, "engine.url=http://192.0.2.1", *words, "power.beside=[rapl]"]).settings
    with pytest.raises(ConfigError, match=r"power\.beside: .* rapl would show this one"):
        _meter(beside.power, tmp_path, here=False, gpu_used=False)


def test_a_remote_server_has_no_limits_and_no_watts(
    server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeper.rig.endpoint.is_loopback", lambda url: False)
    settings = compose([*SMALL, f"engine.url={server_url}"]).settings
    with ExitStack() as held:
        rig = endpoint_rig(settings, tmp_path, held, lambda _: None)
        assert not rig.limits.ranges()
        assert all("another machine" in str(why) for why in rig.limits.refusals().values())
        assert rig.machine.fingerprint.startswith("endpoint-")
        assert rig.machine.gpus == ()
        objectives, notes = measurable(settings, rig)
        assert [o.metric for o in objectives] == ["tokens_per_second"]
        assert notes == ("watts left the objectives, because no sensor measures it",)
        only = compose([*SMALL, f"engine.url={server_url}", "objectives.targets={watts: minimize}"]).settings
        only.objectives.targets.pop("tokens_per_second", None)
        with pytest.raises(ConfigError, match="watts cannot be measured"):
            measurable(only, rig)


# -- the whole command --------------------------------------------------------------------------------------


def test_a_sweep_of_a_running_server_ends_with_a_report(
    server_url: str, sweeper: Any, tmp_path: Path
) -> None:
    words = [
        *SMALL,
        "workload.final_seconds=0.6",
        "workload.final_repeats=3",
        "workload.users=2",
        "name=served",
    ]
    done = sweeper("sweep", *words, f"engine.url={server_url}", hurry=True)
    assert done.returncode == 0, done.stderr
    assert "timed at the client" in done.stdout
    assert "the server as it runs" in done.stdout
    again = sweeper("report", "served", "--format", "json")
    assert again.returncode == 0, again.stderr
    for command, said in (
        (["apply", "served", "--to", "llama-server"], "there is nothing to apply"),
        (["verify", "served"], "measured a running server already"),
    ):
        refused = sweeper(*command)
        assert refused.returncode == 2
        assert said in refused.stderr


def test_old_records_without_the_new_fields_open() -> None:
    workload = to_plain(compose([]).settings.workload_record())
    new = {"users", "prompts"}
    old = {key: value for key, value in workload.items() if key not in new}
    assert from_plain(old, type(compose([]).settings.workload_record())).users == 1
