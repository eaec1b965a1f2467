"""What each target writes, read back by that format's own reader, whatever the model is called."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from apply_sweep import CONFIGURATION, make_sweep
from hostile import NAMES, made, names, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeper.apply import run as apply
from sweeper.client.in_force import from_llama_server_argv
from sweeper.errors import MissingError, UsageError
from sweeper.parameters import TUNABLES
from sweeper.records import Configuration, DraftModel, ModelFile

C = CONFIGURATION
FOLDER = Path("/nonexistent/sweeper-test")  # plans read there and find nothing
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
PROGRAMS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])

# What llama-server must be told for CONFIGURATION, in its own words.
SERVER = {
    "fit": "off",
    "n-gpu-layers": "7",
    "split-mode": "row",
    "main-gpu": "1",
    "ctx-size": "1536",
    "parallel": "1",
    "batch-size": "1024",
    "ubatch-size": "256",
    "threads": "3",
    "threads-batch": "5",
    "flash-attn": "on",
    "cache-type-k": "q8_0",
    "cache-type-v": "q5_1",
    "load-mode": "mlock",
}


def flags(argv: list[str]) -> dict[str, str]:
    """`--key value` and `--switch` of a llama-server command line."""
    found: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        assert word.startswith("--"), argv
        if word in ("--no-kv-offload", "--kv-offload"):
            found["kv-offload"] = "off" if word.startswith("--no-") else "on"
        else:
            found[word[2:]] = next(words)
    return found


def without(characters: str) -> st.SearchStrategy[str]:
    return names.filter(lambda name: not any(c in characters for c in name))


def stripped(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return strategy.filter(lambda name: name == name.strip())


# llama-server's presets have no quoting at all: a name with ; or # is refused, see below.
@QUICK
@given(stripped(without(";#")))
def test_llama_server_preset(name: str) -> None:
    plan = made("llama-server", name, FOLDER)
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=(";", "#"))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string("[default]\n" + text_of(plan))
    expected = {"model": f"/models/{name}", **SERVER, "kv-offload": "off"}
    assert dict(parser[plan.request.name]) == expected
    alone = plan.draft.commands[1].argv
    assert alone[0] == "llama-server"
    server = {"alias": plan.request.name, "host": "127.0.0.1", "port": "8080"}
    assert flags(list(alone[1:])) == expected | server


@pytest.mark.parametrize("name", ["a;b.gguf", "a#b.gguf", "trailing "])
def test_llama_server_preset_refuses_what_it_cannot_hold(name: str) -> None:
    with pytest.raises(UsageError, match="rename the file"):
        made("llama-server", name, FOLDER)


@QUICK
@given(names, names)
def test_llama_cpp_python_json(name: str, alias: str) -> None:
    data = json.loads(text_of(made("llama-cpp-python", name, FOLDER, name=alias)))
    assert (data["host"], data["port"]) == ("127.0.0.1", 8000)
    (model,) = data["models"]
    assert (model["model"], model["model_alias"]) == (f"/models/{name}", alias)


def test_llama_cpp_python_settings_as_its_own_server_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_cpp.server.settings import ConfigFileSettings, ModelSettings

    for key in ("N_CTX", "N_THREADS", "TYPE_K"):  # the environment goes into keys that are left out
        monkeypatch.setenv(key, "64")
    text = text_of(made("llama-cpp-python", "x.gguf", FOLDER))
    assert set(json.loads(text)["models"][0]) <= set(ModelSettings.model_fields)
    read = ConfigFileSettings.model_validate_json(text).models[0]
    same = ("n_gpu_layers", "n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "flash_attn")
    same += ("offload_kqv", "use_mmap", "use_mlock", "main_gpu")
    for key in same:
        assert getattr(read, key) == getattr(C, key), key
    import llama_cpp

    assert read.type_k == llama_cpp.GGML_TYPE_Q8_0
    assert read.type_v == llama_cpp.GGML_TYPE_Q5_1
    assert read.split_mode == llama_cpp.LLAMA_SPLIT_MODE_ROW
    assert read.logits_all is False


def read_modelfile(text: str) -> dict[str, str]:
    """Ollama's own reading: a value is the rest of its line, stripped, unprintable characters dropped."""
    found = {}
    for line in text.split("\n"):
        line = "".join(c for c in line if c.isprintable())
        command, _, rest = line.strip().partition(" ")
        if command == "PARAMETER":
            command, _, rest = rest.strip().partition(" ")
        if command:
            found[command] = rest.strip()
    return found


