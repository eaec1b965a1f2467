"""Turns the user's prompts into token ids with llama-server's own tokeniser and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeper.client.requests import Prompt
from sweeper.errors import EngineRefused
from sweeper.http import post

# A context also holds what a server adds to a prompt: a token at its beginning, and a template's.
SPARE_TOKENS = 16
# The first ids of a vocabulary are special tokens, which no prompt of random ids needs.
FIRST_ID = 3


@dataclass(frozen=True, slots=True)
class Tokenised:
    """The prompts that fit the context, as token ids, and how many did not fit."""

    prompts: tuple[list[int], ...]
    too_long: int


def tokenised(
    url: str, prompts: Sequence[Prompt], most_tokens: int, key: str | None = None, model: str | None = None
) -> Tokenised:
    """Tokenise prompts on the llama-server at ``url``. Those of more than ``most_tokens`` are left out.

    A router needs the name of the ``model``; other servers ignore it.

    Raises:
        EngineRefused: none of the prompts fits.
        MissingError, VerifyError: the server does not answer, or refuses.
    """
    found = [_ids(url, prompt, key, {} if model is None else {"model": model}) for prompt in prompts]
    fitting = tuple(ids for ids in found if 0 < len(ids) <= most_tokens)
    if not fitting:
        raise EngineRefused(
            f"none of the {len(found)} prompts has at most {most_tokens} tokens, which is what the context leaves: "
            "raise the context"
        )
    return Tokenised(fitting, len(found) - len(fitting))


def _ids(url: str, prompt: Prompt, key: str | None, more: dict[str, str]) -> list[int]:
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return [token for token in prompt if isinstance(token, int)]
    text = (
        prompt
        if isinstance(prompt, str)
        else post(f"{url}/apply-template", {"messages": prompt} | more, key=key)["prompt"]
    )
    body = {"content": text, "add_special": True, "parse_special": True} | more
    return [int(token) for token in post(f"{url}/tokenize", body, key=key)["tokens"]]
