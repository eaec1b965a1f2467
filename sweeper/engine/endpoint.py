"""A running server as an engine. sweeper sends requests and times them at the client; it changes nothing there."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from sweeper.client.load_client import LoadClient
from sweeper.client.requests import Given, Ids, Prompt, Prompts, Target, Words, salt, text
from sweeper.client.steady import Answer, UsersRun, drafts_of
from sweeper.client.tokenise import SPARE_TOKENS
from sweeper.engine.base import LoadReport, Run
from sweeper.errors import EngineRefused, MissingError, VerifyError
from sweeper.records import Configuration, EngineRecord, Fill
from sweeper.stats import median

TIMED_AT_CLIENT = "timed at the client"
# An answer of this many tokens proves that the server streams, and is short on the slowest machine.
PROBE_TOKENS = 4
# On a busy machine, the client may be late, so that a fast model's first piece has many tokens. Its moment lies
# somewhere before the next token's, which matters little only if most tokens are still to come.
LATER_SHARE = 0.5
# One answer, cut off by the limits of a window, may first evaluate a long prompt.
PROMPT_SECONDS = 3600.0
_WORDS_PROBED = (8, 40)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What the rig found out about the server and its model."""

    target: Target
    record: EngineRecord
    in_force: Mapping[str, Any]  # settings as far as the server reports them
    n_ctx: int | None = None  # tokens that one request can use; None: the server does not report it
    ids: tuple[int, int] | None = None  # the range of token ids; None: the server takes only texts
    prompts: Sequence[Prompt] = field(default=())  # the user's own; empty: random ones
    count: Callable[[str], int] | None = None  # asks the server how many tokens a text has
    ends: Sequence[Sequence[int]] = ()  # real texts as token ids, one of which ends each random prompt


