"""Quality is measured when a trial first needs it: its time, its failure, and the order of the first trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from sweeper.config import compose
from sweeper.errors import EngineCrashed, QualityUnknown
from sweeper.measure.trial import exactly
from sweeper.prepare import CORNERS, prepared
from sweeper.records import Configuration, Reading
from sweeper.report.progress import Progress
from sweeper.search.warm_start import initial_design, known_first
from sweeper.sweep import Sweep

WORDS = ("experiment=demo", "search.sampler=random", "search.trials=8", "search.finalists=1", "name=s")
HOUR = 3600.0


@contextmanager
def sweeping(root: Path, *words: str) -> Iterator[Sweep]:
    """A sweep of a simulated machine that keeps its study and nothing else."""
    with (
        mock.patch("sweeper.prepare.Tracker"),
        prepared(compose([*WORDS, *words, f"root='{root}'"]), lambda *_: Progress(), lambda _: None) as sweep,
    ):
        sweep.write_report = lambda record, folder: {}
        yield sweep


def fails(failure: Exception, base: str | None) -> mock.Mock:
    """A quality that is known of one quantisation only."""

    def quality(configuration: Configuration) -> Mapping[str, Reading]:
        if configuration.quant == base:
            return {"kl_divergence": exactly(0.0)}
        raise failure

    return mock.Mock(side_effect=quality)


@pytest.mark.parametrize("bound", ["'<=0.1'", "null"])
def test_without_the_reference_the_sweep_goes_on_and_its_record_says_why(tmp_path: Path, bound: str) -> None:
    with sweeping(tmp_path, f"objectives.constraints.kl_divergence={bound}") as sweep:
        base = sweep.plan.first[0].quant
        sweep.quality = fails(QualityUnknown("cannot run it"), base)
        record = sweep.run()
    complete = [t for t in record.trials if t.state == "complete"]
    without = [t for t in complete if "kl_divergence" not in t.metrics]
    assert len(record.trials) == 8
    assert without
    assert all(t.configuration.quant != base for t in without)
    assert all(t.missing["kl_divergence"] == "cannot run it" for t in without)
    assert record.recommended is not None
    checked = (
        f"kl_divergence <= 0.1 was not checked in {len(without)} of {len(complete)} trials: cannot run it"
    )
    wanted = "the quality loss is not measured: cannot run it" if bound == "null" else checked
    assert wanted in record.notes


def test_a_level_that_cannot_be_compared_costs_its_own_trials_alone(tmp_path: Path) -> None:
    with sweeping(tmp_path) as sweep:
        base = sweep.plan.first[0].quant
        sweep.quality = fails(EngineCrashed("it died"), base)
        record = sweep.run()
    states = {(t.configuration.quant == base, t.state) for t in record.trials}
    assert (False, "infeasible") in states
    assert (False, "complete") not in states
    assert (True, "infeasible") not in states
    assert {t.reason for t in record.trials if t.state == "infeasible"} == {
        "its quality cannot be measured: it died"
    }


def test_a_comparison_is_no_part_of_a_trials_time_nor_of_the_minutes_of_the_search(tmp_path: Path) -> None:
    class Told(Progress):
        seconds = 0.0

        def compared(self, seconds: float) -> None:
            self.seconds += seconds

    more = ("search.trials=1000", "search.minutes=20", "search.patience=null")
    with sweeping(tmp_path / "at once", *more) as sweep:
        at_once = sweep.run()
    with sweeping(tmp_path / "slowly", *more) as sweep:
        known, compared = sweep.quality, set()
        sweep.progress = Told()

        def slowly(configuration: Configuration) -> Mapping[str, Reading]:
            if configuration.quant not in compared:
                compared.add(configuration.quant)
                sweep.sleep(HOUR)
            return known(configuration)

        sweep.quality = slowly
        record = sweep.run()
    assert len(compared) > 1
    assert sweep.progress.seconds == pytest.approx(HOUR * len(compared))
    assert max(t.seconds for t in record.trials) < HOUR / 2
    assert record.stopped_because == at_once.stopped_because == "20 minutes of searching are over"
    assert len(record.trials) == pytest.approx(len(at_once.trials), abs=3)


def test_the_first_trials_are_those_whose_quality_is_known() -> None:
    levels = ("q8_0", "q4_0", "f16", "q8_0", "f16")
    design = [Configuration(type_k=type_k, n_threads=n) for n, type_k in enumerate(levels, 1)]
    ordered = known_first(design, lambda c: c.type_k == "f16")
    assert [c.n_threads for c in ordered] == [1, 3, 5, 2, 4]
    assert known_first(design, lambda _: True) == tuple(design)
    assert known_first((), lambda _: True) == ()


def test_known_quality_leaves_the_order_of_the_design(tmp_path: Path) -> None:
    with sweeping(tmp_path) as sweep:
        assert sweep.plan.first == initial_design(sweep.space, sweep.space.base, CORNERS, 0)
