"""NVIDIA GPUs: the power limit and the lock on the SM clock, through one NVML handle for the whole sweep.

NVML shows the power limit, but never a clock lock. Only the SM clock shows the effect of a lock. So sweeper
assumes that there was no lock before the sweep. If the device reports that a setting limits its clocks, sweeper
does not touch them. sweeper does not change the persistence mode.
"""

from __future__ import annotations

from sweeper.errors import LimitRefused
from sweeper.limits.knob import KnobId
from sweeper.limits.rights import Means, Request
from sweeper.nvml import Nvml, said

# A device rounds a lock to the next supported clock, at most 15 MHz away. A clock two such steps above the lock
# leaves no doubt.
CLOCK_TOLERANCE_MHZ = 30
# nvmlClocksEventReasonApplicationsClocksSetting: a setting limits the clocks, not load, heat or a power limit.
SETTING_HOLDS_CLOCKS = 0x2


class PowerKnob:
    """A GPU's power limit, in mW."""

    readable = True

    def __init__(self, nvml: Nvml, uuid: str, means: Means | None) -> None:
        self.id = KnobId("nvml_power", uuid)
        self._nvml = nvml
        self._means = means

    def read(self) -> int | None:
        """The limit that a program requested last, in mW."""
        import pynvml

        with said(f"read the power limit of {self.id.device}"):
            return int(pynvml.nvmlDeviceGetPowerManagementLimit(self._nvml.handle(self.id.device)))

    def enforced(self) -> int | None:
        """The lowest of all limits in force, in mW; None if the device does not report it."""
        return self._if_reported("nvmlDeviceGetEnforcedPowerLimit")

    def default(self) -> int | None:
        """The device's own limit, in mW; None if the device does not report it."""
        return self._if_reported("nvmlDeviceGetPowerManagementDefaultLimit")

    def _if_reported(self, call: str) -> int | None:
        import pynvml

        try:
            return int(getattr(pynvml, call)(self._nvml.handle(self.id.device)))
        except pynvml.NVMLError:
            return None

    def constraints(self) -> tuple[int, int]:
        """The range of limits that the device accepts, in mW."""
        import pynvml

        with said(f"read the range of power limits of {self.id.device}"):
            low, high = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(self._nvml.handle(self.id.device))
        return int(low), int(high)

    def write(self, raw: int | None) -> None:
        """Set the limit, in mW."""
        import pynvml

        uuid = self.id.device
        if raw is None:
            raise LimitRefused(f"the power limit of {uuid} can be set, but not removed")
        if self._means is not None:
            self._means.carry_out(Request(("nvml-power", uuid, str(raw)), self._nvml.index(uuid)))
            return
        with said(f"set the power limit of {uuid}"):
            pynvml.nvmlDeviceSetPowerManagementLimit(self._nvml.handle(uuid), raw)

    def contradiction(self, raw: int | None) -> str | None:
        """None: this knob is readable, so nothing calls this method."""
        return None


class ClockKnob:
    """The upper limit of a GPU's SM clock, in MHz; None: not locked.

    The lock allows all clocks from the lowest supported one up to the limit. A fixed clock would keep an idle GPU
    busy.
    """

    readable = False

    def __init__(self, nvml: Nvml, uuid: str, means: Means | None) -> None:
        self.id = KnobId("nvml_clock", uuid)
        self._nvml = nvml
        self._means = means
        self._supported: tuple[int, ...] | None = None

    def read(self) -> int | None:
        """None: NVML does not show a clock lock."""
        return None

    def supported(self) -> tuple[int, ...]:
        """The clocks that the device supports, in MHz, lowest first."""
        import pynvml

        if self._supported is None:
            handle = self._nvml.handle(self.id.device)
            with said(f"list the clocks of {self.id.device}"):
                memory = max(pynvml.nvmlDeviceGetSupportedMemoryClocks(handle))
                clocks = pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory)
            self._supported = tuple(sorted({int(clock) for clock in clocks}))
        return self._supported

    def held_by_another(self) -> bool:
        """Whether the device reports that a setting limits its clocks. A device shows this only under load."""
        import pynvml

        handle = self._nvml.handle(self.id.device)
        try:
            reasons = int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        except pynvml.NVMLError:
            return False  # a device that reports no reasons gives no evidence
        return bool(reasons & SETTING_HOLDS_CLOCKS)

    def write(self, raw: int | None) -> None:
        """Lock the clock to at most ``raw`` MHz; None removes the lock."""
        import pynvml

        uuid = self.id.device
        low = None if raw is None else min(self.supported()[0], raw)
        if self._means is not None:
            words = ("reset",) if raw is None else (str(low), str(raw))
            self._means.carry_out(Request(("nvml-clock", uuid, *words), self._nvml.index(uuid)))
            return
        with said(f"set the clock limit of {uuid}"):
            if raw is None:
                pynvml.nvmlDeviceResetGpuLockedClocks(self._nvml.handle(uuid))
            else:
                pynvml.nvmlDeviceSetGpuLockedClocks(self._nvml.handle(uuid), low, raw)

    def contradiction(self, raw: int | None) -> str | None:
        """An SM clock above the lock, as evidence that the lock is not in force; otherwise None."""
        import pynvml

        if raw is None:
            return None
        with said(f"read the SM clock of {self.id.device}"):
            clock = int(
                pynvml.nvmlDeviceGetClockInfo(self._nvml.handle(self.id.device), pynvml.NVML_CLOCK_SM)
            )
        if clock <= raw + CLOCK_TOLERANCE_MHZ:
            return None
        return f"the SM clock runs at {clock} MHz, above a lock of {raw} MHz"
