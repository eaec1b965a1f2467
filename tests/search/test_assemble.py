"""What is worked out from the trials of a study, where a figure is missing."""

from __future__ import annotations

from dataclasses import replace

from sweeper.engine.simulated import MACHINES, machine_record, model_record
from sweeper.records import (
    Configuration,
    Constraint,
    EngineRecord,
    Objective,
    PowerSource,
    Reading,
    SweepRecord,
    TrialRecord,
    Workload,
)
from sweeper.search.assemble import conclude

TRIAL = TrialRecord(
    0, "complete", Configuration(), {"tokens_per_second": Reading(9, 8, 10, 3), "watts": Reading(5, 4, 6, 3)}
)


def record(*constraints: Constraint) -> SweepRecord:
    return SweepRecord(
        sweep="s",
        state="complete",
        machine=machine_record(MACHINES["minipc"]),
        engine=EngineRecord("llama_cpp", "1"),
        model=model_record(MACHINES["minipc"]),
        workload=Workload(),
        objectives=(Objective("tokens_per_second", "maximize"), Objective("watts", "minimize")),
        constraints=constraints,
        power=PowerSource("estimate", "", "package", "estimated"),
        space={},
        trials=(TRIAL,),
        front=(),
        baseline=0,
        recommended=None,
    )


def test_a_constraint_without_its_metric_is_said_not_to_have_been_judged() -> None:
    missing = replace(TRIAL, missing={"vram_mib": "the engine cannot read it here"})
    found = conclude(replace(record(Constraint("vram_mib", "<=", 100)), trials=(missing,)))
    assert found.notes == ("vram_mib <= 100 was not judged in 1 of 1 trials: the engine cannot read it here",)
    assert conclude(found).notes == found.notes  # said once


def test_a_constraint_that_was_judged_is_not_spoken_of() -> None:
    assert conclude(record(Constraint("watts", "<=", 100))).notes == ()
