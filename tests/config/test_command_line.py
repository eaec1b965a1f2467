"""The command line's ends: words in any order, a reader that leaves, and errors that nobody foresaw."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from sweeper import commands, errors
from sweeper.cli import _parser, main
from sweeper.errors import NoResultError

SIMULATED = [
    "engine=simulated",
    *(f"space.{name}=4" for name in ("n_threads", "n_threads_batch")),
    *(f"space.{name}=64" for name in ("n_batch", "n_ubatch")),
    *(f"space.{name}=f16" for name in ("type_k", "type_v")),
    "space.flash_attn=true",
    "space.quant=F16",
    "space.n_gpu_layers=0",
    "space.power_limit_watts=null",
]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["record", "t.csv.gz", "--passes", "2", "a=1", "--root", "r", "b=2"], ["a=1", "b=2"]),
        (["record", "--passes", "2", "t.csv.gz", "a=1", "b=2"], ["a=1", "b=2"]),
        (["doctor", "a=1", "--json", "b=2", "--root=r"], ["a=1", "b=2"]),
        (["restore", "--root", "r", "a=1", "--json", "b=2"], ["a=1", "b=2"]),
    ],
)
def test_options_may_stand_between_overrides(words: list[str], expected: list[str]) -> None:
    assert _parser().parse_args(words).overrides == expected


def test_options_may_stand_between_names_and_wrong_ones_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _parser().parse_args(["compare", "A", "--json", "B"]).sweeps == ["A", "B"]
    with pytest.raises(SystemExit) as end:
        main(["record", "t.csv.gz", "--pases", "2", "a=1"])
    assert end.value.code == 2
    assert "--pases" in capsys.readouterr().err


def test_a_table_is_recorded_in_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["record", "t.csv.gz", "--passes", "1", *SIMULATED, "--root", "it's a${x}b/mlruns"])
    assert (code, (tmp_path / "t.csv.gz").exists()) == (0, True), capsys.readouterr().err


def test_the_doctors_root_may_be_an_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["restore", "root=elsewhere", "--json"]) == 0
    assert capsys.readouterr().out.startswith("{")
    assert not (tmp_path / "mlruns").exists()


# -- a reader that leaves


@pytest.fixture
def no_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output is a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a simulated sweep of two trials."""
    root = tmp_path_factory.mktemp("swept")
    demo = ["experiment=demo", "search.trials=2", "search.finalists=1", f"root={root}"]
    assert main(["sweep", *demo]) == 0
    return root


@pytest.mark.usefixtures("no_reader")
@pytest.mark.parametrize(
    "words",
    ["report", "report --json", "report --format csv", "compare", "compare --json", "apply", "restore"],
)
def test_a_command_ends_well_without_a_reader(words: str, swept: Path, tmp_path: Path) -> None:
    command, *options = words.split()
    place = ["--out", str(tmp_path / "out")] if command == "report" else []
    assert main([command, "--root", str(swept), *options, *place]) == 0
    assert command != "report" or (tmp_path / "out" / "report.html").exists()


@pytest.mark.usefixtures("no_reader")
@pytest.mark.parametrize("words", ["", "sweep --help", "sweep --cfg job"])
def test_help_and_configuration_end_well_without_a_reader(words: str) -> None:
    assert main(words.split()) == 0


def test_a_full_disk_behind_the_output_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(["sweep", "--cfg", "job"]) == 3
    assert "No space left" in capsys.readouterr().err


# -- the last resort


def _failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def report(_: object) -> int:
        raise error

    monkeypatch.setattr(commands, "report", report)


def test_an_unforeseen_error_is_one_line_and_its_traceback_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _failing(monkeypatch, KeyError("a key\nthat is missing"))
    assert main(["report", "--out", "s3cret"]) == 70
    said = capsys.readouterr().err
    (kept,) = tmp_path.glob("sweeper-fault-*.log")
    assert len(said.splitlines()) == 1
    assert str(kept) in said
    text = kept.read_text()
    assert "Traceback" in text
    assert "command: report" in text
    assert "s3cret" not in text, "arguments may hold passwords"


def test_an_unforeseen_error_without_a_place_for_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    _failing(monkeypatch, ValueError())
    assert main(["report"]) == 70
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/some/file"), "/some/file: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
)
def test_the_systems_refusals_are_no_faults(
    error: OSError, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, error)
    assert main(["report"]) == 3
    assert words in capsys.readouterr().err


def test_a_tilde_in_an_option_is_the_home_folder_or_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/at/home")
    assert _parser().parse_args(["apply", "--file=~/x"]).file == Path("/at/home/x")
    assert main(["apply", "--file", "~nobody-of-this-name/x"]) == 2
    assert "no home folder" in capsys.readouterr().err


def test_every_error_has_a_documented_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.SweeperError)}
    assert codes == {2, 3, 4, 5, 70}
    for code in codes:
        assert f" {code}: " in told
        assert f"| {code} |" in readme


def test_an_unknown_option_shows_the_usage_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", "--formt", "json"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: sweeper report")


def test_a_quantisation_that_a_simulated_machine_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "experiment=demo", "space.quant=Q9", f"root={tmp_path}"]) == 2
    assert "space.quant: 'Q9' is not one of F16" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["sweep"], ["sweep", "--verbose"]])
def test_verbose_reaches_the_display(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def prepared(_composed: object, display: Callable[..., object], _say: object) -> NoReturn:
        display(SimpleNamespace(notes=()), SimpleNamespace(finalists=1, minutes=None))
        raise NoResultError("enough")

    monkeypatch.setattr("sweeper.report.live.open_progress", lambda *_, verbose: asked.append(verbose))
    monkeypatch.setattr("sweeper.prepare.prepared", prepared)
    assert main(words) == 4
    assert asked == ["--verbose" in words]


def test_ctrl_c_before_the_first_trial_promises_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepared(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("sweeper.prepare.prepared", prepared)
    assert main(["sweep"]) == 130
    assert capsys.readouterr().err == "sweeper: stopped before the first trial\n"
