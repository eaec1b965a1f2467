"""Ollama: a Modelfile for the model's settings, and a systemd drop-in for those of the whole server.

A Modelfile knows no escapes: a value runs to the end of its line, and characters that Go does not print are
dropped (``parser/parser.go`` of Ollama). A note names each parameter that Ollama has no setting for.
"""

from __future__ import annotations

from typing import Any

from sweeper.apply.base import LOOPBACK, Command, Draft, Request, change, not_settable
from sweeper.apply.names import slug
from sweeper.apply.targets.systemd import quoted
from sweeper.errors import UsageError
from sweeper.parameters import TUNABLES, Configuration

# Parameters that a Modelfile or a variable of the server sets, or that have a note of their own.
SETTABLE = {
    *(t.name for t in TUNABLES.values() if t.ollama),
    *("n_ubatch", "n_threads_batch", "flash_attn", "type_k", "type_v"),
}
CACHE_TYPES = ("f16", "q8_0", "q4_0")  # that OLLAMA_KV_CACHE_TYPE takes


def draft(request: Request) -> Draft:
    """Write both files beside each other; only the commands change Ollama itself."""
    path = request.target_file("Modelfile")
    conf = path.with_name(path.name + ".ollama-service.conf")
    name = slug(request.name)
    place = "/etc/systemd/system/ollama.service.d/sweeper.conf"
    return Draft(
        files=(
            change(path, modelfile(request), "the model"),
            change(conf, drop_in(request), "for the whole server"),
        ),
        commands=(
            Command(
                "give the server its variables", ("sudo", "install", "-D", "-m", "0644", str(conf), place)
            ),
            Command("make systemd read them", ("sudo", "systemctl", "daemon-reload")),
            Command("restart Ollama", ("sudo", "systemctl", "restart", "ollama")),
            Command("make the model", ("ollama", "create", name, "-f", str(path))),
            Command("run it", ("ollama", "run", name)),
        ),
        notes=_cannot(request.configuration),
        undo=(f"Ollama keeps the model and its drop-in: ollama rm {name}; sudo rm {place}; restart Ollama",),
    )


def modelfile(request: Request) -> str:
    """``FROM`` and every ``PARAMETER`` that the configuration decides."""
    c = request.configuration
    odd = next((x for x in request.model_path if not x.isprintable()), None)
    if odd is not None:
        raise UsageError(
            f"the model's path {request.model_path!r} holds {odd!r}, which Ollama drops: rename it"
        )
    if request.model_path != request.model_path.strip():
        raise UsageError(
            f"the model's path {request.model_path!r} ends with a space, which Ollama drops: rename it"
        )
    lines = [f"PARAMETER {t.ollama} {_word(getattr(c, t.name))}" for t in TUNABLES.values() if t.ollama]
    return "\n".join([f"FROM {request.model_path}", *lines]) + "\n"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def server_variables(request: Request) -> dict[str, str]:
    """Ollama's settings for all models at once; one request at a time, as the sweep measured."""
    c = request.configuration
    cache = c.type_k if c.type_k in CACHE_TYPES else "f16"
    return {
        **request.environment,
        "OLLAMA_FLASH_ATTENTION": "1" if c.flash_attn else "0",
        "OLLAMA_KV_CACHE_TYPE": cache,
        "OLLAMA_NUM_PARALLEL": "1",
        "OLLAMA_HOST": f"{LOOPBACK}:{request.port}",
    }


def drop_in(request: Request) -> str:
    """A drop-in for ``ollama.service``."""
    lines = [f"Environment={quoted(f'{name}={value}')}" for name, value in server_variables(request).items()]
    if request.configuration.use_mlock:
        lines.append("LimitMEMLOCK=infinity")
    return "\n".join(["[Service]", *lines]) + "\n"


def _cannot(configuration: Configuration) -> tuple[str, ...]:
    c = configuration
    notes = ["the drop-in applies to every model of this Ollama server"]
    if c.n_ubatch != c.n_batch:
        notes.append(f"Ollama sets n_ubatch to num_batch ({c.n_batch}); {c.n_ubatch} was measured")
    if c.n_threads_batch != c.n_threads:
        notes.append(f"Ollama has one number of threads; prompts were measured with {c.n_threads_batch}")
    if c.type_k != c.type_v or c.type_k not in CACHE_TYPES:
        notes.append(
            f"Ollama has one cache type of {', '.join(CACHE_TYPES)}; {c.type_k}/{c.type_v} was measured"
        )
    notes += not_settable(c, "Ollama", SETTABLE)
    notes.append(
        "Ollama has its own llama.cpp, not the build that the sweep measured: check with `sweeper verify`"
    )
    return tuple(notes)
