"""What a card adds to the search, and what a sweep learns where a card's memory ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from sweeper.config import compose
from sweeper.lab.simulator import MACHINES, machine_record, model_record
from sweeper.parameters import NO_OFFLOAD, TUNABLES
from sweeper.prepare import prepared
from sweeper.records import SweepRecord, Workload
from sweeper.report.progress import Progress
from sweeper.search.gp_front import INITIAL_TRIALS
from sweeper.search.memory_order import MemoryOrder
from sweeper.space.auto import Facts, default_configuration, fill_auto
from sweeper.space.space import SearchSpace, Traits, build_space

ASKED = {
    "n_gpu_layers": "auto",
    "offload_kqv": [True, False],
    "split_mode": ["layer", "row"],
    "main_gpu": [0, 1],
    "n_ubatch": [128, 512],
}


def _space(gpu_offload: bool, spec: dict[str, Any]) -> tuple[SearchSpace, tuple[str, ...]]:
    machine = MACHINES["gpu_pc"]
    facts = Facts(machine_record(machine), model_record(machine), Workload(), gpu_offload)
    filled, notes = fill_auto(spec, facts)
    traits = Traits(n_layer=facts.model.n_layer, gpu_offload=gpu_offload)
    return build_space(filled, default_configuration(facts), traits), notes


def test_on_a_build_that_offloads_the_cards_settings_are_dimensions() -> None:
    space, notes = _space(True, ASKED)
    assert set(space.parameters) == set(ASKED)
    layers = space.parameters["n_gpu_layers"].values
    assert (layers[0], layers[-1]) == (0, 49), "48 layers and the output"
    assert space.base.n_gpu_layers == 49, "llama.cpp would offload all of it"
    assert notes == ()


def test_on_a_build_that_does_not_they_are_none_and_who_asked_is_told() -> None:
    space, notes = _space(False, ASKED)
    assert set(space.parameters) == {"n_ubatch"}
    assert space.base.n_gpu_layers == 0
    assert [note.split()[0] for note in notes] == ["offload_kqv", "split_mode", "main_gpu"]
    assert all(note.endswith(NO_OFFLOAD) for note in notes)
    told_of_words = _space(
        False,
        dict.fromkeys([t.name for t in TUNABLES.values() if t.gpu_only], "auto") | {"n_ubatch": [128, 512]},
    )[1]
    assert told_of_words == (), "who left it to sweeper asked for nothing"


def test_all_layers_are_one_point_however_they_are_written() -> None:
    space, _ = _space(True, {"n_gpu_layers": [-1, 24, 49, 99]})
    assert sorted(c.n_gpu_layers for c in space.grid()) == [24, 49]


# -- where memory ends --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    """A sweep through the real loop, on a simulated card that holds 12 GB of a model that has more."""
    overrides = [
        f"root='{tmp_path_factory.mktemp('runs')}'",
        "name=card",
        "engine=simulated",
        "engine.machine=gpu_pc",
        "search.trials=24",
        "search.finalists=1",
        "search.patience=null",
        "space.quant=[Q8_0,Q6_K,Q4_K_M]",
        "space.n_ctx=[2048,16384]",
        "space.n_threads=8",
        "space.n_threads_batch=8",
        "space.power_limit_watts=null",
    ]
    with prepared(compose(overrides), lambda *_: Progress(), lambda _: None) as sweep:
        return sweep.run()


def test_out_of_memory_on_the_card_is_a_trial_with_its_reason_and_without_a_score(swept: SweepRecord) -> None:
    broke = [trial for trial in swept.trials if trial.state == "out_of_memory"]
    assert broke, "the space reaches beyond the card"
    for trial in broke:
        assert trial.reason is not None
        assert "MiB of GPU memory, but there are 12000 MiB" in trial.reason
        assert not trial.metrics
        assert trial.number not in swept.front


def test_the_sweep_goes_on_after_it(swept: SweepRecord) -> None:
    states = [trial.state for trial in swept.trials]
    after = [later for state, later in pairwise(states) if state == "out_of_memory"]
    assert "complete" in after
    assert swept.state == "complete"
    assert swept.recommended is not None


def test_once_it_has_learned_the_sampler_asks_for_no_more_than_what_did_not_fit(swept: SweepRecord) -> None:
    certain = 0
    for place, trial in enumerate(swept.trials):
        earlier = swept.trials[:place]
        if sum(t.state == "complete" for t in earlier) < INITIAL_TRIALS:
            continue  # the first trials are a fixed design
        for t in earlier:
            if t.state == "out_of_memory":
                certain += 1
                asks_for_more = MemoryOrder([], [t.configuration]).probability([trial.configuration])[0] < 1
                same_direction = trial.configuration.n_gpu_layers >= t.configuration.n_gpu_layers
                assert not (asks_for_more and same_direction), (t.configuration, trial.configuration)
    assert certain > 0, "nothing was looked at"
