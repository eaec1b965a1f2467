"""The `replay` engine takes the results of trials from a recorded table, in virtual time.

Each window draws one of the recorded repeats (speed and watts of the same repeat), so the noise is the recorded
noise. Loads take as long as they took in the recording. Benchmarks compare searches on this engine, on real data,
in seconds.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from typing import Any

from sweeper.engine.base import LoadReport, Run
from sweeper.errors import EngineRefused, OutOfMemory
from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.tables import Table
from sweeper.lab.virtual_time import VirtualClock, VirtualEngine
from sweeper.parameters import MODEL_KEYS
from sweeper.records import Configuration, EngineRecord

# The costs to assume if a table has no load of that kind.
CONTEXT_SECONDS = 0.05
LOAD_SECONDS = 1.0


class ReplayEngine(VirtualEngine):
    """An `Engine` over a recorded table.

    Args:
        table: the recorded table.
        clock: virtual time; every load and window advances it.
        seed: the seed for the choice among the recorded repeats.
    """

    def __init__(self, table: Table, clock: VirtualClock, seed: int = 0) -> None:
        super().__init__(clock, table.header.idle_watts or 0.0)
        self.table = table
        self._rows = {row.configuration.digest: row for row in table.rows}
        self._random = random.Random(seed)
        loads: dict[tuple[Any, ...], list[float]] = {}
        contexts: list[float] = []
        for row in table.rows:
            if row.state == "complete" and row.reloaded:
                loads.setdefault(_model_of(row.configuration), []).append(row.load_seconds)
            elif row.state == "complete":
                contexts.append(row.load_seconds)
        # The recorded costs of a load of each model, of any other model, and of a new context, in s.
        self._loads = {model: statistics.median(seconds) for model, seconds in loads.items()}
        self._load = statistics.median(self._loads.values()) if self._loads else LOAD_SECONDS
        self._context = statistics.median(contexts) if contexts else CONTEXT_SECONDS

    @property
    def record(self) -> EngineRecord:
        """A record that names the replay and the origin of the table."""
        of = self.table.header
        build = f"replay of {of.name} ({of.engine.name} {of.engine.version} on {of.machine.cpu})"
        return EngineRecord(
            "replay",
            "1",
            build,
            gpu_offload=of.engine.gpu_offload,
            simulated=True,
            sampling=of.engine.sampling,
        )

    def load(self, configuration: Configuration) -> LoadReport:
        """Load from the table. A configuration that failed in the recording fails again, after the same time."""
        reload, self._memory = self._unload(configuration), (None, None)
        row = self._rows.get(configuration.digest)
        if row is None:
            raise EngineRefused(f"the table {self.table.header.name} does not contain this configuration")
        seconds = self._loads.get(_model_of(configuration), self._load) if reload else self._context
        self.clock.advance(seconds)
        if row.state == "out_of_memory":
            raise OutOfMemory(row.reason or "out of memory")
        if row.state != "complete":
            raise EngineRefused(row.reason or "this configuration failed in the recording")
        self._loaded, self._memory = configuration, (row.memory_mib, row.vram_mib)
        return LoadReport(configuration.to_dict(), seconds, reload, *self._memory)

    def prefill(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """A window from one of the recorded repeats, at the recorded depth whatever ``depth`` is."""
        row = self._rows[self._in_force().digest]
        speed, watts = self._draw(row.prompt_tokens_per_second, row.prompt_watts)
        return self._run(tokens, speed, watts, min_seconds, max_seconds, cut=False)

    def decode(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """A window from one of the recorded repeats, at the recorded depth whatever ``depth`` is."""
        row = self._rows[self._in_force().digest]
        speed, watts = self._draw(row.tokens_per_second, row.watts)
        return self._run(tokens, speed, watts, min_seconds, max_seconds, cut=True)

    def _draw(self, speeds: tuple[float, ...], watts: tuple[float, ...] | None) -> tuple[float, float]:
        repeat = self._random.randrange(len(speeds))
        return speeds[repeat], watts[repeat] if watts else self.trace.idle_watts


def _model_of(configuration: Configuration) -> tuple[Any, ...]:
    return tuple(getattr(configuration, key) for key in MODEL_KEYS)


def replay_meter(engine: ReplayEngine) -> SimulatedMeter:
    """The meter of a replay. It labels the recorded source as replayed, because nothing is measured now."""
    table = engine.table
    recorded = table.header.power
    note = f"replayed from {table.header.name}, recorded with {recorded.name} ({recorded.kind})"
    source = replace(
        recorded, name=f"replay of {recorded.name}", kind="simulated", note=note, update_period_seconds=0.01
    )
    return SimulatedMeter(engine.trace, engine.clock, source)
