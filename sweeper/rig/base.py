"""What trials run on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.engine.base import Engine
from sweeper.limits.base import LimitControl
from sweeper.meter.base import PowerMeter
from sweeper.records import Caveat, Configuration, EngineRecord, MachineRecord, ModelRecord, Reading, Workload
from sweeper.space.space import SearchSpace


@dataclass(frozen=True, slots=True)
class Rig:
    """What trials run on: an engine and its meter and limits, with what they say of themselves."""

    engine: Engine
    engine_record: EngineRecord
    machine: MachineRecord
    model: ModelRecord
    meter: PowerMeter
    limits: LimitControl
    notes: tuple[str, ...]
    quality: Callable[[Configuration], Reading | None]
    forecast: Callable[[Configuration], str | None]
    standing_caveats: tuple[Caveat, ...] = ()
    clock: Callable[[], float] = time.monotonic  # virtual time for simulated machines
    sleep: Callable[[float], None] = time.sleep
    use_files: Callable[[Mapping[str, Path]], None] | None = None  # told of quantisations made later
    space: SearchSpace | None = None  # of a recorded table, which can answer no other
    workload: Workload | None = None
