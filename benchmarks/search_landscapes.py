"""What searches are compared on: simulated machines, and recorded tables replayed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recorded_truth import smoothed, truth_of

from sweeper.engine.base import Engine
from sweeper.errors import OutOfMemory
from sweeper.lab.replay import ReplayEngine, replay_meter
from sweeper.lab.simulated_experts import cards_of
from sweeper.lab.simulated_hardware import SimulatedModel
from sweeper.lab.simulated_machine import shortage
from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.simulator import (
    MACHINES,
    SimulatedEngine,
    default_configuration,
    true_metrics,
    with_fitting_experts,
)
from sweeper.lab.tables import Table, read_table
from sweeper.lab.virtual_time import VirtualClock
from sweeper.meter.base import PowerMeter
from sweeper.records import Configuration, Workload
from sweeper.results.front import hypervolume, reference_point, undominated
from sweeper.search.warm_start import nearest
from sweeper.space.space import SearchSpace, Traits, build_space

TABLES = Path(__file__).parent / "tables"
Objectives = tuple[tuple[str, float], ...]
OBJECTIVES: Objectives = (("tokens_per_second", 1.0), ("watts", -1.0))
WITH_PROMPTS: Objectives = (("tokens_per_second", 1.0), ("prompt_tokens_per_second", 1.0), ("watts", -1.0))

# The forecast of memory that a sweep has sees too little by this factor: fragmentation, other programs. It is
# the same for every sampler.
FORECAST = 0.95

# Spaces as a user would sweep them, large enough that nobody would measure them whole.
SPACES: Mapping[str, Mapping[str, Any]] = {
    "minipc": {
        "quant": ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"],
        "n_threads": {"low": 1, "high": 16},
        "n_threads_batch": [8, 16],
        "n_ubatch": [64, 512],
        "flash_attn": [True, False],
        "type_k": ["f16", "q8_0"],
        "n_ctx": [2048, 8192, 16384],
        "power_limit_watts": {"low": 15, "high": 45, "step": 3},
    },
    "gpu_pc": {
        "quant": ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"],
        "n_gpu_layers": {"low": 0, "high": 49},
        "n_threads": [1, 2, 4, 8, 16],
        "n_ctx": [2048, 8192, 32768],
        "flash_attn": [True, False],
        "type_k": ["f16", "q8_0"],
        "power_limit_watts": {"low": 100, "high": 175, "step": 15},
    },
    # One file of a mixture of experts: what is searched is where it lies.
    "moe_pc": {
        "n_gpu_layers": {"low": 1, "high": 49, "step": 4},
        "n_cpu_moe": {"low": 0, "high": 48},
        "tensor_split": [None, "1,1", "35,14", "1,0", "0,1"],
        "n_parallel": [1, 2, 4, 8],
        "n_threads": [4, 8],
        "power_limit_watts": [100, 125, 150, 170],
    },
    "server": {
        "quant": ["F16", "Q8_0", "Q6_K", "Q4_K_M"],
        "n_gpu_layers": [0, 12, 24, 36, 44, 46, 47, 48, 49],
        "n_threads": [1, 4, 16, 32, 64],
        "n_ctx": [4096, 32768],
        "offload_kqv": [True, False],
        "power_limit_watts": {"low": 200, "high": 700, "step": 50},
        "clock_limit_mhz": [600, 1000, 1400, 1700, 1980],
    },
}


@dataclass(frozen=True)
class Landscape:
    """A space whose truth is known, and how to make an engine and a meter on it."""

    name: str
    space: SearchSpace
    baseline: Configuration
    workload: Workload
    truth: Callable[[Configuration], Mapping[str, float] | None]  # None: does not run
    rig: Callable[[int], tuple[Engine, PowerMeter, VirtualClock]]
    forecast: Callable[[Configuration], bool]  # whether memory is forecast to do; errs a little
    objectives: Objectives = OBJECTIVES  # decode speed first, watts last
    # The placement that llama-server's --fit would choose for a configuration's other parameters, if there is a choice.
    as_fitted: Callable[[Configuration], Configuration] | None = None

    def point(self, configuration: Configuration) -> tuple[float, ...] | None:
        """The true objectives, oriented; None where the configuration does not run."""
        metrics = self.truth(configuration)
        return None if metrics is None else tuple(sign * metrics[m] for m, sign in self.objectives)

    @functools.cached_property
    def all_points(self) -> dict[Configuration, tuple[float, ...]]:
        """Every configuration that runs, with its true objectives."""
        found = ((c, self.point(c)) for c in self.space.grid())
        return {c: p for c, p in found if p is not None}

    @functools.cached_property
    def front(self) -> list[tuple[float, ...]]:
        """The true front, oriented."""
        points = list(self.all_points.values())
        return [points[i] for i in undominated(points)]

    @functools.cached_property
    def reference(self) -> tuple[float, ...]:
        """Behind the true front, as everywhere in sweeper."""
        return reference_point(self.front)

    @functools.cached_property
    def volume(self) -> float:
        """The hypervolume of the true front."""
        return hypervolume(self.front, self.reference)


def simulated(name: str, model: SimulatedModel | None = None) -> Landscape:
    """A simulated machine with its space, on ``model`` in place of its own."""
    machine = MACHINES[name]
    spec = dict(SPACES[name])
    if model is not None:
        if "n_gpu_layers" in spec:
            spec["n_gpu_layers"] = _for_layers(spec["n_gpu_layers"], machine.model.n_layer, model.n_layer)
        machine = replace(machine, model=model)
    workload = Workload(depth=512)
    baseline = default_configuration(machine)
    traits = Traits(
        n_layer=machine.model.n_layer,
        gpu_offload=machine.gpu is not None,
        prompt_tokens=workload.prompt_tokens,
        n_ctx_needed=workload.n_ctx_needed,
        has_experts=machine.model.expert_share > 0,
        gpus=len(cards_of(machine)),
        engine="simulated",
    )
    space = build_space(spec, baseline, traits)
    # The default as a point of the space: no quantisation is the base one, no cap is the highest.
    start = space.params_of(baseline) | {"quant": machine.model.base_quant}
    for limit in ("power_limit_watts", "clock_limit_mhz"):
        if limit in space.parameters:
            start[limit] = space.parameters[limit].values[-1]
    if "n_ctx" in space.parameters:
        start["n_ctx"] = min(v for v in space.parameters["n_ctx"].values if v >= 4096)

    def truth(configuration: Configuration) -> dict[str, float] | None:
        try:
            return true_metrics(machine, configuration, workload)
        except OutOfMemory:
            return None

    def rig(seed: int) -> tuple[Engine, PowerMeter, VirtualClock]:
        clock = VirtualClock()
        engine = SimulatedEngine(machine, clock, seed=seed)
        return engine, SimulatedMeter(engine.trace, clock), clock

    def forecast(configuration: Configuration) -> bool:
        return shortage(machine, configuration, FORECAST) is None

    def as_fitted(configuration: Configuration) -> Configuration:
        plain = replace(configuration, n_gpu_layers=machine.model.n_layer + 1, tensor_split=None)
        return with_fitting_experts(machine, plain)

    return Landscape(
        f"simulated-{name}",
        space,
        space.configuration(start),
        workload,
        truth,
        rig,
        forecast,
        as_fitted=as_fitted if machine.model.expert_share else None,
    )


def _for_layers(wanted: Any, layers: int, now: int) -> Any:
    """A range or choice of GPU layers, for a model with another number of them."""
    if isinstance(wanted, dict):
        return {**wanted, "high": now + 1}
    return sorted({round(value * (now + 1) / (layers + 1)) for value in wanted})


@functools.lru_cache
def _smoothed(path: Path) -> tuple[Table, Mapping[Configuration, Mapping[str, float]]]:
    table = read_table(path)
    truth = truth_of(table)
    return smoothed(table, truth), truth.values


def recorded(path: Path, objectives: Objectives, suffix: str = "") -> Landscape:
    """A recorded table; see recorded_truth.py for what its truth is.

    Trials are as long as in a sweep with ``workload=quick``; each window has the noise of the recorded ones, which
    were shorter, so it is noisier than a sweep's own.
    """
    table, values = _smoothed(path)
    space = table.header.space

    def truth(configuration: Configuration) -> Mapping[str, float] | None:
        return values.get(configuration)

    def rig(seed: int) -> tuple[Engine, PowerMeter, VirtualClock]:
        clock = VirtualClock()
        engine = ReplayEngine(table, clock, seed)
        return engine, replay_meter(engine), clock

    baseline = space.configuration(
        {p.name: nearest(p.values, getattr(space.base, p.name)) for p in space.parameters.values()}
    )
    name = path.name.removesuffix(".csv.gz") + suffix
    workload = replace(
        table.header.workload,
        screening_seconds=2.4,
        screening_repeats=3,
        warmup_seconds=1.5,
        final_seconds=10.0,
        final_repeats=10,
    )
    return Landscape(name, space, baseline, workload, truth, rig, lambda _: True, objectives)


def landscapes(names: list[str] | None = None) -> list[Landscape]:
    """The simulated machines and every table in ``benchmarks/tables``; only ``names`` where given."""
    makers: dict[str, Callable[[], Landscape]] = {
        f"simulated-{name}": functools.partial(simulated, name) for name in SPACES
    }
    for path in sorted(TABLES.glob("*.csv.gz")):
        name = path.name.removesuffix(".csv.gz")
        makers[name] = functools.partial(recorded, path, OBJECTIVES)
        makers[f"{name}, with prompts"] = functools.partial(recorded, path, WITH_PROMPTS, ", with prompts")
    return [make() for name, make in makers.items() if names is None or name in names]
