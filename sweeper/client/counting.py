"""Counts the generated tokens in a streamed answer, with as little work for each token as possible."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from sweeper.client.requests import Api
from sweeper.records import Drafts

_COUNT = b'"tokens_predicted":'
_COUNT_AND_DIGITS = len(_COUNT) + 20
_EVALUATED = re.compile(rb'"prompt_n":(\d+)[,}]')  # only the last event of an answer has it
# ... and these two, if tokens were drafted
_DRAFTS = re.compile(rb'"draft_n":(\d+),"draft_n_accepted":(\d+)[,}]')
_TAIL_BYTES = 80  # more than any of these takes, because the network may cut it


class BrokenAnswer(Exception):
    """The server reported an error inside its answer, or the answer is no stream of this interface."""


class Counter(Protocol):
    """Reads one streamed answer, piece by piece."""

    pieces: float  # so far: tokens, or the pieces of text that stand for them
    total: int | None  # tokens, as the server counts them at the end
    finished: bool  # the server said that the answer is complete
    prompt_tokens: int | None  # evaluated for this request, so without those from a prefix cache
    drafts: Drafts | None  # of speculative decoding, if the server reports them

    def feed(self, data: bytes) -> None:
        """Read the next bytes. Raises BrokenAnswer."""
        ...


def counter_for(api: Api) -> Counter:
    """A counter for one answer of this interface."""
    return LlamaServerCounter() if api == "llama-server" else LineCounter(is_ollama=api == "ollama")


class LlamaServerCounter:
    """llama-server's ``/completion``: each event has the number of tokens so far, so only the last one is read.

    JSON escapes quotation marks inside strings, so no generated text can look like the key.
    """

    def __init__(self) -> None:
        self.pieces = 0.0
        self.total: int | None = None
        self.finished = False
        self.prompt_tokens: int | None = None
        self.drafts: Drafts | None = None
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """See `Counter`."""
        text = self._tail + data
        at = text.rfind(_COUNT)
        if at >= 0:
            digits = text[at + len(_COUNT) : at + _COUNT_AND_DIGITS]
            end = next((i for i, byte in enumerate(digits) if not 48 <= byte <= 57), None)
            if end:  # else the number goes on in the next piece
                self.pieces = max(self.pieces, float(digits[:end]))
        if b'"stop":true' in text:
            self.finished, self.total = True, int(self.pieces)
        if evaluated := _EVALUATED.search(text):
            self.prompt_tokens = int(evaluated[1])
        if drafts := _DRAFTS.search(text):
            self.drafts = Drafts(int(drafts[1]), int(drafts[2]))
        if b"error" in text and (text.startswith(b"error:") or b'"error":{' in text):
            raise BrokenAnswer(_message(text))
        self._tail = text[-_TAIL_BYTES:]


class LineCounter:
    """One JSON object a line: the events of OpenAI's interface (``data: …``), or Ollama's lines."""

    def __init__(self, is_ollama: bool) -> None:
        self.pieces = 0.0
        self.total: int | None = None
        self.finished = False
        self.prompt_tokens: int | None = None
        self.drafts: Drafts | None = None
        self._is_ollama = is_ollama
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """See `Counter`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._is_ollama:
                if line.strip():
                    self._ollama(_object(line))
            elif line.startswith(b"data:"):
                event = line[5:].strip()
                if event == b"[DONE]":
                    self.finished = True
                else:
                    self._openai(_object(event))

    def _openai(self, event: dict[str, Any]) -> None:
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self.total = usage["completion_tokens"]
            details = usage.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, dict) else 0
            self.prompt_tokens = int(usage.get("prompt_tokens") or 0) - int(cached or 0)
        for choice in event.get("choices") or ():
            delta = choice.get("delta")
            if isinstance(delta, dict):  # a chat; its first event may have a role and no text
                words = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
                self.pieces += bool(words)
            else:  # a token may be part of a character, and have no text yet
                self.pieces += bool(choice.get("text")) or not choice.get("finish_reason")
            if choice.get("finish_reason") and not self.pieces:
                self.pieces = 1  # the token that ends an answer is a token too

    def _ollama(self, event: dict[str, Any]) -> None:
        if event.get("done"):
            self.finished = True
            count = event.get("eval_count")
            self.total = count if isinstance(count, int) else None
            evaluated = event.get("prompt_eval_count")
            self.prompt_tokens = evaluated if isinstance(evaluated, int) else None
        else:
            self.pieces += 1


def _object(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise BrokenAnswer("the answer is not JSON") from error
    if not isinstance(event, dict):
        raise BrokenAnswer("the answer is not a JSON object")
    if event.get("error"):
        raise BrokenAnswer(_words_of(event["error"]))
    return event


def _message(text: bytes) -> str:
    """The message of an error event."""
    try:
        event = json.loads(text[text.index(b"{") : text.rindex(b"}") + 1])
        return _words_of(event.get("error", event))
    except (ValueError, AttributeError):
        return text.decode("utf-8", "replace").strip()[:200]


def _words_of(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(message or error).split())[:200]
