"""The records of the race: what a contestant answered, and the race's own settings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sweeper import files
from sweeper.errors import MissingError
from sweeper.records import from_plain, to_plain

Question = Literal["speed", "quality"]
Ruler = Literal["llama-bench", "client"]


class NoAnswer(MissingError):
    """A contestant, or one of llama.cpp's programs, gave no usable answer. The message says why."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A model file and llama-server's options by sweeper's names; an absent option keeps llama.cpp's default."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """The decode speed that a contestant states for its pick, in tok/s, and the ruler that it resembles."""

    tokens_per_second: float
    ruler: Ruler
    how: str  # for example "measured, tg192, 3 repeats" or "computed"


@dataclass(frozen=True, slots=True)
class Early:
    """A pick that could be used before the end, and the seconds from the command to it."""

    seconds: float
    pick: Pick


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of one contestant."""

    contestant: str
    run: int
    state: Literal["answered", "cut", "failed"]
    seconds: float  # from the command to the answer
    pick: Pick | None = None
    command: str | None = None  # as printed; None: it prints none
    claim: Claim | None = None
    first: Early | None = None
    also: tuple[Pick, ...] = ()  # further candidates for the truth, which only the grid has
    launches: Mapping[str, int] = field(default_factory=dict)  # processes that hold llama.cpp, by program
    asks: int = 0  # launches that only asked for help, version or devices
    exit_code: int | None = None
    reason: str = ""  # of a state other than "answered"
    notes: tuple[str, ...] = ()
    load_before: float = 0.0  # the machine's load average right before the run
    packages: tuple[str, ...] = ()  # of the contestant's environment, as pip lists them


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the whole race."""

    model: Path
    programs: Path  # the folder of llama.cpp's programs
    wrappers: Path  # the folder of the scripts that log each start and run those programs
    work: Path
    text: Path  # for perplexity and KL divergence
    runs: int
    cap_seconds: float  # of one run of one contestant
    prompt_tokens: int
    generated_tokens: int
    client_tokens: int  # of an answer at the client
    n_ctx: int  # of the judge's llama-server
    depth: int  # tokens in the context for the question of quality
    judge_rounds: int
    grid_seconds: float
    grid_passes: int
    kld_chunks: int
    target: float | None  # tok/s of the question of quality; None: not chosen yet
    precise_model: Path | None  # F16, for the question of quality; None: made of `model`

    def depth_of(self, question: Question) -> int:
        """The tokens in the context before decode is measured."""
        return self.depth if question == "quality" else 0

    def folder(self, contestant: str, run: int) -> Path:
        """The folder of a run's own files."""
        return self.work / "runs" / f"{contestant}-{run}"

    def outcome(self, contestant: str, run: int) -> Outcome | None:
        """The kept outcome of a run; None before it ran."""
        file = self.folder(contestant, run).with_suffix(".json")
        return from_plain(json.loads(file.read_text("utf-8")), Outcome) if file.is_file() else None

    def keep(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        write_json(self.folder(outcome.contestant, outcome.run).with_suffix(".json"), to_plain(outcome))

    def environment(self, folder: Path, programs_of: Path | None = None) -> dict[str, str | None]:
        """The changes of the environment for a contestant: programs on the PATH, and nothing of the user's home.

        ``programs_of`` is the folder of the contestant's own commands. None as a value removes a variable.
        """
        paths = [str(self.wrappers), *([str(programs_of)] if programs_of else []), os.environ["PATH"]]
        home = folder / "home"
        return {
            **dict.fromkeys(("PYTHONPATH", "VIRTUAL_ENV")),
            "PATH": os.pathsep.join(paths),
            "RACE_LOG": str(folder / "starts.log"),
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONUTF8": "1",
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "COLUMNS": "400",  # no table is wrapped or cut
        }


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to an answer. ``play(rules, folder, run)`` runs it once."""

    name: str
    play: Callable[[Rules, Path, int], Outcome]
    question: Question = "speed"
    once: bool = False  # its answer needs no second run
    optional: bool = False  # runs only if --only names it
    needs: Sequence[str] = ()  # contestants whose outcome of the same run it uses


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file in one step."""
    files.replace(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