@QUICK
@given(stripped(names.filter(str.isprintable)))
def test_ollama_modelfile(name: str) -> None:
    plan = made("ollama", name, FOLDER)
    assert read_modelfile(text_of(plan)) == {
        "FROM": f"/models/{name}",
        "num_ctx": "1536",
        "num_batch": "1024",
        "num_gpu": "7",
        "main_gpu": "1",
        "num_thread": "3",
        "use_mmap": "false",
    }


def test_ollama_says_everything_that_it_cannot_hold() -> None:
    notes = " ".join(made("ollama", "x.gguf", FOLDER).draft.notes)
    for word in (
        "n_ubatch",
        "n_threads_batch, so the sweep's 5 is not applied",
        "q8_0/q5_1 becomes q8_0",
        "offload_kqv, so the sweep's off",
        "use_mlock, so the sweep's on",
        "split_mode, so the sweep's row",
    ):
        assert word in notes
    plain = Configuration(n_batch=512, n_ubatch=512)
    notes = " ".join(made("ollama", "x.gguf", FOLDER, plain).draft.notes)
    assert "n_ubatch" not in notes
    assert "n_threads_batch" not in notes
    with pytest.raises(UsageError, match="Ollama drops it: rename"):
        made("ollama", "a\u00a0b.gguf", FOLDER)


def not_a_macro(name: str) -> bool:
    return not re.search(r"\$\{[A-Za-z0-9_.-]+\}", name)


@QUICK
@given(names.filter(not_a_macro), stripped(without(",").filter(not_a_macro)))
def test_llama_swap_command(name: str, alias: str) -> None:
    plan = made("llama-swap", name, FOLDER, name=alias, config={"engine": {"environment": {"OMP_X": "a b"}}})
    model = yaml.safe_load(text_of(plan))["models"][alias]
    program, *argv = shlex.split(model["cmd"])
    assert program == "llama-server"
    server = {"alias": alias, "host": "127.0.0.1", "port": "${PORT}"}
    assert flags(argv) == {"model": f"/models/{name}", **SERVER, "kv-offload": "off"} | server
    assert model["env"] == ["OMP_X=a b"]


def test_llama_swap_refuses_a_name_that_it_would_replace() -> None:
    with pytest.raises(UsageError, match="would replace"):
        made("llama-swap", "${PORT}.gguf", FOLDER)


@QUICK
@given(names, names)
def test_textgen_key_matches_this_file_alone(name: str, other: str) -> None:
    from sweeper.apply.targets.textgen import pattern_of

    pattern = pattern_of(name)
    # text-generation-webui's own test, modules/models_settings.py
    assert re.match(pattern.lower(), name.lower())
    if other.lower() != name.lower():
        assert not re.match(pattern.lower(), other.lower())


@QUICK
@given(names)
def test_textgen_settings(name: str) -> None:
    from sweeper.apply.targets.textgen import pattern_of, settings
    from sweeper.apply.yaml_text import with_entry

    text = with_entry("", None, pattern_of(name), settings(C), "config-user.yaml")
    entry = yaml.safe_load(text)[pattern_of(name)]
    assert entry == {
        "loader": "llama.cpp",
        "gpu_layers": 7,
        "ctx_size": 1536,
        "cache_type": "fp16",
        "threads": 3,
        "threads_batch": 5,
        "batch_size": 1024,
        "ubatch_size": 256,
        "no_kv_offload": True,
        "no_mmap": True,
        "mlock": True,
        "row_split": True,
        "extra_flags": "flash-attn=on,main-gpu=1,parallel=1,cache-type-k=q8_0,cache-type-v=q5_1",
    }


