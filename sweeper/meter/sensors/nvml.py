"""NVIDIA's own sensors, through NVML. sweeper finds out what a GPU supports by calling it, never from its name.

The order is: the energy counter (mJ); the field values POWER_INSTANT and POWER_AVERAGE in GPU scope, then in module
scope; plain power usage, which on most chips since Ampere is the mean of the last second. A100 and H100 measure their
power only a quarter of the time (arXiv 2312.02741). The gain of all of them is off by up to 5 %.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sweeper.errors import MissingError, ReadingFailed, SensorMissingError
from sweeper.meter.base import PLUG, DeviceState, Sample, Sensor
from sweeper.meter.composite import SumSensor
from sweeper.meter.integrate import CounterTrack
from sweeper.meter.sysfs import read_text
from sweeper.nvml import Nvml, as_failed, as_missing, as_text, find_handle, first, no_nvidia, visible_gpus
from sweeper.records import PowerSource, Scope

# No GPU draws more, so a counter step that needs more was a reset. The largest modules of 2026 are rated at 1,400 W,
# and spikes reach about twice the rating.
MOST_WATTS = 3000.0
# Update periods before the trust check. Published measurements of 70 chips (arXiv 2312.02741) lie at 20 to 100 ms; the
# longer period is the safe choice. A mean of the last second shows no detail within a second, however often it is
# refreshed.
COUNTER_PERIOD_SECONDS = 0.1
INSTANT_PERIOD_SECONDS = 0.1
AVERAGE_PERIOD_SECONDS = 1.0
# Such a mean shows a step of power in full after 1.2 s (the same paper, on A100 and H100).
AVERAGE_SETTLING_SECONDS = 1.2

# NVML_CLOCKS_EVENT_REASON_*: the reasons that slow the GPU down, with our names. Idleness and clocks that a user set
# are not throttling.
_REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
}
_CAPPING = 0x04 | 0x80


@dataclass(frozen=True, slots=True)
class _Rung:
    """One way to read power, with its update period in s before the trust check."""

    interface: str
    scope: Scope
    period: float
    settling: float | None  # seconds until a step shows in full
    read: Callable[[], float]  # W


class NvmlSensor(Sensor):
    """One GPU. ``device`` is its UUID, PCI address or index."""

    def __init__(
        self,
        device: str = "0",
        clock: Callable[[], float] = time.monotonic,
        procfs_root: Path = Path("/proc"),
        use_counter: bool = True,
    ) -> None:
        """Read nothing yet.

        Args:
            device: UUID, PCI address or index of the GPU.
            clock: stamps the samples.
            procfs_root: where procfs is mounted, to separate our processes from others.
            use_counter: False reads power even if there is an energy counter, to compare the two.
        """
        super().__init__(clock)
        self._device = device
        self._procfs = procfs_root
        self._use_counter = use_counter
        self._handle: Any = None
        self._power: _Rung | None = None
        self._track: CounterTrack | None = None
        self._reads_power_beside = True
        self.source = PowerSource("nvml", "nvml", "gpu", "measured", COUNTER_PERIOD_SECONDS, device)

    @property
    def power_source(self) -> PowerSource:
        """The value of ``source`` without the counter."""
        power = self._power
        if power is None:
            return self.source
        return replace(
            self.source,
            interface=power.interface,
            scope=power.scope,
            update_period_seconds=power.period,
            settling_seconds=power.settling,
        )

    def _take(self) -> Sample:
        """The counter in J, and the present power in W if available."""
        before = self._clock()
        if self._track is None:
            assert self._power is not None
            with as_failed(f"GPU {self.source.device}"):
                watts = self._power.read()
            return Sample((before + self._clock()) / 2, power_watts=watts)
        import pynvml

        try:  # not `as_failed`: up to 50 times a second, building its words would be a fifth of the cost
            millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except pynvml.NVMLError as error:
            raise ReadingFailed(f"energy counter of GPU {self.source.device}: NVML says {error}") from error
        moment = (before + self._clock()) / 2
        joules, epoch = self._track.advance(moment, millijoules / 1000)
        # Power is only an addition to the counter: without it, the sample still counts.
        beside = first(self._power.read) if self._power is not None and self._reads_power_beside else None
        return Sample(moment, energy_joules=joules, power_watts=beside, epoch=epoch)

    def leave_power_out(self) -> None:
        """Stop reading power beside the counter. After the comparison, it only costs time."""
        self._reads_power_beside = False

    def state(self) -> DeviceState:
        """Temperature, SM clock, throttling, cap and other processes; None for values that the GPU does not report."""
        import pynvml as nv

        self._demand_open()
        handle = self._handle
        reasons = first(
            lambda: nv.nvmlDeviceGetCurrentClocksEventReasons(handle),
            lambda: nv.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        )
        limit = first(lambda: nv.nvmlDeviceGetEnforcedPowerLimit(handle))
        clock = first(lambda: nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_SM))
        celsius = first(
            lambda: nv.nvmlDeviceGetTemperatureV(handle, nv.NVML_TEMPERATURE_GPU),
            lambda: nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU),
        )
        return DeviceState(
            temperature_celsius=None if celsius is None else float(celsius),
            clock_mhz=None if clock is None else float(clock),
            throttle_reasons=tuple(name for bit, name in _REASONS.items() if (reasons or 0) & bit),
            power_capped=None if reasons is None else bool(reasons & _CAPPING),
            enforced_limit_watts=None if limit is None else limit / 1000,
            other_processes=self._other_processes(),
        )

    def close(self) -> None:
        """Close NVML."""
        if not self._is_open:
            return
        import pynvml

        self._is_open = False
        with contextlib.suppress(pynvml.NVMLError):  # if the driver is gone, NVML is already closed
            pynvml.nvmlShutdown()

    def _find(self) -> None:
        """Find the GPU and the interfaces that it supports."""
        import pynvml

        with as_missing("cannot start NVML"):
            pynvml.nvmlInit()
        self._is_open = True
        try:
            self._find_interfaces()
        except MissingError:
            self.close()
            raise

    def _find_interfaces(self) -> None:
        import pynvml

        with as_missing(f"no GPU {self._device} here"):
            self._handle = find_handle(self._device)
            uuid = as_text(pynvml.nvmlDeviceGetUUID(self._handle))
            name = as_text(pynvml.nvmlDeviceGetName(self._handle))
            self.driver = as_text(pynvml.nvmlSystemGetDriverVersion())
        self._power = next((rung for rung in _rungs(self._handle) if (first(rung.read) or 0) > 0), None)
        self._track = CounterTrack(None, MOST_WATTS) if self._use_counter and self._counts() else None
        if self._track is None and self._power is None:
            raise SensorMissingError(
                f"{name} tells neither energy nor power through NVML, as on some laptops and on Jetson",
                f"set power=hwmon (a Jetson board) or power=battery (a laptop), or {PLUG}",
            )
        counter = "nvmlDeviceGetTotalEnergyConsumption"
        period = COUNTER_PERIOD_SECONDS
        self.source = PowerSource("nvml", counter, "gpu", "measured", period, uuid, self._note(name))
        if self._track is None:
            self.source = self.power_source

    def _counts(self) -> bool:
        """Whether the GPU has a counting energy counter. A counter at 0 gets a moment to start."""
        import pynvml

        millijoules = first(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        if millijoules == 0:
            time.sleep(COUNTER_PERIOD_SECONDS)
            millijoules = first(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return bool(millijoules)

    def _note(self, name: str) -> str | None:
        """A note about this GPU's figures, or None."""
        import pynvml

        mode = first(lambda: pynvml.nvmlDeviceGetMigMode(self._handle))
        if mode is not None and mode[0]:
            return (
                f"{name} is split into instances (MIG): its power is that of the whole GPU, "
                "including the other instances"
            )
        if "laptop" in name.lower():
            return f"{name} shares its power budget with the processor: do not plug or unplug the charger"
        return None

    def _other_processes(self) -> int | None:
        """Number of other processes that compute on the GPU, without descendants of this one; None if unknown."""
        import pynvml

        processes = first(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle))
        if processes is None:
            return None
        ours = [_descends(process.pid, os.getpid(), self._procfs) for process in processes]
        # In a container, NVML reports the host's process numbers, which have no meaning here.
        return None if None in ours else sum(1 for is_ours in ours if not is_ours)


