"""Which trials the report names: every pick of the front, in the words that state its price."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from sweeper.errors import ConfigError, NoResultError
from sweeper.pareto import choose
from sweeper.records import SweepRecord, TrialRecord
from sweeper.report.words import clean

NAMED = ("fastest", "knee", "greenest")


@dataclass(frozen=True, slots=True)
class Picked:
    """One pick: the trial it chose, what it costs in words, and the command that puts it into force."""

    pick: str
    trial: TrialRecord
    words: str
    recommended: bool
    apply_command: str


def picks(record: SweepRecord) -> tuple[Picked, ...]:
    """The sweep's own pick first, then the named ones; empty where nothing may be recommended."""
    names = (record.pick, *(name for name in NAMED if name != record.pick))
    return tuple(picked for name in names if (picked := _picked(record, name)) is not None)


def recommended(record: SweepRecord) -> Picked | None:
    """What to run, or None where nothing may be recommended yet."""
    return next((picked for picked in picks(record) if picked.recommended), None)


def marks(record: SweepRecord) -> dict[int, tuple[str, ...]]:
    """For each trial that was picked, the names of its picks."""
    found: dict[int, tuple[str, ...]] = {}
    for picked in picks(record):
        found[picked.trial.number] = (*found.get(picked.trial.number, ()), picked.pick)
    return found


def next_commands(record: SweepRecord) -> tuple[tuple[str, str], ...]:
    """What to type next, each with what it does."""
    name = shlex.quote(clean(record.sweep))
    if recommended(record) is None:
        return (
            (f"sweeper sweep sweep={name}", "goes on with this sweep"),
            ("sweeper doctor", "what this machine lacks"),
        )
    return (
        (apply_command(record, record.pick), "shows what would change"),
        (f"{apply_command(record, record.pick)} --write", "puts it into force"),
        (f"sweeper verify {name}", "measures it against this promise"),
    )


def apply_command(record: SweepRecord, pick: str, target: str = "llama-server") -> str:
    """The command that applies ``pick`` of this sweep."""
    return f"sweeper apply {shlex.quote(clean(record.sweep))} --pick {shlex.quote(pick)} --to {target}"


def _picked(record: SweepRecord, pick: str) -> Picked | None:
    try:
        choice = choose(record, pick)
    except (NoResultError, ConfigError):
        # Nothing measured twice yet, or objectives (say, two speeds) that this pick cannot be asked of.
        return None
    words = choice.words if choice.nearest is None else f"{choice.nearest}; {choice.words}"
    return Picked(pick, choice.trial, words, pick == record.pick, apply_command(record, pick))
