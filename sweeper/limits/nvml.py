"""NVIDIA GPUs: the power limit and the lock on the SM clock, through one NVML handle for the whole sweep.

NVML shows the power limit, and never a clock lock: whether a lock is in force is seen by its effect only, on
the SM clock. So a lock is taken to have been absent before the sweep, unless the device says that its clocks
are limited by a setting; then it is not touched at all. Persistence mode is left as it is.
"""

from __future__ import annotations

from sweeper.errors import LimitRefused
from sweeper.limits.knob import KnobId
from sweeper.limits.rights import Means, Request
from sweeper.nvml import Nvml, said

# A locked clock is held to the next supported one, 15 MHz apart at most; two of them are beyond doubt.
CLOCK_TOLERANCE_MHZ = 30
# nvmlClocksEventReasonApplicationsClocksSetting: clocks held down by a setting, not by load, heat or a cap.
SETTING_HOLDS_CLOCKS = 0x2


class PowerKnob:
    """A GPU's power limit, in mW."""

    readable = True

    def __init__(self, nvml: Nvml, uuid: str, means: Means | None) -> None:
        self.id = KnobId("nvml_power", uuid)
        self._nvml = nvml
        self._means = means

    def read(self) -> int | None:
        """The limit that was asked for last, by anyone, in mW."""
        import pynvml

        with said(f"read the power limit of {self.id.device}"):
            return int(pynvml.nvmlDeviceGetPowerManagementLimit(self._nvml.handle(self.id.device)))

    def enforced(self) -> int | None:
        """The lowest of all limits in force, in mW; None where the device does not say."""
        import pynvml

        try:
            return int(pynvml.nvmlDeviceGetEnforcedPowerLimit(self._nvml.handle(self.id.device)))
        except pynvml.NVMLError:
            return None

    def constraints(self) -> tuple[int, int]:
        """The device's own range, in mW."""
        import pynvml

        with said(f"read the range of power limits of {self.id.device}"):
            low, high = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(self._nvml.handle(self.id.device))
        return int(low), int(high)

    def write(self, raw: int | None) -> None:
        """Set the limit, in mW."""
        import pynvml

        uuid = self.id.device
        if raw is None:
            raise LimitRefused(f"a power limit of {uuid} cannot be taken away, only set")
        if self._means is not None:
            self._means.carry_out(Request(("nvml-power", uuid, str(raw)), self._nvml.index(uuid)))
            return
        with said(f"set the power limit of {uuid}"):
            pynvml.nvmlDeviceSetPowerManagementLimit(self._nvml.handle(uuid), raw)

    def contradiction(self, raw: int | None) -> str | None:
        """Never asked: this knob can be read."""
        return None


class ClockKnob:
    """The ceiling of a GPU's SM clock, in MHz; None: not locked.

    The lock runs from the lowest supported clock to the ceiling: a fixed clock would keep an idle GPU busy.
    """

    readable = False

    def __init__(self, nvml: Nvml, uuid: str, means: Means | None) -> None:
        self.id = KnobId("nvml_clock", uuid)
        self._nvml = nvml
        self._means = means
        self._supported: tuple[int, ...] | None = None

    def read(self) -> int | None:
        """Always None: NVML does not tell."""
        return None

    def supported(self) -> tuple[int, ...]:
        """The clocks that can be asked for, in MHz, lowest first."""
        import pynvml

        if self._supported is None:
            handle = self._nvml.handle(self.id.device)
            with said(f"list the clocks of {self.id.device}"):
                memory = max(pynvml.nvmlDeviceGetSupportedMemoryClocks(handle))
                clocks = pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory)
            self._supported = tuple(sorted({int(clock) for clock in clocks}))
        return self._supported

    def held_by_another(self) -> bool:
        """Whether the device says that a setting holds its clocks down. Only seen while it works."""
        import pynvml

        handle = self._nvml.handle(self.id.device)
        try:
            reasons = int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        except pynvml.NVMLError:
            return False  # a device that gives no reasons gives no evidence either
        return bool(reasons & SETTING_HOLDS_CLOCKS)

    def write(self, raw: int | None) -> None:
        """Lock the clock to at most ``raw`` MHz, or free it."""
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
        """An SM clock above the lock shows that the lock is not in force."""
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
