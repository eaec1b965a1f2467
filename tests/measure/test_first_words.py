"""The first words of a sweep name what disturbs the machine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from sweeper.config import compose
from sweeper.errors import ConfigError, MissingError
from sweeper.measure.disturbance import Watch
from sweeper.rig import llama_cpp
from sweeper.rig.llama_cpp import llama_rig


@pytest.fixture
def disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "look", lambda self: "cc1plus uses 0.9 of 2 cores")


@pytest.mark.usefixtures("disturbed")
def test_the_process_is_named_before_a_download_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise MissingError("no network", "plug it in")

    monkeypatch.setattr(llama_cpp, "obtain", no_network)
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
