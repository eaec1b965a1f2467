"""The `simulated` engine: analytic machines in virtual time, with noise, warm-up and out-of-memory.

It serves tests, demonstrations and benchmarks of the search. All its output carries the label `simulated`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

from sweeper.engine.base import KEPT_FROM_SECONDS, LoadReport, Run
from sweeper.lab.simulated_experts import cards_of
from sweeper.lab.simulated_hardware import (
    KL_DIVERGENCE,
    Outcome,
    SimulatedGpu,
    SimulatedMachine,
    SimulatedModel,
)
from sweeper.lab.simulated_machine import idle_watts, outcome, shortage
from sweeper.lab.virtual_time import VirtualClock, VirtualEngine
from sweeper.limits.base import LimitRange
from sweeper.records import (
    Configuration,
    EngineRecord,
    Fill,
    GpuRecord,
    MachineRecord,
    ModelFile,
    ModelRecord,
    Workload,
)

# Qwen3 30B-A3B's shape: 128 experts in each of 48 layers, of which a token uses 8.
_THIRTY_MOE = SimulatedModel(
    "simulated-30b-a3b", 30.5e9, 48, 2048, 32, 512, expert_share=0.95, active_experts=1 / 16
)
_SEVEN = SimulatedModel("simulated-7b", 6.74e9, 32, 4096, 32, 4096)
_FOURTEEN = SimulatedModel("simulated-14b", 14.8e9, 48, 5120, 40, 1024)
_THIRTY_FOUR = SimulatedModel("simulated-34b", 33.7e9, 48, 8192, 64, 1024)

MACHINES = {
    # A mini PC without a GPU: efficiency cores that gain little, shared memory bandwidth, a package limit.
    "minipc": SimulatedMachine(
        name="minipc",
        cpu="simulated 8-core mini PC",
        physical_cores=8,
        logical_cores=16,
        memory_mib=12_000,
        gb_per_second=62.0,
        core_gb_per_second=14.0,
        core_gigaflops=38.0,
        idle_watts=11.0,
        core_watts=5.2,
        ram_watts=6.0,
        model=_SEVEN,
        package_cap_watts=(15, 45),
    ),
    # A PC whose 12 GB card holds the model only in its smaller quantisations.
    "gpu_pc": SimulatedMachine(
        name="gpu_pc",
        cpu="simulated 8-core desktop",
        physical_cores=8,
        logical_cores=16,
        memory_mib=30_000,
        gb_per_second=48.0,
        core_gb_per_second=16.0,
        core_gigaflops=70.0,
        idle_watts=42.0,
        core_watts=9.0,
        ram_watts=7.0,
        model=_FOURTEEN,
        gpu=SimulatedGpu("simulated 12 GB card", 12_000, 360.0, 38.0, 14.0, 175.0, 100, 1900),
    ),
    # A PC with two unlike cards, which together do not hold the mixture of experts that it runs.
    "moe_pc": SimulatedMachine(
        name="moe_pc",
        cpu="simulated 8-core desktop",
        physical_cores=8,
        logical_cores=16,
        memory_mib=62_000,
        gb_per_second=68.0,
        core_gb_per_second=17.0,
        core_gigaflops=80.0,
        idle_watts=48.0,
        core_watts=9.0,
        ram_watts=8.0,
        model=_THIRTY_MOE,
        gpu=SimulatedGpu("simulated 12 GB card", 12_000, 360.0, 25.0, 14.0, 170.0, 100, 1800),
        more_gpus=(SimulatedGpu("simulated 6 GB card", 6000, 190.0, 10.0, 9.0, 120.0, 60, 1700),),
    ),
    # A server whose card holds the whole model. Decode stays far below the power limit, so only clocks save power.
    "server": SimulatedMachine(
        name="server",
        cpu="simulated 32-core server",
        physical_cores=32,
        logical_cores=64,
        memory_mib=500_000,
        gb_per_second=280.0,
        core_gb_per_second=12.0,
        core_gigaflops=60.0,
        idle_watts=180.0,
        core_watts=4.5,
        ram_watts=25.0,
        model=_THIRTY_FOUR,
        gpu=SimulatedGpu("simulated 80 GB card", 80_000, 3350.0, 550.0, 70.0, 700.0, 200, 1980, 5.0, 0.35),
        disk_mb_per_second=3000.0,
    ),
}


@dataclass(frozen=True, slots=True)
class Noise:
    """Multiplicative noise: standard deviations as a share of the true value.

    The engine draws ``load`` once per load. It affects all windows of that load equally, like the layout of memory.
    """

    speed: float = 0.015
    watts: float = 0.008
    load: float = 0.008


QUIET = Noise(0.0, 0.0, 0.0)
# After a load, the speed starts this share below its steady value and rises with this time constant.
COLD_LOSS = 0.25
TOLD_EVERY_SECONDS = 1.0  # while a context is filled
WARM_SECONDS = 0.2


class SimulatedEngine(VirtualEngine):
    """An `Engine` on an analytic machine. It runs in virtual time, without inference and without sleeping.

    Args:
        machine: the machine; see `MACHINES`.
        clock: virtual time; every load and window advances it.
        noise: the scatter of the figures.
        seed: the seed of the noise.
    """

    def __init__(
        self, machine: SimulatedMachine, clock: VirtualClock, noise: Noise | None = None, seed: int = 0
    ) -> None:
        super().__init__(clock, idle_watts(machine))
        self.machine = machine
        self._noise = noise or Noise()
        self._random = random.Random(seed)
        self._load_factor = 1.0
        self._warm_seconds = 0.0
        self._depth = 0  # tokens in the context
        # The number of tokens in a filled context that can be restored, by its layout.
        self._kept: dict[tuple[object, ...], int] = {}

    @property
    def record(self) -> EngineRecord:
        """A record whose name and build say that the engine is simulated."""
        has_gpu = self.machine.gpu is not None
        build = f"analytic machine {self.machine.name!r}"
        return EngineRecord("simulated", "1", build, gpu_offload=has_gpu, simulated=True)

    def load(self, configuration: Configuration) -> LoadReport:
        """Load in virtual time. Raises OutOfMemory after the time that the load would have taken."""
        machine, reload = self.machine, self._unload(configuration)
        seconds = machine.context_seconds
        if reload:
            size = machine.model.weight_bytes(configuration.quant) / 1e6
            seconds = machine.start_seconds + size / machine.disk_mb_per_second
        self.clock.advance(seconds)
        truth = self._truth(configuration, 1, 1, 0)
        self._loaded, self._memory = configuration, (truth.memory_mib, truth.vram_mib)
        self._load_factor = self._random.gauss(1.0, self._noise.load)
        self._warm_seconds = 0.0 if reload else self._warm_seconds
        self._depth = 0
        return LoadReport(configuration.to_dict(), seconds, reload, *self._memory)

    def fill(self, depth: int, tell: Callable[[int], None]) -> Fill | None:
        """See `FillsContexts`."""
        was_empty = self._depth == 0
        seconds = self._go_to_depth(depth, tell)
        return Fill(depth, seconds) if was_empty and seconds is not None else None

    def restores(self, configuration: Configuration, depth: int) -> bool:
        """See `FillsContexts`."""
        return self._kept.get(_layout(configuration)) == depth

    def prefill(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """Run rounds of ``tokens`` until ``min_seconds`` are over."""
        self._go_to_depth(depth)
        truth = self._truth(self._in_force(), tokens, 1, depth)
        return self._noisy(
            tokens, truth.prompt_tokens_per_second, truth.prompt_watts, min_seconds, max_seconds, cut=False
        )

    def decode(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """Run rounds of ``tokens`` until ``min_seconds`` are over; cut the run at ``max_seconds``."""
        self._go_to_depth(depth)
        truth = self._truth(self._in_force(), 1, tokens, depth)
        return self._noisy(tokens, truth.tokens_per_second, truth.watts, min_seconds, max_seconds, cut=True)

    def _go_to_depth(self, depth: int, tell: Callable[[int], None] | None = None) -> float | None:
        """Fill a new context, or restore a kept context of the same layout, in the time that the worker would take.

        Returns the seconds of filling; None if nothing was filled.
        """
        c, before, filled = self._in_force(), self._depth, None
        if depth > before:
            truth = self._truth(c, depth - before, 1, before)
            seconds = (depth - before) / truth.prompt_tokens_per_second
            if self.restores(c, depth):
                size = self.machine.model.cache_bytes_per_token(c.type_k, c.type_v) * depth / 1e6
                self._work(min(seconds, size / self.machine.disk_mb_per_second), truth.prompt_watts)
            else:
                filled, steps = seconds, math.ceil(seconds / TOLD_EVERY_SECONDS) if tell else 1
                for step in range(1, steps + 1):
                    self._work(seconds / steps, truth.prompt_watts)
                    if tell is not None:
                        tell(before + (depth - before) * step // steps)
                if seconds >= KEPT_FROM_SECONDS:
                    self._kept[_layout(c)] = depth
        self._depth = depth
        return filled

    def _work(self, seconds: float, watts: float) -> None:
        started = self.clock()
        self.clock.advance(seconds)
        self.trace.add(started, self.clock(), watts)

    def _truth(self, c: Configuration, prompt: int, generated: int, depth: int) -> Outcome:
        workload = Workload(prompt_tokens=prompt, generated_tokens=generated, depth=depth)
        return outcome(self.machine, c, workload)

    def _noisy(
        self, tokens: int, speed: float, watts: float, min_seconds: float, max_seconds: float, *, cut: bool
    ) -> Run:
        warmth = 1 - COLD_LOSS * math.exp(-self._warm_seconds / WARM_SECONDS)
        speed *= self._load_factor * warmth * max(0.1, self._random.gauss(1.0, self._noise.speed))
        watts *= max(0.1, self._random.gauss(1.0, self._noise.watts))
        run = self._run(tokens, speed, watts, min_seconds, max_seconds, cut=cut)
        self._warm_seconds += run.seconds
        return run


def _layout(configuration: Configuration) -> tuple[object, ...]:
    """What decides whether a context of one configuration can be restored into another one's."""
    c = configuration
    return (c.quant, c.type_k, c.type_v, c.flash_attn)


