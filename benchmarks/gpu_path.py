"""Step (a): decode and prefill at all, half and no layers on the card, against the memory's ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gpu_bench import Bench, Ceiling, threads
from gpu_record import Deadline, StepFile

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.measure.trial import measure
from sweeper.model.forecast import weights_by_device
from sweeper.model.header import GgufHeader, read_header
from sweeper.model.shapes import ModelShape
from sweeper.processes import WorkerProcess
from sweeper.records import Configuration, Measurement, Window, to_plain

# A guess of what a row takes beside its windows: loading 13 GiB, and a slow round on the CPU.
ROW_SECONDS = 10.0
_PLAN_SECONDS = 120.0


def run(bench: Bench, step: StepFile, deadline: Deadline) -> None:
    """All layers of every model first, then half, then none: what matters most comes first.

    Raises:
        OutOfTime: rows are left to be measured.
    """
    least = ROW_SECONDS if bench.plan.name == "whole" else 0.0
    for share in (1.0, 0.5, 0.0):
        for name, (shape, quants) in bench.plan.models.items():
            for quant in quants:
                layers = round((shape.n_layer + 1) * share)
                key = f"{name} {quant} {layers}"
                if step.has(key):
                    continue
                deadline.demand(least)
                print(f"path: {key}", flush=True)
                step.row(key, partial(_row, bench, name, quant, layers, deadline))


def configuration_of(bench: Bench, quant: str, layers: int) -> Configuration:
    """llama.cpp's own defaults with so many layers on the card."""
    count = threads(bench)
    return Configuration(n_gpu_layers=layers, n_ctx=1024, n_threads=count, n_threads_batch=count, quant=quant)


def _row(bench: Bench, name: str, quant: str, layers: int, deadline: Deadline) -> dict[str, Any]:
    path = bench.models.wait(name, quant, deadline.left_seconds)
    writers = bench.models.being_written
    header = read_header(path)
    configuration = configuration_of(bench, quant, layers)
    planned = planned_on(path, header, configuration)
    with LlamaCppEngine({quant: path}) as engine:
        found = measure(configuration, engine, bench.meter, bench.plan.path_workload, bench.plan.path_stage)
    ceiling = _ceiling(bench, planned["layers_on_gpu"], header.n_layer + 1)
    return {
        "model": name,
        "quant": quant,
        "parameters": header.parameters,
        "size_bytes": header.size_bytes,
        "n_gpu_layers_asked": layers,
        "n_gpu_layers_in_force": found.in_force.get("n_gpu_layers"),
        **planned,
        "decode": _phase(found, "decode"),
        "prefill": _phase(found, "prefill"),
        **_against(ceiling, header, bench.plan.models[name][0], found),
        "vram_mib": _median(found, "vram_mib"),
        "memory_mib": _median(found, "memory_mib"),
        "load_seconds": found.load_seconds,
        "missing": dict(found.missing),
        "caveats": [caveat.name.lower() for caveat in found.caveats],
        "writers_running": writers,
    }


def planned_on(path: Path, header: GgufHeader, configuration: Configuration) -> dict[str, Any]:
    """Layers and MiB on the card as llama.cpp's log says when it assigns them to devices.

    That is the read-back there is: llama.cpp has no question for it. The worker has ended on return.
    """
    with WorkerProcess("sweeper.model.forecast_worker") as worker:
        answer = worker.ask(
            "forecast",
            _PLAN_SECONDS,
            path=str(path),
            stamp=path.stat().st_mtime_ns,
            wanted=configuration.to_dict(),
        )
    layers = {int(layer): str(device) for layer, device in answer["layers"].items()}
    weights = weights_by_device(header, layers)
    buffers = [weights, answer["kv"], answer["compute"]]
    mib = sum(size for part in buffers for device, size in part.items() if _is_gpu(device))
    return {
        "layers_on_gpu": sum(_is_gpu(device) for device in layers.values()),
        "layers_in_all": header.n_layer + 1,
        "planned_vram_mib": mib,
    }


def _is_gpu(device: str) -> bool:
    return not device.startswith(("CPU", "host", "BLAS", "AMX")) and not device.endswith("_Host")


def _ceiling(bench: Bench, on_gpu: int, in_all: int) -> Ceiling:
    """The memory that a token's bytes come from; none where they come from two."""
    if on_gpu == in_all:
        return bench.card_ceiling
    if on_gpu == 0:
        return bench.host_ceiling
    return Ceiling(None, "layers lie in two memories")


def _against(ceiling: Ceiling, header: GgufHeader, shape: ModelShape, found: Measurement) -> dict[str, Any]:
    """Decode speed as a share of what the memory could deliver, weights and cache read once a token."""
    speed = found.metrics["tokens_per_second"].median
    windows = [w for w in found.windows if w.phase == "decode"]
    tokens = bytes_per_token(header, shape, windows[0].depth)
    most = None if ceiling.gb_per_second is None else ceiling.gb_per_second * 1e9 / tokens
    return {
        "bytes_per_token": tokens,
        "ceiling_gb_per_second": ceiling.gb_per_second,
        "ceiling_is": ceiling.source,
        "ceiling_tokens_per_second": most,
        "share_of_ceiling": None if most is None else speed / most,
    }


def bytes_per_token(header: GgufHeader, shape: ModelShape, context: int = 0) -> float:
    """Bytes that decoding one token reads from memory. This is the denominator of the ceiling.

    It counts every weight once, but only the active experts of a mixture. Of the token embeddings it counts one row,
    unless they also serve as the output. It adds the f16 cache of ``context`` tokens.
    """
    share = shape.expert_used_count / shape.expert_count if shape.expert_count else 1.0
    total = float(context * 4 * shape.n_layer * shape.head_count_kv * shape.head_length)
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and not shape.tied_embeddings:
            total += tensor.bytes / tensor.shape[-1]
        else:
            total += tensor.bytes * (share if "_exps." in tensor.name else 1.0)
    return total


def _phase(found: Measurement, phase: str) -> dict[str, Any]:
    prefix = "" if phase == "decode" else "prompt_"
    names = {
        name: found.metrics.get(prefix + name) for name in ("tokens_per_second", "watts", "joules_per_token")
    }
    windows = [w for w in found.windows if w.phase == phase]
    figures = {name: to_plain(reading) if reading else None for name, reading in names.items()}
    return {**figures, **card_state(windows)}


def card_state(windows: list[Window]) -> Mapping[str, Any]:
    """Clock, heat and caps as the card told them over these windows."""
    energies = [w.energy for w in windows]
    clocks = [e.clock_mhz for e in energies if e.clock_mhz is not None]
    capped = [e.capped_share for e in energies if e.capped_share is not None]
    heat = [e.temperature_max_celsius for e in energies if e.temperature_max_celsius is not None]
    return {
        "clock_mhz": sum(clocks) / len(clocks) if clocks else None,
        "capped_share": sum(capped) / len(capped) if capped else None,
        "temperature_max_celsius": max(heat, default=None),
        "throttle_reasons": sorted({reason for e in energies for reason in e.throttle_reasons}),
        "enforced_limit_watts": energies[-1].enforced_limit_watts if energies else None,
    }


def _median(found: Measurement, metric: str) -> float | None:
    return found.metrics[metric].median if metric in found.metrics else None