def test_textgen_uses_its_own_cache_type_where_it_has_one() -> None:
    from sweeper.apply.targets.textgen import settings

    same = settings(C.with_(type_k="q8_0", type_v="q8_0"))
    assert same["cache_type"] == "q8_0"
    assert "cache-type" not in same["extra_flags"]


def test_textgen_wants_its_folder() -> None:
    with pytest.raises(MissingError, match="text-generation-webui's folder"):
        made("textgen", "x.gguf", FOLDER)


@QUICK
@given(names)
def test_compose_service(name: str) -> None:
    plan = made("compose", name, FOLDER)
    service = yaml.safe_load(text_of(plan))["services"][plan.request.name]

    def interpolated(text: str) -> str:
        """Compose's own rule: `$$` is `$`, and any other `$` begins a variable."""
        assert "$" not in text.replace("$$", "")
        return text.replace("$$", "$")

    found = flags([interpolated(word) for word in service["command"]])
    server = {"alias": plan.request.name, "host": "0.0.0.0", "port": "8080"}
    assert found == {"model": f"/models/{name}", **SERVER, "kv-offload": "off"} | server
    (volume,) = service["volumes"]
    assert interpolated(volume["source"]) == f"/models/{name}"
    assert interpolated(volume["target"]) == found["model"]
    assert volume["read_only"] is True
    assert service["ports"] == ["127.0.0.1:8080:8080"]
    assert service["image"].endswith(":server-cuda")
    assert service["ulimits"] == {"memlock": -1}


def test_compose_without_layers_on_a_gpu_asks_for_none() -> None:
    plan = made("compose", "x.gguf", FOLDER, C.with_(n_gpu_layers=0, use_mlock=False))
    service = yaml.safe_load(text_of(plan))["services"][plan.request.name]
    assert service["image"].endswith(":server")
    assert "deploy" not in service
    assert "ulimits" not in service


def docker_compose() -> list[str]:
    """Docker's own reader of these files, the plugin or the older program."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(words[0])
            and subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0
        ):
            return words
    pytest.skip("no `docker compose` on this machine")


# Two seconds each: the names that mean something to Compose or to YAML's quoted strings.
@pytest.mark.parametrize("name", [name for name in NAMES if set(name) & set('$"\\{&Ω')])
def test_compose_as_docker_reads_it(tmp_path: Path, name: str) -> None:
    plan = made("compose", name, FOLDER)
    compose, text = docker_compose(), plan.draft.files[0].after.decode()
    if compose == ["docker-compose"]:  # it knows all of the file but this key, which came with the plugin
        text = re.sub(r"\n *bind:\n *create_host_path: false", "", text)
    (tmp_path / "compose.yaml").write_text(text, "utf-8", newline="")
    done = subprocess.run(
        [*compose, "-f", str(tmp_path / "compose.yaml"), "config"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr  # a dollar that it takes for its own
    service = yaml.safe_load(done.stdout)["services"][plan.request.name]
    words = [word.replace("$$", "$") for word in service["command"]]  # it writes them doubled again
    assert words[words.index("--model") + 1] == f"/models/{name}"
    (volume,) = service["volumes"]
    source = volume["source"] if isinstance(volume, dict) else volume.rsplit(":", 2)[0]
    assert Path(source.replace("$$", "$")).is_absolute()


def systemd_reads(folder: Path, unit: str) -> tuple[str, str]:
    """What systemd's own parser makes of a unit, and its complaints."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze on this machine")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(folder / unit)],
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "debug", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    mine = [line for line in done.stderr.splitlines() if str(folder) in line and ":" in line]
    complaints = [line for line in mine if re.search(r"\.(conf|service):\d+:", line)]
    return done.stdout, "\n".join(complaints)


