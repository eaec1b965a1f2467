"""Verify against real servers on loopback, and a stand-in for Ollama."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from apply_sweep import ENGINE, MACHINE, make_sweep
from hostile import NAMES

from sweeper.apply import run as apply
from sweeper.apply.verify.check import FigureCheck, _beside_now, _settings, judge, speeds_of_engine, verify
from sweeper.apply.verify.find import VerifyOptions
from sweeper.apply.verify.text import render_verification, verification_to_plain
from sweeper.client.in_force import from_llama_server_argv, from_ollama_parameters
from sweeper.client.servers import InForce, detect
from sweeper.errors import (
    EngineMissingError,
    ModelMissingError,
    TrialFailed,
    UsageError,
    VerifyError,
)
from sweeper.http import get
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic
from sweeper.parameters import TUNABLES
from sweeper.records import Configuration, Reading, SweepRecord, TrialRecord, Workload
from sweeper.servers import free_port, started

pytest.importorskip("uvicorn", reason="the extra `server` is not installed")

C = Configuration(
    n_ctx=512,
    n_batch=256,
    n_ubatch=128,
    n_threads=1,
    n_threads_batch=2,
    type_k="q8_0",
    type_v="q8_0",
    use_mmap=False,
)
# Long enough that no hiccup of a busy machine hides the prompt's own time.
WORKLOAD = Workload(prompt_tokens=400, generated_tokens=32)
SLOW, IMPOSSIBLE = Reading(0.1, 0.09, 0.11, 5), Reading(1e9, 0.9e9, 1.1e9, 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ModelShape(4, 128, 256, 4, 2, vocab_size=2048, n_ctx_train=1024)
    return write_synthetic(shape, tmp_path_factory.mktemp("gguf") / "ti ny $é'.gguf")


def sweep_of(model: Path, promise: Reading = SLOW, configuration: Configuration = C) -> SweepRecord:
    sweep = make_sweep(model, configuration, workload=WORKLOAD)
    metrics = {"tokens_per_second": promise, "prompt_tokens_per_second": promise}
    return replace(sweep, trials=(replace(sweep.trials[0], metrics=metrics),))


def applied(sweep: SweepRecord, target: str, folder: Path, port: int) -> apply.ApplyPlan:
    outcome = apply.run(
        sweep,
        3,
        target,
        apply.Options(folder=folder, port=port, name="it's $mine"),
        root=folder / "root",
        machine=MACHINE,
        engine=ENGINE,
        write=True,
    )
    return outcome.plan


def running(argv: Sequence[str], page: str, log: Path) -> contextlib.AbstractContextManager:
    return started(argv, page, log, 120, environment={}, failure=VerifyError)


@pytest.fixture(scope="module")
def python_server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`python -m llama_cpp.server`, started as apply's own plan says."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (command,) = applied(sweep_of(model), "llama-cpp-python", folder, port).draft.commands
    url = f"http://127.0.0.1:{port}"
    with running(command.argv, f"{url}/v1/models", folder / "log"):
        yield url


def test_a_running_python_server_keeps_what_was_applied(model: Path, python_server: str) -> None:
    found = verify(sweep_of(model), 3, VerifyOptions(url=python_server, repeats=2, repeat_seconds=0.1))
    settings = {check.name: check for check in found.settings}
    assert (found.server, found.started, found.name) == ("llama-cpp-python", False, "it's $mine")
    assert settings["model"].in_force == str(model)
    assert {
        name: s.in_force for name, s in settings.items() if name in ("n_ctx", "n_threads_batch", "type_k")
    } == {
        "n_ctx": 512,
        "n_threads_batch": 2,
        "type_k": "q8_0",
    }
    assert all(check.verdict == "kept" for check in found.settings)
    assert [figure.verdict for figure in found.figures] == ["kept", "kept"]
    assert found.figures[0].found is not None
    assert found.figures[0].found.n == 2
    found.demand()
    text = render_verification(found)
    assert "the promise is kept" in text
    assert json.loads(json.dumps(verification_to_plain(found)))["kept"] is True


def test_a_promise_that_nobody_can_keep_ends_with_exit_code_5(model: Path, python_server: str) -> None:
    found = verify(
        sweep_of(model, IMPOSSIBLE), 3, VerifyOptions(url=python_server, repeats=2, repeat_seconds=0.1)
    )
    assert not found.kept
    with pytest.raises(VerifyError, match=r"tokens_per_second is .* against the promised 1e") as caught:
        found.demand()
    assert caught.value.exit_code == 5
    assert "NOT kept" in render_verification(found)


def test_where_the_engine_is_as_slow_now_the_machine_is_named_and_not_the_server(
    model: Path, python_server: str
) -> None:
    options = VerifyOptions(url=python_server, repeats=2, repeat_seconds=0.1)
    asked = []

    def as_slow(trial: TrialRecord) -> dict[str, Reading]:
        asked.append(trial.number)
        return dict.fromkeys(("tokens_per_second", "prompt_tokens_per_second"), SLOW)

    found = verify(sweep_of(model, IMPOSSIBLE), 3, options, speeds_now=as_slow)
    assert asked == [3]
    assert [figure.verdict for figure in found.figures] == ["drifted", "drifted"]
    assert found.kept
    found.demand()
    assert found.figures[0].says.endswith(
        "sweeper's own engine gives 0.1 tok/s now, -100.0 % against the sweep: the machine, not the server"
    )
    assert "the server is as fast as the engine is now" in render_verification(found)


def test_where_the_engine_is_as_fast_as_promised_the_server_is_to_blame(
    model: Path, python_server: str
) -> None:
    options = VerifyOptions(url=python_server, repeats=2, repeat_seconds=0.1)
    found = verify(
        sweep_of(model, IMPOSSIBLE), 3, options, speeds_now=lambda _: {"tokens_per_second": IMPOSSIBLE}
    )
    assert [figure.verdict for figure in found.figures] == ["missed", "missed"]
    assert "sweeper's own engine gives 1e+09 tok/s now, +0.0 % against the sweep" in found.figures[0].says


def test_the_engine_is_not_measured_again_where_the_promise_is_kept(model: Path, python_server: str) -> None:
    def never(trial: TrialRecord) -> dict[str, Reading]:
        raise AssertionError(trial)

    options = VerifyOptions(url=python_server, repeats=2, repeat_seconds=0.1)
    assert verify(sweep_of(model), 3, options, speeds_now=never).kept


def test_an_engine_that_fails_beside_the_server_is_a_note(model: Path, python_server: str) -> None:
    def fails(trial: TrialRecord) -> dict[str, Reading]:
        raise TrialFailed("no memory")

    options = VerifyOptions(url=python_server, repeats=2, repeat_seconds=0.1)
    found = verify(sweep_of(model, IMPOSSIBLE), 3, options, speeds_now=fails)
    assert not found.kept
    assert found.notes[-1] == "sweeper's own engine could not be measured: no memory"


def test_sweepers_own_engine_is_measured_with_the_trials_settings(model: Path) -> None:
    short = replace(WORKLOAD, warmup_seconds=0.5, final_seconds=0.5)
    sweep = replace(sweep_of(model), workload=short)
    found = speeds_of_engine(sweep, sweep.trials[0])
    assert set(found) == {"tokens_per_second", "prompt_tokens_per_second"}
    assert all(reading.median > 0 and reading.n == 5 for reading in found.values())


@pytest.mark.parametrize("wide", ["promised", "found"])
def test_medians_that_agree_say_nothing_where_figures_scatter_too_much(wide: str) -> None:
    quiet, noisy = Reading(100, 98, 102, 5), Reading(100, 40, 160, 5)
    promised, found = (noisy, quiet) if wide == "promised" else (quiet, noisy)
    assert judge(promised, found, more_is_better=True) == "unclear"
    # What is clearly better or clearly worse needs no narrow interval.
    assert judge(promised, Reading(1, 1, 1, 5), more_is_better=True) == "missed"
    assert judge(promised, Reading(900, 500, 1300, 5), more_is_better=True) == "kept"


def test_an_engine_as_fast_as_promised_shows_no_drift_where_the_promise_alone_scattered() -> None:
    promised, quiet = Reading(100, 40, 160, 5), Reading(99, 98, 100, 5)
    check = FigureCheck("tokens_per_second", promised, quiet, None, "unclear", "scatters")
    found = _beside_now(check, quiet)
    assert found.verdict == "unclear"
    assert "sweeper's own engine gives 99 tok/s now, -1.0 % against the sweep" in found.says


def test_settings_that_differ_are_named(model: Path, python_server: str) -> None:
    other = sweep_of(model, configuration=C.with_(n_threads_batch=1, type_v="f16"))
    found = verify(other, 3, VerifyOptions(url=python_server, repeats=2, repeat_seconds=0.1))
    assert [s.name for s in found.settings if s.verdict == "missed"] == ["n_threads_batch", "type_v"]
    with pytest.raises(VerifyError, match="n_threads_batch is 2, not 1; type_v is q8_0, not f16"):
        found.demand()


@pytest.mark.parametrize(("read_back", "verdict"), [(2048, "kept"), (512, "kept"), (1024, "missed")])
def test_a_batch_is_kept_as_asked_for_and_as_cut_to_the_context(
    model: Path, read_back: int, verdict: str
) -> None:
    sweep = sweep_of(model, configuration=C.with_(n_batch=2048))
    checks = _settings(sweep, sweep.trials[0], {"n_batch": InForce(read_back, "its command line")})
    assert [check.verdict for check in checks if check.name == "n_batch"] == [verdict]


def test_a_model_that_is_not_offered_is_named_with_those_that_are(model: Path, python_server: str) -> None:
    with pytest.raises(UsageError, match=r"offers it's \$mine, and not 'x'"):
        verify(sweep_of(model), 3, VerifyOptions(url=python_server, name="x"))


def test_a_python_server_of_our_own_is_read_from_its_log_and_ended(model: Path) -> None:
    lines: list[str] = []
    before = set(psutil.Process().children(recursive=True))
    options = VerifyOptions(server="llama-cpp-python", start=True, repeats=2, repeat_seconds=0.1)
    found = verify(sweep_of(model), 3, options, progress=lines.append)
    assert found.started
    assert found.kept
    read_from = {check.name: check.read_from for check in found.settings}
    assert all(
        read_from[key] == "its log" for key in ("n_ctx", "n_batch", "n_ubatch", "flash_attn", "type_k")
    )
    assert lines[0] == "starting llama-cpp-python …"
    with pytest.raises(EngineMissingError):
        get(f"{found.url}/v1/models")  # it is gone
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_server_ends_with_us_even_when_we_are_killed(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from sweeper.errors import VerifyError
from sweeper.servers import free_port, started
port = str(free_port())
argv = (sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1")
page = f"http://127.0.0.1:{port}"
with started(argv, page, Path(sys.argv[1]), 60, environment={}, failure=VerifyError) as process:
    print(process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(10)


def test_a_server_that_cannot_load_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    options = VerifyOptions(server="llama-cpp-python", start=True)
    with pytest.raises(VerifyError, match=r"ended with 1 before it answered: .*broken\.gguf"):
        verify(sweep_of(broken), 3, options)
    broken.unlink()
    with pytest.raises(ModelMissingError):
        verify(sweep_of(broken), 3, options)


def test_a_llama_server_that_has_ollamas_page_as_well_is_a_llama_server() -> None:
    with serving({"/props": {}, "/api/tags": {"models": []}}) as url:
        assert detect(url).kind == "llama-server"


def test_nobody_there_and_something_else_there() -> None:
    sweep = sweep_of(Path("/models/x.gguf"))
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        EngineMissingError, match=r"no server answers at http://.* \(Connection refused\): start"
    ):
        verify(sweep, 3, VerifyOptions(url=nobody))
    with pytest.raises(UsageError, match="no http address"):
        verify(sweep, 3, VerifyOptions(url="file:///etc/passwd"))
    with pytest.raises(UsageError, match="--repeats 1: give at least 2"):
        verify(sweep, 3, VerifyOptions(url=nobody, repeats=1))
    with serving({}) as url, pytest.raises(EngineMissingError, match="none of llama-server"):
        verify(sweep, 3, VerifyOptions(url=url))


def test_a_simulated_sweep_has_nothing_to_verify(model: Path) -> None:
    sweep = sweep_of(model)
    with pytest.raises(UsageError, match="simulated"):
        verify(replace(sweep, engine=replace(sweep.engine, simulated=True)), 3)


# --- llama-server, where there is one


def test_a_llama_server_of_our_own(model: Path, llama_server: str) -> None:
    options = VerifyOptions(
        server="llama-server", program=Path(llama_server), start=True, repeats=2, repeat_seconds=0.1
    )
    found = verify(sweep_of(model), 3, options)
    assert found.kept
    assert {check.verdict for check in found.settings} == {"kept"}
    assert {check.name for check in found.settings} >= {
        "model",
        "n_threads_batch",
        "flash_attn",
        "use_mmap",
        "type_v",
    }
    assert found.figures[0].own is not None  # its own timings stand beside the client's
    with pytest.raises(EngineMissingError):
        get(f"{found.url}/health")


def test_a_llama_server_with_two_slots_gives_each_the_whole_context(model: Path, llama_server: str) -> None:
    """With one cache for all slots, llama-server reports their common context."""
    two = replace(C, n_parallel=2, repack=False)
    options = VerifyOptions(
        server="llama-server", program=Path(llama_server), start=True, repeats=2, repeat_seconds=0.1
    )
    found = verify(sweep_of(model, SLOW, two), 3, options)
    assert {check.verdict for check in found.settings} == {"kept"}
    in_force = {check.name: check.in_force for check in found.settings}
    assert (in_force["n_ctx"], in_force["n_parallel"], in_force["repack"]) == (C.n_ctx, 2, False)


def test_a_router_with_the_preset_that_was_applied(model: Path, llama_server: str, tmp_path: Path) -> None:
    preset = tmp_path / "llama-server.ini"
    preset.write_text("[*]\nthreads = 7\nfit = on\n\n[other]\nmodel = /nowhere.gguf\n")
    port = free_port()
    command = applied(sweep_of(model), "llama-server", tmp_path, port).draft.commands[0]
    url = f"http://127.0.0.1:{port}"
    argv = (llama_server, *command.argv[1:])
    with running(argv, f"{url}/health", tmp_path / "log"):
        found = verify(sweep_of(model), 3, VerifyOptions(url=url, repeats=2, repeat_seconds=0.1))
    assert found.kept
    assert {check.verdict for check in found.settings} == {
        "kept"
    }  # ours go before the section for all models
    assert {check.read_from for check in found.settings} == {"/models", "/props"}


def test_llama_server_reads_every_hostile_path_from_a_preset(llama_server: str, tmp_path: Path) -> None:
    good = [name for name in NAMES if name == name.strip() and not set(name) & set(";#")]
    preset = tmp_path / "models.ini"
    for i, name in enumerate(good):
        sweep = make_sweep(Path("/models") / name)
        plan = apply.plan(sweep, 3, "llama-server", apply.Options(name=f"m {i} é$%'", file=preset))
        preset.write_bytes(plan.draft.files[0].after)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = (llama_server, "--models-preset", str(preset), "--host", "127.0.0.1", "--port", str(port))
    with running(argv, f"{url}/health", tmp_path / "log"):
        models = get(f"{url}/models")["data"]
    read = {m["id"]: from_llama_server_argv(m["status"]["args"]) for m in models}
    assert len(good) > 15
    for i, name in enumerate(good):
        settings = read[f"m {i} é$%'"]
        assert settings["model"] == f"/models/{name}"
        for key, value in make_sweep(Path("x")).trials[0].configuration.to_dict().items():
            if TUNABLES[key].in_llama_cpp_python and not TUNABLES[key].option_is_new:
                assert settings[key] == value, key


# --- Ollama, by a stand-in that answers as its API documents


class serving:  # noqa: N801 - used as a function
    """Serves pages from a dict of path -> answer, or function of the request's body."""

    def __init__(self, pages: dict[str, Any]) -> None:
        class Handler(BaseHTTPRequestHandler):
            known: ClassVar = pages

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                page = self.known.get(self.path)
                self.send_response(200 if page is not None else 404)
                self.end_headers()
                answer = page(body) if callable(page) else page
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def ollama_pages(parameters: str, digest: str, ends_after: int, context: int) -> dict[str, Any]:
    def generate(body: dict[str, Any]) -> dict[str, Any]:
        assert body["raw"] is True
        made = min(body["options"]["num_predict"], ends_after)
        tokens = len(body["prompt"].split())
        return {
            "prompt_eval_count": tokens,
            "prompt_eval_duration": int(tokens / 400 * 1e9),
            "eval_count": made,
            "eval_duration": int(made / 25 * 1e9),
        }

    return {
        "/api/version": {"version": "0.20.0"},
        "/api/tags": {"models": [{"name": "tiny-tuned:latest"}, {"name": "llama3:8b"}]},
        "/api/show": {
            "parameters": parameters,
            "modelfile": f"# x\nFROM /blobs/sha256-{digest}\nPARAMETER a b\n",
        },
        "/api/ps": {"models": [{"name": "tiny-tuned:latest", "context_length": context, "size_vram": 0}]},
        "/api/generate": generate,
    }


