"""The memory bandwidth of an NVIDIA card by its data sheet, as NVML reports bus and clock."""

from __future__ import annotations

from sweeper.errors import MissingError
from sweeper.nvml import Nvml, first

_TRANSFERS_PER_CLOCK = 2  # NVML gives the clock at which data moves on both edges
# Kernels of a card reach about this share of the bandwidth, less for few bits and small models.
LOW_SHARE, EXPECTED_SHARE, HIGH_SHARE = 0.4, 0.65, 0.95
# A step of the graph on a card: a launch, or less in a recorded graph.
STEP_LOW_SECONDS, STEP_SECONDS, STEP_HIGH_SECONDS = 0.5e-6, 2e-6, 6e-6


def card_gb_per_second(uuid: str) -> float | None:
    """The bandwidth of the card's memory in GB/s at its highest clock; None if NVML does not say."""
    import pynvml

    try:
        with Nvml() as nvml:
            handle = nvml.handle(uuid)
            bits = first(lambda: pynvml.nvmlDeviceGetMemoryBusWidth(handle))
            mhz = first(lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM))
    except MissingError:
        return None
    if not bits or not mhz:
        return None
    return float(bits) / 8 * float(mhz) * 1e6 * _TRANSFERS_PER_CLOCK / 1e9
