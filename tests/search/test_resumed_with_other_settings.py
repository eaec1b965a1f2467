"""A sweep that resumes with other settings names the key that the user changed, with both values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sweeper.errors import ConfigError
from sweeper.lab.simulator import MACHINES, machine_record, model_record
from sweeper.records import (
    Configuration,
    Constraint,
    EngineRecord,
    Objective,
    PowerSource,
    SweepRecord,
    Workload,
)
from sweeper.search.study import SweepStudy

FIRST = SweepRecord(
    sweep="mine",
    state="running",
    machine=machine_record(MACHINES["minipc"]),
    engine=EngineRecord("simulated", "1"),
    model=model_record(MACHINES["minipc"]),
    workload=Workload(prompt_tokens=64),
    objectives=(Objective("tokens_per_second", "maximize"), Objective("watts", "minimize")),
    constraints=(Constraint("kl_divergence", "<=", 0.1),),
    power=PowerSource("simulated", "", "simulated", "simulated"),
    space={"n_batch": [32, 64], "n_threads": [1, 2]},
    trials=(),
    front=(),
    baseline=None,
    recommended=None,
)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        # A shorter prompt also changes the space.
        (
            {"workload": Workload(prompt_tokens=99), "space": {"n_batch": [99], "n_threads": [1, 2]}},
            "workload.prompt_tokens: the sweep 'mine' was started with 64, and now it is 99; give",
        ),
        (
            {"constraints": (Constraint("kl_divergence", "<=", 0.2),)},
            "objectives.constraints: the sweep 'mine' was started with kl_divergence <= 0.1, and now it is "
            "kl_divergence <= 0.2; give",
        ),
        (
            {"space": {"n_batch": [32, 64]}},
            "space.n_threads: the sweep 'mine' was started with [1, 2], and now it is not searched; give",
        ),
    ],
)
def test_the_changed_key_is_named(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    SweepStudy.create(tmp_path, FIRST)
    with pytest.raises(ConfigError) as caught:
        SweepStudy.create(tmp_path, replace(FIRST, **changed))  # type: ignore[arg-type]
    assert str(caught.value).startswith(words)


def test_a_changed_fixed_parameter_is_named(tmp_path: Path) -> None:
    first = replace(FIRST, baseline_configuration=Configuration(n_batch=32, n_threads=1, n_threads_batch=4))
    SweepStudy.create(tmp_path, first)
    again = replace(first, baseline_configuration=Configuration(n_batch=64, n_threads=1, n_threads_batch=4))
    SweepStudy.create(tmp_path, again)  # the baseline's value of a searched parameter may change
    other = replace(first, baseline_configuration=Configuration(n_batch=32, n_threads=1, n_threads_batch=8))
    with pytest.raises(ConfigError, match=r"space\.n_threads_batch: .* started with 4, and now it is 8"):
        SweepStudy.create(tmp_path, other)


def test_the_same_settings_resume(tmp_path: Path) -> None:
    SweepStudy.create(tmp_path, FIRST)
    assert SweepStudy.create(tmp_path, FIRST).header().sweep == "mine"