PARAMETERS = 'num_ctx        512\nnum_batch   256\nnum_thread                1\nuse_mmap false\nstop    "x"'


def test_ollama_by_its_api(model: Path) -> None:
    sweep = sweep_of(model)
    pages = ollama_pages(PARAMETERS, sweep.model.file(None).sha256, ends_after=7, context=512)
    with serving(pages) as url:
        found = verify(sweep, 3, VerifyOptions(url=url, repeats=2, repeat_seconds=0.1))
    assert (found.server, found.name) == ("ollama", "tiny-tuned")
    verdicts = {check.name: check.verdict for check in found.settings}
    assert {name for name, verdict in verdicts.items() if verdict == "kept"} == {
        "model",
        "n_ctx",
        "n_batch",
        "n_threads",
        "use_mmap",
    }
    assert verdicts["flash_attn"] == verdicts["type_k"] == "unknown"  # it does not say, and nobody guesses
    decode, prefill = found.figures
    assert decode.found is not None
    assert decode.found.median == pytest.approx(25.0)  # it ends early, so its own figure is taken
    assert prefill.own is not None
    assert prefill.own.median == pytest.approx(400.0, rel=1e-3)
    assert "not reported by the server: " in render_verification(found)


def test_ollama_with_another_model_and_context(model: Path) -> None:
    pages = ollama_pages(PARAMETERS.replace("256", "512"), "0" * 64, ends_after=7, context=4096)
    with serving(pages) as url:
        found = verify(sweep_of(model), 3, VerifyOptions(url=url, repeats=2, repeat_seconds=0.1))
    assert [s.name for s in found.settings if s.verdict == "missed"] == ["model", "n_ctx", "n_batch"]


