"""What an inference engine must do for a trial. Every engine passes ``sweeper.lab.contracts.EngineContract``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from sweeper.records import Configuration, EngineRecord


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What loading a configuration did. Memory in MiB is None where it could not be read."""

    in_force: Mapping[str, Any]  # parameters as the engine read them back
    load_seconds: float
    reloaded: bool  # False: the model stayed loaded and only context or limits changed
    memory_mib: float | None = None
    vram_mib: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One timed stretch of inference. ``started`` and ``ended`` are ``time.monotonic()`` seconds.

    ``seconds`` is the time in which tokens were computed; what lies between rounds (clearing the
    context) is inside ``started`` … ``ended`` but not inside ``seconds``.
    """

    tokens: int
    seconds: float
    started: float
    ended: float
    rounds: int
    round_seconds: tuple[float, ...] = field(default=())

    @property
    def tokens_per_second(self) -> float:
        """Speed in tok/s."""
        return self.tokens / self.seconds


# A context that took this long to fill to its depth is kept, and restored into later ones of its layout.
KEPT_FROM_SECONDS = 1.0


class Engine(Protocol):
    """Loads a configuration and runs prefill and decode. A failure is a ``TrialFailed``, never a crash.

    After any ``TrialFailed`` the engine can be used again: the next ``load`` starts afresh.
    """

    @property
    def record(self) -> EngineRecord:
        """Name, version and build."""
        ...

    def load(self, configuration: Configuration) -> LoadReport:
        """Make ``configuration`` the one in force; keeps the loaded model where that is enough."""
        ...

    def prefill(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """Process prompts of ``tokens`` on top of ``depth``, round after round, for ``min_seconds``."""
        ...

    def decode(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """Generate ``tokens`` one by one on top of ``depth``, round after round, for ``min_seconds``.

        Ends inside a round where ``max_seconds`` are reached.
        """
        ...

    def memory(self) -> tuple[float | None, float | None]:
        """Peak of the worker's resident memory and of device memory so far, in MiB."""
        ...

    def close(self) -> None:
        """End the worker, unload the model. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
