"""Opens NVML, translates its errors, and finds the GPUs that CUDA makes visible to this process.

Machine, meter and limits name GPUs by the UUIDs from this module, so that all of them mean the same card.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from sweeper.errors import (
    LimitRefused,
    MissingError,
    ReadingFailed,
    RightMissingError,
    SensorMissingError,
    UsageError,
)


def no_nvidia(cause: object) -> SensorMissingError:
    """The error for a machine on which no NVIDIA GPU can be read."""
    return SensorMissingError(
        f"no NVIDIA GPU can be read here ({cause})",
        "install NVIDIA's driver and check that `nvidia-smi` runs (in a container, start it with --gpus all); without "
        "an NVIDIA card, power=auto finds another sensor",
    )


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU as NVML reports it."""

    uuid: str
    index: int
    name: str
    pci_bus_id: str
    mig: bool

    def is_named(self, device: str) -> bool:
        """Whether a UUID, an index or a PCI address names this card."""
        # NVML writes eight digits of PCI domain, Linux four.
        return device in (self.uuid, str(self.index)) or self.pci_bus_id.lower().endswith(device.lower())


class Nvml:
    """An open NVML. Enter it around all code that uses it. NVML counts its opens, so contexts may nest."""

    def __enter__(self) -> Self:
        import pynvml

        with as_missing("cannot start NVML"):
            pynvml.nvmlInit()
        self._handles: dict[str, Any] = {}
        self.faults: dict[int, MissingError] = {}  # by index, the GPUs that `cards` left out
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):  # if the driver is gone, NVML is already closed
            pynvml.nvmlShutdown()

    def cards(self) -> list[Card]:
        """All GPUs of this machine that answer. Raises MissingError if there are GPUs, and none of them answers."""
        import pynvml

        with as_missing("cannot list GPUs"):
            count = pynvml.nvmlDeviceGetCount()
        found = []
        for index in range(count):  # a GPU that is lost or forbidden must not hide the others
            try:
                with as_missing(f"cannot use GPU {index}"):
                    found.append(self._card(index))
            except MissingError as error:
                self.faults[index] = error
        if self.faults and not found:
            raise next(iter(self.faults.values()))
        return found

    def _card(self, index: int) -> Card:
        import pynvml

        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = as_text(pynvml.nvmlDeviceGetName(handle))
        uuid = as_text(pynvml.nvmlDeviceGetUUID(handle))
        bus = as_text(pynvml.nvmlDeviceGetPciInfo(handle).busId)
        mode = first(partial(pynvml.nvmlDeviceGetMigMode, handle))  # most cards do not support MIG
        self._handles[uuid] = handle
        return Card(uuid, index, name, bus, mode is not None and bool(mode[0]))

    def driver(self) -> str:
        """The driver's version."""
        import pynvml

        with as_missing("cannot read the driver's version"):
            return as_text(pynvml.nvmlSystemGetDriverVersion())

    def handle(self, uuid: str) -> Any:
        """NVML's handle of a GPU, cached."""
        import pynvml

        if uuid not in self._handles:
            with said(f"find the GPU {uuid}"):
                self._handles[uuid] = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return self._handles[uuid]

    def index(self, uuid: str) -> int:
        """The GPU's index, which zeusd uses."""
        import pynvml

        with said(f"find the index of {uuid}"):
            return int(pynvml.nvmlDeviceGetIndex(self.handle(uuid)))


@contextlib.contextmanager
def said(doing: str) -> Iterator[None]:
    """Turn NVML's errors into sweeper's errors."""
    import pynvml

    try:
        yield
    except pynvml.NVMLError as error:
        message = f"cannot {doing}: {error}"
        if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
            mend = "run `sweeper doctor` for the steps that grant the right"
            raise RightMissingError(message, mend) from error
        gone = (
            pynvml.NVML_ERROR_GPU_IS_LOST,
            pynvml.NVML_ERROR_NOT_FOUND,
            pynvml.NVML_ERROR_UNINITIALIZED,
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        )
        raise (SensorMissingError if error.value in gone else LimitRefused)(message) from error