def write_units(plan, folder: Path) -> None:
    for change in plan.draft.files:
        change.path.parent.mkdir(parents=True, exist_ok=True)
        change.path.write_bytes(change.after)


@PROGRAMS
@given(stripped(names))
def test_systemd_drop_in_as_systemd_reads_it(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("units")
    program = folder / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    environment = {"OMP_WAIT_POLICY": f"passive %i {name}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        plan = made("systemd", name, folder, config={"engine": {"environment": environment}})
    write_units(plan, folder)
    dump, complaints = systemd_reads(folder, "llama-server.service")
    assert complaints == ""
    (line,) = re.findall(r"^\t+Command Line: (.*)$", dump, re.MULTILINE)
    # systemd quotes as a shell does; `$$` is still what it becomes only when the program is started
    words = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    found_program, *argv = [word.replace("$$", "$") for word in words.decode().split("\0")[:-1]]
    assert found_program == str(program)
    server = {"alias": plan.request.name, "host": "127.0.0.1", "port": "8080"}
    assert flags(argv) == {"model": f"/models/{name}", **SERVER, "kv-offload": "off"} | server
    assert f"Environment: OMP_WAIT_POLICY={environment['OMP_WAIT_POLICY']}" in dump


def test_systemd_power_limit_unit(tmp_path: Path) -> None:
    plan = made("systemd", "x.gguf", tmp_path, C.with_(power_limit_watts=120))
    write_units(plan, tmp_path)
    dump, complaints = systemd_reads(tmp_path, "sweeper-power-limit.service")
    assert complaints == ""
    uuid = "GPU-11111111-2222-3333-4444-555555555555"
    lines = re.findall(r"^\t+Command Line: (.*)$", dump, re.MULTILINE)
    assert lines == [
        f"/usr/bin/env nvidia-smi -i {uuid} -pl 120",
        f"/usr/bin/env nvidia-smi -i {uuid} -pl 170",
    ]
    assert not any("power limit" in note for note in plan.draft.notes)  # it is set, so nobody has to be told


def test_systemd_keeps_a_service_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "llama-server.service").write_text("[Service]\nExecStart=/opt/mine\n")
    plan = made("systemd", "x.gguf", tmp_path)
    assert [change.path.name for change in plan.draft.files] == ["sweeper.conf"]


@PROGRAMS
@given(names, stripped(without(",")))
def test_env_as_a_shell_reads_it(tmp_path_factory: pytest.TempPathFactory, name: str, alias: str) -> None:
    folder = tmp_path_factory.mktemp("env")
    plan = made("env", name, folder, name=alias, config={"engine": {"environment": {"OMP_X": "a $b"}}})
    (folder / "llama-server.env").write_bytes(plan.draft.files[0].after)
    (command,) = plan.draft.commands
    script = command.argv[2].replace("exec llama-server", "echo", 1) + "; env -0"
    done = subprocess.run(
        ["sh", "-c", script], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
    )
    rest, _, variables = done.stdout.decode().partition("\n")
    assert rest == "--threads-batch 5"
    found = dict(item.split("=", 1) for item in variables.split("\0") if item)
    assert found["LLAMA_ARG_MODEL"] == f"/models/{name}"
    assert found["LLAMA_ARG_ALIAS"] == alias
    assert found["OMP_X"] == "a $b"
    assert (found["LLAMA_ARG_HOST"], found["LLAMA_ARG_PORT"]) == ("127.0.0.1", "8080")
    values = set(SERVER.values()) - {"5"}
    assert values <= set(found.values())
    assert found["LLAMA_ARG_KV_OFFLOAD"] == "off"


@QUICK
@given(names)
def test_python_snippet(name: str) -> None:
    import inspect

    import llama_cpp

    tree = ast.parse(
        made("python", name, FOLDER, config={"engine": {"environment": {"OMP_X": "1"}}}).draft.snippet or ""
    )
    (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert arguments.pop("model_path") == f"/models/{name}"
    assert set(arguments) <= set(inspect.signature(llama_cpp.Llama).parameters)
    for key, value in C.to_dict().items():
        if not TUNABLES[key].in_llama_cpp_python:
            continue
        expected = {"type_k": 8, "type_v": 7, "split_mode": 2}.get(key, value)
        assert arguments[key] == expected, key


def test_lm_studio_steps() -> None:
    plan = made("lm-studio", "x.gguf", FOLDER)
    for words in ("Context Length", "1536", "q8_0", "q5_1", "1234"):
        assert words in (plan.draft.snippet or "")
    assert "n_ubatch" in " ".join(plan.draft.notes)


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "a\x1bb", "a\x85b", "a\u2028b", "a\udcffb"])
@pytest.mark.parametrize(
    "target",
    ["llama-server", "llama-cpp-python", "ollama", "llama-swap", "compose", "systemd", "env", "python"],
)
def test_a_line_end_or_control_character_is_refused(target: str, bad: str) -> None:
    with pytest.raises(UsageError, match="rename it"):
        made(target, bad, FOLDER)
    with pytest.raises(UsageError, match="rename it"):
        made(target, "x.gguf", FOLDER, name=bad)


