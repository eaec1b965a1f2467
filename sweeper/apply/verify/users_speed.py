"""Measures a server under the load of several users, with the load generator and the windows of the sweep itself."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sweeper.apply.fresh import model_file
from sweeper.apply.verify.client_speed import Client, ClientSpeed
from sweeper.apply.verify.texts import are_own, prompts_of
from sweeper.client.requests import Prompt, Target
from sweeper.client.servers import Server
from sweeper.client.tokenise import FIRST_ID, SPARE_TOKENS, tokenised
from sweeper.engine.endpoint import TIMED_AT_CLIENT, Endpoint, EndpointEngine
from sweeper.errors import MissingError, SweeperError, TrialFailed, UsageError, VerifyError
from sweeper.measure.trial import PhaseListener, Stage, measure
from sweeper.meter.base import PowerMeter
from sweeper.meter.none import NoMeter
from sweeper.model.header import read_header
from sweeper.records import EngineRecord, SweepRecord, TrialRecord, Workload

EACH_USER = "tokens_per_second_per_user"
FIRST_TOKEN = "time_to_first_token_p95_seconds"  # noqa: S105 - the name of a metric
_NO_SUCH_LOAD = {
    "llama-cpp-python": "llama-cpp-python's server serves one request at a time",
    "ollama": "Ollama may end answers early, so its users would not send the same load",
}


def demand_slots(record: SweepRecord, kind: str) -> None:
    """Raise UsageError if a server of this kind cannot be given the load of the sweep's users."""
    if record.workload.users > 1 and kind in _NO_SUCH_LOAD:
        raise UsageError(
            f"sweep {record.sweep!r} promises the speed of {record.workload.users} users together, and "
            f"{_NO_SUCH_LOAD[kind]}: verify a llama-server, with --server llama-server or its --url"
        )


def prompts_of_users(record: SweepRecord) -> tuple[Prompt, ...]:
    """The prompts that the sweep's users sent; none if they were random.

    Raises:
        MissingError: they are gone. Prompts of other lengths would be another load.
    """
    try:
        return prompts_of(record)
    except SweeperError as error:
        raise MissingError(
            f"the users of sweep {record.sweep!r} sent your own prompts, but {error.what}",
            "restore the file, or sweep again",
        ) from error


def measure_users(
    server: Server,
    name: str,
    *,
    record: SweepRecord,
    trial: TrialRecord,
    prompts: Sequence[Prompt],
    n_ctx: int,
    repeats: int,
    repeat_seconds: float,
    meter: PowerMeter | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> ClientSpeed:
    """Measure a loaded model with as many users, prompts and answers of the same lengths as in the sweep.

    Decode speed and watts are those of all users together. The speed of prompts is that of one user alone, as in the
    sweep. ``prompts`` come from `prompts_of_users`, and ``n_ctx`` is the context of each user at the server. The other
    arguments are those of `measure_speed`.

    Raises:
        UsageError: the server's context is too small for the load.
        ModelMissingError, ModelFileError: the model's file, which tells the token ids, cannot be read.
        VerifyError: the server refuses, or breaks off.
    """
    workload = record.workload
    _demand_context(server, workload, n_ctx)
    client = Client(server, name, n_ctx, repeats, repeat_seconds, progress)
    progress("warming up …")
    answer = min(workload.generated_tokens, n_ctx - SPARE_TOKENS)
    alone = answer / client.warm_up("a", 1, answer)
    prompt = min(workload.prompt_tokens, n_ctx - SPARE_TOKENS)
    prefill, own_prefill, prompt_tokens = client.prefill(prompt, alone)
    # A larger context than the sweep's must not deepen a workload that fills it.
    context = min(n_ctx, int(trial.in_force.get("n_ctx") or trial.configuration.n_ctx))
    try:
        with EndpointEngine(_endpoint(server, name, record, trial, prompts, context)) as engine:
            found = measure(
                trial.configuration,
                engine,
                meter or NoMeter("no meter was given"),
                workload,
                _stage(workload, repeats),
                listener=_listener(progress, workload.users, repeats),
            )
    except TrialFailed as failure:
        raise VerifyError(str(failure)) from failure
    wanted = (FIRST_TOKEN,) if meter is None else (FIRST_TOKEN, "watts")
    return ClientSpeed(
        decode=found.metrics["tokens_per_second"],
        prefill=prefill,
        watts=found.metrics.get("watts"),
        own_decode=None,  # the server reports each answer, and not all users together
        own_prefill=own_prefill,
        decode_tokens=workload.generated_tokens,
        prompt_tokens=prompt_tokens,
        missing=client.missing | {key: found.missing[key] for key in wanted if key in found.missing},
        each_user=found.metrics[EACH_USER],
        first_token=found.metrics.get(FIRST_TOKEN),
    )


def _demand_context(server: Server, workload: Workload, n_ctx: int) -> None:
    """Raise UsageError if the server would cut or refuse the requests. Prompts of the user's own have any length."""
    needed = (workload.depth or 0) + workload.prompt_tokens + workload.generated_tokens
    if needed > n_ctx and workload.prompts is None:
        raise UsageError(
            f"the sweep's requests need a context of {needed} tokens for each user, and {server.url} gives {n_ctx}: "
            "start it with a larger context"
        )


def _stage(workload: Workload, repeats: int) -> Stage:
    """Windows of all users, each as long as those that the promise was measured with."""
    final = Stage.final(workload)
    share = repeats / final.repeats
    return Stage(
        final.seconds * share,
        repeats,
        math.ceil(final.update_periods * share),
        final.warmup_seconds,
        prefill_repeats=0,
    )


def _endpoint(
    server: Server,
    name: str,
    record: SweepRecord,
    trial: TrialRecord,
    prompts: Sequence[Prompt],
    n_ctx: int,
) -> Endpoint:
    """The server with the prompts that the sweep's engine sent. Raises TrialFailed if none of them fits."""
    workload = record.workload
    own = are_own(record)
    # The user's own prompts must fit as they are. Other texts end a random prompt, which is cut to its length.
    room = n_ctx - workload.generated_tokens - SPARE_TOKENS if own else sys.maxsize
    ids = tokenised(server.url, prompts, room, model=name).prompts if prompts else ()
    last = read_header(Path(model_file(record, trial).path).expanduser()).vocab_size - 1
    return Endpoint(
        Target(server.url, "llama-server", name),
        EngineRecord("endpoint", server.kind, TIMED_AT_CLIENT),
        {},
        n_ctx,
        (min(FIRST_ID, last), last),
        prompts=ids if own else (),
        ends=() if own else ids,
    )


def _listener(progress: Callable[[str], None], users: int, repeats: int) -> PhaseListener:
    """Name each window, and what goes on before the first one."""
    windows = itertools.count(1)

    def tell(phase: str, _speed: float | None, _watts: float | None) -> None:
        if phase == "decode":
            progress(f"{users} users {next(windows)}/{repeats}")
        elif phase != "load":  # a server that runs has loaded
            progress(f"{phase} …")

    return tell
