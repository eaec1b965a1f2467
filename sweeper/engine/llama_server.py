"""The engine of the user's own llama-server: one server for each configuration, timed over HTTP.

Prompts are lists of token ids, so their lengths are exact. Speeds come from the server's own timings: decode from the
tokens after the first one, because the first token belongs to the prompt's last batch. Each answer says how many tokens
it took from its cache, which proves the depth. Sampling is the server's default, as for a client that sets nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from sweeper.client import llama_log
from sweeper.client.llama_options import options_of
from sweeper.client.load_client import LoadClient
from sweeper.client.requests import Given, Ids, Prompt, Prompts, Target
from sweeper.client.steady import UsersRun
from sweeper.client.tokenise import FIRST_ID, SPARE_TOKENS, tokenised
from sweeper.engine.base import SAMPLING, LoadReport, Run
from sweeper.engine.server_dialect import Dialect, dialect_of, fitted, program_of, wrong_processor
from sweeper.errors import (
    EngineMissingError,
    EngineRefused,
    EngineTimeout,
    ModelFileError,
    OutOfMemory,
    SweeperError,
    TrialFailed,
    UsageError,
)
from sweeper.http import get, post
from sweeper.model.available_memory import given_back_mib
from sweeper.model.header import GgufHeader, read_header
from sweeper.parameters import LIMIT_KEYS, NO_SPECULATION, padded
from sweeper.processes import death_of, last_of, oom_kills, reason_in, speaks_of_memory
from sweeper.records import Caveat, Configuration, DraftModel, Drafts, EngineRecord, Fill
from sweeper.servers import HOST, ServerProcess, free_port, until_answers

LOAD_TIMEOUT_SECONDS = 1800.0
# Of a model that cannot go back, such as one with a sliding window, llama-server keeps the state of 4 tokens before the
# end of a prompt, and processes these few tokens again (checkpoint_offsets in its server-context.cpp).
REPROCESSED_TOKENS = 8
# How far a window may exceed its own time limit: a prompt on a slow machine cannot be interrupted.
WINDOW_GRACE_SECONDS = 600.0
# A server holds no data that must be saved, so it gets only a short time to end by itself.
END_SECONDS = 2.0
PORTS_TRIED = 3
# The first decode after a load has no known speed, so it generates a few tokens to learn it.
PROBE_TOKENS = 4
_SEED = 42  # the same tokens for every configuration, so that each activates the same experts
_SETTLE_SECONDS = 0.5  # a server that died takes a moment until the kernel says so
_ANSWER_FIELDS = ("timings", "stop_type")  # the rest of an answer would be text, which nobody reads
_PORT_TAKEN = "couldn't bind"
_NO_TEXT = "does not match the expected"  # of build 10434
SEEDS_TRIED = 4
TOLD_EVERY_SECONDS = 1.0  # of how far the server is with a long prompt, by its log
_BAD_VALUE = re.compile(r'error while handling argument "(\S+)":[^\n]*')
_NO_ARGUMENT = re.compile(r"error: (invalid argument|unknown argument|the argument has been removed)[^\n]*")
# What no other configuration can mend, so the sweep ends.
_BAD_MODEL = (
    *("failed to open gguf", "invalid magic", "not within the file bounds", "unknown model architecture"),
    *("gguf_init_from", "unknown pre-tokenizer"),
)


@dataclass(frozen=True, slots=True)
class Timings:
    """The server's timings of one answer. Tokens of the prompt are those that it processed and did not have."""

    cached_tokens: int
    prompt_tokens: int
    prompt_seconds: float
    decoded_tokens: int  # without the first token, which belongs to the prompt's last batch
    decode_seconds: float
    drafts: Drafts


@dataclass(slots=True)
class _Running:
    """A server with a loaded configuration."""

    process: ServerProcess
    url: str
    log: Path
    configuration: Configuration
    header: GgufHeader
    oom_kills: int
    report: LoadReport | None = None
    pid: int | None = None  # of the process that listens, if this user can see it
    held: list[int] = field(default_factory=list)  # the tokens with which the slot's cache begins
    refills: bool = False  # the model cannot forget a part of its context
    tokens_per_second: float | None = None  # of the latest decode
    memory_mib: float | None = None
    ruled_out: list[tuple[int, bool]] = field(default_factory=list)  # the body's ``logit_bias``
    # Prompts that no earlier window had, or the prefix cache would answer.
    client: LoadClient | None = None  # of several users
    texts: tuple[list[int], ...] | None = None  # real text as this model's token ids; None: not yet asked for
    text: int = 0  # the number of the text that decode goes on with; another one after each prompt
    seed: int = _SEED
    fresh: random.Random = field(default_factory=lambda: random.Random(_SEED + 1))