@pytest.mark.parametrize("name", NAMES)
def test_default_names_are_safe_and_differ(name: str) -> None:
    from sweeper.apply.names import alias_for, slug

    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", slug(name))
    assert len({slug(other) for other in NAMES}) == len(NAMES)
    assert alias_for("codebooga-34b", "Q4_K_M", "within:5%") == "codebooga-34b-q4_k_m-eco"


MIXTURE = replace(C, n_cpu_moe=7)


@pytest.mark.parametrize("target", ["python", "llama-cpp-python", "ollama", "lm-studio"])
def test_a_target_that_cannot_keep_experts_on_the_host_says_so(target: str) -> None:
    notes = " ".join(made(target, "x.gguf", FOLDER, MIXTURE).draft.notes)
    assert "has no setting for n_cpu_moe, so the sweep's 7 is not applied" in notes
    assert "n_cpu_moe" not in " ".join(made(target, "x.gguf", FOLDER).draft.notes)


def test_experts_on_the_host_reach_llama_server_and_textgen() -> None:
    sweep = make_sweep(Path("/models/x.gguf"), MIXTURE, config={})
    sweep = replace(sweep, model=replace(sweep.model, expert_count=8))
    plan = apply.plan(sweep, 3, "llama-server", apply.Options(folder=FOLDER))
    assert "n-cpu-moe = 7\n" in text_of(plan)
    assert from_llama_server_argv(list(plan.draft.commands[1].argv))["n_cpu_moe"] == 7
    assert "n-cpu-moe=7" in text_of(
        apply.plan(sweep, 3, "textgen", apply.Options(folder=FOLDER, file=FOLDER / "c.yaml"))
    )


PLACED = replace(C, tensor_split="3,1", op_offload=False, repack=False, n_parallel=4, spec_type="ngram-mod")


@pytest.mark.parametrize("target", ["llama-server", "llama-swap", "compose", "systemd"])
def test_placement_and_slots_are_read_back_from_every_command_line(target: str) -> None:
    plan = made(target, "x.gguf", FOLDER, PLACED)
    if target == "llama-server":
        argv = list(plan.draft.commands[1].argv)
    else:
        text = plan.draft.files[-1].after.decode()
        words = yaml.safe_load(text) if target != "systemd" else None
        if target == "compose":
            argv = next(iter(words["services"].values()))["command"]
        elif target == "llama-swap":
            argv = shlex.split(next(iter(words["models"].values()))["cmd"])
        else:
            argv = shlex.split(text.rpartition("ExecStart=")[2])
    found = from_llama_server_argv(argv)
    for name in ("tensor_split", "op_offload", "repack", "n_parallel", "spec_type", "n_ctx"):
        assert found[name] == getattr(PLACED, name), name
    assert argv[argv.index("--ctx-size") + 1] == str(4 * PLACED.n_ctx)
    assert "--kv-unified" in argv
    assert argv[argv.index("--fit") + 1] == "off"


