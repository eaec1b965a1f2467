"""Whether a model fits: by llama.cpp's own plan, or without llama.cpp by arithmetic on the header."""

from __future__ import annotations

from sweeper.errors import EngineCrashed, EngineRefused, EngineTimeout
from sweeper.guess.records import DeviceMemory, Fit
from sweeper.guess.traffic import Traffic
from sweeper.model.available_memory import host_available_mib
from sweeper.model.forecast import (
    DEVICE_OVERHEAD_MIB,
    HOST,
    HOST_OVERHEAD_MIB,
    Forecaster,
    MemoryForecast,
)
from sweeper.model.header import GgufHeader
from sweeper.records import Configuration

BY_PLAN = "computed by llama.cpp's own memory plan"
BY_ARITHMETIC = "computed from the header"
# The compute buffers of a usual batch: the logits of a token and the activations of 512 tokens.
COMPUTE_MIB = 300.0
_MIB = 2**20


def fit(header: GgufHeader, work: Traffic, configuration: Configuration, forecaster: Forecaster | str) -> Fit:
    """Whether ``configuration`` fits into the memory that is free now, by llama.cpp's plan.

    In place of a forecaster, the reason why there is none: the fit is then arithmetic.
    """
    if isinstance(forecaster, str):
        return _by_arithmetic(header, work, configuration, forecaster)
    try:
        plan = forecaster.forecast(header.path, configuration)
    except (EngineRefused, EngineCrashed, EngineTimeout) as failure:
        return _by_arithmetic(header, work, configuration, str(failure))
    reason = plan.fits()
    return Fit(reason is None, _devices(plan), BY_PLAN, reason)


def _devices(plan: MemoryForecast) -> tuple[DeviceMemory, ...]:
    return tuple(
        DeviceMemory(
            device,
            plan.weights_mib.get(device, 0.0),
            plan.kv_mib.get(device, 0.0),
            plan.compute_mib.get(device, 0.0),
            HOST_OVERHEAD_MIB if device == HOST else DEVICE_OVERHEAD_MIB,
            plan.free_mib.get(device),
        )
        for device in plan.devices
        if plan.needed_mib(device) > 0
    )


def most_layers_that_fit(
    header: GgufHeader, work: Traffic, configuration: Configuration, forecaster: Forecaster | str
) -> tuple[Configuration, Fit] | None:
    """The most layers on the GPU that fit, by bisection; None if not even a model without offloading fits."""
    found = None
    low, high = 0, configuration.n_gpu_layers - 1
    while low <= high:
        middle = (low + high) // 2
        tried = configuration.with_(n_gpu_layers=middle)
        outcome = fit(header, work, tried, forecaster)
        if outcome.fits:
            found, low = (tried, outcome), middle + 1
        else:
            high = middle - 1
    return found


def _by_arithmetic(header: GgufHeader, work: Traffic, configuration: Configuration, why: str) -> Fit:
    host = DeviceMemory(
        HOST,
        weights_mib=sum(tensor.bytes for tensor in header.tensors) / _MIB,
        kv_mib=work.kv_bytes(configuration.n_ctx, configuration) / _MIB,
        compute_mib=COMPUTE_MIB,
        overhead_mib=HOST_OVERHEAD_MIB,
        free_mib=host_available_mib(),
    )
    label = (
        f"{BY_ARITHMETIC}: weights, KV cache and {COMPUTE_MIB + HOST_OVERHEAD_MIB:.0f} MiB for the rest, on the "
        f"host alone, because {why}"
    )
    too_much = host.free_mib is not None and host.needed_mib > host.free_mib
    reason = (
        f"weights, KV cache and overhead need {host.needed_mib:.0f} MiB on {HOST}, where {host.free_mib:.0f} MiB "
        "are free"
        if too_much
        else None
    )
    return Fit(not too_much, (host,), label, reason)
