"""The limits of this machine, entered for the life of a rig."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from sweeper.config import Settings
from sweeper.limits.base import LimitControl


def enter_limits(settings: Settings, root: Path, held: ExitStack, say: Callable[[str], None]) -> LimitControl:
    """Find and enter the limits, and tell what was restored of an earlier run's, and of this one's at the end."""
    from sweeper.limits.control import find_limits

    limits = find_limits(root, settings.power)
    for outcome in limits.replayed:
        say(f"from an earlier run: {outcome}")

    @held.callback  # after the limits were restored
    def say_outcomes() -> None:
        for outcome in limits.outcomes:
            say(str(outcome))

    return held.enter_context(limits)
