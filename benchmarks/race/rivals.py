"""A rival: a published program that is installed into an environment of its own and started as its README says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contest import Claim, Contestant, Outcome, Pick, Question, Rules
from programs import Ran, installed, last_line, starts_in, timed


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rival's output says."""

    options: Mapping[str, Any]  # the judged ones, by sweeper's names
    command: str | None  # as printed
    claim: Claim | None
    model: str | None = None  # None: the race's model
    notes: tuple[str, ...] = field(default=())


# The words after the folder of the rival's commands: (rules, the run's own folder) -> words.
Words = Callable[[Rules, Path], list[str]]
Read = Callable[[Ran, Rules], Answer | None]


def rival(name: str, requirement: str, words: Words, read: Read, question: Question = "speed") -> Contestant:
    """A contestant of this name, in an environment with this requirement of pip.

    ``words`` gives the command, whose first word is one of the rival's own commands. ``read`` finds the answer in the
    output, also in that of a run that was cut.
    """

    def play(rules: Rules, folder: Path, run: int) -> Outcome:
        program, *arguments = words(rules, folder)
        commands, packages = installed(rules, requirement)
        environment = rules.environment(folder, commands)
        ran = timed(
            [str(commands / program), *arguments], folder / "output.log", environment, rules.cap_seconds
        )
        launches, asks = starts_in(folder)
        answer = read(ran, rules)
        is_cut = ran.exit_code is None
        reason = f"cut after {rules.cap_seconds / 60:g} minutes" if is_cut else ""
        if answer is None:
            reason = reason or f"no answer in its output: {last_line(ran.output)}"
        return Outcome(
            contestant=name,
            run=run,
            state="failed" if answer is None else "cut" if is_cut else "answered",
            seconds=ran.seconds,
            pick=None if answer is None else Pick(answer.model or str(rules.model), answer.options),
            command=None if answer is None else answer.command,
            claim=None if answer is None else answer.claim,
            launches=launches,
            asks=asks,
            exit_code=ran.exit_code,
            reason=reason,
            notes=() if answer is None else answer.notes,
            packages=packages,
        )

    return Contestant(name, play, question)
