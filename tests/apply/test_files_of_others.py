"""What other people's files hold beside sweeper's entry: other names, tags, ports, and keys of an older command."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from apply_sweep import CONFIGURATION, make_sweep

from sweeper.apply import run as apply
from sweeper.apply.base import ApplyPlan
from sweeper.apply.yaml_text import with_entry
from sweeper.errors import UsageError


def planned(target: str, folder: Path, port: int | None = None, **engine: Any) -> ApplyPlan:
    sweep = make_sweep(Path("/models/x.gguf"), config={"engine": engine} if engine else {})
    return apply.plan(sweep, 3, target, apply.Options(name="nano", folder=folder, port=port))


def text_of(plan: ApplyPlan) -> str:
    (file,) = plan.draft.files
    return file.after.decode()


def notes_of(plan: ApplyPlan) -> str:
    return "\n".join(plan.draft.notes)


# -- Compose

WEBUI = "services:\n  webui:\n    image: webui\n    ports: ['3000:8080']\n"


@pytest.mark.parametrize("name", ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"])
def test_compose_merges_into_the_file_that_compose_reads(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(WEBUI)
    plan = planned("compose", tmp_path)
    assert plan.draft.files[0].path == tmp_path / name
    assert text_of(plan).startswith(WEBUI)
    assert plan.draft.commands[0].argv[:4] == ("docker", "compose", "-f", str(tmp_path / name))


def test_compose_prefers_names_as_compose_does(tmp_path: Path) -> None:
    for name in ("docker-compose.yaml", "docker-compose.yml", "compose.yml"):
        (tmp_path / name).write_text(WEBUI)
    assert planned("compose", tmp_path).draft.files[0].path.name == "compose.yml"


def test_compose_refuses_a_new_file_that_takes_the_place_of_the_one_in_use(tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text(WEBUI)
    sweep = make_sweep(Path("/models/x.gguf"))
    with pytest.raises(UsageError, match=r"name docker-compose\.yml with --file"):
        apply.plan(sweep, 3, "compose", apply.Options(file=tmp_path / "compose.yaml"))


def test_compose_names_the_file_above_that_a_new_one_hides(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(WEBUI)
    (tmp_path / "inner").mkdir()
    assert f"Compose has read {tmp_path / 'compose.yaml'}" in notes_of(planned("compose", tmp_path / "inner"))


@pytest.mark.parametrize("name", ["compose.override.yml", "docker-compose.override.yaml"])
def test_compose_reads_the_override_beside_the_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(WEBUI)
    (tmp_path / name).write_text("services:\n  webui:\n    ports: !override ['127.0.0.1:8080:8080']\n")
    plan = planned("compose", tmp_path)
    assert plan.request.port == 8081
    files = [word for word in plan.draft.commands[0].argv if word.startswith(str(tmp_path))]
    assert files == [str(tmp_path / "compose.yaml"), str(tmp_path / name)]
    (tmp_path / name).write_text("services:\n  nano:\n    command: [old]\n")
    with pytest.raises(UsageError, match="sets command of the service 'nano' too"):
        planned("compose", tmp_path)


def test_compose_keeps_tags_of_compose_s_own(tmp_path: Path) -> None:
    old = (
        "services:\n  webui:\n    ports: !override\n      - '3000:8080'\n    environment: !reset null\n"
        "  nano:\n    environment: !reset null\n    labels: !override {a: 1}\n    image: old # mine\n"
    )
    (tmp_path / "compose.yaml").write_text(old)
    new = text_of(planned("compose", tmp_path))
    assert new.startswith(old[: old.index("    image: old")])


TAKEN = [
    '"8080:80"',
    "8080:80/tcp",
    '"127.0.0.1:8080:80"',
    '"0.0.0.0:8080:80"',
    '"8000-8100:8000-8100"',
    "8080:22",  # which YAML 1.1 takes for a number of base 60
    "{target: 80, published: 8080}",
    '{target: 80, published: "8079-8080", host_ip: 127.0.0.1, protocol: tcp, mode: host}',
    '"${CHAT_PORT:-8080}:80"',
    '"${FROM_DOTENV}:80"',
]
FREE = [
    "8080",
    '"3000:8080"',
    "8080:80/udp",
    '"192.168.1.4:8080:80"',
    '"[::1]:8080:80"',
    '"127.0.0.1::8080"',
    "{target: 8080}",
    "{target: 80, published: 8080, protocol: udp}",
    '"${CHAT_PORT:-3000}:8080"',
    "{}",
    "[8080]",
]


@pytest.mark.parametrize("port", TAKEN)
def test_compose_leaves_a_port_to_the_service_that_publishes_it(port: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FROM_DOTENV='8080'\n")
    (tmp_path / "compose.yaml").write_text(f"services:\n  webui:\n    image: w\n    ports:\n      - {port}\n")
    plan = planned("compose", tmp_path)
    moved = yaml.safe_load(text_of(plan))["services"]["nano"]["ports"]
    assert moved == [f"127.0.0.1:{plan.request.port}:8080"]
    assert plan.request.port == (8101 if "8100" in port else 8081)
    assert f"'webui' publishes 127.0.0.1:8080 already, so this one gets port {plan.request.port}" in notes_of(
        plan
    )
    with pytest.raises(UsageError, match="choose another port with --port"):
        planned("compose", tmp_path, port=8080)


@pytest.mark.parametrize("port", FREE)
def test_compose_takes_a_port_that_is_free_on_loopback(port: str, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(f"services:\n  webui:\n    image: w\n    ports:\n      - {port}\n")
    plan = planned("compose", tmp_path)
    assert plan.request.port == 8080
    assert "publishes" not in notes_of(plan)


def test_compose_replaces_its_own_port_and_what_belongs_to_the_old_command(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(
        "services:\n  nano:\n    image: old\n    build: .\n    entrypoint: [old]\n    network_mode: host\n"
        "    healthcheck: {test: curl localhost:9}\n    container_name: mine\n    cpuset: 0-3\n"
        "    ports: ['8080:8080']\n    environment: {HF_TOKEN: a, LLAMA_ARG_CPU_MOE: 1, OMP_X: old}\n"
    )
    plan = planned("compose", tmp_path, environment={"OMP_X": "b"})
    service = yaml.safe_load(text_of(plan))["services"]["nano"]
    assert plan.request.port == 8080
    assert not service.keys() & {"build", "entrypoint", "network_mode", "healthcheck"}
    assert service["container_name"] == "mine"
    assert service["environment"] == {"HF_TOKEN": "a", "LLAMA_ARG_CPU_MOE": 1, "OMP_X": "b"}
    assert "entrypoint, build, healthcheck, network_mode of services.nano left" in notes_of(plan)
    assert "services.nano keeps cpuset, LLAMA_ARG_CPU_MOE" in notes_of(plan)


def test_compose_refuses_an_entry_that_takes_its_entrypoint_from_a_merge_key(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(
        "x-base: &base\n  entrypoint: [a]\nservices:\n  nano:\n    <<: *base\n    image: old\n"
    )
    with pytest.raises(UsageError, match=r"'entrypoint' from another one by a merge key \(<<\)"):
        planned("compose", tmp_path)


def test_compose_says_whose_ports_it_cannot_see(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(
        "include: [b.yaml]\nservices:\n  webui:\n    image: w\n    network_mode: host\n"
    )
    assert "port 8080 is free: sweeper cannot see the ports of the service 'webui' on" in notes_of(
        planned("compose", tmp_path)
    )


# -- llama-swap


def swap(tmp_path: Path, text: str, **engine: Any) -> tuple[str, dict[str, Any], str]:
    (tmp_path / "config.yaml").write_text(text)
    plan = planned("llama-swap", tmp_path, **engine)
    return text_of(plan), yaml.safe_load(text_of(plan))["models"]["nano"], notes_of(plan)


OLD = """defaults: &defaults
  ttl: 7200
  checkEndpoint: /  # of the old server
