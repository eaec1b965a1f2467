"""The guided start: `sweeper` alone in a terminal asks four questions and makes a command of the answers.

``find_models`` looks where llama.cpp, Ollama, LM Studio and the Hugging Face hub keep models; ``words_of`` makes the
command. Both are pure apart from the files that they read. ``ask`` talks.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.client.found import installed
from sweeper.spelling import number

MOST_SHOWN = 12  # models in the list; a path can always be typed
# Files below this are adapters, vocabularies and pointers to large files, which nobody serves.
LEAST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on this machine: its name, its GGUF file, the program that keeps it, and its size in bytes."""

    name: str
    path: Path
    keeper: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to the questions. ``model`` None is the built-in synthetic model; ``minutes`` None is no limit."""

    model: Path | None
    target: str
    aim: str
    minutes: float | None


# What the user may want, the overrides that it makes, and the question in the user's words.
AIMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "both": ("speed and power: nearly the fastest for the fewest watts", ()),
    "speed": ("speed: the most tokens per second", ("search.pick=fastest",)),
    "power": ("power: the least energy per generated token", ("search.pick=greenest",)),
    "context": ("context: how long it may be at a bearable speed", ("experiment=longest_context",)),
}
SERVERS = {
    "llama-server": "llama-server",
    "ollama": "Ollama",
    "llama-cpp-python": "llama-cpp-python's server",
    "textgen": "text-generation-webui",
    "lm-studio": "LM Studio",
    "llama-swap": "llama-swap",
    "compose": "Docker Compose",
}
TIMES: dict[str, tuple[str, float | None]] = {
    "short": ("about 3 minutes: a first look", 3.0),
    "medium": ("about 15 minutes", 15.0),
    "long": ("about an hour", 60.0),
    "full": ("as long as it needs", None),
}


def find_models(home: Path, here: Path, environment: Mapping[str, str]) -> tuple[FoundModel, ...]:
    """The GGUF models on the usual paths, those of the current folder first; each file once.

    Args:
        home: the user's home folder.
        here: the current folder; its subfolders are not searched.
        environment: of this process, since each program has a variable for its folder.
    """
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(
        environment.get("HF_HUB_CACHE") or Path(environment.get("HF_HOME") or cache / "huggingface") / "hub"
    )
    ollama = [Path(environment["OLLAMA_MODELS"])] if environment.get("OLLAMA_MODELS") else []
    ollama += [home / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]
    found: dict[Path, FoundModel] = {}
    sources: tuple[tuple[str, Iterator[tuple[str, Path]]], ...] = (
        ("this folder", _ggufs(here, "*.gguf")),
        ("llama.cpp", _ggufs(Path(environment.get("LLAMA_CACHE") or cache / "llama.cpp"), "*.gguf")),
        *(("Ollama", _ollama(folder)) for folder in ollama),
        ("LM Studio", _ggufs(home / ".lmstudio/models", "*/*/*.gguf")),
        ("LM Studio", _ggufs(cache / "lm-studio/models", "*/*/*.gguf")),
        ("Hugging Face", _ggufs(hub, "models--*/snapshots/*/**/*.gguf")),
    )
    for keeper, models in sources:
        for name, path in models:
            try:
                size, file = path.stat().st_size, path.resolve()
            except OSError:
                continue  # a link into the void, or a file that this user may not see
            if size >= LEAST_BYTES and file not in found:
                found[file] = FoundModel(name, path, keeper, size)
    return tuple(found.values())


def _ggufs(folder: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    try:
        paths = sorted(folder.glob(pattern))
    except OSError:  # not this user's folder
        return
    for path in paths:
        part = re.search(r"-(\d{5})-of-\d{5}\.gguf$", path.name)
        if (part is None or part[1] == "00001") and not path.name.startswith("mmproj"):
            yield path.name, path


def _ollama(folder: Path) -> Iterator[tuple[str, Path]]:
    """The models of Ollama by the names in its manifests; each one's weights are a blob named by its digest."""
    manifests = folder / "manifests"
    try:
        paths = sorted(path for path in manifests.rglob("*") if path.is_file())
    except OSError:
        return
    for path in paths:
        *_, model, tag = path.parts
        try:
            layers = json.loads(path.read_text("utf-8"))["layers"]
            digest = next(one["digest"] for one in layers if one["mediaType"].endswith("image.model"))
        except (OSError, ValueError, LookupError, TypeError, StopIteration):
            continue  # not a manifest, or one without weights on this machine
        yield f"{model}:{tag}", folder / "blobs" / digest.replace(":", "-")


