"""The rig of a running server: its speed is timed at the client, and only limits of this machine can be searched.

A loopback address means that the server runs on this machine, so this machine's meter and limits are those of the
server. Any other address is taken for another machine. No sensor and no limit of this machine describes that one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sweeper import machine
from sweeper.client.prompt_file import read_prompts
from sweeper.client.requests import Api, Prompt, Target
from sweeper.client.servers import Server, detect
from sweeper.client.tokenise import FIRST_ID, SPARE_TOKENS, tokenised
from sweeper.config import Settings
from sweeper.engine.endpoint import TIMED_AT_CLIENT, Endpoint, EndpointEngine
from sweeper.errors import ConfigError, EngineMissingError, VerifyError
from sweeper.http import KEY_VARIABLE, NoSuchPageError, get, is_loopback
from sweeper.limits.base import LimitControl
from sweeper.limits.none import NoLimits
from sweeper.meter.base import PowerMeter
from sweeper.meter.none import NoMeter
from sweeper.parameters import PARAMETER_NAMES, TUNABLES, Configuration, padded
from sweeper.power_settings import PowerSettings
from sweeper.records import EngineRecord, MachineRecord, ModelFile, ModelRecord, Workload
from sweeper.rig.base import Rig
from sweeper.servers import command_line_of_port

# Sensors that the user sets up, so that they can be on any machine.
_ANYWHERE = ("plug", "command")
_TUNNELS = ("ssh", "sshd", "kubectl", "autossh")
_ELSEWHERE = "the server runs on another machine"
_NO_WATTS = f"{_ELSEWHERE}, so no sensor of this one shows its watts: set power=plug or power=command to one that does"
_APIS: dict[str, Api] = {"llama-server": "llama-server", "ollama": "ollama"}


@dataclass(frozen=True, slots=True)
class _Found:
    """A server and one of its models, as far as the server describes it."""

    server: Server
    name: str
    meta: Mapping[str, Any]
    in_force: Mapping[str, Any]
    build: str


def endpoint_rig(settings: Settings, root: Path, held: ExitStack, say: Callable[[str], None]) -> Rig:
    """A running server at ``engine.url``.

    Raises:
        ConfigError: the address, the model's name or the workload does not suit the server.
        EngineMissingError: no server answers there, or none that sweeper knows.
        RightMissingError: the server needs a key.
        EngineRefused: the server streams no tokens.
    """
    url = checked_url(settings.engine.url)
    key = os.environ.get(KEY_VARIABLE) or None
    found = _found(url, settings.engine.model, key)
    workload = settings.workload_record()
    n_ctx = found.in_force.get("n_ctx")
    _demand_context(workload, n_ctx, url)
    target = Target(url, _APIS.get(found.server.kind, "openai"), found.name, use_key=key is not None)
    target = _held(target, workload)
    prompts, prompt_notes = _prompts(settings, target, workload, n_ctx, key)
    here = is_loopback(url) and not _is_tunnel(url)
    now = machine.examine() if here else _elsewhere(url)
    record = EngineRecord(
        name="endpoint",
        version=f"{found.server.kind} {found.build}".strip(),
        build=f"{TIMED_AT_CLIENT}, {url}",
        gpu_offload=bool(now.gpus),
    )
    ids = _ids(found.meta) if target.api == "llama-server" else None
    engine = held.enter_context(
        EndpointEngine(
            Endpoint(
                target,
                record,
                found.in_force,
                n_ctx,
                ids,
                prompts,
                lambda text: found.server.generate(found.name, text, 1).prompt_tokens,
            )
        )
    )
    running = _running(found.in_force, workload)
    engine.load(running)  # a server that streams no token ends the command here
    meter, meter_notes = _meter(settings.power, root, here, bool(now.gpus))
    held.enter_context(meter)
    limits = _limits(settings, root, here, held, say)
    return Rig(
        engine=engine,
        engine_record=record,
        machine=now,
        model=_model(found),
        meter=meter,
        limits=limits,
        notes=(
            f"every speed is {TIMED_AT_CLIENT}: HTTP, tokenising and sampling are part of it",
            *meter_notes,
            *prompt_notes,
        ),
        quality=lambda _: {},
        forecast=lambda _: None,
        running=running,
    )


def checked_url(url: str | None) -> str:
    """The address of the server, without a slash or ``/v1`` at its end. Raises ConfigError."""
    if not url:
        raise ConfigError(
            "engine.url: give the server's address, for example engine.url=http://127.0.0.1:8080"
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"engine.url: {url!r} is no http address; write it as http://127.0.0.1:8080")
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            f"engine.url: leave user, password and query out, because records keep the address; the environment "
            f"variable {KEY_VARIABLE} has the key"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _found(url: str, wanted: str | None, key: str | None) -> _Found:
    try:
        server = detect(url, key)
        offered = server.offered()
        name = _name(list(offered), wanted, url)
        in_force = {setting: value.value for setting, value in server.in_force(name).items()}
        return _Found(server, name, _meta(url, name, key), in_force, _build(server, key))
    except VerifyError as error:  # here, nothing was promised
        raise EngineMissingError(str(error)) from error
    except (LookupError, TypeError, AttributeError) as error:
        raise EngineMissingError(
            f"the server at {url} answers in an unknown form ({error!r}): sweeper knows llama-server, Ollama and "
            "OpenAI's interface"
        ) from error


def _name(offered: list[str], wanted: str | None, url: str) -> str:
    """The model's name at the server. Ollama lists each twice, with and without the tag ``latest``."""
    names = ", ".join(dict.fromkeys(name.removesuffix(":latest") for name in offered)) or "no model"
    if wanted is not None:
        if wanted not in offered:
            raise ConfigError(f"engine.model: {url} offers {names}, and not {wanted!r}")
        return wanted
    different = dict.fromkeys(name.removesuffix(":latest") for name in offered)
    if len(different) != 1:
        raise ConfigError(f"engine.model: {url} offers {names}; choose one with engine.model=NAME")
    return next(iter(different))


