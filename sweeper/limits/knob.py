"""One limit of one device, as the thing that is read and written: a knob. Raw values are the device's own.

A knob's raw unit is what its interface speaks (mW, µW, MHz), so that what is given back is exactly what was
found. ``None`` is a clock that is not locked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

POWER = "power_limit_watts"
CLOCK = "clock_limit_mhz"

KnobKind = Literal["nvml_power", "nvml_clock", "rapl"]
LIMIT_OF: dict[str, str] = {"nvml_power": POWER, "nvml_clock": CLOCK, "rapl": POWER}
# Raw units in one W or MHz.
PER_UNIT: dict[str, int] = {"nvml_power": 1000, "nvml_clock": 1, "rapl": 1_000_000}
# How far a value may be from what was written and still be it. NVML keeps mW exactly; RAPL counts in units of
# 1/8 W on all Intel processors so far, rounded down, and AMD's in no larger ones.
TOLERANCE: dict[str, int] = {"nvml_power": 0, "nvml_clock": 0, "rapl": 125_000}

# A driver shows a new limit within milliseconds; a second covers a busy machine.
READ_BACK_SECONDS = 1.0
READ_BACK_PAUSE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class KnobId:
    """Which limit of which device. ``part`` is RAPL's constraint, for example ``constraint_0``."""

    kind: KnobKind
    device: str  # GPU's UUID, or RAPL's zone such as intel-rapl:0
    part: str = ""

    @property
    def limit(self) -> str:
        """The configuration's name of it: power_limit_watts or clock_limit_mhz."""
        return LIMIT_OF[self.kind]

    def __str__(self) -> str:
        return f"{self.limit} of {self.device}" + (f" ({self.part})" if self.part else "")


class Knob(Protocol):
    """Reads and writes one limit. Errors are LimitRefused, RightMissingError or SensorMissingError."""

    @property
    def id(self) -> KnobId:
        """Which limit of which device."""
        ...

    @property
    def readable(self) -> bool:
        """Whether ``read`` tells the value in force. NVML never shows a clock lock."""
        ...

    def read(self) -> int | None:
        """The raw value in force; None where it is not locked, or not readable."""
        ...

    def write(self, raw: int | None) -> None:
        """Ask the device for this value. Whether it took it is seen by ``read``."""
        ...

    def contradiction(self, raw: int | None) -> str | None:
        """For a knob that cannot be read: what shows that ``raw`` is not in force, or None."""
        ...


def same(kind: str, one: int | None, other: int | None) -> bool:
    """Whether two raw values are one setting, as far as the device can tell them apart."""
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


def refusal(knob: Knob, raw: int | None, sleep: Callable[[float], None] = time.sleep) -> str | None:
    """Wait until the device shows ``raw``; what it shows instead after a second, or None where it took it."""
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
        sleep(READ_BACK_PAUSE_SECONDS)
