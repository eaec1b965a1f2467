"""What earlier sweeps on this machine measured of the same model, and of its power."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sweeper import stats
from sweeper.errors import StoreError
from sweeper.guess.records import Figure
from sweeper.model.header import GgufHeader
from sweeper.records import Configuration, MachineRecord, Reading, SweepRecord, TrialRecord, Workload
from sweeper.results.assemble import assemble
from sweeper.search.study import SweepStudy, sweep_names
from sweeper.search.transfer import hardware

# Reading a sweep of 60 trials takes about 0.1 s, and a guess must not take longer than its reader waits.
MOST_SECONDS, MOST_SWEEPS = 0.8, 10
# Two sweeps of the same model differ by up to this factor: the machine's temperature and memory layout change.
BETWEEN_SWEEPS = 1.1
_SAME_LAYERS = 0.02  # difference in the share of layers on the GPU


def earlier_sweeps(
    root: Path, machine: MachineRecord, clock: Callable[[], float] = time.monotonic
) -> tuple[SweepRecord, ...]:
    """The latest real sweeps in ``root`` on the same hardware, newest first, as many as can be read in a moment."""
    found: list[SweepRecord] = []
    until = clock() + MOST_SECONDS
    for name in reversed(sweep_names(root)):
        if len(found) == MOST_SWEEPS or (found and clock() > until):
            break
        try:
            study = SweepStudy.load(root, name)
            header = study.header()
            if not header.engine.simulated and hardware(header.machine) == hardware(machine):
                found.append(assemble(study))
        except StoreError:  # written by another version, or damaged
            continue
    return tuple(found)


def speed_before(
    sweeps: Sequence[SweepRecord],
    header: GgufHeader,
    configuration: Configuration,
    workload: Workload,
    metric: str = "tokens_per_second",
) -> Figure | None:
    """The decode speed that earlier sweeps measured of the same model with the same threads and layers; None if none.

    ``metric`` is that of an empty context, or ``tokens_per_second_at_full_depth``.
    """
    readings: list[tuple[str, Reading]] = []
    for record in sweeps:
        file = record.model.files.get(header.file_type)
        same_model = (
            record.model.architecture == header.architecture
            and record.model.parameters == header.parameters
            and file is not None
            and file.size_bytes == header.size_bytes
        )
        if not same_model or _workload(record) != (workload.depth, workload.users, True):
            continue
        for trial in _alike(record, configuration, header.n_layer):
            quant = trial.configuration.quant or record.model.base_quant
            full = not metric.endswith("full_depth") or trial.configuration.n_ctx == configuration.n_ctx
            if quant == header.file_type and full and metric in trial.metrics:
                readings.append((record.sweep, trial.metrics[metric]))
    return _figure(readings, "measured there with the same threads and layers on the GPU")


def watts_before(sweeps: Sequence[SweepRecord], configuration: Configuration, n_layer: int) -> Figure | None:
    """The power that earlier sweeps found with the same threads and layers on the GPU, of any model; None if none."""
    for kind in ("measured", "mixed", "estimated"):
        readings = [
            (record.sweep, trial.metrics["watts"])
            for record in sweeps
            if record.power.kind == kind
            for trial in _alike(record, configuration, n_layer)
            if "watts" in trial.metrics
        ]
        if readings:
            how = "measured" if kind == "measured" else f"{kind} there"
            return _figure(
                readings, f"{how} with the same threads and layers on the GPU, perhaps of another model"
            )
    return None


def _workload(record: SweepRecord) -> tuple[object, ...]:
    """What decides the meaning of a decode speed: depth, clients, and whether tokens were sampled."""
    return record.workload.depth, record.workload.users, bool(record.engine.sampling)


def _alike(record: SweepRecord, wanted: Configuration, n_layer: int) -> Iterator[TrialRecord]:
    """The complete trials that work as ``wanted`` does; batches and caches change decode little."""
    for trial in record.trials:
        has = trial.configuration
        share = has.n_gpu_layers / (record.model.n_layer + 1) - wanted.n_gpu_layers / (n_layer + 1)
        if (
            trial.state == "complete"
            and has.n_threads == wanted.n_threads
            and abs(share) <= _SAME_LAYERS
            and has.power_limit_watts == wanted.power_limit_watts
        ):
            yield trial


def _figure(readings: Sequence[tuple[str, Reading]], reason: str) -> Figure | None:
    if not readings:
        return None
    names = ", ".join(dict.fromkeys(name for name, _ in readings))
    return Figure(
        low=min(reading.low for _, reading in readings) / BETWEEN_SWEEPS,
        expected=stats.median([reading.median for _, reading in readings]),
        high=max(reading.high for _, reading in readings) * BETWEEN_SWEEPS,
        label="from earlier sweeps",
        reason=f"{reason} ({names})",
    )
