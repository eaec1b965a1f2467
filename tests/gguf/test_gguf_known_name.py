"""The name of another model's sweep: a model of the hub is refused before it is downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, hub_serving

from sweeper.config import compose
from sweeper.errors import ConfigError
from sweeper.lab.simulator import MACHINES, machine_record, model_record
from sweeper.model import hub as hub_module
from sweeper.model.obtain import ModelConfig, obtain
from sweeper.records import EngineRecord, ModelRecord, Objective, PowerSource, SweepRecord, Workload
from sweeper.rig import here
from sweeper.search.study import SweepStudy

HUB_FILE = "m.gguf"


@pytest.fixture
def hub(nano: Path, monkeypatch: pytest.MonkeyPatch):
    with hub_serving(Hub("owner/model", {HUB_FILE: nano.read_bytes()})) as serving:
        monkeypatch.setattr(
            here, "stated_digest", lambda *asked: hub_module.stated_digest(*asked, serving.endpoint, False)
        )
        yield serving


def begun(root: Path, model: ModelRecord) -> None:
    """A sweep "mine" of this model."""
    header = SweepRecord(
        sweep="mine",
        state="running",
        machine=machine_record(MACHINES["minipc"]),
        engine=EngineRecord("llama_cpp", "1"),
        model=model,
        workload=Workload(),
        objectives=(Objective("tokens_per_second", "maximize"),),
        constraints=(),
        power=PowerSource("estimate", "", "package", "estimated"),
        space={},
        trials=(),
        front=(),
        baseline=None,
        recommended=None,
    )
    SweepStudy.create(root, header)


def asked(root: Path) -> tuple[ModelRecord | None, list[str]]:
    """What `obtained` gives for the hub's model under the name "mine", and the lines that it says."""
    said: list[str] = []
    words = ("model=hub", "model.repo=owner/model", f"model.file={HUB_FILE}", "name=mine", f"root={root}")
    return here.obtained(compose(words).settings, root, said.append), said


@pytest.mark.parametrize("kept", ["synthetic", "file", "hub"])
def test_another_model_is_refused_before_the_download(
    kept: str, hub: Hub, nano_q4: Path, tmp_path: Path
) -> None:
    had = {
        "synthetic": lambda: replace(model_record(MACHINES["minipc"]), source="synthetic"),
        "file": lambda: obtain(ModelConfig(path=str(nano_q4)), tmp_path),
        "hub": lambda: replace(
            obtain(ModelConfig(path=str(nano_q4)), tmp_path),
            source="hub",
            repo="owner/other",
            revision=COMMIT,
        ),
    }[kept]()
    begun(tmp_path, had)
    with pytest.raises(
        ConfigError, match=r"'mine' was started with .*, and now it is m\.gguf of owner/model;"
    ) as no:
        asked(tmp_path)
    assert "\n" not in str(no.value)
    assert not [request for request in hub.requests if "/resolve/" in request]


def test_a_file_that_changed_on_the_hub_names_the_commit_to_go_on_with(
    hub: Hub, nano_q4: Path, tmp_path: Path
) -> None:
    had = obtain(ModelConfig(path=str(nano_q4)), tmp_path)
    file = replace(had.file(None), path=f"/cache/{HUB_FILE}")
    had = replace(had, source="hub", repo="owner/model", revision="c0ffee", files={had.base_quant: file})
    begun(tmp_path, had)
    with pytest.raises(ConfigError, match=r"at another commit \(model\.revision=c0ffee is the one"):
        asked(tmp_path)


@pytest.mark.parametrize("reachable", [True, False])
def test_the_same_model_goes_on(
    reachable: bool, hub: Hub, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    had = obtain(ModelConfig(path=str(nano)), tmp_path)
    begun(tmp_path, had)
    hub.status = 200 if reachable else 503
    monkeypatch.setattr(here, "obtain", lambda *_: had)
    model, said = asked(tmp_path)
    assert model == had
    assert said[0].startswith("downloading m.gguf of owner/model")