class LlamaServerEngine:
    """The user's own llama-server. Implements the `Engine` Protocol.

    Args:
        binary: the path or name of the server, or the words that start it, for example ``docker run …``.
        model_files: the path of the GGUF file for each value of ``Configuration.quant``.
        environment: variables that are set for the server only.
        window_grace_seconds: a window that exceeds its limit by more than this is a hang.
        load_timeout_seconds: a load that takes longer than this is a hang.
        arguments: additional arguments of the server.
        prompts: the user's own, which generation goes on with; empty: random ones, unless `use_texts` gives others.
    """

    def __init__(
        self,
        binary: str | Sequence[str],
        model_files: Mapping[str | None, Path],
        environment: Mapping[str, str] | None = None,
        window_grace_seconds: float = WINDOW_GRACE_SECONDS,
        load_timeout_seconds: float = LOAD_TIMEOUT_SECONDS,
        arguments: Sequence[str] = (),
        prompts: Sequence[Prompt] = (),
    ) -> None:
        self._binary = binary
        self._files: dict[str | None, Path] = dict(model_files)
        self._environment = dict(environment or {})
        self._window_grace_seconds = window_grace_seconds
        self._load_timeout_seconds = load_timeout_seconds
        self._arguments = tuple(arguments)
        self._prompts = tuple(prompts)
        self._texts: tuple[Prompt, ...] = ()
        self._draft: DraftModel | None = None
        self._dialect: Dialect | None = None
        self._running: _Running | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def dialect(self) -> Dialect:
        """What this llama-server understands.

        Raises:
            EngineMissingError: there is no such program, it cannot run here, or it is no llama-server.
            UsageError: an additional argument that it lacks, or that sweeper sets itself.
        """
        if self._dialect is None:
            found = dialect_of(program_of(self._binary), self.whole_environment())
            found.check(self._arguments)
            self._dialect = found
        return self._dialect

    @property
    def ignored_variables(self) -> tuple[str, ...]:
        """The variables of this process that would change the server's settings, and that it therefore does not get."""
        return self.dialect.variables(os.environ)

    @property
    def record(self) -> EngineRecord:
        """Version and build, and the sampling. Raises EngineMissingError and UsageError as `dialect`."""
        dialect = self.dialect
        build = [f"sampling: the server's defaults ({dialect.sampling()}), seed {_SEED}"]
        build += (
            [f"devices: {', '.join(f'{d.name} {d.description}' for d in dialect.devices)}"]
            if dialect.devices
            else []
        )
        build += [f"arguments: {' '.join(self._arguments)}"] if self._arguments else []
        return EngineRecord(
            "llama_server",
            f"llama-server {dialect.version}",
            "; ".join(build),
            dialect.gpu_offload,
            sampling=SAMPLING,
        )

    def use_files(self, model_files: Mapping[str, Path] | Mapping[str | None, Path]) -> None:
        """Add files of the model, by quantisation; None stands for the original file."""
        self._files.update(model_files)

    def use_draft(self, draft: DraftModel | None) -> None:
        """Load this draft model wherever a configuration speculates with its kind."""
        self._draft = draft

    def use_texts(self, texts: Sequence[Prompt]) -> None:
        """End prompts with one of these real texts before generation, if there are no prompts of the user's own."""
        self._texts = tuple(texts)

    def path_of(self, configuration: Configuration) -> Path:
        """The model file of this configuration."""
        return self._files[configuration.quant]

    def own_placement(self, configuration: Configuration) -> Mapping[str, int]:
        """The ``n_gpu_layers`` and ``n_cpu_moe`` that llama-server chooses itself, with ``--fit on``.

        ``llama-fit-params`` beside the server tells it in a second; without it, this loads the model. Empty without a
        GPU.
        """
        if not self.dialect.gpu_offload or self.dialect.find("fit") is None:
            return {}
        header = read_header(self.path_of(configuration))
        speculates = configuration.spec_type != NO_SPECULATION  # which llama-fit-params does not plan for
        found = None if speculates else fitted(self.dialect, configuration, header)
        if found is None:
            in_force = self.load(configuration.with_(fit=True)).in_force
            found = {name: int(in_force.get(name, 0)) for name in ("n_gpu_layers", "n_cpu_moe")}
        return found

    def held_mib(self) -> tuple[float, float]:
        """The memory that the present server would free by ending, on the host and on the devices, in MiB."""
        running = self._running
        if running is None or running.pid is None:
            return 0.0, 0.0
        return given_back_mib(running.pid), (running.report.vram_mib or 0.0) if running.report else 0.0

    def unload(self) -> None:
        """End the server, which frees the model; the next `load` starts another one."""
        self._end()

    @property
    def server_pid(self) -> int | None:
        """Process id of the server or of its wrapper; None if there is no server."""
        return None if self._running is None else self._running.process.process.pid

    def load(self, configuration: Configuration) -> LoadReport:
        """Start a server with ``configuration``; see the Protocol. Only a change of limits keeps the present one.

        Raises:
            TrialFailed: the server refuses the configuration, dies, or does not answer in time.
            SweeperError: no configuration can run: the program, its arguments or the model's file are at fault.
        """
        running = self._running
        if running is not None and running.report is not None and self._alive(running):
            limits = dict.fromkeys(LIMIT_KEYS)
            if running.configuration.with_(**limits) == configuration.with_(**limits):
                running.configuration = configuration
                return replace(running.report, load_seconds=0.0, reloaded=False)
        self._end()
        try:
            return self._started(configuration)
        except BaseException:
            self._end()
            raise

    def fill(self, depth: int, tell: Callable[[int], None]) -> Fill | None:
        """See `FillsContexts`. The server's log tells how far it is, and its timings how long it took."""
        running = self._demand_loaded()
        begin = running.log.stat().st_size
        given_up: list[TrialFailed] = []

        def look() -> None:
            with running.log.open("rb") as log:
                log.seek(begin)
                share = llama_log.prompt_share(log.read().decode("utf-8", "replace"))
            try:
                tell(round((share or 0.0) * depth))
            except TrialFailed as failure:
                given_up.append(failure)
                running.process.end(END_SECONDS)  # the request ends with its server

        try:
            with _polled(look, given_up):
                timings = self._go_to(running, self._prompt(running, depth))
        except TrialFailed:
            if not given_up:
                raise
        if given_up:
            self._end()
            raise given_up[0]
        return Fill(depth, timings.prompt_seconds) if timings and not timings.cached_tokens else None

    def restores(self, configuration: Configuration, depth: int) -> bool:
        """See `FillsContexts`. Each configuration has a server of its own, which begins with an empty context."""
        return False

    def prefill(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """See the Protocol. A prompt is processed as a whole, so ``max_seconds`` ends the window after it."""
        running = self._demand_loaded()
        known, fresh = self._prompt(running, depth), running.fresh
        running.text += 1

        def one_round(_: float) -> tuple[int, float]:
            for _ in range(SEEDS_TRIED):
                prompt = known + [fresh.randrange(running.header.vocab_size) for _ in range(tokens)]
                timings = self._at_depth(running, prompt, depth, 0, max_seconds)
                if timings.prompt_tokens >= tokens:
                    break  # else the cache knew a part of the prompt, as after an answer that had to be repeated
            return timings.prompt_tokens, timings.prompt_seconds

        self._go_to(running, known)
        return self._rounds(one_round, min_seconds, max_seconds)

    def decode(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """See the Protocol. A round that would last longer than ``max_seconds`` generates fewer tokens.

        With real text, it comes after the ``depth`` tokens, and each round goes on differently. The text is processed
        before the window.
        """
        running = self._demand_loaded()
        prompt = self._to_go_on_with(running, tokens, depth)
        is_text, depth = bool(running.texts), len(prompt) - 1
        drafted = accepted = 0
        self._go_to(running, prompt[:depth])
        if running.tokens_per_second is None:
            probe = self._at_depth(running, prompt, depth, PROBE_TOKENS, max_seconds)
            running.tokens_per_second = probe.decoded_tokens / probe.decode_seconds

        def one_round(left_seconds: float) -> tuple[int, float]:
            nonlocal drafted, accepted
            running.seed += is_text
            affordable = int((running.tokens_per_second or 1.0) * left_seconds)
            timings = self._at_depth(running, prompt, depth, max(1, min(tokens, affordable)), max_seconds)
            running.tokens_per_second = timings.decoded_tokens / timings.decode_seconds
            drafted, accepted = drafted + timings.drafts.drafted, accepted + timings.drafts.accepted
            return timings.decoded_tokens, timings.decode_seconds

        run = self._rounds(one_round, min_seconds, max_seconds)
        speculates = running.configuration.spec_type != NO_SPECULATION
        return replace(run, drafts=Drafts(drafted, accepted)) if speculates else run

    def serve(
        self,
        users: int,
        prompt_tokens: int,
        generated_tokens: int,
        depth: int,
        min_seconds: float,
        max_seconds: float,
    ) -> UsersRun:
        """See `ServesUsers`. The steady part is timed at the client; only there are all users together."""
        running = self._demand_loaded()
        running.held = []  # the users' prompts take the place of what the slots hold
        if running.client is None:
            extra = {"logit_bias": running.ruled_out} if running.ruled_out else {}
            running.client = LoadClient(Target(running.url, "llama-server", extra=extra))
        prompts = self._users_prompts(running, prompt_tokens, generated_tokens, depth)
        try:
            run = running.client.users(
                prompts, users, generated_tokens, min_seconds, max_seconds, self._load_timeout_seconds
            )
        except SweeperError as error:
            raise self._failed_request(running, error, 0.0, math.inf) from error
        speculates = running.configuration.spec_type != NO_SPECULATION
        return replace(run, drafts=run.drafts or Drafts(0, 0)) if speculates else run

    def _users_prompts(
        self, running: _Running, prompt_tokens: int, generated_tokens: int, depth: int
    ) -> Prompts:
        texts = self._real_texts(running, generated_tokens)
        if self._prompts:
            return Given(texts)
        last = running.header.vocab_size - 1
        return Ids(prompt_tokens, min(FIRST_ID, last), last, depth=depth, ends=texts)

    def memory(self) -> tuple[float | None, float | None]:
        """The peak of the server's resident memory, and the devices' buffers by its log, in MiB."""
        running = self._demand_loaded()
        running.memory_mib = _peak_mib(running.pid) or running.memory_mib
        return running.memory_mib, running.report.vram_mib if running.report else None

    def close(self) -> None:
        """End the server. May be called twice."""
        self._end()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- start and end --------------------------------------------------------------------------------------

    def _started(self, configuration: Configuration) -> LoadReport:
        dialect, path = self.dialect, self.path_of(configuration)
        header = read_header(path)
        began = time.monotonic()
        for attempt in range(PORTS_TRIED):
            name, port = f"sweeper-{secrets.token_hex(8)}", free_port()
            argv = [
                *dialect.program,
                *dialect.words(
                    options_of(configuration, str(path.absolute()), header.expert_count > 0, self._draft)
                ),
                *dialect.own_words(),
                *("--host", HOST, "--port", str(port), "--alias", name),
                *self._arguments,
            ]
            log = self._log_file()
            process = ServerProcess(argv, log, self.changes_of_environment(dialect))
            url = f"http://{HOST}:{port}"
            running = _Running(process, url, log, configuration, header, oom_kills())
            self._running = running
            if until_answers(process.process, f"{url}/health", self._load_timeout_seconds) and _answers_as(
                url, name
            ):
                running.pid = _listener(process.process.pid, port)
                running.report = self._report(running, time.monotonic() - began)
                return running.report
            ended = self._settled(running) is not None  # it may be another server that answers there
            if ended and attempt + 1 < PORTS_TRIED and _PORT_TAKEN in log.read_text("utf-8", "replace"):
                self._end()
                continue
            break
        raise self._failed_load(running, header)

    def _failed_load(self, running: _Running, header: GgufHeader) -> SweeperError:
        """The error of a server that did not come up."""
        code = self._settled(running)
        output = running.log.read_bytes()
        tail = last_of(output)
        text = llama_log.plain(output.decode("utf-8", "replace"))
        program = self.dialect.program[0]
        if code is None:
            limit = self._load_timeout_seconds
            return EngineTimeout(f"llama-server did not answer «load» within {limit:g} s", tail)
        if code == -4:  # SIGILL
            return wrong_processor(program)
        if found := _NO_ARGUMENT.search(text):
            return UsageError(
                f"{program} says {found[0]!r}: change engine.arguments, or give another engine.binary"
            )
        if (found := _BAD_VALUE.search(text)) and found[1] in self._arguments:
            return UsageError(
                f"engine.arguments: {program} says {' '.join(found[0].split())!r}: change the value"
            )
        if code < 0:
            return death_of("llama-server", code, "load", tail, running.oom_kills)
        why = llama_log.reason(text)
        if speaks_of_memory(tail) or speaks_of_memory(tuple(text.splitlines())):
            return OutOfMemory(f"llama-server could not load the model: {why}", tail)
        if any(words in text.lower() for words in _BAD_MODEL):
            is_draft = self._draft is not None and "failed to load draft model" in text
            path = self._draft.file.path if self._draft is not None and is_draft else header.path
            return ModelFileError(
                f"{path} cannot be tuned: {program} says {why!r}; give another file, or a newer llama-server"
            )
        if _PORT_TAKEN in text:
            return EngineRefused(f"llama-server could not bind a port, {PORTS_TRIED} times: {why}", tail)
        if code in (126, 127) or "llama" not in output.decode("utf-8", "replace"):
            return EngineMissingError(
                f"engine.binary: {program} ended with exit code {code}: {reason_in(tail)}"
            )
        return EngineRefused(f"llama-server could not load the model: {why}", tail)

    def _report(self, running: _Running, seconds: float) -> LoadReport:
        whole = running.log.read_text("utf-8", "replace")
        asked = running.configuration
        drafts = self._draft is not None and self._draft.spec_type == asked.spec_type
        log, *of_draft = llama_log.loads(whole, 2 if drafts else 1)
        in_force = llama_log.threads(whole) | llama_log.in_force(log)
        experts = llama_log.fitted_experts(whole) if asked.fit else None
        if experts is not None and running.header.expert_count:
            in_force["n_cpu_moe"] = experts
        if "n_ctx" in in_force:
            in_force["n_ctx"] //= asked.n_parallel  # the slots share it
        if asked.spec_type != NO_SPECULATION:
            in_force |= _speculation(asked.spec_type, whole)
        offload = self.dialect.gpu_offload
        devices = [mib for load in (log, *of_draft) for mib in llama_log.on_devices(load).values()]
        vram = sum(devices) if offload else None
        caveats = []
        if (trained := running.header.n_ctx_train) and in_force.get("n_ctx", asked.n_ctx) > padded(trained):
            caveats.append(Caveat.BEYOND_TRAINING)
        if asked.use_mlock and in_force.get("use_mlock") is False:
            caveats.append(Caveat.NOT_LOCKED)
        running.memory_mib = _peak_mib(running.pid)
        return LoadReport(in_force, seconds, True, running.memory_mib, vram, tuple(caveats))

    def _log_file(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="sweeper-llama-server-")
        return Path(self._folder.name) / "log"

    def whole_environment(self) -> dict[str, str]:
        """The environment in which the server and the programs beside it run."""
        return {
            name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")
        } | self._environment

    def changes_of_environment(self, dialect: Dialect) -> dict[str, str | None]:
        """Without the variables that override options silently, and without a backtrace, which starts a debugger."""
        removed: dict[str, str | None] = dict.fromkeys(dialect.variables(os.environ))
        return removed | {"GGML_NO_BACKTRACE": "1"} | self._environment

    def _alive(self, running: _Running) -> bool:
        return running.process.process.poll() is None

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            if running.client is not None:
                running.client.close()
            running.process.end(END_SECONDS)

    # -- requests -------------------------------------------------------------------------------------------

    def _demand_loaded(self) -> _Running:
        if self._running is None or self._running.report is None:
            raise EngineRefused("nothing is loaded")
        return self._running

    def _prompt(self, running: _Running, length: int) -> list[int]:
        """The first tokens of a fixed random text."""
        tokens = random.Random(_SEED)
        return [tokens.randrange(running.header.vocab_size) for _ in range(length)]

    def _real_texts(self, running: _Running, generated_tokens: int) -> tuple[list[int], ...]:
        """The user's own prompts that fit the context, else other real texts; empty if prompts are random."""
        if running.texts is None:
            given = self._prompts or self._texts
            most = running.configuration.n_ctx - generated_tokens - SPARE_TOKENS
            if not self._prompts:
                most = sys.maxsize  # the other texts are cut to what fits
            try:
                running.texts = tokenised(running.url, given, most).prompts if given else ()
            except SweeperError as error:
                raise self._failed_request(running, error, 0.0, math.inf) from error
        return running.texts

    def _to_go_on_with(self, running: _Running, generated_tokens: int, depth: int) -> list[int]:
        """The prompt of decode: random tokens to ``depth``, then a real text, or else one more random token."""
        texts = self._real_texts(running, generated_tokens)
        if not texts:
            return self._prompt(running, depth + 1)
        room = max(1, running.configuration.n_ctx - depth - generated_tokens - SPARE_TOKENS)
        return self._prompt(running, depth) + texts[running.text % len(texts)][-room:]

    def _go_to(self, running: _Running, tokens: list[int]) -> Timings | None:
        """Fill the slot with these tokens, outside the windows; None if its cache begins with them already."""
        if running.held[: len(tokens)] == tokens:
            return None
        timings = self._ask(running, tokens, 0, self._load_timeout_seconds, keep=True)
        running.held = tokens
        return timings

    def _at_depth(
        self, running: _Running, prompt: list[int], depth: int, new_tokens: int, seconds: float
    ) -> Timings:
        """The timings of an answer whose prompt begins with ``depth`` tokens that are in the slot's cache.

        A recurrent model, or one with a sliding window, cannot go back to its depth after it generated. Then each round
        fills the context anew, outside the time that counts.
        """
        running.held = prompt[:depth]  # the slot drops what it has beyond the common beginning
        if depth == 0:
            return self._ask(running, prompt, new_tokens, seconds, keep=False)
        for _ in range(2):
            if running.refills:
                self._ask(running, prompt[:depth], 0, self._load_timeout_seconds, keep=True)
            timings = self._ask(running, prompt, new_tokens, seconds, keep=True)
            if timings.cached_tokens >= depth - REPROCESSED_TOKENS:
                return timings
            running.refills = True
        raise EngineRefused(
            f"llama-server processed {timings.prompt_tokens} tokens where {len(prompt) - depth} were new: it does not "
            "keep this model's context, so speed at depth cannot be measured (workload.depth=0 measures without it)"
        )

    def _ask(
        self, running: _Running, prompt: list[int], new_tokens: int, seconds: float, *, keep: bool
    ) -> Timings:
        """One answer of ``new_tokens`` + 1 tokens; the first one belongs to the prompt."""
        count = new_tokens + 1
        body = {
            "prompt": prompt,
            "n_predict": count,
            "ignore_eos": True,
            "cache_prompt": keep,
            "id_slot": 0,
            "stream": False,
            "response_fields": _ANSWER_FIELDS,
            "seed": running.seed,
        }
        answer = self._answer(running, body, seconds + self._window_grace_seconds)
        timings = answer["timings"]
        processed, made = int(timings["prompt_n"]), int(timings["predicted_n"])
        if made < min(2, count):
            self._end()
            raise EngineRefused(
                f"llama-server generated {made} of {count} tokens and stopped ({answer.get('stop_type')}): "
                "the context is full"
            )
        return Timings(
            cached_tokens=int(timings.get("cache_n", len(prompt) - processed)),
            prompt_tokens=processed,
            prompt_seconds=max(1e-6, timings["prompt_ms"] / 1000),
            decoded_tokens=made - 1,
            decode_seconds=max(1e-6, timings["predicted_ms"] / 1000),
            drafts=Drafts(int(timings.get("draft_n", 0)), int(timings.get("draft_n_accepted", 0))),
        )

    def _answer(
        self, running: _Running, body: dict[str, Any], timeout_seconds: float, tries: int = SEEDS_TRIED
    ) -> dict[str, Any]:
        """The answer to ``body``.

        Some builds refuse an answer whose text is no valid UTF-8, as random weights generate it. From then on, byte
        tokens and special ones are ruled out, and another seed generates another text.
        """
        began = time.monotonic()
        more = {"logit_bias": running.ruled_out} if running.ruled_out else {}
        try:
            answer: dict[str, Any] = post(f"{running.url}/completion", body | more, timeout_seconds)
            answer["timings"]["predicted_n"]  # an answer without timings is a refusal
        except (SweeperError, LookupError, TypeError) as error:
            if _NO_TEXT in str(error) and tries > 1:
                running.ruled_out = running.ruled_out or _tokens_without_text(running.header.path)
                return self._answer(running, body | {"seed": body["seed"] + 1}, timeout_seconds, tries - 1)
            raise self._failed_request(running, error, time.monotonic() - began, timeout_seconds) from error
        except BaseException:
            self._end()  # an answer that comes later must not disturb the next request
            raise
        return answer

    def _failed_request(
        self, running: _Running, error: Exception, waited_seconds: float, timeout_seconds: float
    ) -> TrialFailed:
        """The failure of a request: the server's death, a hang, or a refusal. The server is ended."""
        code = None if waited_seconds >= timeout_seconds else self._settled(running)
        tail = last_of(running.log.read_bytes())
        self._end()
        if code is not None:
            return death_of("llama-server", code, "completion", tail, running.oom_kills)
        if waited_seconds >= timeout_seconds:
            return EngineTimeout(f"llama-server did not answer within {timeout_seconds:.0f} s", tail)
        if isinstance(error, SweeperError):
            return (OutOfMemory if speaks_of_memory((str(error),)) else EngineRefused)(str(error), tail)
        return EngineRefused(f"llama-server gave no timings ({error!r})", tail)

    def _settled(self, running: _Running) -> int | None:
        """The exit code of a server that has ended, or is about to; None if it runs on."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (code := running.process.process.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return code

    def _rounds(
        self, one_round: Callable[[float], tuple[int, float]], min_seconds: float, max_seconds: float
    ) -> Run:
        total, seconds = 0, []
        started = time.monotonic()
        deadline = started + max_seconds
        while True:
            tokens, took = one_round(max(0.0, deadline - time.monotonic()))
            total += tokens
            seconds.append(took)
            ended = time.monotonic()
            if ended - started >= min_seconds:
                return Run(total, sum(seconds), started, ended, len(seconds), tuple(seconds))


@contextlib.contextmanager
def _polled(look: Callable[[], None], given_up: Sequence[TrialFailed]) -> Iterator[None]:
    """Call ``look`` about every second in a thread of its own, until the block ends or there is a failure."""
    ended = threading.Event()

    def poll() -> None:
        while not given_up and not ended.wait(TOLD_EVERY_SECONDS):
            with contextlib.suppress(OSError):  # the log of a server that was ended meanwhile
                look()

    thread = threading.Thread(target=poll, name="sweeper-fill", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _speculation(asked: str, whole_log: str) -> dict[str, str]:
    """The kind of speculation in force. Raises EngineRefused if the server goes on without the one that was asked."""
    found, refused = llama_log.speculation(whole_log)
    if refused is not None:
        raise EngineRefused(f"llama-server does not speculate with {asked}: {refused}")
    return {} if found is None else {"spec_type": found}


def _tokens_without_text(path: Path) -> list[tuple[int, bool]]:
    """A ``logit_bias`` that rules out the tokens of a model that are single bytes or no text."""
    from gguf import GGUFReader, TokenType

    field = GGUFReader(path).get_field("tokenizer.ggml.token_type")
    types = [] if field is None else field.contents()
    without = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE)
    return [(token, False) for token, kind in enumerate(types) if kind in without]


def _answers_as(url: str, name: str) -> bool:
    """Whether the server that answers is the one that was started by this name, and not another one on its port."""
    with contextlib.suppress(SweeperError, LookupError, TypeError):
        return any(model["id"] == name for model in get(f"{url}/v1/models")["data"])
    return False


def _listener(pid: int, port: int) -> int | None:
    """The process of this tree that listens on the port: a wrapper such as Docker's is not the server."""
    import psutil

    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                if any(
                    c.status == psutil.CONN_LISTEN and c.laddr.port == port
                    for c in process.net_connections("tcp")
                ):
                    return process.pid
    return None


def _peak_mib(pid: int | None) -> float | None:
    """The peak of a process's resident memory (VmHWM); None if the system does not report it."""
    if pid is None:
        return None
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)
    except (OSError, ValueError):
        return None
