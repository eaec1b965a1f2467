"""The load generator: several users who each send one request after another, and the moments at which tokens arrive.

One thread serves all users (asyncio). aiohttp parses HTTP in C and hands over whatever has arrived at once, so a client
that falls behind reads many tokens in one piece, and none is lost. `benchmarks/load_ceiling.py` measures the limit.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sweeper.client.counting import BrokenAnswer, Counter, counter_for
from sweeper.client.requests import Prompts, Target, request_of
from sweeper.client.steady import Answer, steady_from
from sweeper.http import KEY_VARIABLE

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_REASON_BYTES = 500
_CONNECT_SECONDS = 30.0


class LoadFailed(Exception):
    """The server refused a request, or broke off an answer. The message is one line."""


@dataclass(slots=True)
class _Open:
    """An answer that still arrives."""

    user: int
    sent: float
    counter: Counter
    arrivals: list[tuple[float, float]] = field(default_factory=list)


@dataclass(slots=True)
class LoadTest:
    """One test with ``users`` users. Each answer has ``tokens`` tokens, as far as the server obeys.

    The first answer of each user has a different length, so that the users' prompts spread over time from the
    beginning. Otherwise all users would evaluate prompts at one time and generate at another, as no real users do.
    """

    target: Target
    prompts: Prompts
    users: int
    tokens: int
    clock: Callable[[], float] = time.monotonic
    answers: list[Answer] = field(default_factory=list, init=False)
    _open: dict[int, _Open] = field(default_factory=dict, init=False)
    _ratios: list[tuple[int, float]] = field(default_factory=list, init=False)
    _moved: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def steady(self, min_seconds: float, max_seconds: float, ramp_seconds: float) -> list[Answer]:
        """Run until all users were busy for ``min_seconds``, then cut off all answers at once.

        The test goes on, up to ``max_seconds``, until each user has received a first token of a request that it sent
        while all were busy. ``ramp_seconds`` limits the time until all users are busy.

        Raises:
            LoadFailed: the server refuses or breaks off, or not all users received a token in time.
        """

        async def watch() -> None:
            try:
                async with asyncio.timeout(ramp_seconds):
                    while (started := steady_from(self._all(self.clock()), self.users)) is None:
                        await self._change()
            except TimeoutError:
                got = len({a.user for a in self._all(self.clock()) if a.arrivals})
                raise LoadFailed(
                    f"only {got} of {self.users} users received a token within {ramp_seconds:g} s"
                ) from None
            await asyncio.sleep(started + min_seconds - self.clock())
            while self.clock() < started + max_seconds and not self._all_began_since(started):
                try:
                    async with asyncio.timeout(started + max_seconds - self.clock()):
                        await self._change()
                except TimeoutError:
                    break

        await self._run(watch, lambda user, number: True)
        return self.answers

    async def rounds(self, min_seconds: float, max_seconds: float) -> list[Answer]:
        """Let each user send requests for ``min_seconds``, and finish the last one.

        After ``max_seconds``, the test ends even inside an answer, as soon as two pieces of one answer have arrived.
        Without them, a test that is shorter than a prompt would say nothing. Raises LoadFailed as `steady` does.
        """
        began = self.clock()

        async def watch() -> None:
            await asyncio.sleep(max_seconds)
            while not any(len(answer.arrivals) > 1 for answer in self._all(self.clock())):
                await self._change()

        await self._run(watch, lambda user, number: number == 0 or self.clock() < began + min_seconds)
        return self.answers

    async def _run(
        self, watch: Callable[[], Coroutine[Any, Any, None]], goes_on: Callable[[int, int], bool]
    ) -> None:
        from aiohttp import ClientSession, ClientTimeout, TCPConnector

        key = os.environ.get(KEY_VARIABLE, "") if self.target.use_key else ""
        async with ClientSession(
            # A new connection for each request: llama-server closes its own after an answer without announcing it.
            connector=TCPConnector(limit=0, force_close=True),
            timeout=ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            headers={"Authorization": f"Bearer {key}"} if key else None,
            read_bufsize=2**20,
        ) as session:
            users = [asyncio.ensure_future(self._user(session, user, goes_on)) for user in range(self.users)]
            watcher = asyncio.ensure_future(watch())
            try:
                waiting: set[asyncio.Future[None]] = {watcher, *users}
                while waiting and not watcher.done() and not all(user.done() for user in users):
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
            finally:
                stopped = self.clock()
                for task in (watcher, *users):
                    task.cancel()
                await asyncio.gather(watcher, *users, return_exceptions=True)
                self.answers = self._all(stopped)
                self._open.clear()

    async def _user(self, session: ClientSession, user: int, goes_on: Callable[[int, int], bool]) -> None:
        number = 0
        while goes_on(user, number):
            tokens = self.tokens
            if number == 0 and self.users > 1:
                tokens = max(1, -(-self.tokens * (user + 1) // self.users))
            await self._ask(session, user, number, tokens)
            number += 1

    async def _ask(self, session: ClientSession, user: int, number: int, tokens: int) -> None:
        prompt = self.prompts.prompt(user, number)
        url, body = request_of(self.target, prompt, tokens, self.prompts.may_be_cached)
        self._open[user] = opened = _Open(user, self.clock(), counter_for(self.target.api))
        await self._receive(session, url, body, opened)
        counter = opened.counter
        if not opened.arrivals:
            raise LoadFailed(f"{url} gave no token")
        if not counter.finished:
            raise LoadFailed(f"{url} ended its answer early, after {counter.pieces:.0f} of {tokens} tokens")
        arrivals = opened.arrivals
        if counter.total and counter.total != counter.pieces:
            ratio = counter.total / counter.pieces
            arrivals = [(moment, count * ratio) for moment, count in arrivals]
        self._ratios.append((counter.total or int(counter.pieces), counter.pieces))
        self.answers.append(
            Answer(user, opened.sent, arrivals, self.clock(), True, counter.prompt_tokens, counter.drafts)
        )
        del self._open[user]

    async def _receive(self, session: ClientSession, url: str, body: object, opened: _Open) -> None:
        from aiohttp import ClientError

        counter, clock = opened.counter, self.clock
        try:
            async with session.post(url, json=body, allow_redirects=False) as response:
                if response.status != 200:
                    raise LoadFailed(await _refusal(url, response))
                async for data in response.content.iter_any():
                    before = counter.pieces
                    counter.feed(data)
                    if counter.pieces > before:
                        opened.arrivals.append((clock(), counter.pieces))
                        if len(opened.arrivals) <= 2:
                            self._moved.set()
        except BrokenAnswer as error:
            raise LoadFailed(f"{url} reports: {error}") from error
        except (ClientError, OSError) as error:
            raise LoadFailed(f"{url} broke off ({error or type(error).__name__})") from error

    async def _change(self) -> None:
        """Wait until another request receives its first or second piece."""
        await self._moved.wait()
        self._moved.clear()

    def _all_began_since(self, started: float) -> bool:
        began = {a.user for a in self._all(self.clock()) if a.sent >= started and a.arrivals}
        return len(began) == self.users

    def _all(self, now: float) -> list[Answer]:
        """The answers so far, with those that still arrive, as if cut off at ``now``."""
        tokens, pieces = (sum(each) for each in zip(*self._ratios, strict=True)) if self._ratios else (1, 1)
        return self.answers + [
            Answer(o.user, o.sent, [(at, count * tokens / pieces) for at, count in o.arrivals], now, False)
            for o in self._open.values()
        ]


async def _refusal(url: str, response: ClientResponse) -> str:
    """One line on an answer that is not a stream."""
    if response.status in (401, 403):
        return f"{url} needs a key ({response.status}): set the environment variable {KEY_VARIABLE}"
    said = (await response.content.read(_REASON_BYTES)).decode("utf-8", "replace")
    return f"{url} answered {response.status}: {' '.join(said.split())}"
