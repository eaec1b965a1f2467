"""Warm start: an earlier sweep's best configurations on this machine, as points of a new sweep's space.

Another model or driver changes every figure, and slightly changes which configurations are best. The best threads, caps
and cache types of a machine change less. sweeper does not trust the earlier results. It measures the best points first,
and uses all earlier trials as a first guess for the sampler's model (prior.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.errors import StoreError
from sweeper.model.ggml_types import FILE_BITS_PER_WEIGHT
from sweeper.records import Configuration, MachineRecord, Objective, SweepRecord
from sweeper.results.assemble import assemble
from sweeper.search.study import SweepStudy, sweep_names
from sweeper.search.warm_start import nearest
from sweeper.space.space import SearchSpace

# The pick and the ends of the front. More points would replace trials that the new model asks for.
MOST_POINTS = 3


@dataclass(frozen=True, slots=True)
class Earlier:
    """The results of an earlier sweep, as points of the new space."""

    sweep: str
    configurations: tuple[Configuration, ...]  # the best ones, to be measured first
    # Each with its objectives, as measured.
    measured: tuple[tuple[Configuration, tuple[float, ...]], ...] = ()


def from_earlier(
    root: Path,
    machine: MachineRecord,
    simulated: bool,
    objectives: Sequence[Objective],
    space: SearchSpace,
    skip: str,
) -> Earlier | None:
    """The latest sweep in ``root`` with the same machine and objectives, moved into ``space``; None if there is none.

    The machine's driver and memory may have changed, but a simulated engine teaches nothing about a real one.
    ``skip`` is the new sweep's own name.
    """
    for name in reversed(sweep_names(root)):
        if name == skip:
            continue
        try:
            record = assemble(SweepStudy.load(root, name))
        except StoreError:  # written by another version, or damaged
            continue
        if (
            hardware(record.machine) == hardware(machine)
            and record.engine.simulated == simulated
            and [o.metric for o in record.objectives] == [o.metric for o in objectives]
            and record.front
        ):
            earlier = handed_on(record, space)
            if earlier.configurations:
                return earlier
    return None


def handed_on(record: SweepRecord, space: SearchSpace) -> Earlier:
    """The results of ``record`` for a new sweep over ``space``."""
    best = [moved(c, record.model.n_layer, space) for c in _best(record)]
    runs = [c for c in dict.fromkeys(best) if not space.violations(c)]
    names = [o.metric for o in record.objectives]
    measured = tuple(
        (moved(t.configuration, record.model.n_layer, space), tuple(t.metrics[m].median for m in names))
        for t in record.trials
        if t.state == "complete" and all(m in t.metrics for m in names)
    )
    return Earlier(record.sweep, tuple(runs[:MOST_POINTS]), measured)


def moved(configuration: Configuration, n_layer: int, space: SearchSpace) -> Configuration:
    """The point of ``space`` that is most similar to ``configuration`` of a model with ``n_layer`` layers."""
    return space.configuration(
        {
            name: _moved(name, getattr(configuration, name), parameter.values, n_layer, space)
            for name, parameter in space.parameters.items()
        }
    )


def _moved(name: str, value: Any, values: Sequence[Any], n_layer: int, space: SearchSpace) -> Any:
    if name == "n_gpu_layers":
        whole, share = space.traits.n_layer + 1, value / (n_layer + 1)
        return nearest(values, whole if value < 0 or share >= 1 else round(share * whole))
    if name == "quant" and value not in values:
        bits = FILE_BITS_PER_WEIGHT.get(value)
        known = [v for v in values if v in FILE_BITS_PER_WEIGHT]
        if bits is not None and known:
            return min(known, key=lambda v: abs(FILE_BITS_PER_WEIGHT[v] - bits))
    return nearest(values, value)


def hardware(machine: MachineRecord) -> tuple[str, int, list[str]]:
    """The properties that two sweeps of the same machine share."""
    return machine.cpu, machine.logical_cores, [gpu.name for gpu in machine.gpus]


def _best(record: SweepRecord) -> list[Configuration]:
    """The recommended configuration, then the best in each objective."""
    front = record.on_front()
    numbers = [record.recommended] if record.recommended is not None else []
    for objective in record.objectives:
        sign = 1.0 if objective.direction == "maximize" else -1.0
        best = max(front, key=lambda t: sign * t.metrics[objective.metric].median)
        numbers.append(best.number)
    return [record.trial(number).configuration for number in dict.fromkeys(numbers)]