class EndpointEngine:
    """A running server. Implements the `Engine` Protocol and `ServesUsers`.

    A configuration's parameters, except limits, have no effect: the server keeps its own settings.
    """

    def __init__(self, endpoint: Endpoint, client: LoadClient | None = None) -> None:
        self._endpoint = endpoint
        self._client = client or LoadClient(endpoint.target)
        self._loaded = False
        self._filled: set[tuple[int, int]] = set()  # (user count, depth) that the server has seen
        self._words: tuple[float, float] | None = None  # tokens of a text: base, and per word

    @property
    def record(self) -> EngineRecord:
        """Kind and build of the server."""
        return self._endpoint.record

    def load(self, configuration: Configuration) -> LoadReport:
        """Load nothing, but make sure that the server streams tokens. Raises EngineRefused if it does not."""
        first = not self._loaded
        answers = self._client.rounds(self._prompts(PROBE_TOKENS, 0), PROBE_TOKENS, 0.0, PROMPT_SECONDS)
        self._loaded = True
        seconds = answers[-1].ended - answers[0].sent
        return LoadReport({**self._endpoint.in_force, "n_ctx": self._endpoint.n_ctx}, seconds, reloaded=first)

    def fill(self, depth: int, tell: Callable[[int], None]) -> Fill | None:
        """See `FillsContexts`. A server may hold the tokens from an earlier request, so no time is returned."""
        self._demand_load()
        self._fill(depth)
        return None

    def restores(self, configuration: Configuration, depth: int) -> bool:
        """See `FillsContexts`. Nobody knows what a running server keeps."""
        return False

    def prefill(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """Time to the first token of new prompts, as the client sees it.

        ``tokens`` of the result are those that the server evaluated, by its own count where it reports one.
        """
        self._demand_load()
        self._fill(depth)
        prompts = self._prompts(self._cut(tokens, depth), depth)
        answers = self._client.rounds(prompts, 1, min_seconds, max_seconds + PROMPT_SECONDS)
        expected = self._expected(prompts)
        evaluated = sum(expected if a.prompt_tokens is None else a.prompt_tokens for a in answers)
        if evaluated <= 0:
            raise EngineRefused(self._no_counts())
        seconds = [a.arrivals[0][0] - a.sent for a in answers if a.arrivals]
        return Run(evaluated, sum(seconds), answers[0].sent, answers[-1].ended, len(answers), tuple(seconds))

    def decode(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """Time from the first to the last token of each answer. The time of prompts does not count.

        If answers arrive almost in one piece, their time less that of answers of one token counts instead.
        """
        self._demand_load()
        self._fill(depth)
        prompts, tokens = self._prompts(1, depth, repeat=True), self._cut(tokens, depth)
        answers = self._client.rounds(prompts, tokens, min_seconds, max_seconds)
        timed = [answer for answer in answers if _can_be_timed(answer)]
        if not timed:
            short = self._client.rounds(prompts, 1, min_seconds, max_seconds)
            return self._by_difference(answers, short)
        count = round(sum(a.arrivals[-1][1] - a.arrivals[0][1] for a in timed))
        seconds = tuple(a.arrivals[-1][0] - a.arrivals[0][0] for a in timed)
        return Run(
            count, sum(seconds), answers[0].sent, answers[-1].ended, len(answers), seconds, drafts_of(answers)
        )

    def _by_difference(self, answers: Sequence[Answer], short: Sequence[Answer]) -> Run:
        """The decode speed from the whole time of answers, as `sweeper verify` measures it: medians, for outliers."""
        whole = [a for a in answers if a.complete]
        tokens = round(median([a.arrivals[-1][1] for a in whole]) - 1) if whole else 0
        each = median([a.ended - a.sent for a in whole]) if whole else 0.0
        each -= median([a.ended - a.sent for a in short])
        if tokens < 1 or each <= 0:
            raise EngineRefused(
                f"the answers of {self._endpoint.target.url} are too short to be timed at the client: raise "
                "workload.generated_tokens"
            )
        seconds = (each,) * len(whole)
        return Run(tokens * len(whole), sum(seconds), whole[0].sent, whole[-1].ended, len(whole), seconds)

    def serve(
        self,
        users: int,
        prompt_tokens: int,
        generated_tokens: int,
        depth: int,
        min_seconds: float,
        max_seconds: float,
    ) -> UsersRun:
        """See `ServesUsers`."""
        self._demand_load()
        tokens = self._cut(prompt_tokens, depth)
        return self._client.users(
            self._prompts(tokens, depth), users, generated_tokens, min_seconds, max_seconds
        )

    def memory(self) -> tuple[float | None, float | None]:
        """Nothing, because no server reports its memory."""
        return None, None

    def close(self) -> None:
        """End the load generator. The server goes on. May be called twice."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _demand_load(self) -> None:
        if not self._loaded:
            raise EngineRefused("nothing is loaded")

    def _cut(self, tokens: int, depth: int) -> int:
        """``tokens``, or as many as the context leaves after ``depth``."""
        if self._endpoint.n_ctx is None:
            return tokens
        return max(1, min(tokens, self._endpoint.n_ctx - depth - SPARE_TOKENS))

    def _fill(self, depth: int) -> None:
        """Send the tokens of ``depth`` once, so that no window evaluates them."""
        if depth and (1, depth) not in self._filled and not self._endpoint.prompts:
            self._client.rounds(self._prompts(1, depth), 1, 0.0, PROMPT_SECONDS)
            self._filled.add((1, depth))

    def _prompts(self, tokens: int, depth: int, repeat: bool = False) -> Prompts:
        if self._endpoint.prompts:
            return Given(self._endpoint.prompts)
        if self._endpoint.ids is not None:
            low, high = self._endpoint.ids
            return Ids(tokens, low, high, depth=depth, repeat=repeat, ends=self._endpoint.ends)
        return Words(self._words_for(tokens), depth=self._words_for(depth) if depth else 0, repeat=repeat)

    def _words_for(self, tokens: int) -> int:
        """How many words make a text of about ``tokens``: two short texts tell, because the words repeat."""
        if self._words is None:
            few, more = (self._tokens_of(words) for words in _WORDS_PROBED)
            per_word = (more - few) / (_WORDS_PROBED[1] - _WORDS_PROBED[0])
            if per_word <= 0:
                raise EngineRefused(self._no_counts())
            self._words = few - per_word * _WORDS_PROBED[0], per_word
        base, per_word = self._words
        return max(1, round((tokens - base) / per_word))

    def _tokens_of(self, words: int) -> int:
        if self._endpoint.count is None:
            raise EngineRefused(self._no_counts())
        try:
            return self._endpoint.count(text(words, salt(random.Random(words))))
        except (VerifyError, MissingError) as error:
            raise EngineRefused(str(error)) from error

    def _expected(self, prompts: Prompts) -> int:
        """The new tokens of one prompt, for servers that do not count them in a stream; 0 if they are not known."""
        if isinstance(prompts, Words) and self._words is not None:
            base, per_word = self._words
            return round(per_word * prompts.words + (0 if prompts.depth else base))
        return prompts.tokens if isinstance(prompts, Ids) else 0

    def _no_counts(self) -> str:
        return f"{self._endpoint.target.url} does not report how many tokens a prompt has"


def _can_be_timed(answer: Answer) -> bool:
    """Whether most of an answer's tokens came after its first piece."""
    if len(answer.arrivals) < 2:
        return False
    first, last = answer.arrivals[0][1], answer.arrivals[-1][1]
    return last - first >= LATER_SHARE * last
