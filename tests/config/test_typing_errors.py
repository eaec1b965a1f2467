"""Typing errors that people make: taken where their meaning is plain, else refused in one line with the spelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeper import cli
from sweeper.cli import main
from sweeper.config import Composed, compose, run_hydra
from sweeper.errors import ConfigError
from sweeper.spelling import bound, number

TAKEN: list[tuple[str, str, Any]] = [
    ("model.gguf", "model.path", "model.gguf"),
    ("my model, v=1.GGUF", "model.path", "my model, v=1.GGUF"),
    ("./sub/model", "model.path", "./sub/model"),
    ("~/m.gguf", "model.path", "/home/of/m.gguf"),
    ("model=/tmp/a=b.gguf", "model.path", "/tmp/a=b.gguf"),
    ("model=m.gguf", "model.path", "m.gguf"),
    ("model=../m.gguf", "model.path", "../m.gguf"),
    ("model=~/m.gguf", "model.path", "/home/of/m.gguf"),
    ("prices.per_kwh=0,30", "prices.per_kwh", 0.3),
    ("prices.per_kwh=30ct", "prices.per_kwh", 0.3),
    ("prices.hours_per_day=90m", "prices.hours_per_day", 1.5),
    ("search.minutes=2m", "search.minutes", 2),
    ("search.minutes=90s", "search.minutes", 1.5),
    ("search.minutes=1h30m", "search.minutes", 90),
    ("search.minutes=1h", "search.minutes", 60),
    ("search.minutes==3", "search.minutes", 3),
    ("search.trials=1e2", "search.trials", 100),
    ("search.trials=20 trials", "search.trials", 20),
    ("search.early_stop=no", "search.early_stop", False),
    ("workload.warmup_seconds=500ms", "workload.warmup_seconds", 0.5),
    ("engine.load_timeout_seconds=5min", "engine.load_timeout_seconds", 300),
    ("workload.n_ctx=8k", "workload.n_ctx", 8192),
    ("power.estimate.busy_watts=65W", "power.estimate.busy_watts", 65),
    ("power.sample_hz=5Hz", "power.sample_hz", 5),
    ("space.n_ctx=16k", "space.n_ctx", 16384),
    ("space.n_ctx=[2k, 4K]", "space.n_ctx", [2048, 4096]),
    ("space.n_ctx={low: 2k, high: 32k, log: true}", "space.n_ctx", {"low": 2048, "high": 32768, "log": True}),
    ("space.n_ctx=2k-8k", "space.n_ctx", {"low": 2048, "high": 8192}),
    ("space.n_threads=1..4", "space.n_threads", {"low": 1, "high": 4}),
    ("space.n_threads=4 threads", "space.n_threads", 4),
    ("space.n_gpu_layers=-1", "space.n_gpu_layers", -1),
    ("space.flash_attn=on", "space.flash_attn", True),
    ("space.flash_attn=[on, off]", "space.flash_attn", [True, False]),
    ("space.type_k=Q8_0", "space.type_k", "q8_0"),
    ("space.type_k=[f16, Q8_0]", "space.type_k", ["f16", "q8_0"]),
    ("space.quant=q4_k_m", "space.quant", "Q4_K_M"),
    ("space.power_limit_watts=60W", "space.power_limit_watts", 60),
    ("space.clock_limit_mhz=1.5GHz", "space.clock_limit_mhz", 1500),
    ("space.clock_limit_mhz=null", "space.clock_limit_mhz", None),
    ("space.n_threads=auto", "space.n_threads", "auto"),
]


def command_lines() -> list[list[tuple[str, str, Any]]]:
    """All of ``TAKEN`` in few command lines, since composing one takes a tenth of a second: each key once a line."""
    lines: list[dict[str, tuple[str, str, Any]]] = []
    for taken in TAKEN:
        line = next((line for line in lines if taken[1] not in line), None)
        if line is None:
            lines.append(line := {})
        line[taken[1]] = taken
    return [list(line.values()) for line in lines]


@pytest.mark.parametrize("line", command_lines(), ids=lambda line: " ".join(word for word, _, _ in line))
def test_a_plain_meaning_is_taken(line: list[tuple[str, str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of")
    found: list[Composed] = []
    words = [word for word, _, _ in line]
    run_hydra([*words, "search.seed=7"], lambda one: found.append(one) or 0)
    for one in (found[0], compose(["search.seed=7", *words])):
        for word, key, value in line:
            here: Any = one.plain
            for part in key.split("."):
                here = here[part]
            assert here == value, word
        assert one.settings.search.seed == 7


def test_a_repository_needs_no_group() -> None:
    found = compose(["model.repo=owner/name", "model.file=m.gguf"]).plain["model"]
    assert (found["repo"], found["name"], found["shape"]) == ("owner/name", None, None)


BOUNDS = [
    ("time_to_first_token_seconds", "<=500ms", "<=", 0.5),
    ("time_to_first_token_seconds", "=< 0,5 s", "<=", 0.5),
    ("request_seconds", "< 2m", "<=", 120),
    ("memory_mib", "<=4GiB", "<=", 4096),
    ("vram_mib", "≤ 4 GB", "<=", 3814.697265625),
    ("watts", "60", "<=", 60),
    ("watts", "<60W", "<=", 60),
    ("tokens_per_second", "≥20tok/s", ">=", 20),
    ("tokens_per_second", "20", ">=", 20),
    ("n_ctx", ">=16k", ">=", 16384),
    ("joules_per_token", "<=1,5 J", "<=", 1.5),
    ("kl_divergence", "<=.1", "<=", 0.1),
]


@pytest.mark.parametrize(("metric", "text", "op", "value"), BOUNDS)
@pytest.mark.parametrize("form", ["{key}={text}", "{key}{text}"])
def test_a_bound_may_have_a_unit(form: str, metric: str, text: str, op: str, value: float) -> None:
    if form == "{key}{text}" and text[0] not in "<>≤≥":
        form = "{key}<={text}" if op == "<=" else "{key}>={text}"
        text = text.lstrip("=< ")
    word = form.format(key=f"objectives.constraints.{metric}", text=text)
    bounds = {c.metric: c for c in compose([word]).settings.constraint_records()}
    assert (bounds[metric].op, bounds[metric].bound) == (op, pytest.approx(value))


REFUSED = [
    ("search.minutes=2 parsecs", r"'2 parsecs' is not a number; write it like 90s, 2m, 1h"),
    ("search.minutes=5W", r"'5W' is not a number; write it like"),
    ("search.trials=20.5", "'20.5' is not a whole number"),
    ("search.trials=1,000", "several values need -m"),
    ("power.estimate.busy_watts=1,000", "several values need -m"),
    ("objectives.constraints.watts=<=5s", "'<=5s' is not a bound; write it like"),
    ("objectives.constraints.watt<=60", "did you mean watts"),
    ("objectives.targets.watts=min", "did you mean minimize"),
    ("space.n_thread=4", r"did you mean space\.n_threads"),
    ("space.n_threads=four", r"'four' is not a whole number; write it like 4, \[1,4\]"),
    ("space.flash_attn=ture", "neither true nor false; did you mean true"),
    ("space.type_k=q8", "did you mean q8_0"),
    ("space.split_mode=rows", "did you mean row"),
    ("experiment=fast", "choose from cpu_table, demo, longest_context, quick"),
    ("experiment=quik", "did you mean quick"),
    ("experiment", "write experiment=CHOICE, with one of cpu_table, demo, longest_context, quick"),
    ("quick", "did you mean experiment=quick"),
    ("search.trials:3", "write search.trials=3"),
    ("search.trials", "write search.trials=VALUE"),
    ("power=rapll", "did you mean rapl"),
    ("power.source=raple", "did you mean rapl"),
    ("power.limits.means=help", "did you mean helper"),
    ("engine.name=llamacpp", "did you mean llama_cpp"),
    ("search.sampler=tp", "did you mean tpe"),
    ("Search.Trials=3", r"did you mean search\.trials"),
    ("model=TheBloke/x-GGUF", r"model=hub model\.repo=TheBloke/x-GGUF model\.file="),
]


@pytest.mark.parametrize(("word", "message"), REFUSED)
def test_the_rest_is_refused_with_the_right_spelling(
    word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([word])
    assert main(["sweep", word, "--cfg", "job"]) in (0, 2)  # Hydra shows values of a wrong kind
    capsys.readouterr()
    assert main(["sweep", word]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [["--search.trials=3"], ["--search.trials", "3"], ["search.trials", "=", "3"], ["search.trials", "=3"]],
)
def test_dashes_and_spaces_around_a_key_are_taken(words: list[str]) -> None:
    found: list[Composed] = []
    run_hydra([*words, "search.seed=7"], lambda one: found.append(one) or 0)
    assert [(one.settings.search.trials, one.settings.search.seed) for one in found] == [(3, 7)]


def test_root_is_an_option_of_sweep_as_of_the_other_commands(tmp_path: Path) -> None:
    found: list[Composed] = []
    for words in (["--root", str(tmp_path)], [f"--root={tmp_path}"]):
        run_hydra(words, lambda one: found.append(one) or 0)
    assert [one.settings.root for one in found] == [str(tmp_path)] * 2


def test_several_bare_models_are_refused_and_run_one_after_the_other_with_m() -> None:
    with pytest.raises(ConfigError, match=r"2 models are named.*-m model.path=a.gguf,b.gguf"):
        compose(["a.gguf", "b.gguf"])
    found: list[Composed] = []
    run_hydra(["-m", "model=a.gguf,b.gguf", "search.minutes=90s,2m"], lambda one: found.append(one) or 0)
    assert [(one.settings.model.path, one.settings.search.minutes) for one in found] == [
        ("a.gguf", 1.5),
        ("a.gguf", 2),
        ("b.gguf", 1.5),
        ("b.gguf", 2),
    ]


def test_a_number_without_a_plain_meaning_has_none() -> None:
    assert number("n_ctx", "16,384", whole=True) is None
    assert number("watts", "1,000") is None
    assert number("watts", "") is None
    assert number("trials", "3 4") is None
    assert bound("watts", "") is None
    assert bound("watts", "<=") is None


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["raport"], "did you mean report?"),
        (["apply", "--to", "llamaserver"], "did you mean llama-server?"),
        (["compare", "--price", "250"], "did you mean --card-price?"),
    ],
)
def test_commands_and_options_have_suggestions(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert meant in capsys.readouterr().err


def test_a_model_in_place_of_a_command_is_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.gguf"), f"root={tmp_path}"]) == 3
    assert "no model at" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "text"), [("--hours", "3x"), ("--per-kwh", "cheap")])
def test_an_option_without_a_plain_number_is_named(
    option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", option, text]) == 2
    assert f"{option} {text}: this is not a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "key", "text", "value"),
    [
        ("--hours", "prices.hours_per_day", "3h", 3.0),
        ("--hours", "prices.hours_per_day", "90m", 1.5),
        ("--per-kwh", "prices.per_kwh", "0,30 EUR", 0.3),
        ("--per-kwh", "prices.per_kwh", "30ct", 0.3),
        ("--card-price", "price", "250€", 250.0),
        ("--card-watts", "watts", "170W", 170.0),
    ],
)
def test_options_take_units(option: str, key: str, text: str, value: float) -> None:
    assert cli._number(option, key)(text) == pytest.approx(value)