# --- what servers say, in every spelling


def test_every_spelling_of_llama_servers_flags() -> None:
    model = "llama-server -m x -ngl all -mg 1 -nkvo -lm mmap+mlock"
    context = "-c 512 -b 256 -ub 128 -t 1 -tb 2 -fa auto -ctk q8_0 -ctv f16"
    assert from_llama_server_argv(f"{model} {context}".split()) == {
        "model": "x",
        "n_gpu_layers": -1,
        "n_ctx": 512,
        "n_batch": 256,
        "n_ubatch": 128,
        "n_threads": 1,
        "n_threads_batch": 2,
        "flash_attn": "auto",
        "type_k": "q8_0",
        "type_v": "f16",
        "offload_kqv": False,
        "use_mmap": True,
        "use_mlock": True,
        "main_gpu": 1,
    }
    assert from_llama_server_argv(["-t", "1", "--threads", "4", "-c"]) == {"n_threads": 4}


def test_ollama_parameters_that_are_not_ours_are_passed_over() -> None:
    assert from_ollama_parameters("temperature 0.7\nnum_gpu 5\nuse_mmap true") == {
        "n_gpu_layers": 5,
        "use_mmap": True,
    }


def test_batches_are_cut_to_the_context_as_it_was_asked_for():
    # llama.cpp makes a context of 1,024 of n_ctx=1000, and batches of 1,000: read back from the engine.
    from sweeper.parameters import as_engine_has_it

    configured = Configuration(n_ctx=1000, n_batch=2048, n_ubatch=1010)
    assert [as_engine_has_it(name, configured) for name in ("n_ctx", "n_batch", "n_ubatch")] == [
        1024,
        1000,
        1000,
    ]