def test_the_environment_and_the_web_ui_hold_placement_and_slots() -> None:
    env = made("env", "x.gguf", FOLDER, PLACED)
    text = text_of(env)
    for line in ("TENSOR_SPLIT=3,1", "REPACK=off", "N_PARALLEL=4", "KV_UNIFIED=on", "SPEC_TYPE=ngram-mod"):
        assert f"LLAMA_ARG_{line}\n" in text
    assert env.draft.commands[0].argv[-1].endswith("--threads-batch 5 --no-op-offload")
    sweep = make_sweep(Path("/models/x.gguf"), PLACED, config={})
    plan = apply.plan(sweep, 3, "textgen", apply.Options(folder=FOLDER, file=FOLDER / "c.yaml"))
    (entry,) = yaml.safe_load(text_of(plan)).values()
    flags = entry["extra_flags"].split(",no-")
    assert entry["ctx_size"] == 4 * PLACED.n_ctx
    assert {"parallel=4", "spec-type=ngram-mod"} <= set(flags[0].split(","))
    assert set(",".join(flags[1:]).split(",")) == {"op-offload", "repack", "kv-unified"}


def drafting(target: str, draft: str = "/drafts/x.gguf", spec_type: str = "draft-simple") -> apply.ApplyPlan:
    """The plan for a trial of a sweep that had a draft model."""
    sweep = make_sweep(Path("/models/x.gguf"), replace(C, spec_type=spec_type, spec_draft_n_max=5), config={})
    record = DraftModel(ModelFile("Q8_0", draft, "0" * 64, 10**6), "draft-simple")
    sweep = replace(sweep, model=replace(sweep.model, draft=record))
    file = FOLDER / "c.yaml" if target == "textgen" else None
    return apply.plan(sweep, 3, target, apply.Options(folder=FOLDER, file=file))


@pytest.mark.parametrize("target", ["llama-server", "llama-swap", "systemd"])
def test_a_draft_model_is_read_back_from_every_command_line(target: str) -> None:
    plan = drafting(target)
    text = plan.draft.files[-1].after.decode()
    if target == "llama-server":
        argv = list(plan.draft.commands[1].argv)
    elif target == "llama-swap":
        argv = shlex.split(next(iter(yaml.safe_load(text)["models"].values()))["cmd"])
    else:
        argv = shlex.split(text.rpartition("ExecStart=")[2])
    found = from_llama_server_argv(argv)
    assert (found["model"], found["draft"]) == ("/models/x.gguf", "/drafts/x.gguf")
    assert (found["spec_type"], found["spec_draft_n_max"]) == ("draft-simple", 5)
    assert "spec-draft-model" not in drafting(target, spec_type="ngram-mod").draft.files[-1].after.decode()


def test_compose_mounts_a_draft_model_beside_the_model() -> None:
    (service,) = yaml.safe_load(text_of(drafting("compose")))["services"].values()
    found = from_llama_server_argv(service["command"])
    mounts = {mount["target"]: mount["source"] for mount in service["volumes"]}
    assert mounts == {found["model"]: "/models/x.gguf", found["draft"]: "/drafts/x.gguf"}
    (service,) = yaml.safe_load(text_of(drafting("compose", "/models/x.gguf")))["services"].values()
    found = from_llama_server_argv(service["command"])
    assert found["model"] == found["draft"] == service["volumes"][0]["target"]
    assert len(service["volumes"]) == 1


def test_the_environment_and_the_web_ui_hold_a_draft_model() -> None:
    assert "LLAMA_ARG_SPEC_DRAFT_MODEL=/drafts/x.gguf\n" in text_of(drafting("env"))
    (entry,) = yaml.safe_load(text_of(drafting("textgen"))).values()
    flags = entry["extra_flags"].split(",")
    assert {"spec-draft-model=/drafts/x.gguf", "spec-type=draft-simple", "spec-draft-n-max=5"} <= set(flags)
    with pytest.raises(UsageError, match="extra_flags there: rename the file"):
        drafting("textgen", "/drafts/a,b.gguf")


