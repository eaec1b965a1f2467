"""NVIDIA GPUs: the power limit and the lock on the SM clock, through one NVML handle for the whole sweep.

NVML shows the power limit, but never a clock lock. Only the SM clock shows the effect of a lock. So sweeper
assumes that there was no lock before the sweep. If the device reports that a setting limits its clocks, sweeper
does not touch them. sweeper does not change the persistence mode.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from sweeper.errors import LimitRefused
from sweeper.limits.knob import KnobId, KnobKind
from sweeper.limits.rights import Means, Request
from sweeper.nvml import Nvml, said

# A device rounds a lock to the next supported clock, at most 15 MHz away. A clock two such steps above the lock
# leaves no doubt.
CLOCK_TOLERANCE_MHZ = 30
# nvmlClocksEventReasonApplicationsClocksSetting: a setting limits the clocks, not load, heat or a power limit.
SETTING_HOLDS_CLOCKS = 0x2


class _GpuKnob:
    """What both limits of a GPU share."""

    kind: KnobKind

    def __init__(self, nvml: Nvml, uuid: str, means: Means | None) -> None:
        self.id = KnobId(self.kind, uuid)
        self._nvml = nvml
        self._means = means

    def _call(self, doing: str, name: str, *words: object) -> Any:
        """Call a function of NVML on this device. ``doing`` names it in the error."""
        import pynvml

        with said(f"{doing} of {self.id.device}"):
            return getattr(pynvml, name)(self._nvml.handle(self.id.device), *words)

    def _if_reported(self, name: str) -> int | None:
        import pynvml

        try:
            return int(getattr(pynvml, name)(self._nvml.handle(self.id.device)))
        except pynvml.NVMLError:
            return None

    def _carried_out(self, kind: str, *words: object) -> bool:
        """Whether a helper or zeusd has set the limit. Otherwise this process sets it."""
        if self._means is None:
            return False
        uuid = self.id.device
        self._means.carry_out(Request((kind, uuid, *map(str, words)), self._nvml.index(uuid)))
        return True


class PowerKnob(_GpuKnob):
    """A GPU's power limit, in mW."""

    kind: KnobKind = "nvml_power"
    readable = True

    def read(self) -> int | None:
        """The limit that a program requested last, in mW."""
        return int(self._call("read the power limit", "nvmlDeviceGetPowerManagementLimit"))

    def enforced(self) -> int | None:
        """The lowest of all limits in force, in mW; None if the device does not report it."""
        return self._if_reported("nvmlDeviceGetEnforcedPowerLimit")

    def default(self) -> int | None:
        """The device's own limit, in mW; None if the device does not report it."""
        return self._if_reported("nvmlDeviceGetPowerManagementDefaultLimit")

    def constraints(self) -> tuple[int, int]:
        """The range of limits that the device accepts, in mW."""
        doing = "read the range of power limits"
        low, high = self._call(doing, "nvmlDeviceGetPowerManagementLimitConstraints")
        return int(low), int(high)

    def write(self, raw: int | None) -> None:
        """Set the limit, in mW."""
        if raw is None:
            raise LimitRefused(f"the power limit of {self.id.device} can be set, but not removed")
        if not self._carried_out("nvml-power", raw):
            self._call("set the power limit", "nvmlDeviceSetPowerManagementLimit", raw)

    def contradiction(self, raw: int | None) -> str | None:
        """None: this knob is readable, so nothing calls this method."""
        return None


class ClockKnob(_GpuKnob):
    """The upper limit of a GPU's SM clock, in MHz; None: not locked.

    The lock allows all clocks from the lowest supported one up to the limit. A fixed clock would keep an idle GPU
    busy.
    """

    kind: KnobKind = "nvml_clock"
    readable = False

    def read(self) -> int | None:
        """None: NVML does not show a clock lock."""
        return None

    @cached_property
    def supported(self) -> tuple[int, ...]:
        """The clocks that the device supports, in MHz, lowest first."""
        doing = "list the clocks"
        memory = max(self._call(doing, "nvmlDeviceGetSupportedMemoryClocks"))
        clocks = self._call(doing, "nvmlDeviceGetSupportedGraphicsClocks", memory)
        return tuple(sorted({int(clock) for clock in clocks}))

    def held_by_another(self) -> bool:
        """Whether the device reports that a setting limits its clocks. A device shows this only under load."""
        reasons = self._if_reported("nvmlDeviceGetCurrentClocksEventReasons")
        return bool((reasons or 0) & SETTING_HOLDS_CLOCKS)

    def write(self, raw: int | None) -> None:
        """Lock the clock to at most ``raw`` MHz; None removes the lock."""
        if raw is None:
            if not self._carried_out("nvml-clock", "reset"):
                self._call("set the clock limit", "nvmlDeviceResetGpuLockedClocks")
            return
        low = min(self.supported[0], raw)
        if not self._carried_out("nvml-clock", low, raw):
            self._call("set the clock limit", "nvmlDeviceSetGpuLockedClocks", low, raw)

    def contradiction(self, raw: int | None) -> str | None:
        """An SM clock above the lock, as evidence that the lock is not in force; otherwise None."""
        import pynvml

        if raw is None:
            return None
        clock = int(self._call("read the SM clock", "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM))
        if clock <= raw + CLOCK_TOLERANCE_MHZ:
            return None
        return f"the SM clock runs at {clock} MHz, above a lock of {raw} MHz"