def words_of(answers: Answers) -> list[str]:
    """The arguments of `sweeper` that the answers make."""
    quick = answers.minutes is not None and answers.minutes <= 5
    words = ["experiment=quick"] if quick else []
    if quick and answers.aim == "context":
        words = ["search=quick"]  # the quick workload has a short context
    if answers.model is not None:
        words.append(f"model.path={answers.model}")
    words += AIMS[answers.aim][1]
    if answers.minutes is not None:
        words.append(f"minutes={answers.minutes:g}")
    return ["sweep", *words]


def ask(say: Callable[[str], None], read: Callable[[str], str] = input) -> tuple[list[str], str] | None:
    """Ask at most four questions; return the command's arguments and the target, or None at the end of the input.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    try:
        say(
            "sweeper finds the settings of llama.cpp that suit you. Four questions; Enter takes the first answer.\n"
        )
        model = _ask_model(say, read)
        servers = _servers_here()
        target = _choose(say, read, "Which server will run it?", servers)
        aim = _choose(say, read, "What matters?", {name: words for name, (words, _) in AIMS.items()})
        answers = Answers(model, target, aim, _ask_minutes(say, read))
        words = words_of(answers)
        say(f"\nThis is the command:\n\n  {shlex.join(['sweeper', *words])}\n")
        say(f"Afterwards, `sweeper apply --to {target}` shows what it would change in your server.\n")
        read("Press Enter to run it, or Ctrl-C to leave. ")
    except EOFError:
        say("")
        return None
    return words, target


def _servers_here() -> dict[str, str]:
    """The servers, those whose program is installed first."""
    there = [name for name in SERVERS if name in installed()]
    order = [*there, *(name for name in SERVERS if name not in there)]
    return {name: SERVERS[name] + (" (found here)" if name in there else "") for name in order}


def _ask_model(say: Callable[[str], None], read: Callable[[str], str]) -> Path | None:
    found = find_models(Path.home(), Path.cwd(), os.environ)
    say("Which model?")
    for at, model in enumerate(found[:MOST_SHOWN], 1):
        say(f"  {at:>2}  {model.name}  ({model.size_bytes / 2**30:.1f} GiB, {model.keeper})")
    synthetic = min(len(found), MOST_SHOWN) + 1
    say(f"  {synthetic:>2}  a synthetic model, made here: to try sweeper without one of your own")
    if len(found) > MOST_SHOWN:
        say(f"      and {len(found) - MOST_SHOWN} more: type the path of one")
    while True:
        answer = read("Number or path of a GGUF file [1]: ").strip() or "1"
        if answer == str(synthetic):
            return None
        if answer.isdigit() and 1 <= int(answer) < synthetic:
            path = found[int(answer) - 1].path
            return Path(path.name) if path.parent == Path.cwd() else path
        path = Path(answer.strip("'\"")).expanduser()
        if path.is_file():
            return path
        say(f"There is no file {answer}; type a number from 1 to {synthetic}, or a path.")


def _ask_minutes(say: Callable[[str], None], read: Callable[[str], str]) -> float | None:
    def minutes(answer: str) -> str | None:
        typed = number("minutes", answer if re.search("[a-z]", answer) else "")
        return typed if typed and float(typed) > 0 else None

    words = {name: text for name, (text, _) in TIMES.items()}
    answer = _choose(say, read, "How long may it take? (or a time such as 45m)", words, minutes)
    return TIMES[answer][1] if answer in TIMES else float(answer)


def _choose(
    say: Callable[[str], None],
    read: Callable[[str], str],
    question: str,
    choices: Mapping[str, str],
    other: Callable[[str], str | None] = lambda _: None,
) -> str:
    """One of ``choices`` by its number or its name, or what ``other`` makes of the answer."""
    names: Sequence[str] = list(choices)
    say(f"\n{question}")
    for at, name in enumerate(names, 1):
        say(f"  {at:>2}  {choices[name]}")
    while True:
        answer = read("Number [1]: ").strip().lower() or "1"
        if answer.isdigit() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        if answer in choices:
            return answer
        if (made := other(answer)) is not None:
            return made
        say(f"Type a number from 1 to {len(names)}.")
