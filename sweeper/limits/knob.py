"""A knob reads and writes one limit of one device, in the device's own raw values.

A knob's raw unit is the unit of its interface (mW, µW, MHz), so that the restored value is exactly the value
found. ``None`` is a clock that is not locked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, Protocol

POWER = "power_limit_watts"
CLOCK = "clock_limit_mhz"

KnobKind = Literal["nvml_power", "nvml_clock", "rapl"]
LIMIT_OF: dict[str, str] = {"nvml_power": POWER, "nvml_clock": CLOCK, "rapl": POWER}
# Raw units in one W or MHz.
PER_UNIT: dict[str, int] = {"nvml_power": 1000, "nvml_clock": 1, "rapl": 1_000_000}
# Two values are the same setting within this difference. NVML keeps mW exactly. RAPL rounds down to units of
# 1/8 W on all Intel processors so far; AMD's units are no larger.
TOLERANCE: dict[str, int] = {"nvml_power": 0, "nvml_clock": 0, "rapl": 125_000}

# A driver shows a new limit within milliseconds; a second covers a busy machine.
READ_BACK_SECONDS = 1.0
READ_BACK_PAUSE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class KnobId:
    """Names one limit of one device. ``part`` is RAPL's constraint, for example ``constraint_0``."""

    kind: KnobKind
    device: str  # the GPU's UUID, or RAPL's zone such as intel-rapl:0
    part: str = ""

    @property
    def limit(self) -> str:
        """The parameter of the configuration: power_limit_watts or clock_limit_mhz."""
        return LIMIT_OF[self.kind]

    def __str__(self) -> str:
        return f"{self.limit} of {self.device}" + (f" ({self.part})" if self.part else "")


class Knob(Protocol):
    """Reads and writes one limit. It raises LimitRefused, RightMissingError or SensorMissingError."""

    @property
    def id(self) -> KnobId:
        """The limit and the device."""
        ...

    @property
    def readable(self) -> bool:
        """Whether ``read`` returns the value in force. NVML never shows a clock lock."""
        ...

    def read(self) -> int | None:
        """The raw value in force; None if the clock is not locked, or the value not readable."""
        ...

    def write(self, raw: int | None) -> None:
        """Request this value from the device. Only ``read`` shows whether the device accepted it."""
        ...

    def contradiction(self, raw: int | None) -> str | None:
        """The evidence that ``raw`` is not in force, or None. For a knob that is not readable."""
        ...


def same(kind: str, one: int | None, other: int | None) -> bool:
    """Whether two raw values are the same setting, within the resolution of the device."""
    if one is None or other is None:
        return one is other
    return abs(one - other) <= TOLERANCE[kind]


def in_units(kind: str, raw: int | None) -> float | None:
    """A raw value in W or MHz."""
    return None if raw is None else raw / PER_UNIT[kind]


def in_words(knob: KnobId, raw: int | None) -> str:
    """A raw value for a message: ``250 W``, ``1500 MHz``, ``not locked``."""
    if raw is None:
        return "not locked"
    return f"{raw / PER_UNIT[knob.kind]:g} {'W' if knob.limit == POWER else 'MHz'}"


def refusal(knob: Knob, raw: int | None) -> str | None:
    """Wait until the device shows ``raw``, and return None. After a second, return what it shows instead."""
    deadline = time.monotonic() + READ_BACK_SECONDS
    while True:
        if knob.readable:
            present = knob.read()
            answer = (
                None if same(knob.id.kind, present, raw) else f"it reads back {in_words(knob.id, present)}"
            )
        else:
            answer = knob.contradiction(raw)
        if answer is None or time.monotonic() >= deadline:
            return answer
        time.sleep(READ_BACK_PAUSE_SECONDS)
