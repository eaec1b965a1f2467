"""What sweeper's own engine gives now, for a promise that a server seems not to keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.measure.trial import speeds_now
from sweeper.records import (
    Reading,
    SweepRecord,
    TrialRecord,
)

if TYPE_CHECKING:
    pass


def speeds_of_engine(record: SweepRecord, trial: TrialRecord) -> Mapping[str, Reading]:
    """What sweeper's own engine gives for a trial of a finished sweep now, in tok/s. Raises TrialFailed."""
    from sweeper.apply.fresh import model_file
    from sweeper.apply.run import environment_of
    from sweeper.engine.llama_cpp import LlamaCppEngine

    path = Path(model_file(record, trial).path).expanduser()
    with LlamaCppEngine({trial.configuration.quant: path}, dict(environment_of(record))) as engine:
        return speeds_now(engine, trial.configuration, record.workload)
