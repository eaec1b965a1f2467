"""What a user types after KEY= reaches the configuration, whatever signs it has and whatever stood there before."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from sweeper.config import Composed, compose, run_hydra
from sweeper.errors import ConfigError

NAMES = [
    "m.gguf",
    "my model (v1).gguf",
    "it's.gguf",
    "epoch=3,step=9.gguf",
    "50%, {a} #1;&$b?.gguf",
    "what now?x=1",
    "a${x}b.gguf",
    "back\\slash.gguf",
    "日本語モデル.gguf",
    "[list].gguf",
    "007",
    "true",
]


def composed(*words: str) -> list[Composed]:
    """The configurations of one command line."""
    found: list[Composed] = []
    run_hydra(words, lambda one: found.append(one) or 0)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_path_means_what_is_typed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).write_text("a text is read at once " * 200)
    typed = [name, f"./{name}", f"{tmp_path}/{name}", f"~/{name}"]
    keys = ["model.path", "root", "engine.table", "model.text"]
    settings = compose([f"{key}={path}" for key, path in zip(keys, typed, strict=True)]).settings
    assert [attrgetter(key)(settings) for key in keys] == [*typed[:3], f"{tmp_path}/{name}"]


def test_a_path_in_a_list_or_mapping_means_what_is_typed() -> None:
    settings = compose(["model.files={Q8_0: a=b (1).gguf, Q4_K_M: 日本.gguf}"]).settings
    assert settings.model.files == {"Q8_0": "a=b (1).gguf", "Q4_K_M": "日本.gguf"}
    settings = compose(["power=command", "power.command.argv=[/bin/my meter (1), a=b]"]).settings
    assert settings.power.command.argv == ["/bin/my meter (1)", "a=b"]


@pytest.mark.parametrize(
    ("word", "path"),
    [("'q, r'", "q, r"), ('"q=r"', "q=r"), ("a\\=b", "a=b"), ("${oc.env:PLACE}/a=b", "/there/a=b")],
)
def test_hydras_own_quotes_escapes_and_references_stay(
    word: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "/there")
    assert compose([f"model.path={word}"]).settings.model.path == path


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("power.device=0", "0"),
        ("+power.device=0", "0"),
        ("++power.device=0", "0"),
        ("power.plug.url=http://127.0.0.1:9", "http://127.0.0.1:9"),
        ("power.limits.means=direct", "direct"),
        ("engine.environment.OMP_WAIT_POLICY=passive", "passive"),
        ("engine.environment.OMP_NUM_THREADS=4", "4"),
        ("model.shape.n_layer=3", 3),
        ("objectives.targets.n_ctx=maximize", "maximize"),
        ("objectives.constraints.watts=<=60", "<=60"),
        ("name=null", None),
    ],
)
def test_every_key_of_the_schema_can_be_set(word: str, value: object) -> None:
    key = word.split("=")[0].lstrip("+")
    for one in (compose([word]), *composed(word)):
        here: Any = one.plain
        for part in key.split("."):
            here = here[part]
        assert here == value


FORMS = [5, [32, 64], {"low": 1, "high": 8}, {"low": 64, "high": 512, "log": True}, "auto"]


@pytest.mark.parametrize("space", ["cpu", "quick"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_list_a_range_and_a_scalar_replace_one_another(space: str, form: object) -> None:
    word = f"space.n_ubatch={form}".replace("'", "").replace("True", "true")
    assert compose([f"space={space}", word]).plain["space"]["n_ubatch"] == form


@pytest.mark.parametrize("inherited", ["cpu", "quick"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_space_replaces_the_values_that_it_inherits(inherited: str, form: object, tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    text = f"defaults: [{inherited}, _self_]\nn_ubatch: {json.dumps(form)}\n"
    (tmp_path / "space" / "mine.yaml").write_text(text)
    space = compose(["space=mine"], tmp_path).plain["space"]
    assert space["n_ubatch"] == form
    assert space["n_threads"] == compose([f"space={inherited}"]).plain["space"]["n_threads"]


def test_flags_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert composed("search.trials=7", "--cfg", "job", "-p", "search", "search.seed=3") == []
    assert "trials: 7" in (text := capsys.readouterr().out)
    assert "seed: 3" in text


def test_commas_separate_sweeps_only_where_several_run() -> None:
    assert [one.settings.name for one in composed("-m", "name=choice(a,b)")] == ["a", "b"]
    for words in ("a=1.gguf,日本.gguf", "'a=1.gguf','日本.gguf'"):
        found = composed("-m", f"model.path={words}", "space.n_ubatch=[1],[2]")
        assert [one.settings.model.path for one in found] == ["a=1.gguf"] * 2 + ["日本.gguf"] * 2
        assert [one.plain["space"]["n_ubatch"] for one in found] == [[1], [2]] * 2


def test_a_wrong_sweep_of_several_is_refused_before_the_first_one_starts() -> None:
    started: list[Composed] = []
    with pytest.raises(ConfigError, match=r"search\.trials"):
        run_hydra(["-m", "search.trials=3,0"], lambda one: started.append(one) or 0)
    assert started == []


@pytest.mark.parametrize("name", ["what now?x=1", "a${x}b", "50% {a} (1), it's #1;&", "日本語"])
def test_a_users_folder_may_have_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name / "conf"
    (folder / "workload").mkdir(parents=True)
    (folder / "workload" / "novel.yaml").write_text("name: novel\ngenerated_tokens: 9\n")
    monkeypatch.chdir(tmp_path / name)
    for words in (["--config-dir", str(folder)], ["--config-dir=conf"], ["-cd", "conf"]):
        (one,) = composed("workload=novel", *words)
        assert one.settings.workload.generated_tokens == 9
    composed("workload=novel", "--config-dir", str(folder), "--cfg", "job", "--resolve")


@pytest.mark.parametrize("given", ["model.path=~/x.gguf", "root=~/x", "model.files={F16: ~/x.gguf}"])
def test_a_tilde_without_a_home_folder_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home")
    assert "/home/x" in str(compose([given]).settings)

    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(ConfigError, match=rf"{given.split('=')[0]}.*no home folder"):
        compose([given])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("foo", "foo: this is not KEY=VALUE"),
        ("serch.trials=3", r"no such key; did you mean search\.trials\?"),
        ("trails=5", r"no such key; did you mean search\.trials\?"),
        ("search.trials=abc", "search.trials: 'abc' is not a whole number"),
        ("search.early_stop=maybe", "search.early_stop: 'maybe' is not true or false"),
        (
            "experiment=dmeo",
            "experiment=dmeo: there is no such choice; choose from cpu_table, demo, longest_context, quick",
        ),
        ("engine=replay", "engine.table: this key has no value; give a table that `sweeper record` wrote"),
        ("search.trials=(1", r"search.trials=\(1: this cannot be read"),
        ("search.trials=1,2", "search.trials=1,2: several values need -m"),
        ("search=[1]", "cannot compose"),
        ("power.limits=3", "power.limits: this is a group of keys.*power.limits.means"),
        ("model.path=", "model.path: the path is empty"),
        ("model.files=a", "model.files"),
        ("root=${nope:x}", "root: .*nope"),
        ("sapce.n_ubatch=4", "sapce.n_ubatch: no such key"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_key(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        compose([word])
    assert len(str(refused.value).splitlines()) == 1
