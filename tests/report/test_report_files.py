import csv
import io
import json
import os
import re
import stat
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from made_sweeps import failed_only, no_front, single_point, sweep

from sweeper.errors import StoreError, UsageError
from sweeper.files import replace as write_atomically
from sweeper.records import Caveat, Configuration, SweepRecord
from sweeper.report.files import write_report
from sweeper.report.formats import render

NAMES = ("report.html", "report.md", "pareto.png", "front.json", "front.csv", "recommendation.yaml")
HOSTILE_NAME = '=cmd|"/c calc"!A1 </script><script>alert(1)</script> | `x` ${jndi} 模型 %s {0}'
SWEEPS = {
    "estimated": sweep(),
    "gpu": sweep(kind="measured", gpu=True),
    "simulated": sweep(kind="simulated"),
    "no front": no_front(),
    "one point": single_point(),
    "all failed": failed_only(),
    "hostile": replace(
        sweep(), sweep=HOSTILE_NAME, model=replace(sweep().model, name=HOSTILE_NAME), notes=(HOSTILE_NAME,)
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each sweep's report, written once into a folder that was not there."""
    made = {}
    for name, record in SWEEPS.items():
        made[name] = tmp_path_factory.mktemp("reports") / "new" / "folder"
        assert tuple(write_report(record, made[name])) == NAMES
    return made


@pytest.fixture
def folder(folders: dict[str, Path], record: SweepRecord) -> Path:
    return folders[next(name for name, own in SWEEPS.items() if own is record)]


def document(folder: Path) -> tuple[dict, dict]:  # type: ignore[type-arg]
    front = json.loads((folder / "front.json").read_text())
    return front, yaml.safe_load((folder / "recommendation.yaml").read_text())


@pytest.mark.parametrize("record", SWEEPS.values(), ids=SWEEPS)
def test_every_file_is_written_and_read_back(record: SweepRecord, folder: Path) -> None:
    files = {name: folder / name for name in NAMES}
    assert sorted(p.name for p in folder.iterdir()) == sorted(NAMES)
    front = json.loads(files["front.json"].read_text())
    advice = yaml.safe_load(files["recommendation.yaml"].read_text())
    rows = list(csv.DictReader(io.StringIO(files["front.csv"].read_text())))
    assert front["schema"] == advice["schema"] == 1
    assert front["sweep"] == advice["sweep"] == record.sweep
    assert [point["trial"] for point in front["front"]] == list(record.front)
    assert [int(row["trial"]) for row in rows if row["role"] == "front"] == list(record.front)
    assert files["pareto.png"].read_bytes().startswith(b"\x89PNG")


def test_each_point_has_its_configuration_and_readings(folders: dict[str, Path]) -> None:
    record = SWEEPS["gpu"]
    front, advice = document(folders["gpu"])
    for point in [*front["front"], front["baseline"], advice["recommended"], *advice["others"]]:
        trial = record.trial(point["trial"])
        assert Configuration(**point["configuration"]) == trial.configuration
        for name, reading in point["metrics"].items():
            own = trial.metrics[name]
            known = own.n > 1  # one repeat has no interval, and none is made up
            low, high = (own.low, own.high) if known else (None, None)
            assert reading == {"median": own.median, "low": low, "high": high, "n": own.n}


def test_the_recommendation_names_the_file_that_was_measured(folders: dict[str, Path]) -> None:
    record = SWEEPS["estimated"]
    _, advice = document(folders["estimated"])
    best = record.trial(advice["recommended"]["trial"])
    file = record.model.file(best.configuration.quant)
    assert advice["model"]["path"] == file.path
    assert advice["model"]["sha256"] == file.sha256
    assert advice["model"]["quantisation"] == file.quant
    assert advice["power"]["kind"] == "estimated"
    assert advice["caveats"]["estimated"] == Caveat.ESTIMATED.advice


def test_nothing_is_recommended_without_a_second_measurement(folders: dict[str, Path]) -> None:
    _, advice = document(folders["no front"])
    assert advice["recommended"] is None
    assert "measured twice" in advice["reason"]


@pytest.mark.parametrize("kind", ["estimated", "simulated"])
def test_every_file_of_text_says_that_watts_were_not_measured(kind: str, folders: dict[str, Path]) -> None:
    files = {name: folders[kind] / name for name in NAMES}
    for name in NAMES:
        if name != "pareto.png":
            assert kind in files[name].read_text(), name


def test_the_picture_is_as_large_as_a_screen(folders: dict[str, Path]) -> None:
    data = (folders["estimated"] / "pareto.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1260, 784)


def test_no_cell_of_the_csv_is_a_formula() -> None:
    record = SWEEPS["hostile"]
    named = replace(record, power=replace(record.power, name="=1+1"))
    for row in csv.reader(io.StringIO(render(named, "csv"))):
        assert not [cell for cell in row if cell[:1] in ("=", "@", "+")]


def test_hostile_names_stay_text_in_markdown() -> None:
    text = render(SWEEPS["hostile"], "markdown")
    outside_code = re.sub(r"`+[^`]*?`+", "", re.sub(r"(?ms)^(`{3,})sh$.*?^\1$", "", text))
    assert "script" in outside_code
    assert "<" not in outside_code


def test_a_table_in_markdown_has_as_many_cells_in_each_row() -> None:
    lines = render(SWEEPS["hostile"], "markdown").splitlines()
    runs: list[list[str]] = [[]]
    for line in lines:
        runs[-1].append(line) if line.startswith("|") else runs.append([])
    for run in (run for run in runs if run):
        bars = {line.replace("\\|", "").count("|") for line in run}
        assert len(bars) == 1


@pytest.mark.parametrize("form", ["table", "markdown", "json", "csv"])
@pytest.mark.parametrize("record", SWEEPS.values(), ids=SWEEPS)
def test_every_form_ends_in_one_newline(record: SweepRecord, form: str) -> None:
    text = render(record, form)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_an_unknown_form_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(UsageError, match="choose one of table, markdown, json, csv"):
        render(SWEEPS["estimated"], "xml")


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    write_report(SWEEPS["no front"], tmp_path)
    write_report(SWEEPS["estimated"], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES)
    assert yaml.safe_load((tmp_path / "recommendation.yaml").read_text())["recommended"] is not None


def test_a_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"cannot write the report to .*taken.*choose another folder"):
        write_report(SWEEPS["one point"], tmp_path / "taken")


def test_a_write_that_breaks_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "front.json"
    write_atomically(path, b"old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["front.json"]


def test_a_file_is_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
