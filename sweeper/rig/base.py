"""The rig on which trials run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.client.requests import Prompt
from sweeper.engine.base import Engine
from sweeper.limits.base import LimitControl
from sweeper.measure.disturbance import MachineLoad
from sweeper.meter.base import PowerMeter
from sweeper.model.quality import Effort, Meter
from sweeper.model.texts import Texts
from sweeper.records import Caveat, Configuration, EngineRecord, MachineRecord, ModelRecord, Reading, Workload
from sweeper.space.space import SearchSpace


@dataclass(frozen=True, slots=True)
class Rig:
    """An engine with its meter and limits, and their records and notes. Trials run on it."""

    engine: Engine
    engine_record: EngineRecord
    machine: MachineRecord
    model: ModelRecord
    meter: PowerMeter
    limits: LimitControl
    notes: tuple[str, ...]
    # The metrics of `OF_QUALITY`, as far as they can be known. The first call for a level may take minutes.
    quality: Callable[[Configuration], Mapping[str, Reading]]
    forecast: Callable[[Configuration], str | None]
    quants: tuple[
        str, ...
    ] = ()  # the only quantisations that the engine knows; empty: sweeper checks when it makes them
    standing_caveats: tuple[Caveat, ...] = ()
    clock: Callable[[], float] = time.monotonic  # virtual time for simulated machines
    sleep: Callable[[float], None] = time.sleep
    # Passes the files of quantisations that sweeper makes later to the engine.
    use_files: Callable[[Mapping[str, Path]], None] | None = None
    # Makes the engine measure as the one that started the sweep did, so that a resumed sweep mixes no figures.
    measure_as: Callable[[EngineRecord], None] = lambda record: None
    # Ends the engine's worker if a file does not fit beside it, and raises OutOfMemory if that is not enough.
    make_room: Callable[[Path, int], None] = lambda path, n_gpu_layers: None
    space: SearchSpace | None = None  # the space of a recorded table, the only one that a replay can answer
    workload: Workload | None = None
    options: frozenset[str] | None = None  # that this llama-server knows, without dashes; None: all
    speculation: frozenset[str] | None = None  # the kinds of it that this llama-server lists; None: all
    # Makes generation go on with one of these texts; None: the engine cannot, or sends the user's own prompts.
    use_texts: Callable[[Sequence[Prompt]], None] | None = None
    # The placement that the engine chooses itself, with which the baseline runs; None: the engine chooses none.
    own_placement: Callable[[Configuration], Mapping[str, Any]] | None = None
    measures_quality: bool = True  # False: nothing here can measure the loss of a quantisation
    makes_quantisations: bool = True  # False: only the user's own files
    # Opens what compares the quality of files, with the arguments of `QualityMeter`; None: that class itself.
    quality_meter: Callable[[Path, Path, Texts, int, Callable[[Path], None], Effort], Meter] | None = None
    quality_is_known: Callable[[Configuration], bool] = lambda configuration: (
        True
    )  # `quality` answers at once
    quality_record: str = ""  # see `SweepRecord.quality`
    load: MachineLoad | None = None  # None on machines with virtual time: nothing can disturb them
    running: Configuration | None = (
        None  # the settings of a running server, which keeps them; only limits vary
    )