@contextlib.contextmanager
def as_missing(what: str) -> Iterator[None]:
    """Turn NVML's errors during the search for a device into sweeper's errors."""
    import pynvml

    try:
        yield
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded) as error:
        raise no_nvidia(error) from error
    except pynvml.NVMLError as error:
        if isinstance(error, pynvml.NVMLError_NoPermission):
            raise RightMissingError(
                f"{what}: NVML says {error}",
                "add yourself to the group of /dev/nvidia*, "
                "as in `sudo usermod -aG video,render $USER`, then log in again",
            ) from error
        if isinstance(error, pynvml.NVMLError_LibRmVersionMismatch):
            raise SensorMissingError(
                f"{what}: the NVIDIA driver was updated while loaded", "restart the machine"
            ) from error
        is_lost = isinstance(error, pynvml.NVMLError_GpuIsLost)
        mend = (
            "restart the machine; `dmesg` says why it fell off the bus"
            if is_lost
            else "check with `nvidia-smi`"
        )
        raise SensorMissingError(f"{what}: NVML says {error}", mend) from error


@contextlib.contextmanager
def as_failed(what: str) -> Iterator[None]:
    """Turn NVML's errors into a failed reading while measuring."""
    import pynvml

    try:
        yield
    except pynvml.NVMLError as error:
        raise ReadingFailed(f"{what}: NVML says {error}") from error


@dataclass(frozen=True, slots=True)
class VisibleGpus:
    """The visible GPUs: ``uuids`` in NVML's order. If there are none, ``reason`` says why; otherwise it is None."""

    uuids: tuple[str, ...]
    reason: str | None = None
    mend: str | None = None


def visible_gpus(gpus: Sequence[tuple[str, str]], environ: Mapping[str, str] = os.environ) -> VisibleGpus:
    """The GPUs that CUDA would use, of all ``gpus`` (UUID and name) in NVML's order, which is that of PCI addresses.

    CUDA reads the list from the left and stops at the first entry that names no device. It numbers different
    models of GPUs fastest first, unless ``CUDA_DEVICE_ORDER=PCI_BUS_ID``. NVML does not report that order. So an
    index is then ambiguous, and this function returns no GPU.
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
                (),
                "CUDA_VISIBLE_DEVICES numbers different models of GPUs in CUDA's own order",
                "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by UUID: "
                + ", ".join(f"{uuid} ({name})" for uuid, name in gpus),
            )
        found.append(matching[0])
    if not found:
        return VisibleGpus(
            (), f"CUDA_VISIBLE_DEVICES={wanted} hides every GPU", "unset it, or set power.device"
        )
    return VisibleGpus(tuple(uuid for uuid, _ in gpus if uuid in found))


@contextlib.contextmanager
def cuda_variables(environment: Mapping[str, str]) -> Iterator[None]:
    """Set the engine's variables that choose GPUs in this process too.

    Power and limits then belong to the engine's GPUs.
    """
    names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update({name: environment[name] for name in names if name in environment})
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def chosen(
    cards: list[Card], device: str | None, environ: Mapping[str, str] = os.environ
) -> tuple[list[Card], str | None]:
    """The GPUs whose limits the sweep searches, and the reason if there are none.

    ``device`` is a UUID, an index or a PCI address. None means every GPU that CUDA_VISIBLE_DEVICES allows. Raises
    UsageError if it names no GPU.
    """
    if device is not None:
        found = [card for card in cards if card.is_named(device)]
        if not found:
            names = ", ".join(f"{card.index} ({card.uuid})" for card in cards) or "none"
            raise UsageError(f"power.device={device} names no NVIDIA GPU; the GPUs are: {names}")
        return found, None
    visible = visible_gpus([(card.uuid, card.name) for card in cards], environ)
    found = [card for card in cards if card.uuid in visible.uuids]
    if not found and visible.reason is None:
        return [], "CUDA_VISIBLE_DEVICES names a MIG instance, which has no limit of its own"
    return found, visible.reason and f"{visible.reason}: {visible.mend}"


def find_handle(device: str) -> Any:
    """NVML's handle of the GPU with this UUID, PCI address or index; for a MIG instance, of its whole GPU.

    NVML must be open. Raises pynvml.NVMLError if there is no such GPU.
    """
    import pynvml

    if device.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(device))
    if ":" in device:
        return pynvml.nvmlDeviceGetHandleByPciBusId(device.encode())
    handle = pynvml.nvmlDeviceGetHandleByUUID(device.encode())
    if device.startswith("MIG-"):
        return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return handle


def first(*calls: Callable[[], Any]) -> Any:
    """The result of the first call that this driver and GPU support; None if they support none."""
    import pynvml

    for call in calls:
        try:
            return call()
        except pynvml.NVMLError:
            continue
    return None


def as_text(value: str | bytes) -> str:
    """A string from NVML as text; older bindings return bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
