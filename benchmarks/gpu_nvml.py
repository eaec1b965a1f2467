"""Step (b): how NVML counts: update periods, rest, and three readings of the same decode windows."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from gpu_bench import Bench
from gpu_path import card_state, configuration_of
from gpu_record import Deadline, StepFile
from gpu_smi import NvidiaSmi

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.errors import SweeperError
from sweeper.meter.choose import measure_idle
from sweeper.meter.sampling import SampledMeter
from sweeper.meter.sensors.nvml import NvmlSensor
from sweeper.meter.trust import Trust, examine_sensor
from sweeper.records import EnergyReading, Window, to_plain

GOAL = 0.02  # how far apart the readings may be
ROUND_TOKENS = 64
_COUNTER = "nvmlDeviceGetTotalEnergyConsumption"
_START_SECONDS = 15.0  # a guess of loading a model and starting nvidia-smi


def run(bench: Bench, step: StepFile, deadline: Deadline) -> None:
    """Rest, then the largest model's quantisations, one window each; update periods under the first.

    Raises:
        OutOfTime: rows are left to be measured.
    """
    plan = bench.plan
    step.row("rest", lambda: {"idle_watts": to_plain(bench.idle) if bench.idle else None})
    name, (_, quants) = list(plan.models.items())[-1]
    windows = plan.compare_seconds + plan.settle_seconds + plan.rest_seconds
    for quant in quants:
        key = f"window {name} {quant}"
        if step.has(key):
            continue
        deadline.demand(windows + (_START_SECONDS if plan.name == "whole" else 0.0))
        print(f"nvml: {key}", flush=True)
        step.row(key, partial(_window, bench, name, quant, deadline))
    deadline.demand(plan.period_seconds)
    step.row("update periods", lambda: _periods(bench, name, quants[0], deadline))


def _window(bench: Bench, name: str, quant: str, deadline: Deadline) -> dict[str, Any]:
    """One stretch of decode, seen by the counter, by instant power and by nvidia-smi at once."""
    plan = bench.plan
    path = bench.models.wait(name, quant, deadline.left_seconds)
    counter = NvmlSensor(bench.uuid)
    power = NvmlSensor(bench.uuid, use_counter=False)
    with (
        LlamaCppEngine({quant: path}) as engine,
        SampledMeter(counter, beside=[power]) as meter,
        NvidiaSmi(bench.uuid) as smi,
    ):
        engine.load(_all_layers(bench, name, quant))
        resident = measure_idle(meter, plan.rest_seconds)
        engine.decode(ROUND_TOKENS, 0, plan.settle_seconds, 2 * plan.settle_seconds)
        with meter.window() as window:
            run = engine.decode(ROUND_TOKENS, 0, plan.compare_seconds, 1.5 * plan.compare_seconds)
        smi.wait_until(run.ended, plan.compare_seconds)
        seen = smi.readings(run.started, run.ended)
    reading = window.reading(run.started, run.ended)
    beside = reading.beside[0]
    raw = Window("decode", 0, run.tokens, run.seconds, reading)
    base = reading.watts if reading.source.interface == _COUNTER else None
    return {
        "model": name,
        "quant": quant,
        "seconds": run.ended - run.started,
        "tokens_per_second": run.tokens_per_second,
        "resident_watts": to_plain(resident) if resident else None,
        "counter": _reading(reading),
        "instant_power": _reading(beside),
        "nvidia_smi": seen,
        "over_counter": _ratios(base, beside.watts, seen),
        **card_state([raw]),
        "writers_running": bench.models.being_written,
    }


def _reading(reading: EnergyReading) -> dict[str, Any]:
    return {
        "interface": reading.source.interface,
        "watts": reading.watts,
        "joules": reading.joules,
        "reason": reading.reason,
        "samples": reading.samples,
        "error_fraction": reading.error_fraction,
        "update_period_seconds": reading.source.update_period_seconds,
    }


def _ratios(base: float | None, instant: float | None, seen: dict[str, Any]) -> dict[str, Any]:
    """Each reading over the counter's, and whether it lies within the goal."""
    others = {"instant_power": instant}
    others |= {f"nvidia-smi {f}": v["watts"] for f, v in seen.items() if isinstance(v, dict)}
    ratios = {key: watts / base if watts is not None and base else None for key, watts in others.items()}
    return {
        key: {"ratio": ratio, "within_2_percent": None if ratio is None else abs(ratio - 1) <= GOAL}
        for key, ratio in ratios.items()
    }


def _periods(bench: Bench, name: str, quant: str, deadline: Deadline) -> dict[str, Any]:
    """Update periods while the card decodes: at rest a reading may stay the same for other reasons."""
    plan = bench.plan
    path = bench.models.wait(name, quant, deadline.left_seconds)
    found: list[Trust] = []
    failed: list[SweeperError] = []

    def poll() -> None:
        sensor = NvmlSensor(bench.uuid)
        try:
            sensor.open()
            found.append(examine_sensor(sensor, plan.period_seconds))
        except SweeperError as error:
            failed.append(error)
        finally:
            sensor.close()

    with LlamaCppEngine({quant: path}) as engine:
        engine.load(_all_layers(bench, name, quant))
        thread = threading.Thread(target=poll)
        thread.start()
        try:
            engine.decode(ROUND_TOKENS, 0, plan.period_seconds, 1.5 * plan.period_seconds)
        finally:
            thread.join()
    if failed:
        raise failed[0]
    return {"under_load": to_plain(found[0])}


def _all_layers(bench: Bench, name: str, quant: str) -> Any:
    return configuration_of(bench, quant, bench.plan.models[name][0].n_layer + 1)
