"""The rigs of the simulated machine and of recorded tables, and `sweeper record`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.errors import ConfigError
from sweeper.lab import simulator as simulated
from sweeper.lab.replay import ReplayEngine, replay_meter
from sweeper.lab.simulated_hardware import KL_DIVERGENCE
from sweeper.lab.simulated_power import SimulatedLimits, SimulatedMeter
from sweeper.lab.tables import Table, TableRow, header_of, read_table, record_table
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.trial import Stage, exactly
from sweeper.records import Configuration, Reading
from sweeper.report.heartbeat import SILENCE_SECONDS
from sweeper.rig.base import Rig
from sweeper.rig.open import idle_power, open_rig
from sweeper.rig.quantisations import with_quality, with_quality_of_files

if TYPE_CHECKING:
    from sweeper.config import Composed, Settings


def simulated_rig(settings: Settings, _root: Path, _held: ExitStack, _say: Callable[[str], None]) -> Rig:
    """The rig of a simulated machine, in virtual time. Raises ConfigError for an unknown ``engine.machine``."""
    name = settings.engine.machine
    if name not in simulated.MACHINES:
        raise ConfigError(f"engine.machine: {name!r} is not one of {', '.join(simulated.MACHINES)}")
    kind = simulated.MACHINES[name]
    clock = VirtualClock()
    noise = simulated.Noise(settings.engine.noise, settings.engine.noise / 2, settings.engine.noise / 2)
    engine = simulated.SimulatedEngine(kind, clock, noise, settings.search.seed)
    return Rig(
        engine=engine,
        engine_record=engine.record,
        machine=simulated.machine_record(kind),
        model=simulated.model_record(kind),
        meter=SimulatedMeter(engine.trace, clock),
        limits=SimulatedLimits(simulated.limit_ranges(kind)),
        notes=(),
        quality=lambda c: {"kl_divergence": exactly(KL_DIVERGENCE[c.quant or kind.model.base_quant])},
        forecast=lambda _: None,
        quants=tuple(KL_DIVERGENCE),
        clock=clock,
        sleep=clock.advance,
    )


def replay_rig(settings: Settings, _root: Path, _held: ExitStack, _say: Callable[[str], None]) -> Rig:
    """The rig of a recorded table, in virtual time. Raises ConfigError without ``engine.table``."""
    if not settings.engine.table:
        raise ConfigError(
            "engine.table: give a table that `sweeper record` wrote, for example engine.table=t.csv.gz"
        )
    table = read_table(Path(settings.engine.table))
    clock = VirtualClock()
    engine = ReplayEngine(table, clock, settings.search.seed)
    divergence = {quant: file.kl_divergence for quant, file in table.header.model.files.items()}

    def quality(configuration: Configuration) -> dict[str, Reading]:
        known = divergence.get(configuration.quant or table.header.model.base_quant)
        return {} if known is None else {"kl_divergence": exactly(known)}

    return Rig(
        engine=engine,
        engine_record=engine.record,
        machine=table.header.machine,
        model=table.header.model,
        meter=replay_meter(engine),
        limits=SimulatedLimits({}),
        notes=(
            f"replayed from {table.header.name}, recorded {table.header.recorded_utc}: nothing is measured now",
        ),
        quality=quality,
        forecast=lambda _: None,
        clock=clock,
        sleep=clock.advance,
        space=table.header.space,
        workload=table.header.workload,
    )


def record_grid(composed: Composed, path: Path, passes: int, say: Callable[[str], None]) -> Table:
    """Measure every configuration of a space and write a table for the replay engine.

    The recording makes ``passes`` passes over the space. It resumes an interrupted recording. It raises the same
    errors as `prepared`.
    """
    settings = replace(composed.settings, minutes=None)  # a recording ends when the whole space is measured
    with ExitStack() as held:
        rig, space, notes = open_rig(replace(composed, settings=settings), held, say)
        for note in (*rig.notes, *notes):
            say(note)
        rig = with_quality_of_files(with_quality(rig, space, settings, Path(settings.root), held, say), space)
        workload = rig.workload or settings.workload_record()
        stage = Stage.recording(workload)
        idle = idle_power(rig)
        header = header_of(
            path.name.removesuffix(".csv.gz"),
            space,
            rig.machine,
            rig.engine_record,
            rig.model,
            workload,
            rig.meter.source,
            stage,
            recorded_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            idle_watts=idle.median if idle else None,
            passes=passes,
        )
        began = told = rig.clock()

        def tell(done: int, total: int, row: TableRow) -> None:
            nonlocal told
            if done == total or rig.clock() - told >= SILENCE_SECONDS:
                told = rig.clock()
                say(f"{done} of {total} visits, {told - began:.0f} s")

        return record_table(path, header, rig.engine, rig.meter, stage, limits=rig.limits, progress=tell)
