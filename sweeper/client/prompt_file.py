"""Reads a file of the user's own prompts: JSONL, one request a line.

A line has ``prompt`` (a text) or ``messages`` (a chat), at its top or in a ``body`` or ``request``, as logs and batch
files of OpenAI's interface have them. Other keys are ignored.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.client.requests import Prompt
from sweeper.errors import ConfigError, MissingError
from sweeper.model.texts import Texts
from sweeper.records import PromptFile

# More prompts change no figure, and each window sends all of them to the load generator.
MOST_PROMPTS = 1000
_EXPECTED = 'expected {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}'
_WRAPPERS = ("body", "request")
_KEY = "workload.prompts"
BUNDLED = "sweeper's bundled text"
# Two or three sentences, about 70 tokens, say what comes next. Longer passages would be fewer.
PASSAGE_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class OwnPrompts:
    """The prompts of a file, and what the sweep's record keeps of them."""

    record: PromptFile
    prompts: tuple[Prompt, ...]  # at most `MOST_PROMPTS`, spread evenly over the file


@functools.cache
def bundled_prompts() -> OwnPrompts:
    """Passages of the bundled texts, for a sweep that needs real text and has no prompts of the user's own."""
    texts = Texts()
    whole = texts.mixed()
    starts = range(0, len(whole), PASSAGE_CHARACTERS)
    passages = tuple(whole[start : start + PASSAGE_CHARACTERS] for start in starts)
    return OwnPrompts(PromptFile(BUNDLED, texts.sha256(), len(passages), 0), passages)


def read_prompts(path: Path) -> OwnPrompts:
    """Read and check a whole file.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        ConfigError: a line is broken, or no line has a prompt; the message names file and line.
    """
    try:
        state = path.stat()
        return _read(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise MissingError(f"{_KEY}: cannot read {path} ({error.strerror})", "name a JSONL file") from error


@functools.lru_cache(maxsize=4)  # the configuration reads the file more than once
def _read(path: Path, _mtime_ns: int, _size: int) -> OwnPrompts:
    data = path.read_bytes()
    found: list[Prompt] = []
    skipped = 0
    for number, line in _lines(data):
        prompt = _prompt_of(line, f"{_KEY}: {path.name} line {number}")
        if prompt is None:
            skipped += 1
        else:
            found.append(prompt)
    if not found:
        why = "it is empty" if not data.strip() else "no line has a prompt with text"
        raise ConfigError(f"{_KEY}: {path.name} has no usable line, because {why}; {_EXPECTED}")
    step = max(1.0, len(found) / MOST_PROMPTS)
    chosen = [found[int(index * step)] for index in range(min(len(found), MOST_PROMPTS))]
    record = PromptFile(
        name=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        prompts=len(found),
        chats=sum(not isinstance(prompt, str) for prompt in found),
        skipped=skipped,
    )
    return OwnPrompts(record, tuple(chosen))


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield number, line


def _prompt_of(line: bytes, where: str) -> Prompt | None:
    """The prompt of a line; None if the line is whole but has no text to send."""
    try:
        entry = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8; {_EXPECTED}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON; {_EXPECTED}") from error
    for _ in _WRAPPERS:  # {"request": {"body": {…}}}
        inner = next((entry[key] for key in _WRAPPERS if isinstance(entry, dict) and key in entry), None)
        if isinstance(inner, dict):
            entry = inner
    if isinstance(entry, dict) and isinstance(entry.get("prompt"), str):
        return entry["prompt"] if entry["prompt"].strip() else None
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ConfigError(f"{where} has neither a prompt nor messages; {_EXPECTED}")
    chat = [_message(message, where) for message in messages]
    return chat if any(message["content"].strip() for message in chat) else None


def _message(message: Any, where: str) -> dict[str, str]:
    """One message with its text alone."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ConfigError(f"{where} has a message without a role; {_EXPECTED}")
    content = message.get("content")
    if isinstance(content, list):  # parts: texts, and perhaps images, which sweeper does not send
        content = "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    if content is not None and not isinstance(content, str):
        raise ConfigError(f"{where} has a message whose content is no text; {_EXPECTED}")
    return {"role": message["role"], "content": content or ""}  # a call of a tool has no content