def machine_record(machine: SimulatedMachine) -> MachineRecord:
    """The record of the machine, with a fingerprint that no real machine has."""
    gpus = tuple(
        GpuRecord(
            gpu.name,
            f"GPU-simulated-{machine.name}" + (f"-{index}" if index else ""),
            "simulated",
            index,
            memory_mib=gpu.memory_mib,
            power_min_watts=gpu.cap_low_watts,
            power_max_watts=gpu.peak_watts,
            power_default_watts=gpu.peak_watts,
            power_limit_watts=gpu.peak_watts,
        )
        for index, gpu in enumerate(cards_of(machine))
    )
    return MachineRecord(
        fingerprint=f"simulated-{machine.name}",
        cpu=machine.cpu,
        physical_cores=machine.physical_cores,
        logical_cores=machine.logical_cores,
        memory_mib=machine.memory_mib,
        kernel="simulated",
        gpus=gpus,
        memory_bandwidth_gb_per_second=machine.gb_per_second,
    )


def model_record(machine: SimulatedMachine, quants: Iterable[str] | None = None) -> ModelRecord:
    """The model that the machine runs, with a size and a KL divergence for each quantisation."""
    model = machine.model
    files = {
        quant: ModelFile(quant, "", "", int(model.weight_bytes(quant)), KL_DIVERGENCE[quant])
        for quant in (quants or KL_DIVERGENCE)
    }
    return ModelRecord(
        name=model.name,
        architecture="llama",
        parameters=int(model.parameters),
        n_layer=model.n_layer,
        n_ctx_train=model.n_ctx_train,
        source="simulated",
        base_quant=model.base_quant,
        files=files,
        expert_count=round(8 / model.active_experts) if model.expert_share else 0,
        expert_size_bytes=int(model.expert_share * model.weight_bytes(None)),
    )


