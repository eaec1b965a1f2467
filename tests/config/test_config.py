"""Every file in conf/ composes; what a user writes reaches the schema; what is wrong names its key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sweeper.config import compose, conf_folder, run_hydra
from sweeper.errors import ConfigError, SpaceError
from sweeper.limits.base import LimitRange
from sweeper.records import Configuration, MachineRecord, ModelFile, ModelRecord, Workload
from sweeper.rig.open import space_of
from sweeper.space.auto import SERVER_KEEPS, Facts, default_configuration, fill_auto
from sweeper.space.space import Traits, build_space

CHOICES = sorted(
    (folder.name, file.stem)
    for folder in conf_folder().iterdir()
    if folder.is_dir()
    for file in folder.glob("*.yaml")
)
# Values that some choices leave to the user.
GIVEN = {
    ("model", "file"): ["model.path=x.gguf"],
    ("model", "hub"): ["model.repo=a/b", "model.file=c.gguf"],
    ("engine", "replay"): ["engine.table=t.csv.gz"],
    ("engine", "endpoint"): ["engine.url=http://127.0.0.1:8080"],
    ("power", "plug"): ["power.plug.url=http://192.168.1.20"],
    ("power", "command"): ["power.command.argv=[/bin/echo,5]"],
}

MODEL = ModelRecord(
    "m",
    "llama",
    10**9,
    22,
    4096,
    "synthetic",
    "F16",
    {"F16": ModelFile("F16", "m.gguf", "0" * 64, 2 * 10**9)},
)
CPU = MachineRecord("f", "cpu", 4, 8, 16_000, "Linux")


def facts(
    gpu: bool = False, limits: dict[str, LimitRange] | None = None, machine: MachineRecord = CPU
) -> Facts:
    return Facts(
        machine, MODEL, Workload(n_ctx=4096), gpu, limits or {}, {"power_limit_watts": "no right to set it"}
    )


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_file_composes_and_keeps_the_schema(group: str, choice: str) -> None:
    composed = compose([f"{group}={choice}", *GIVEN.get((group, choice), [])])
    assert composed.settings.objective_records()
    assert composed.settings.workload_record().n_ctx_needed > 0


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g == "space"])
@pytest.mark.parametrize("gpu", [False, True])
def test_every_space_can_be_built_with_and_without_a_gpu(choice: str, gpu: bool) -> None:
    power = LimitRange("power_limit_watts", "GPU-1", 100, 350, 350, 1)
    here = facts(gpu, {"power_limit_watts": power} if gpu else {})
    space, notes = space_of(compose([f"space={choice}"]), here)
    assert next(space.grid())
    assert ("power_limit_watts" in space.parameters) == (gpu and choice in ("auto", "gpu", "quick"))
    assert ("n_gpu_layers" in space.parameters) == (gpu and choice in ("auto", "gpu", "quick"))
    assert all(isinstance(note, str) for note in notes)


def test_experts_on_the_host_are_searched_only_where_a_model_has_experts() -> None:
    for experts, values in ((8, {0, 4, 8}), (0, {0})):
        here = replace(facts(gpu=True), model=replace(MODEL, expert_count=experts))
        composed = compose(["space=quick", "space.n_gpu_layers=-1", "space.n_cpu_moe=[0,4,8]"])
        space, _ = space_of(composed, here)
        assert {c.n_cpu_moe for c in space.grid()} == values


def test_a_dimension_that_cannot_be_had_is_said_once_with_its_reason() -> None:
    here = facts()
    _, notes = fill_auto({"power_limit_watts": "auto", "n_gpu_layers": [0, 10]}, here)
    assert len(notes) == 2
    assert "no right to set it" in notes[0]


def test_a_users_folder_goes_in_front(tmp_path: Path) -> None:
    (tmp_path / "workload").mkdir()
    (tmp_path / "workload" / "chat.yaml").write_text("name: mine\nprompt_tokens: 7\n")
    (tmp_path / "workload" / "novel.yaml").write_text("name: novel\ngenerated_tokens: 9\n")
    assert compose([], tmp_path).settings.workload.prompt_tokens == 7
    assert compose(["workload=novel"], tmp_path).settings.workload.generated_tokens == 9
    assert compose([]).settings.workload.prompt_tokens == 512  # and is forgotten afterwards


def test_hydras_command_line_reaches_the_task_with_overrides() -> None:
    seen = []
    code = run_hydra(["search.trials=7", "name=a b"], lambda c: seen.append(c) or 4)
    assert code == 4
    assert (seen[0].settings.search.trials, seen[0].settings.name) == (7, "a b")


def test_multirun_runs_each_and_the_worst_code_counts() -> None:
    seen = []
    assert (
        run_hydra(
            ["-m", "model=tiny_15m,tiny_moe"], lambda c: seen.append(c.settings.model.name) or len(seen)
        )
        == 2
    )
    assert seen == ["tiny_15m", "tiny_moe"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["space.n_thread=4"], "did you mean space.n_threads"),
        (["trials=3"], "trials: no such key; did you mean search.trials?"),
        (["search.trials=many"], "search.trials"),
        (["prices.hours_per_day=25"], "prices.hours_per_day"),
        (["+objectives.targets.n_ctx=maximize", "+objectives.targets.memory_mib=minimize"], "4 objectives"),
        (["model=no_such"], "model=no_such"),
        (["workload.depth=-1"], "workload.depth"),
    ],
)
def test_what_is_wrong_names_its_key(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compose(overrides)


def test_unknown_words_in_a_space_say_what_there_is() -> None:
    composed = compose(["space.n_threads={low: 1, high: '${machine:cores}'}"])
    with pytest.raises(ConfigError, match=r"space.n_threads.*physical_cores"):
        composed.space(facts().words())


def test_a_parameter_that_does_not_exist_in_a_users_space(tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.yaml").write_text("n_thread: 4\n")
    spec = compose(["space=mine"], tmp_path).space(facts().words())
    with pytest.raises(SpaceError, match=r"space.n_thread: no such parameter"):
        build_space(spec, default_configuration(facts()), Traits())


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g == "space"])
def test_only_limits_of_a_running_server_are_searched(choice: str) -> None:
    power = LimitRange("power_limit_watts", "GPU-1", 100, 350, 350, 1)
    running = Configuration(n_ctx=512, n_threads=7)
    unknown = replace(MODEL, n_layer=0, n_ctx_train=0)
    here = replace(facts(True, {"power_limit_watts": power}), running=running, model=unknown)
    space, notes = space_of(compose([f"space={choice}"]), here)
    assert set(space.parameters) <= {"power_limit_watts"}
    assert ("power_limit_watts" in space.parameters) == (choice in ("auto", "gpu", "quick"))
    assert space.base == running
    assert notes.count(SERVER_KEEPS) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["workload.users=4"],
            r"workload\.users: more than one needs engine=llama_server or engine=endpoint",
        ),
        (["workload.users=0"], r"workload\.users: 0 is below the lowest allowed value, 1"),
        (
            ["+objectives.constraints.time_to_first_token_p95_seconds='<=1'"],
            r"time_to_first_token_p95_seconds: only several users have this metric; set workload\.users=4",
        ),
    ],
)
def test_several_users_need_an_engine_that_serves_them(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose(words)
