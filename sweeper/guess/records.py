"""What a guess holds. Every figure carries its label, and none of them was measured for this model and command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sweeper.records import Configuration

Label = Literal["computed", "estimated", "from earlier sweeps"]


@dataclass(frozen=True, slots=True)
class Figure:
    """An expected figure with the range in which it should lie, in the unit of its name, and the reason."""

    low: float
    expected: float
    high: float
    label: Label
    reason: str


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory that a model needs on one device in MiB, and what is free there; None if it does not say."""

    device: str
    weights_mib: float
    kv_mib: float
    compute_mib: float
    overhead_mib: float
    free_mib: float | None

    @property
    def needed_mib(self) -> float:
        """All parts together."""
        return self.weights_mib + self.kv_mib + self.compute_mib + self.overhead_mib


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits. ``label`` says who planned the memory; ``reason`` says why it does not fit."""

    fits: bool
    devices: tuple[DeviceMemory, ...]
    label: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Guess:
    """What one model would do here. Speeds are in tok/s; ``depth`` is the context of the second one, in tokens."""

    model: str
    architecture: str
    parameters: int
    quant: str
    size_bytes: int
    fit: Fit
    depth: int
    ceiling_tokens_per_second: float | None
    ceiling_tokens_per_second_at_depth: float | None
    ceiling_reason: str
    tokens_per_second: Figure | None
    tokens_per_second_at_depth: Figure | None
    watts: Figure
    configuration: Configuration
    command: str
    notes: tuple[str, ...] = ()