def _rungs(handle: Any) -> Iterator[_Rung]:
    """The ways to read a GPU's power, the best first."""
    import pynvml as nv

    scopes: tuple[tuple[Scope, int], ...] = (
        ("gpu", nv.NVML_POWER_SCOPE_GPU),
        ("module", nv.NVML_POWER_SCOPE_MODULE),
    )
    instant = ("POWER_INSTANT", nv.NVML_FI_DEV_POWER_INSTANT, INSTANT_PERIOD_SECONDS, None)
    average = (
        "POWER_AVERAGE",
        nv.NVML_FI_DEV_POWER_AVERAGE,
        AVERAGE_PERIOD_SECONDS,
        AVERAGE_SETTLING_SECONDS,
    )
    for scope, number in scopes:
        for name, field, period, settling in (instant, average):
            read = partial(_read_field, handle, field, number)
            yield _Rung(f"nvmlDeviceGetFieldValues({name}, {scope})", scope, period, settling, read)
    yield _Rung(
        "nvmlDeviceGetPowerUsage",
        "gpu",
        AVERAGE_PERIOD_SECONDS,
        AVERAGE_SETTLING_SECONDS,
        lambda: float(nv.nvmlDeviceGetPowerUsage(handle) / 1000),
    )


def gpu_sensor(device: str | None, clock: Callable[[], float] = time.monotonic) -> Sensor:
    """The sensor of one GPU. If no device is named, the sum over all GPUs that CUDA may use.

    Raises SensorMissingError if there is no driver or no GPU.
    """
    if device is not None:
        return NvmlSensor(device, clock)
    sensors = [NvmlSensor(name, clock) for name in visible_devices()]
    return sensors[0] if len(sensors) == 1 else SumSensor(sensors)


def visible_devices() -> tuple[str, ...]:
    """UUIDs of the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves to this process, in NVML's order.

    Raises SensorMissingError if there is no driver or no GPU, or CUDA_VISIBLE_DEVICES leaves none.
    """
    with Nvml() as nvml:
        gpus = [(card.uuid, card.name) for card in nvml.cards()]
    if not gpus:
        raise no_nvidia("the driver lists no GPU")
    visible = visible_gpus(gpus)
    if visible.reason is not None:
        raise SensorMissingError(visible.reason, visible.mend)
    return visible.uuids


def _read_field(handle: Any, field: int, scope: int) -> float:
    """A power field in W."""
    import pynvml

    value = pynvml.nvmlDeviceGetFieldValues(handle, [(field, scope)])[0]
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(value.nvmlReturn)
    return float(value.value.uiVal) / 1000


def _descends(pid: int, ancestor: int, procfs_root: Path) -> bool | None:
    """Whether ``pid`` is ``ancestor`` or descends from it; None if no such process is visible here."""
    current = pid
    while current > 1:
        if current == ancestor:
            return True
        stat = read_text(procfs_root / str(current) / "stat")
        if stat is None:
            return None if current == pid else False
        current = int(stat.rpartition(")")[2].split()[1])
    return False