models:
  nano: &nano
    <<: [*defaults]
    # mine
    aliases: [gpt]   # as my editor calls it
    cmd: >
      docker run --name old -p 8999:8080 image
    cmdStop: docker stop old
    proxy: "http://127.0.0.1:8999"

  other:
    <<: *defaults
    cmd: other
"""


def test_llama_swap_sets_what_belongs_to_the_command_and_keeps_the_rest(tmp_path: Path) -> None:
    text, entry, notes = swap(tmp_path, OLD)
    assert text.startswith(OLD[: OLD.index("    cmd: >")])
    assert text.endswith(OLD[OLD.index("  other:") :])
    assert entry["proxy"] == "http://127.0.0.1:${PORT}"
    assert entry["checkEndpoint"] == "/health"
    assert entry["cmdStop"] == ""
    assert (entry["ttl"], entry["aliases"]) == (7200, ["gpt"])
    assert "--port ${PORT}" in entry["cmd"]
    for name in ("proxy", "checkEndpoint", "cmdStop"):
        assert f"{name} was" in notes


def test_llama_swap_says_nothing_of_keys_that_fit(tmp_path: Path) -> None:
    first, *_ = swap(tmp_path, OLD)
    again, _, notes = swap(tmp_path, first)
    assert again == first
    assert notes == ""


def test_llama_swap_keeps_the_variables_of_the_entry(tmp_path: Path) -> None:
    old = "models:\n  nano:\n    cmd: a\n    env: [HF_TOKEN=a, OMP_X=old, CUDA_VISIBLE_DEVICES=1]\n"
    _, entry, notes = swap(tmp_path, old, environment={"OMP_X": "b"})
    assert entry["env"] == ["HF_TOKEN=a", "CUDA_VISIBLE_DEVICES=1", "OMP_X=b"]
    assert "models.nano keeps CUDA_VISIBLE_DEVICES: the sweep" in notes


@pytest.mark.parametrize("keys", ["aliases: [nano]", "filters: {setParamsByID: {nano: {temperature: 0}}}"])
def test_llama_swap_refuses_a_name_that_is_another_model_s_alias(keys: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'nano' is an alias of 'big' already"):
        swap(tmp_path, f"models:\n  big:\n    cmd: a\n    {keys}\n")


# -- llama-server's presets

LOAD_WORDS = [
    "mmap",
    "no-mmap",
    "mlock",
    "direct-io",
    "no-direct-io",
    "dio",
    "ndio",
    "lm",
    "LLAMA_ARG_NO_MMAP",
]
SOURCES = [
    "hf-repo",
    "hf",
    "hff",
    "mu",
    "docker-repo",
    "LLAMA_ARG_HF_REPO",
    "LLAMA_ARG_NO_KV_OFFLOAD",
    "np",
    "gpu-layers",
]


@pytest.mark.parametrize("key", [*LOAD_WORDS, *SOURCES, "ts", "no-repack", "kvu", "spec-type"])
def test_preset_drops_every_spelling_of_what_it_sets(key: str, tmp_path: Path) -> None:
    (tmp_path / "llama-server.ini").write_text(f"[nano]\n{key} = on\ntemp = 1.0\n")
    text = text_of(planned("llama-server", tmp_path))
    assert f"\n{key} =" not in text
    assert text.endswith("load-mode = mlock\ntemp = 1.0\n")


@pytest.mark.parametrize(
    "key",
    [
        "cpu-moe",
        "override-tensor",
        "ot",
        "device",
        "dev",
        "rpc",
        "LLAMA_ARG_CPU_MOE",
        "no-host",
        "numa",
        "md",
    ],
)
def test_preset_names_a_kept_key_that_decides_where_weights_lie(key: str, tmp_path: Path) -> None:
    (tmp_path / "llama-server.ini").write_text(f"[nano]\n{key} = x\n[other]\nlora = x\n")
    plan = planned("llama-server", tmp_path)
    assert f"{key} = x" in text_of(plan)
    assert f"[nano] keeps {key}: the sweep measured without" in notes_of(plan)
    (tmp_path / "llama-server.ini").write_text(f"[*]\n{key} = x\njinja = on\n")
    assert f"[*], which applies to every model, keeps {key}:" in notes_of(planned("llama-server", tmp_path))


def test_preset_without_such_a_key_has_no_note(tmp_path: Path) -> None:
    (tmp_path / "llama-server.ini").write_text("[*]\njinja = on\n[nano]\ntemp = 1.0\n[other]\nrpc = x\n")
    assert "keeps" not in notes_of(planned("llama-server", tmp_path))


# -- text-generation-webui


def textgen(tmp_path: Path, text: str) -> tuple[str, dict[str, Any], str]:
    file = tmp_path / "user_data/models/config-user.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    plan = planned("textgen", tmp_path)
    data = yaml.safe_load(text_of(plan))
    return text_of(plan), data.get("x.gguf$") or data["x\\.gguf$"], notes_of(plan)


def test_textgen_comes_after_an_entry_that_matches_more_and_names_what_that_one_sets(tmp_path: Path) -> None:
    old = ".*gguf:\n  ctx_size: 99\n  tensor_split: 1,2\n  extra_flags: override-tensor=exps=CPU,fa=off\n"
    text, entry, notes = textgen(tmp_path, old)
    assert text.startswith(old)
    assert entry["ctx_size"] == 1536
    assert entry["extra_flags"].endswith(",override-tensor=exps=CPU")
    assert "fa=off" not in entry["extra_flags"]
    assert "config-user.yaml keeps tensor_split, override-tensor" in notes


def test_textgen_refuses_an_entry_that_comes_later_and_overrides(tmp_path: Path) -> None:
    later = ".*GGUF$:\n  loader: llama.cpp\n"
    _, entry, _ = textgen(tmp_path, f"x.gguf$:\n  ctx_size: 1\n{later}")
    assert entry["ctx_size"] == 1536
    with pytest.raises(UsageError, match=r"'\.\*GGUF\$' matches x\.gguf too, comes later and sets ctx_size"):
        textgen(tmp_path, f"x.gguf$:\n  ctx_size: 1\n{later}  ctx_size: 8192\n")


def test_textgen_keeps_flags_in_the_newer_form(tmp_path: Path) -> None:
    old = "x.gguf$:\n  extra_flags: '--jinja --rpc 1:2,3:4 -fa off --chat-template \"a b\"'\n"
    _, entry, notes = textgen(tmp_path, old)
    words = shlex.split(entry["extra_flags"])
    assert words[:2] == ["--flash-attn", "on"]
    assert words[-5:] == ["--jinja", "--rpc", "1:2,3:4", "--chat-template", "a b"]
    assert "-fa" not in words
    assert "keeps rpc" in notes
    assert textgen(tmp_path, yaml.safe_dump({"x.gguf$": entry}))[1] == entry


# -- YAML in every target


@pytest.mark.parametrize(
    "text",
    [
        "models:\n  nano:\n    cmd: &c a\n  other:\n    cmd: *c\n",
        "models:\n  nano: &nano\n    proxy: a\n  other:\n    <<: *nano\n",
        "models:\n  nano: &nano {proxy: a}\n  other: *nano\n",
        "all: &all\n  a: {cmd: b}\nmodels: *all\n",
        "models:\n  nano:\n    cmd: a\n  nano:\n    cmd: b\n",
    ],
)
def test_an_entry_that_others_refer_to_is_refused_for_the_true_reason(text: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"cannot change 'nano' alone, because of an anchor|in one line|holds 'nano' again in line 4",
    ):
        swap(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [\n", "is not YAML"),
        ("a: 1\n---\nb: 2\n", r"is YAML that sweeper cannot read \(line 2"),
        ("a: *b\n", "is YAML that sweeper cannot read"),
        ("? [a]\n: 1\n", "is YAML that sweeper cannot read"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: \x01\n", "is not YAML .a character that YAML does not allow"),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_for_the_true_reason(
    text: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        swap(tmp_path, text)


def test_words_that_versions_of_yaml_read_differently_stay_as_they_are() -> None:
    old = "models:\n  nano: {a: on, b: 0777, c: 2001-99-99, d: 22:22, e: !x 1, f: '1', g: ~, h: !y {i: 1}}\n"
    kept = "a: on|b: 0777|c: 2001-99-99|d: 22:22|e: !x '1'|f: \"1\"|g: ~|h: !y\n      i: 1"
    new = with_entry(old, "models", "nano", {"cmd": "x"}, "f")
    assert new == "models:\n  nano:\n" + "".join(f"    {line}\n" for line in [*kept.split("|"), "cmd: x"])


MIXTURE = replace(CONFIGURATION, n_cpu_moe=7)


def test_preset_of_a_mixture_drops_cpu_moe(tmp_path: Path) -> None:
    (tmp_path / "llama-server.ini").write_text("[nano]\ncpu-moe = on\nncmoe = 3\n")
    sweep = make_sweep(Path("/models/x.gguf"), MIXTURE)
    sweep = replace(sweep, model=replace(sweep.model, expert_count=8))
    plan = apply.plan(sweep, 3, "llama-server", apply.Options(name="nano", folder=tmp_path))
    assert "\nn-cpu-moe = 7\n" in text_of(plan)
    assert "\ncpu-moe" not in text_of(plan)
    assert "\nncmoe" not in text_of(plan)


# -- llama-cpp-python and systemd


def test_llama_cpp_python_drops_a_repository_and_names_what_it_keeps(tmp_path: Path) -> None:
    mine = {"model_alias": "nano", "hf_model_repo_id": "a/b", "rpc_servers": "b", "draft_model": None}
    (tmp_path / "llama-cpp-python.json").write_text(json.dumps({"models": [mine], "x": "\ud800"}))
    plan = planned("llama-cpp-python", tmp_path)
    data = json.loads(text_of(plan))
    assert "hf_model_repo_id" not in data["models"][0]
    assert data["x"] == "\ud800"
    assert "the model nano keeps rpc_servers: the sweep measured without" in notes_of(plan)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"models": ' + "9" * 5000 + "}"])
def test_json_that_cannot_be_read_is_refused_for_the_true_reason(text: str, tmp_path: Path) -> None:
    (tmp_path / "llama-cpp-python.json").write_text(text)
    with pytest.raises(UsageError, match="is JSON that sweeper cannot read"):
        planned("llama-cpp-python", tmp_path)


def test_systemd_names_a_later_drop_in_that_starts_something_else(tmp_path: Path) -> None:
    folder = tmp_path / "llama-server.service.d"
    folder.mkdir()
    for name in ("override.conf", "zz.conf"):
        (folder / name).write_text("[Service]\nExecStart=\nExecStart=/opt/mine\n")
    notes = notes_of(planned("systemd", tmp_path))
    assert f"{folder / 'zz.conf'} comes later" in notes
    assert "override.conf" not in notes
