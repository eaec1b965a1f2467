"""The first words of a sweep name what disturbs the machine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_load import FakeLoad

from sweeper import prepare
from sweeper.config import compose
from sweeper.errors import ConfigError, MissingError
from sweeper.lab.simulator import MACHINES, machine_record
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.disturbance import Watch
from sweeper.rig.llama_cpp import llama_rig
from sweeper.sweep import StopFlag


@pytest.fixture
def disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "look", lambda self: "cc1plus uses 0.9 of 2 cores")


@pytest.mark.usefixtures("disturbed")
def test_the_process_is_named_before_a_download_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise MissingError("no network", "plug it in")

    monkeypatch.setattr("sweeper.rig.here.obtain", no_network)
    said: list[str] = []
    with pytest.raises(MissingError), ExitStack() as held:
        llama_rig(compose([f"root='{tmp_path}'"]).settings, tmp_path, held, said.append)
    assert said == ["the machine is not quiet: cc1plus uses 0.9 of 2 cores"]


@pytest.mark.usefixtures("disturbed")
def test_the_sweep_keeps_the_line_as_a_note(tmp_path: Path, smallest_model: Path) -> None:
    settings = compose([f"root='{tmp_path}'", f"model.path='{smallest_model}'", "power=estimate"]).settings
    with ExitStack() as held:
        rig = llama_rig(settings, tmp_path, held, lambda _: None)
        assert "the machine is not quiet: cc1plus uses 0.9 of 2 cores" in rig.notes
        assert rig.load is not None


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (["search.minutes=null"], 20),
        (["search.minutes=60"], 300),
        (["search.minutes=null", "minutes=60"], 300),
        (["search.minutes=60", "minutes=3"], 15),
        (["search.wait_for_quiet=0"], 0),
    ],
)
def test_the_minutes_of_a_sweep_bound_the_waits_of_its_search(limits: list[str], seconds: float) -> None:
    clock = VirtualClock()
    machine = machine_record(MACHINES["minipc"])
    rig = SimpleNamespace(load=FakeLoad(clock, then=1.5), machine=machine, clock=clock, sleep=clock.advance)
    settings = compose(["search.wait_for_quiet=8", *limits]).settings
    watch = prepare._watch(rig, settings, StopFlag(), prepare._budget(rig, settings, began=0.0))
    for _ in range(80):
        watch.wait(lambda line: None)
    assert seconds <= watch.waited_seconds <= seconds + 2


def test_nothing_disturbs_a_machine_in_virtual_time() -> None:
    assert prepare._watch(SimpleNamespace(load=None), compose([]).settings, StopFlag(), None) is None


@pytest.mark.parametrize(
    ("given", "seconds"), [("true", 60), ("false", 0), ("0", 0), ("12.5", 12.5), ("90", 90)]
)
def test_the_wait_is_on_off_or_a_number_of_seconds(given: str, seconds: float) -> None:
    assert compose([f"search.wait_for_quiet={given}"]).settings.search.quiet_seconds() == seconds


@pytest.mark.parametrize("given", ["yes", "60s", "-1", "null", "nan", "inf", "[1,2]", "{a: 1}"])
def test_anything_else_is_refused_in_one_line(given: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^search\.wait_for_quiet: .* is not true, false or a number"
    ) as told:
        compose([f"search.wait_for_quiet={given}"])
    assert "\n" not in str(told.value)