def test_a_preset_names_the_draft_model_that_it_cannot_hold() -> None:
    with pytest.raises(UsageError, match=r"the draft model's path '/drafts/a;b\.gguf'"):
        drafting("llama-server", "/drafts/a;b.gguf")
    with pytest.raises(UsageError, match=r"the draft model's path .* which llama-swap would replace"):
        drafting("llama-swap", "/drafts/${x}.gguf")


@pytest.mark.parametrize("target", ["python", "llama-cpp-python", "ollama", "lm-studio"])
def test_a_target_that_cannot_speculate_says_so(target: str) -> None:
    notes = " ".join(drafting(target).draft.notes)
    assert "has no setting for spec_type, so the sweep's draft-simple is not applied" in notes


def test_a_draft_model_of_the_user_goes_where_the_sweep_had_one(tmp_path: Path) -> None:
    path = tmp_path / "llama-server.ini"
    path.write_text("version = 1\n\n[mine]\nmodel-draft = /old.gguf\nspec-draft-hf = a/b\njinja = on\n")
    for spec_type, kept in (("draft-simple", False), ("none", False), (None, True)):
        plain = replace(C, spec_type=spec_type or "none")
        sweep = make_sweep(Path("/models/x.gguf"), plain, config={})
        if spec_type:
            record = DraftModel(ModelFile("Q8_0", "/new.gguf", "0" * 64, 1), "draft-simple")
            sweep = replace(sweep, model=replace(sweep.model, draft=record))
        plan = apply.plan(sweep, 3, "llama-server", apply.Options(name="mine", folder=tmp_path))
        assert ("/old.gguf" in text_of(plan)) == kept
        assert ("keeps model-draft" in " ".join(plan.draft.notes)) == kept
        assert ("spec-draft-model = /new.gguf\n" in text_of(plan)) == (spec_type == "draft-simple")
        assert "jinja = on" in text_of(plan)


def test_a_placement_left_to_the_server_is_written_so() -> None:
    fitted = replace(C, fit=True)
    argv = list(made("llama-server", "x.gguf", FOLDER, fitted).draft.commands[1].argv)
    assert argv[argv.index("--fit") + 1] == "on"
    assert argv[argv.index("--n-gpu-layers") + 1] == "auto"
    assert "--n-cpu-moe" not in argv


def test_targets_of_llama_cpp_python_hold_the_split_and_name_the_rest() -> None:
    server = made("llama-cpp-python", "x.gguf", FOLDER, PLACED)
    assert '"tensor_split": [\n        3.0,\n        1.0\n      ]' in text_of(server)
    notes = " ".join(server.draft.notes)
    for says in (
        "op_offload, so the sweep's off",
        "repack, so the sweep's off",
        "n_parallel, so the sweep's 4",
    ):
        assert f"llama_cpp.server has no setting for {says} is not applied" in notes
    snippet = made("python", "x.gguf", FOLDER, PLACED).draft
    assert "op_offload=False," in (snippet.snippet or "")
    assert "op_offload" not in " ".join(snippet.notes)


def test_ollama_and_lm_studio_hold_the_slots_and_name_the_rest() -> None:
    ollama = made("ollama", "x.gguf", FOLDER, PLACED)
    assert "OLLAMA_NUM_PARALLEL=4" in ollama.draft.files[1].after.decode()
    assert "n_parallel" not in " ".join(ollama.draft.notes)
    assert "Ollama has no setting for tensor_split, so the sweep's 3,1 is not applied" in ollama.draft.notes
    studio = made("lm-studio", "x.gguf", FOLDER, PLACED)
    assert re.search(r"Max Concurrent Predictions +4\n", studio.draft.snippet or "")
    assert "LM Studio has no setting for op_offload, so the sweep's off is not applied" in studio.draft.notes
    assert f"set {4 * PLACED.n_ctx} for it" in studio.draft.notes[-1]
