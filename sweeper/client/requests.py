"""What a load test sends: the server's address and interface, and the prompts. Each crosses to the worker as JSON."""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Api = Literal["llama-server", "openai", "ollama"]
Prompt = str | list[int] | list[dict[str, Any]]
"""A text, a list of token ids, or a list of chat messages."""

_WORDS = ("time", "water", "light", "stone", "river", "music", "paper", "green", "seven", "north", "cloud")


def new_seed() -> int:
    """A seed that no earlier test had: a server that goes on running may keep the prompts of earlier tests."""
    return secrets.randbits(48)


@dataclass(frozen=True, slots=True)
class Target:
    """A server: its address without a slash at the end, its interface, and the model's name there.

    ``extra`` has further fields of each request, for example a sampler chain. The key of a server is never part of
    this record: the client reads it from the environment variable ``SWEEPER_API_KEY`` if ``use_key`` is set.
    """

    url: str
    api: Api
    model: str | None = None
    use_key: bool = False
    hold: bool = False  # ask a server of OpenAI's interface not to end an answer early
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ids:
    """Random token ids from ``low`` to ``high`` inclusive: ``tokens`` new ones on top of ``depth`` kept ones.

    The first ``depth`` ids belong to the user and are the same in every test, so a server may keep them in its prefix
    cache, as it keeps a conversation. The rest is new in every request; with ``repeat``, it is the same in every one.
    Each prompt ends with one of ``ends``, if there are any: real text in which speculative decoding can guess.
    """

    tokens: int
    low: int
    high: int
    depth: int = 0
    seed: int = field(default_factory=new_seed)
    repeat: bool = False
    ends: Sequence[Sequence[int]] = ()

    def prompt(self, user: int, number: int) -> Prompt:
        """The prompt of request ``number`` of a user."""
        own = random.Random(f"depth/{user}")
        fresh = random.Random(f"{self.seed}/{user}/{0 if self.repeat else number}")
        every = range(self.low, self.high + 1)
        end = list(_in_turn(self.ends, user, number)[-self.tokens :]) if self.ends else []
        return own.choices(every, k=self.depth) + fresh.choices(every, k=self.tokens - len(end)) + end

    @property
    def may_be_cached(self) -> bool:
        """Whether the server may take part of the prompt from its cache."""
        return self.depth > 0 or self.repeat


@dataclass(frozen=True, slots=True)
class Words:
    """Texts of ``words`` words on top of ``depth`` kept ones, for servers that take no token ids; see `Ids`."""

    words: int
    depth: int = 0
    seed: int = field(default_factory=new_seed)
    repeat: bool = False

    def prompt(self, user: int, number: int) -> Prompt:
        """The prompt of request ``number`` of a user."""
        kept = text(self.depth, salt(random.Random(f"depth/{user}"))) + " " if self.depth else ""
        fresh = random.Random(f"{self.seed}/{user}/{0 if self.repeat else number}")
        return kept + text(self.words, salt(fresh))

    @property
    def may_be_cached(self) -> bool:
        """Whether the server may take part of the prompt from its cache."""
        return self.depth > 0 or self.repeat


@dataclass(frozen=True, slots=True)
class Given:
    """The user's own prompts, in turn. Each user begins at another place in the list."""

    prompts: Sequence[Prompt]
    seed: int = field(default_factory=new_seed)

    def prompt(self, user: int, number: int) -> Prompt:
        """The prompt of request ``number`` of a user.

        A salt precedes a text, so that no server answers a second use of it from its prefix cache. Token ids go to
        llama-server, which is asked to evaluate them again.
        """
        mark = random.Random(f"{self.seed}/{user}/{number}")
        chosen = _in_turn(self.prompts, user, number)
        if isinstance(chosen, str):
            return f"{salt(mark)} {chosen}"
        first = chosen[0] if chosen else None
        if isinstance(first, dict) and isinstance(first.get("content"), str):
            return [{**first, "content": f"{salt(mark)} {first['content']}"}, *chosen[1:]]
        return chosen

    @property
    def may_be_cached(self) -> bool:
        """Whether the server may take part of the prompt from its cache."""
        return False


def _in_turn(items: Sequence[T], user: int, number: int) -> T:
    """The items in turn; each user begins at another place."""
    return items[(user * 7919 + number) % len(items)]


Prompts = Ids | Words | Given
_KINDS: dict[str, type[Prompts]] = {"Ids": Ids, "Words": Words, "Given": Given}


def to_json(prompts: Prompts) -> dict[str, Any]:
    """The prompts as plain data."""
    plain = {f.name: getattr(prompts, f.name) for f in fields(prompts)}
    return {"kind": type(prompts).__name__, **plain}


def from_json(data: Mapping[str, Any]) -> Prompts:
    """The prompts that `to_json` made plain."""
    return _KINDS[data["kind"]](**{key: value for key, value in data.items() if key != "kind"})


def salt(source: random.Random) -> str:
    """Nine digits that begin a text, so that the server's prefix cache holds none of it."""
    return f"{source.randrange(10**9):09d}"


def text(words: int, first: str) -> str:
    """A text of ``words`` words after the word ``first``."""
    return " ".join([first, *(_WORDS[i % len(_WORDS)] for i in range(words))])


def request_of(
    target: Target, prompt: Prompt, tokens: int, may_be_cached: bool
) -> tuple[str, dict[str, Any]]:
    """The address and body of one streamed request for ``tokens`` generated tokens.

    It names no sampling option, like a client that takes the server's own: sampling costs time. Only llama-server and
    some others obey ``ignore_eos``; sweeper counts the tokens that arrive.
    """
    is_chat = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
    body: dict[str, Any] = {} if target.model is None else {"model": target.model}
    if target.api == "llama-server":
        body |= {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "cache_prompt": may_be_cached}
        path = "/completion"
    elif target.api == "openai":
        path = "/v1/chat/completions" if is_chat else "/v1/completions"
        body |= {("messages" if is_chat else "prompt"): prompt, "max_tokens": tokens}
        body |= {"stream_options": {"include_usage": True}}
        if target.hold:  # not part of OpenAI's own interface: some servers refuse unknown fields
            body |= {"min_tokens": tokens, "ignore_eos": True}
    else:
        path = "/api/chat" if is_chat else "/api/generate"
        body |= {"messages": prompt} if is_chat else {"prompt": prompt, "raw": True}
        body |= {"options": {"num_predict": tokens}}
    return target.url + path, body | {"stream": True} | dict(target.extra)