def _meta(url: str, name: str, key: str | None) -> Mapping[str, Any]:
    """What llama-server says of a model: ``n_params``, ``size``, ``n_ctx_train``, ``n_vocab``, ``ftype``."""
    try:
        models = get(f"{url}/v1/models", key=key).get("data") or ()
    except NoSuchPageError:
        return {}
    return next((m["meta"] for m in models if m.get("id") == name and isinstance(m.get("meta"), dict)), {})


def _build(server: Server, key: str | None) -> str:
    pages = {"llama-server": ("/props", "build_info"), "ollama": ("/api/version", "version")}
    if server.kind not in pages:
        return ""
    page, word = pages[server.kind]
    try:
        return str(get(server.url + page, key=key).get(word) or "")
    except NoSuchPageError:
        return ""


def _demand_context(workload: Workload, n_ctx: int | None, url: str) -> None:
    needed = (workload.depth or 0) + workload.prompt_tokens + workload.generated_tokens + SPARE_TOKENS
    if n_ctx is not None and workload.prompts is None and needed > n_ctx:
        raise ConfigError(
            f"workload: its depth, prompt and answer need a context of {needed} tokens, and {url} gives {n_ctx} to a "
            "request: lower workload.depth, prompt_tokens or generated_tokens, or start the server with a larger one"
        )


def _held(target: Target, workload: Workload) -> Target:
    """The target, asked to hold its answers to their length if its model ends them early otherwise."""
    from sweeper.client.load_client import LoadClient
    from sweeper.client.requests import Words
    from sweeper.engine.endpoint import PROMPT_SECONDS
    from sweeper.errors import EngineRefused

    if target.api != "openai":
        return target
    wanted = workload.generated_tokens
    with LoadClient(target) as client:
        made = client.rounds(Words(8), wanted, 0.0, PROMPT_SECONDS)[0].arrivals[-1][1]
    if made >= wanted:
        return target
    held = replace(target, hold=True)
    with LoadClient(held) as client:
        try:
            longer = client.rounds(Words(8), wanted, 0.0, PROMPT_SECONDS)[0].arrivals[-1][1]
        except EngineRefused:  # it refuses unknown fields
            return target
    return held if longer > made else target


