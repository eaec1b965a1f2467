"""Starting from what an earlier sweep found."""

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeper.config import compose
from sweeper.errors import StoreError
from sweeper.prepare import prepared
from sweeper.records import Configuration, SweepRecord
from sweeper.report.progress import Progress
from sweeper.search.study import SweepStudy
from sweeper.search.transfer import from_earlier, moved
from sweeper.space.space import Traits, build_space


def space_of(spec, n_layer=32):
    return build_space(spec, Configuration(n_threads=4), Traits(n_layer=n_layer, gpu_offload=True))


@pytest.mark.parametrize(("then", "now"), [(33, 49), (-1, 49), (99, 49), (0, 0), (16, 24)])
def test_layers_keep_their_share_of_the_model(then, now):
    space = space_of({"n_gpu_layers": {"low": 0, "high": 49}}, n_layer=48)
    assert moved(Configuration(n_gpu_layers=then), 32, space).n_gpu_layers == now


def test_a_level_that_is_not_there_becomes_the_nearest_in_bits():
    space = space_of({"quant": ["F16", "Q8_0", "Q4_K_M"]})
    assert moved(Configuration(quant="Q5_K_M"), 32, space).quant == "Q4_K_M"
    assert moved(Configuration(quant="Q6_K"), 32, space).quant == "Q4_K_M"
    assert moved(Configuration(quant="Q8_0"), 32, space).quant == "Q8_0"


def test_numbers_move_to_the_nearest_value_and_what_is_not_searched_is_the_new_base():
    space = space_of({"n_threads": [2, 8], "power_limit_watts": [None, 150, 200]})
    found = moved(Configuration(n_threads=6, power_limit_watts=160, n_batch=64), 32, space)
    assert (found.n_threads, found.power_limit_watts, found.n_batch) == (8, 150, 2048)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def run(root: Path, name: str) -> SweepRecord:
    composed = compose(
        [f"root='{root}'", "experiment=demo", "search.trials=8", "search.finalists=2", f"name={name}"]
    )
    with prepared(composed, lambda header, plan: Progress(), lambda line: None) as sweep:
        return sweep.run()


@pytest.fixture(scope="module")
def first(root: Path) -> SweepRecord:
    return run(root, "first")


def test_a_second_sweep_measures_what_the_first_found_best_and_says_so(
    root: Path, first: SweepRecord
) -> None:
    assert not any("earlier sweep" in note for note in first.notes)
    again = run(root, "again")
    (note,) = [note for note in again.notes if "earlier sweep" in note]
    assert "first" in note
    assert "search.transfer=false" in note
    assert first.recommended is not None
    best = first.trial(first.recommended).configuration
    assert best in [
        trial.configuration for trial in again.trials[:2]
    ]  # it may be the baseline, which is first
    assert again.trials[0].configuration == first.trials[0].configuration == again.baseline_configuration


def test_only_the_same_machine_engine_and_question_teach(root: Path, first: SweepRecord) -> None:
    space = space_of({"n_gpu_layers": {"low": 0, "high": 33}, "n_threads": [2, 8]})

    def suggested(**changes: Any) -> bool:
        asked = {"machine": first.machine, "simulated": True, "objectives": first.objectives} | changes
        return from_earlier(root, space=space, skip="", **asked) is not None

    assert suggested()
    assert suggested(machine=replace(first.machine, kernel="another", memory_mib=1))
    assert not suggested(machine=replace(first.machine, cpu="another"))
    assert not suggested(simulated=False)
    assert not suggested(objectives=first.objectives[:1])


def test_an_earlier_sweep_that_cannot_be_read_teaches_nothing_and_is_said_in_one_line(
    root: Path, first: SweepRecord, tmp_path: Path
) -> None:
    with (
        contextlib.closing(sqlite3.connect(root / "optuna.db")) as kept,
        contextlib.closing(sqlite3.connect(tmp_path / "optuna.db")) as database,
        database,
    ):
        kept.backup(database)
        database.execute("update study_user_attributes set value_json='{}' where key='sweep'")
    space = space_of({"n_threads": [2, 8]})
    assert from_earlier(tmp_path, first.machine, True, first.objectives, space, skip="") is None
    with pytest.raises(StoreError, match=r"the sweep 'first' in .*optuna\.db cannot be read") as caught:
        SweepStudy.load(tmp_path, "first").header()
    assert "\n" not in str(caught.value)
