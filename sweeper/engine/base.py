"""The Protocol of inference engines. Every engine passes ``tests/engine/engine_contract.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from sweeper.client.steady import UsersRun
from sweeper.records import Caveat, Configuration, Drafts, EngineRecord, Fill


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The result of loading a configuration. Memory in MiB is None if it could not be read."""

    in_force: Mapping[str, Any]  # parameters as the engine read them back
    load_seconds: float
    reloaded: bool  # False: the model was still loaded, and only context or limits changed
    memory_mib: float | None = None
    vram_mib: float | None = None
    caveats: tuple[Caveat, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """One timed stretch of inference. ``started`` and ``ended`` are ``time.monotonic()`` seconds.

    ``seconds`` is the time in which tokens were computed. The time between rounds, when the engine clears the context,
    lies inside ``started`` … ``ended`` but does not count in ``seconds``.
    """

    tokens: int
    seconds: float
    started: float
    ended: float
    rounds: int
    round_seconds: tuple[float, ...] = field(default=())
    drafts: Drafts | None = None  # of speculative decoding

    @property
    def tokens_per_second(self) -> float:
        """Speed in tok/s."""
        return self.tokens / self.seconds


# The engine keeps a context that took at least this long to fill, and restores it into later ones of the same layout.
KEPT_FROM_SECONDS = 1.0

SAMPLING = "as llama-server samples by default"


class Engine(Protocol):
    """Loads a configuration and runs prefill and decode. A failure raises ``TrialFailed``; it never crashes the sweep.

    After any ``TrialFailed``, the engine can be used again: the next ``load`` starts afresh.
    """

    @property
    def record(self) -> EngineRecord:
        """Name, version and build."""
        ...

    def load(self, configuration: Configuration) -> LoadReport:
        """Load ``configuration``. The engine keeps the loaded model if that is enough."""
        ...

    def prefill(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """Process prompts of ``tokens`` on top of ``depth``, round after round, for ``min_seconds``."""
        ...

    def decode(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """Generate ``tokens`` one by one on top of ``depth``, round after round, for ``min_seconds``.

        After ``max_seconds``, the method ends even inside a round.
        """
        ...

    def memory(self) -> tuple[float | None, float | None]:
        """The peaks of the worker's resident memory and of device memory so far, in MiB."""
        ...

    def close(self) -> None:
        """End the worker and unload the model. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class ServesUsers(Protocol):
    """An engine that can serve several users at the same time, as servers do. `measure` uses it for such workloads."""

    def serve(
        self,
        users: int,
        prompt_tokens: int,
        generated_tokens: int,
        depth: int,
        min_seconds: float,
        max_seconds: float,
    ) -> UsersRun:
        """Let ``users`` clients send requests, one after another each, and measure while all of them are busy.

        Each request has ``prompt_tokens`` new tokens on top of its user's own ``depth``, and generates
        ``generated_tokens``. The steady part lasts ``min_seconds``, and longer until each user has received a token of
        a request that it sent in it, but at most ``max_seconds``. `sweeper.client.load_client.LoadClient` does this.

        Raises:
            TrialFailed: the engine failed, or there was no steady part.
        """
        ...


@runtime_checkable
class FillsContexts(Protocol):
    """An engine that can fill a context ahead of the windows at its depth, tell how far it is, and time it."""

    def fill(self, depth: int, tell: Callable[[int], None]) -> Fill | None:
        """Fill the context to ``depth`` tokens, or do nothing if it holds them.

        ``tell`` gets the number of tokens that are done, about every second, as far as the engine knows it. Nothing is
        told of a context that is restored. If ``tell`` raises TrialFailed, an engine that can do so ends the fill.

        Returns:
            The time, if this call filled an empty context with the engine's own clock running; else None.

        Raises:
            TrialFailed: the engine failed, or ``tell`` raised it.
        """
        ...

    def restores(self, configuration: Configuration, depth: int) -> bool:
        """Whether the engine would restore a kept context of ``depth`` tokens instead of filling one."""
        ...
