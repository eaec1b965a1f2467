"""Makes the sweep records that the tests of apply use; no test in here."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper.records import (
    Configuration,
    EngineRecord,
    GpuRecord,
    MachineRecord,
    ModelFile,
    ModelRecord,
    Objective,
    PowerSource,
    Reading,
    SweepRecord,
    TrialRecord,
    Workload,
)

GPU = GpuRecord(
    name="NVIDIA GeForce RTX 3060",
    uuid="GPU-11111111-2222-3333-4444-555555555555",
    driver="570.10",
    power_limit_watts=170.0,
)
MACHINE = MachineRecord("f1", "Some CPU", 4, 8, 32000, "6.1.0", gpus=(GPU,))
ENGINE = EngineRecord("llama_cpp", "0.3.36", "build 1")
# No value is an engine's default, so that a key that was forgotten shows.
CONFIGURATION = Configuration(
    n_gpu_layers=7,
    n_ctx=1536,
    n_batch=1024,
    n_ubatch=256,
    n_threads=3,
    n_threads_batch=5,
    flash_attn=True,
    type_k="q8_0",
    type_v="q5_1",
    offload_kqv=False,
    use_mmap=False,
    use_mlock=True,
    split_mode="row",
    main_gpu=1,
)


def make_sweep(model: Path, configuration: Configuration = CONFIGURATION, **changes: Any) -> SweepRecord:
    """A sweep of one trial, number 3, on ``model``."""
    data = model.read_bytes() if model.exists() else b""
    file = ModelFile("Q8_0", str(model), hashlib.sha256(data).hexdigest(), len(data))
    trial = TrialRecord(
        number=3,
        state="complete",
        configuration=configuration,
        metrics={
            "tokens_per_second": Reading(20.0, 19.5, 20.5, 10),
            "prompt_tokens_per_second": Reading(100.0, 98.0, 102.0, 10),
            "watts": Reading(50.0, 49.0, 51.0, 10),
        },
        remeasured=True,
    )
    record = SweepRecord(
        sweep="tiny-1",
        state="complete",
        machine=MACHINE,
        engine=ENGINE,
        model=ModelRecord("tiny", "llama", 15_000_000, 6, 2048, "file", "Q8_0", {"Q8_0": file}),
        workload=Workload(),
        objectives=(Objective("tokens_per_second", "maximize"), Objective("watts", "minimize")),
        constraints=(),
        power=PowerSource("nvml", "nvmlDeviceGetPowerUsage", "gpu", "measured", device=GPU.uuid),
        space={},
        trials=(trial,),
        front=(3,),
        baseline=3,
        recommended=3,
    )
    return replace(record, **changes)


def tree(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    """Everything under a folder: path -> content (None for a folder) and mode."""
    return {
        str(path.relative_to(folder)): (
            None if path.is_dir() else path.read_bytes(),
            path.lstat().st_mode,
        )
        for path in sorted(folder.rglob("*"))
    }


class FakeLimit:
    """A device's power limit that outlives the object, kept in a file so that a kill does not reset it."""

    def __init__(self, file: Path, device: str = GPU.uuid) -> None:
        self.file = file
        self.device = device

    def read(self) -> float | None:
        return float(self.file.read_text())

    def set(self, watts: float) -> float:
        new = self.file.with_suffix(".new")  # a device takes a limit whole or not at all
        new.write_text(str(watts))
        new.replace(self.file)
        return watts
