"""A sweep as its record, made up: enough trials of every kind to see how each stands in MLflow."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sweeper.records import (
    Caveat,
    Configuration,
    EngineRecord,
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

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SECONDS = 20.0  # of one trial

MODEL = ModelRecord(
    "llama-15m", "llama", 15_000_000, 6, 2048, "synthetic", "F16",
    {"F16": ModelFile("F16", "/models/llama-15m.gguf", "a" * 64, 30_000_000)},
)  # fmt: skip
MACHINE = MachineRecord("f00d" * 4, "Intel N150", 4, 4, 16000, "6.1.0")
POWER = PowerSource("rapl", "intel-rapl:0/energy_uj", "package", "measured", 0.001)


def reading(value: float, n: int = 3) -> Reading:
    return Reading(value, 0.98 * value, 1.03 * value, n)


def trial(number: int, **changes: object) -> TrialRecord:
    threads, batch = 1 + number % 4, 64 * 2 ** (number % 5)
    speed, watts = 8.0 + 6.3 * threads**0.8 + 0.001 * batch, 9.0 + 4.1 * threads
    metrics = {
        "tokens_per_second": speed,
        "prompt_tokens_per_second": 4 * speed,
        "watts": watts,
        "prompt_watts": 1.2 * watts,
        "joules_per_token": watts / speed,
        "prompt_joules_per_token": 0.3 * watts / speed,
        "idle_watts": 7.1,
        "resident_watts": 7.4,
        "time_to_first_token_seconds": 100 / speed,
        "request_seconds": 200 / speed,
        "memory_mib": 310.0 + batch / 8,
    }
    made = TrialRecord(
        number,
        "complete",
        Configuration(n_threads=threads, n_threads_batch=threads, n_batch=batch, n_ubatch=min(batch, 512)),
        metrics={name: reading(value) for name, value in metrics.items()},
        in_force={"n_ctx": 4096},
        started_utc=(START + timedelta(seconds=SECONDS * number)).isoformat(),
        seconds=SECONDS,
        measured_seconds=0.97 * SECONDS,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def unlucky(number: int, state: str, reason: str, **changes: object) -> TrialRecord:
    return trial(number, state=state, metrics={}, reason=reason, **changes)


def trials() -> tuple[TrialRecord, ...]:
    return (
        trial(0, remeasured=True),
        trial(1),
        unlucky(
            2, "out_of_memory", "cannot allocate the KV cache", log_tail=("ggml: failed to allocate", "exit")
        ),
        trial(3, remeasured=True, caveats=(Caveat.NOISY,)),
        unlucky(4, "infeasible", "n_ubatch 512 is above n_batch 64: llama.cpp would change it silently"),
        trial(5, remeasured=True),
        unlucky(6, "failed", "the worker died of SIGABRT"),
        trial(7, missing={"vram_mib": "no GPU"}),
    )


def record(state: str = "complete", **changes: object) -> SweepRecord:
    made = SweepRecord(
        sweep='it\'s a "test" – naïve',
        state="complete",
        machine=MACHINE,
        engine=EngineRecord("llama_cpp", "0.3.36", "AVX2 = 1"),
        model=MODEL,
        workload=Workload(),
        objectives=(Objective("tokens_per_second", "maximize"), Objective("watts", "minimize")),
        constraints=(),
        power=POWER,
        space={
            "n_threads": {"low": 1, "high": 4},
            "n_threads_batch": {"low": 1, "high": 4},
            "n_batch": {"low": 64, "high": 4096, "log": True},
            "flash_attn": [True, False],
        },
        trials=trials(),
        front=(0, 5, 3),
        baseline=0,
        recommended=5,
        hypervolume=tuple(float(n) ** 0.5 for n in range(8)),
        idle_watts=reading(7.1),
        started_utc=START.isoformat(),
        updated_utc=(START + timedelta(seconds=400)).isoformat(),
        stopped_because="search.trials reached",
        sweeper_version="0.1.0",
        config={"search": {"trials": 8}, "model": {"path": "/models/ünï code.gguf"}},
    )
    if state == "running":
        made = replace(made, state="running", front=(), recommended=None, hypervolume=(), stopped_because="")
    return replace(made, **changes)  # type: ignore[arg-type]
