"""Which GPUs CUDA leaves to this process: one reading of ``CUDA_VISIBLE_DEVICES`` for meter and limits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VisibleGpus:
    """``uuids`` in NVML's order; ``reason`` says why there is none, and is None where there are some."""

    uuids: tuple[str, ...]
    reason: str | None = None


def visible_gpus(gpus: Sequence[tuple[str, str]], environ: Mapping[str, str] = os.environ) -> VisibleGpus:
    """The GPUs that CUDA would use, by CUDA's own rules.

    CUDA reads the list from the left and stops at the first entry that names no device. It counts unlike GPUs
    fastest first unless ``CUDA_DEVICE_ORDER=PCI_BUS_ID``. NVML cannot tell that order, so an index then names
    no card that we could be sure of, and none is returned.

    Args:
        gpus: (UUID, name) of every GPU in NVML's order, which is the order of PCI addresses.
        environ: the environment of the process that runs inference.
    """
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return VisibleGpus(tuple(uuid for uuid, _ in gpus))
    entries = [entry.strip() for entry in wanted.split(",")]
    if entries[0].startswith("MIG-"):
        return VisibleGpus((entries[0],))
    unlike = len({name for _, name in gpus}) > 1
    found: list[str] = []
    for entry in entries:
        matching = [
            uuid
            for index, (uuid, _) in enumerate(gpus)
            if entry == str(index) or (entry.startswith("GPU-") and uuid.startswith(entry))
        ]
        if len(matching) != 1 or matching[0] in found:
            break
        if entry.isdigit() and unlike and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            return VisibleGpus(
                (), "CUDA_VISIBLE_DEVICES counts unlike GPUs in an order of its own: name them by UUID"
            )
        found.append(matching[0])
    if not found:
        return VisibleGpus((), f"CUDA_VISIBLE_DEVICES={wanted} leaves no GPU: unset it, or set power.device")
    return VisibleGpus(tuple(uuid for uuid, _ in gpus if uuid in found))
