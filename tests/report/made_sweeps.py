"""Sweeps as they come out of the loop, made here from a seed: figures are invented, shapes are real."""

from __future__ import annotations

import random
from dataclasses import replace

from sweeper.records import (
    Caveat,
    Configuration,
    Constraint,
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
from sweeper.results.assemble import conclude

SPEED = Objective("tokens_per_second", "maximize")
WATTS = Objective("watts", "minimize")
QUANTS = {"Q4_K_M": (0.58, 0.031), "Q5_K_M": (0.69, 0.011), "Q8_0": (1.06, 0.0014)}  # bytes a weight, KLD


def machine(gpu: bool = False) -> MachineRecord:
    card = GpuRecord(
        name="NVIDIA GeForce RTX 3060",
        uuid="GPU-5a1c9be0-0000-4000-8000-00000000c0de",
        driver="580.95.05",
        memory_mib=12288,
        power_min_watts=100,
        power_max_watts=170,
        power_default_watts=170,
        power_limit_watts=170,
    )
    return MachineRecord(
        fingerprint="9f3ac1d2e4b5" if gpu else "1b2c3d4e5f60",
        cpu="AMD Ryzen 5 5600X 6-Core Processor" if gpu else "13th Gen Intel(R) Core(TM) i5-1340P",
        physical_cores=6 if gpu else 12,
        logical_cores=12 if gpu else 16,
        memory_mib=32768 if gpu else 16384,
        kernel="6.12.48",
        gpus=(card,) if gpu else (),
        performance_cores=None if gpu else 4,
        memory_bandwidth_gb_per_second=40.0 if gpu else 55.0,
    )


def model(name: str = "llama-110m", parameters: int = 110_000_000) -> ModelRecord:
    return ModelRecord(
        name=name,
        architecture="llama",
        parameters=parameters,
        n_layer=12,
        n_ctx_train=4096,
        source="synthetic",
        base_quant="Q8_0",
        files={
            quant: ModelFile(
                quant, f"/models/{name}.{quant}.gguf", f"{i:x}" * 64, int(size * parameters), kld
            )
            for i, (quant, (size, kld)) in enumerate(QUANTS.items())
        },
    )


def power(kind: str) -> PowerSource:
    return {
        "estimated": PowerSource(
            "estimate",
            "utilisation x rated power",
            "package",
            "estimated",
            0.1,
            note="28 W rated power of this CPU family, 5 W at rest; nothing on this machine can be read",
        ),
        "measured": PowerSource(
            "nvml",
            "nvmlDeviceGetTotalEnergyConsumption",
            "gpu",
            "measured",
            0.1,
            "GPU-5a1c9be0-0000-4000-8000-00000000c0de",
        ),
        "simulated": PowerSource("simulated", "analytic machine", "simulated", "simulated", 0.05),
    }[kind]


def reading(value: float, spread: float, n: int) -> Reading:
    return Reading(value, value * (1 - spread), value * (1 + spread), n)


def metrics(c: Configuration, gpu: bool, parameters: int, rng: random.Random, n: int) -> dict[str, Reading]:
    """An invented but monotone machine: more threads, layers and watts give more speed, ever less so."""
    size_gb = QUANTS[c.quant or "Q8_0"][0] * parameters / 1e9
    if gpu:
        bandwidth = 40 + 280 * (c.n_gpu_layers / 12) ** 3
        draw = 25 + 150 * (c.n_gpu_layers / 12)
        if c.power_limit_watts is not None and c.power_limit_watts < draw:
            bandwidth *= 1 - 0.5 * (1 - c.power_limit_watts / draw) ** 1.6
            draw = float(c.power_limit_watts)
    else:
        bandwidth = 50 * (1 - 0.55**c.n_threads)
        draw = 6 + 2.6 * c.n_threads
    speed = 0.8 * bandwidth / size_gb * (1.0 if c.flash_attn else 0.96) * rng.gauss(1, 0.01)
    prompt = speed * (9 if gpu else 3) * (c.n_ubatch / 512) ** 0.2 * rng.gauss(1, 0.01)
    spread = 0.03 / n**0.5
    return {
        "tokens_per_second": reading(speed, spread, n),
        "prompt_tokens_per_second": reading(prompt, spread, n),
        "watts": reading(draw, spread, n),
        "prompt_watts": reading(draw * 1.15, spread, n),
        "joules_per_token": reading(draw / speed, spread, n),
        "prompt_joules_per_token": reading(draw * 1.15 / prompt, spread, n),
        "resident_watts": reading(draw * 0.25, spread, n),
        "time_to_first_token_seconds": reading(512 / prompt, spread, n),
        "request_seconds": reading(512 / prompt + 128 / speed, spread, n),
        "memory_mib": reading(size_gb * 1000 + c.n_ctx / 16, 0.0, n),
        "kl_divergence": reading(QUANTS[c.quant or "Q8_0"][1], 0.0, 1),
    }


def unbeaten(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Those that no other beats on medians, fastest first."""

    def figures(t: TrialRecord) -> tuple[float, float]:
        return -t.metrics["tokens_per_second"].median, t.metrics["watts"].median

    kept: list[TrialRecord] = []
    for t in sorted(trials, key=figures):
        if not kept or figures(t)[1] < figures(kept[-1])[1]:
            kept.append(t)
    return kept


def candidate(number: int, gpu: bool, rng: random.Random) -> Configuration:
    base = Configuration(n_gpu_layers=12 if gpu else 0, n_threads=6, n_threads_batch=6, quant="Q8_0")
    if number == 0:
        return base
    changed = base.with_(
        quant=rng.choice(list(QUANTS)),
        n_threads=rng.randint(1, 6 if gpu else 12),
        n_batch=rng.choice([256, 512, 1024, 2048, 4096]),
        n_ubatch=rng.choice([64, 128, 256]),
        flash_attn=rng.random() < 0.7,
    )
    if gpu:
        changed = changed.with_(
            n_gpu_layers=rng.randint(0, 12), power_limit_watts=rng.choice([None, 100, 120, 140, 150, 160])
        )
    return changed


def trial(number: int, gpu: bool, parameters: int, rng: random.Random, caveat: Caveat | None) -> TrialRecord:
    configuration = candidate(number, gpu, rng)
    kept = {
        "started_utc": f"2026-11-23T10:{number // 60 % 60:02d}:{number % 60:02d}Z",
        "seconds": 12 + 3 * rng.random(),
        "measured_seconds": 11.5,
    }
    fate = rng.random() if number else 0.0
    if fate > 0.96:
        return TrialRecord(
            number,
            "out_of_memory",
            configuration,
            reason="forecast 13.1 GiB, the device has 12.0 GiB",
            **kept,
        )
    if fate > 0.93:
        return TrialRecord(
            number,
            "failed",
            configuration,
            reason="the worker died of SIGABRT while loading",
            log_tail=("GGML_ASSERT(n_tokens_all <= cparams.n_batch) failed",),
            **kept,
        )
    measured = metrics(configuration, gpu, parameters, rng, 3)
    over = measured["kl_divergence"].median - 0.02
    return TrialRecord(
        number,
        "complete" if over <= 0 else "infeasible",
        configuration,
        metrics=measured,
        reason=None if over <= 0 else "kl_divergence <= 0.02 is not kept: 0.031",
        violations={"kl_divergence <= 0.02": over},
        caveats=() if caveat is None else (caveat,),
        **kept,
    )


def space(gpu: bool) -> dict[str, object]:
    found: dict[str, object] = {
        "quant": list(QUANTS),
        "n_threads": {"low": 1, "high": 6 if gpu else 12},
        "n_batch": {"low": 256, "high": 4096, "log": True},
        "n_ubatch": {"low": 64, "high": 512, "log": True},
        "flash_attn": [True, False],
    }
    if gpu:
        found["n_gpu_layers"] = {"low": 0, "high": 12}
        found["power_limit_watts"] = {"low": 100, "high": 170, "step": 10}
    return found


def sweep(
    trials: int = 40,
    kind: str = "estimated",
    gpu: bool = False,
    seed: int = 1,
    name: str = "llama-110m-2026-11-23",
    model_name: str = "llama-110m",
    parameters: int = 110_000_000,
) -> SweepRecord:
    """A finished sweep; ``kind`` is how its watts came to be: estimated, measured or simulated."""
    rng = random.Random(seed)
    caveat = {"estimated": Caveat.ESTIMATED, "simulated": Caveat.SIMULATED}.get(kind)
    made = [trial(number, gpu, parameters, rng, caveat) for number in range(trials)]
    again = {t.number for t in unbeaten([t for t in made if t.feasible])} | {0}
    made = [remeasured(t, gpu, parameters, rng) if t.number in again else t for t in made]
    front = unbeaten([t for t in made if t.remeasured])
    best = front[0].metrics["tokens_per_second"].median
    near = [t for t in front if t.metrics["tokens_per_second"].median >= 0.95 * best]
    recommended = min(near, key=lambda t: t.metrics["watts"].median).number
    volume = [0.6 * (1 - 0.93 ** (n + 1)) for n in range(trials)]
    synthetic = (Caveat.SYNTHETIC_QUALITY,)
    return SweepRecord(
        sweep=name,
        state="complete",
        machine=machine(gpu),
        engine=EngineRecord(
            "simulated" if kind == "simulated" else "llama_cpp",
            "0.3.36",
            "CPU : AVX2 = 1 | FMA = 1",
            gpu_offload=gpu,
            simulated=kind == "simulated",
        ),
        model=model(model_name, parameters),
        workload=Workload(),
        objectives=(SPEED, WATTS),
        constraints=(Constraint("kl_divergence", "<=", 0.02),),
        power=power(kind),
        space=space(gpu),
        trials=tuple(made),
        front=tuple(t.number for t in front),
        baseline=0,
        recommended=recommended,
        notes=() if gpu else ("no GPU here: n_gpu_layers is fixed at 0",),
        caveats=synthetic if caveat is None else (caveat, *synthetic),
        hypervolume=tuple(volume),
        idle_watts=reading(18.0 if gpu else 5.0, 0.02, 3),
        started_utc="2026-11-23T10:00:00Z",
        updated_utc="2026-11-23T10:09:30Z",
        stopped_because=f"{trials} trials done",
        sweeper_version="0.1.0",
        config={"sweep": name, "search": {"sampler": "tpe", "seed": seed, "trials": trials}},
    )


def remeasured(t: TrialRecord, gpu: bool, parameters: int, rng: random.Random) -> TrialRecord:
    return replace(t, metrics=metrics(t.configuration, gpu, parameters, rng, 10), remeasured=True)


def no_front(**kept: object) -> SweepRecord:
    """A sweep stopped before anything was measured twice."""
    record = sweep(**kept)  # type: ignore[arg-type]
    trials = tuple(replace(t, remeasured=False) for t in record.trials)
    return replace(
        record, state="stopped", trials=trials, front=(), recommended=None, stopped_because="Ctrl-C"
    )


def running(record: SweepRecord, trials: int) -> SweepRecord:
    """``record`` after its first so many trials, before anything was measured twice."""
    screened = tuple(replace(t, remeasured=False) for t in record.trials[:trials])
    begun = replace(
        record, state="running", trials=screened, baseline=0 if trials else None, stopped_because=""
    )
    return conclude(begun)


def single_point() -> SweepRecord:
    """A sweep in which nothing beat the default."""
    record = sweep()
    return replace(record, trials=record.trials[:1], front=(0,), recommended=0, hypervolume=(0.1,))


def failed_only() -> SweepRecord:
    """A sweep of which no trial counts."""
    record = sweep(trials=6)
    trials = tuple(
        TrialRecord(
            t.number, "failed", t.configuration, reason="libcuda.so.1: cannot open shared object file"
        )
        for t in record.trials
    )
    return replace(
        record, trials=trials, front=(), recommended=None, baseline=None, hypervolume=(), idle_watts=None
    )