def _prompts(
    settings: Settings, target: Target, workload: Workload, n_ctx: int | None, key: str | None
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """The user's own prompts as this server takes them, and a note on those that do not fit."""
    path: Any = settings.workload.prompts
    if path is None:
        return (), ()
    own = read_prompts(Path(path))
    if target.api != "llama-server":
        return own.prompts, ()
    most = (n_ctx or 2**31) - workload.generated_tokens - SPARE_TOKENS
    ready = tokenised(target.url, own.prompts, most, key)
    if not ready.too_long:
        return ready.prompts, ()
    return ready.prompts, (
        f"{ready.too_long} of {len(own.prompts)} prompts are left out, because the context has no room for them",
    )


def _ids(meta: Mapping[str, Any]) -> tuple[int, int] | None:
    """The token ids for random prompts; None if the server does not report the size of its vocabulary."""
    size = meta.get("n_vocab")
    return (FIRST_ID, size - 1) if isinstance(size, int) and size > 2 * FIRST_ID else None


def _running(in_force: Mapping[str, Any], workload: Workload) -> Configuration:
    """The server's settings, as far as it reports them."""

    def suits(name: str, value: Any) -> bool:
        tunable = TUNABLES[name]
        if tunable.kind == "flag":
            return isinstance(value, bool)
        if tunable.kind == "number":
            return isinstance(value, int) and not isinstance(value, bool)
        return isinstance(value, str) and value in tunable.words

    known = {name: in_force[name] for name in PARAMETER_NAMES if name in in_force}
    return Configuration(
        **{"n_ctx": padded(workload.n_ctx_needed)} | {k: v for k, v in known.items() if suits(k, v)}
    )


def _model(found: _Found) -> ModelRecord:
    """The model, with zeros and ``unknown`` where the server is silent."""

    def number(name: str) -> int:
        value = found.meta.get(name)
        return value if isinstance(value, int) else 0

    quant = str(found.meta.get("ftype") or "unknown").split(" ")[0]
    name = found.name.rsplit("/", 1)[-1].removesuffix(".gguf").replace(":", "-") or "model"
    path = str(found.in_force.get("model") or "")
    return ModelRecord(
        name=name,
        architecture="unknown",
        parameters=number("n_params"),
        n_layer=0,
        n_ctx_train=number("n_ctx_train"),
        source="endpoint",
        base_quant=quant,
        files={quant: ModelFile(quant, path, "", number("size"))},
    )


def _is_tunnel(url: str) -> bool:
    """Whether a known program forwards this port of this machine to another machine."""
    parts = urlsplit(url)
    argv = command_line_of_port(parts.port or (443 if parts.scheme == "https" else 80))
    return bool(argv) and Path(argv[0]).name.rstrip(":") in _TUNNELS


def _elsewhere(url: str) -> MachineRecord:
    """The record of another machine, of which only its address is known."""
    host = urlsplit(url).netloc
    digest = hashlib.sha256(host.encode()).hexdigest()[:12]
    return MachineRecord(f"endpoint-{digest}", f"the machine of {host}", 0, 0, 0, "unknown")


def _meter(
    power: PowerSettings, root: Path, here: bool, gpu_used: bool
) -> tuple[PowerMeter, tuple[str, ...]]:
    from sweeper.meter.choose import find_meter

    if here:
        return find_meter(power, root, gpu_used)
    if power.source not in _ANYWHERE:
        if power.source != "auto":
            raise ConfigError(f"power={power.source}: {_NO_WATTS}")
        return NoMeter(_NO_WATTS), (f"watts are not measured: {_NO_WATTS}",)
    ours = [name for name in power.beside if name not in _ANYWHERE]
    if ours:
        raise ConfigError(
            f"power.beside: {_ELSEWHERE}, and {', '.join(ours)} would show this one; leave it out"
        )
    return find_meter(power, root, gpu_used)


def _limits(
    settings: Settings, root: Path, here: bool, held: ExitStack, say: Callable[[str], None]
) -> LimitControl:
    from sweeper.rig.here import enter_limits

    return enter_limits(settings, root, held, say) if here else NoLimits(_ELSEWHERE)