def limit_ranges(machine: SimulatedMachine) -> dict[str, LimitRange]:
    """The limits of this machine, with their ranges."""
    if machine.gpu is not None:
        gpu, device = machine.gpu, f"GPU-simulated-{machine.name}"
        cap = LimitRange(
            "power_limit_watts", device, gpu.cap_low_watts, int(gpu.peak_watts), int(gpu.peak_watts)
        )
        clock = LimitRange("clock_limit_mhz", device, gpu.clock_mhz // 4, gpu.clock_mhz, None)
        return {cap.name: cap, clock.name: clock}
    if machine.package_cap_watts is not None:
        low, found = machine.package_cap_watts
        return {"power_limit_watts": LimitRange("power_limit_watts", "package-0", low, found, found)}
    return {}


def true_metrics(
    machine: SimulatedMachine, configuration: Configuration, workload: Workload
) -> dict[str, float]:
    """Every metric without noise. Raises OutOfMemory if the configuration does not fit."""
    truth = outcome(machine, configuration, workload)
    prompt = workload.prompt_tokens / truth.prompt_tokens_per_second
    return {
        **asdict(truth),
        "joules_per_token": truth.watts / truth.tokens_per_second,
        "prompt_joules_per_token": truth.prompt_watts / truth.prompt_tokens_per_second,
        "time_to_first_token_seconds": prompt,
        "request_seconds": prompt + workload.generated_tokens / truth.tokens_per_second,
        "n_ctx": float(configuration.n_ctx),
        "kl_divergence": KL_DIVERGENCE[configuration.quant or machine.model.base_quant],
    }


def default_configuration(machine: SimulatedMachine) -> Configuration:
    """The configuration that llama.cpp would choose by itself on this machine.

    It puts all layers on the GPUs, and leaves as many experts on the host as must be there, like llama-server's
    ``--fit``. The GPUs share the layers by their memory.
    """
    threads = machine.physical_cores
    layers = machine.model.n_layer + 1 if machine.gpu is not None else 0
    found = replace(Configuration(), n_threads=threads, n_threads_batch=threads, n_gpu_layers=layers)
    return found if not machine.model.expert_share or not layers else with_fitting_experts(machine, found)


def with_fitting_experts(machine: SimulatedMachine, configuration: Configuration) -> Configuration:
    """The configuration with the fewest layers of experts on the host with which it fits."""
    choices = (replace(configuration, n_cpu_moe=layers) for layers in range(machine.model.n_layer + 1))
    return next((c for c in choices if shortage(machine, c) is None), configuration)
