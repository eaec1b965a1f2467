"""What the steps of `gpu.py` share: the card, its meter, the models and what stands at the head of each file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu_models import Models, writing
from gpu_plan import DATA_SHEET_GB_PER_SECOND, Plan

from sweeper import machine
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.errors import EngineMissingError, UsageError
from sweeper.meter.base import PowerMeter
from sweeper.meter.choose import find_meter, measure_idle
from sweeper.meter.sensors.nvml import visible_devices
from sweeper.power_settings import PowerSettings
from sweeper.records import EngineRecord, GpuRecord, MachineRecord, Reading

# The fake driver of tests/fake_nvml gives its GPUs UUIDs that begin like this.
FAKE_UUID = "GPU-fa4e0000-0000-4000-8000-"


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A memory's bandwidth in GB/s, and where the figure is from."""

    gb_per_second: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything a step needs."""

    plan: Plan
    out: Path
    work: Path
    uuid: str
    machine: MachineRecord  # with UUIDs shortened, as it is published
    engine: EngineRecord
    meter: PowerMeter
    models: Models
    idle: Reading | None  # W, before any process of ours held the card
    card_ceiling: Ceiling
    host_ceiling: Ceiling
    simulated: bool

    @property
    def gpu(self) -> GpuRecord:
        """The card that is measured."""
        return next(gpu for gpu in self.machine.gpus if gpu.uuid == shortened(self.uuid))

    def head(self) -> dict[str, Any]:
        """What stands at the head of each step's file: the card's fingerprint."""
        gpu = self.gpu
        return {
            "form": self.plan.name,
            "simulated_sensor": self.simulated,
            "machine": self.machine.fingerprint,
            "gpu": gpu.name,
            "gpu_uuid_sha256": gpu.uuid,
            "driver": gpu.driver,
            "kernel": self.machine.kernel,
            "engine": self.engine.version,
            "engine_build": self.engine.build,
            "gpu_offload": self.engine.gpu_offload,
        }


@contextmanager
def opened(plan: Plan, out: Path, work: Path, gpu_gb_per_second: float | None) -> Iterator[Bench]:
    """The bench, with the card looked at first, while nothing of ours is on it.

    Raises:
        SensorMissingError: no NVIDIA card, or one that tells no power.
        UsageError: several cards are visible.
        EngineMissingError: llama.cpp cannot be loaded, or offloads nothing where that is to be measured.
    """
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    uuids = visible_devices()
    if len(uuids) > 1:
        raise UsageError(f"{len(uuids)} GPUs are visible: choose one, like CUDA_VISIBLE_DEVICES={uuids[0]}")
    settings = PowerSettings(source="nvml", device=uuids[0])
    meter, _ = find_meter(settings, work / "mlruns", gpu_used=True, trust_seconds=plan.trust_seconds)
    with meter:
        idle = measure_idle(meter, plan.rest_seconds)
        with LlamaCppEngine({}) as engine:
            record = engine.record
        if not record.gpu_offload and plan.name == "whole":
            raise EngineMissingError(
                "this build of llama.cpp offloads nothing: set LLAMA_CPP_LIB_PATH to a CUDA build, or install one "
                "(`sweeper doctor` prints the line)"
            )
        here = machine.examine()
        gpu = next(gpu for gpu in here.gpus if gpu.uuid == uuids[0])
        host_gb_per_second = machine.measure_bandwidth_gb_per_second()  # before writers are at work
        with writing(plan, work / "models") as models:
            yield Bench(
                plan=plan,
                out=out,
                work=work,
                uuid=uuids[0],
                machine=published(here),
                engine=record,
                meter=meter,
                models=models,
                idle=idle,
                card_ceiling=_card_ceiling(gpu, gpu_gb_per_second),
                host_ceiling=Ceiling(host_gb_per_second, "measured now, by large copies"),
                simulated=uuids[0].startswith(FAKE_UUID),
            )


def shortened(uuid: str) -> str:
    """Twelve hex digits that tell one card from another and lead back to none."""
    return hashlib.sha256(uuid.encode()).hexdigest()[:12]


def published(here: MachineRecord) -> MachineRecord:
    """The machine without its cards' UUIDs."""
    return replace(here, gpus=tuple(replace(gpu, uuid=shortened(gpu.uuid)) for gpu in here.gpus))


def threads(bench: Bench) -> int:
    """One a physical core, as llama.cpp chooses; in the small form fewer."""
    return bench.plan.most_threads or bench.machine.performance_cores or bench.machine.physical_cores


def _card_ceiling(gpu: GpuRecord, given: float | None) -> Ceiling:
    if given is not None:
        return Ceiling(given, "given with --gpu-gb-per-second, not measured")
    known = DATA_SHEET_GB_PER_SECOND.get(gpu.name)
    if known is None:
        return Ceiling(None, f"unknown for {gpu.name}: give --gpu-gb-per-second")
    return Ceiling(known, "given by the data sheet, not measured")
