"""Ollama: a Modelfile for the model's settings, and a systemd drop-in for those of the whole server.

A Modelfile knows no escapes: a value runs to the end of its line, and characters that Go does not print are
dropped (``parser/parser.go`` of Ollama). A note names each parameter that Ollama has no setting for.
"""

from __future__ import annotations

import shlex

from sweeper.apply.base import LOOPBACK, Command, Draft, Request, change, not_settable
from sweeper.apply.names import refuse_characters, refuse_outer_spaces, slug
from sweeper.apply.targets.systemd import quoted
from sweeper.parameters import TUNABLES, Configuration

_PARAMETERS = tuple(tunable for tunable in TUNABLES.values() if tunable.ollama)
# Parameters that the Modelfile or a variable of the server sets; a note tells where a cache type is not set.
_SETTABLE = {*(tunable.name for tunable in _PARAMETERS), "flash_attn", "type_k", "type_v", "n_parallel"}
_CACHE_TYPES = ("f16", "q8_0", "q4_0")  # that OLLAMA_KV_CACHE_TYPE takes


def draft(request: Request) -> Draft:
    """Write both files beside each other; only the commands change Ollama itself."""
    c = request.configuration
    path = request.target_file("Modelfile")
    conf = path.with_name(path.name + ".ollama-service.conf")
    name = slug(request.name)
    place = "/etc/systemd/system/ollama.service.d/sweeper.conf"
    notes = [
        "the drop-in applies to every model of this Ollama server",
        *not_settable(c, "Ollama", _SETTABLE),
    ]
    if c.type_k != c.type_v or c.type_k not in _CACHE_TYPES:
        notes.append(
            f"Ollama has one cache type of {', '.join(_CACHE_TYPES)}, so the sweep's {c.type_k}/{c.type_v} "
            f"becomes {_cache_type(c)}"
        )
    notes.append(
        "Ollama has its own llama.cpp, not the build that the sweep measured: "
        f"check with `sweeper verify {shlex.quote(request.record.sweep)}`"
    )
    return Draft(
        files=(
            change(path, _modelfile(request), "the model"),
            change(conf, _drop_in(request), "for the whole server"),
        ),
        commands=(
            Command(
                "install the environment variables", ("sudo", "install", "-D", "-m", "0644", str(conf), place)
            ),
            Command("make systemd read them", ("sudo", "systemctl", "daemon-reload")),
            Command("restart Ollama", ("sudo", "systemctl", "restart", "ollama")),
            Command("make the model", ("ollama", "create", name, "-f", str(path))),
            Command("run it", ("ollama", "run", name)),
        ),
        notes=tuple(notes),
        undo=(f"Ollama keeps the model and its drop-in: ollama rm {name}; sudo rm {place}; restart Ollama",),
    )


def _modelfile(request: Request) -> str:
    """``FROM`` and every ``PARAMETER`` that the configuration decides."""
    path, why = request.model_path, "Ollama drops it: rename the file"
    refuse_characters("the model's path", path, "".join(x for x in path if not x.isprintable()), why)
    refuse_outer_spaces("the model's path", path, why)
    values = ((t.ollama, getattr(request.configuration, t.name)) for t in _PARAMETERS)
    lines = [f"PARAMETER {name} {str(value).lower()}" for name, value in values]
    return "\n".join([f"FROM {path}", *lines]) + "\n"


def _cache_type(configuration: Configuration) -> str:
    """The type of the whole KV cache."""
    return configuration.type_k if configuration.type_k in _CACHE_TYPES else "f16"


def _drop_in(request: Request) -> str:
    """A drop-in for ``ollama.service``: its settings for all models, and its number of requests at a time."""
    c = request.configuration
    variables = {
        **request.environment,
        "OLLAMA_FLASH_ATTENTION": "1" if c.flash_attn else "0",
        "OLLAMA_KV_CACHE_TYPE": _cache_type(c),
        "OLLAMA_NUM_PARALLEL": str(c.n_parallel),  # Ollama gives each of them num_ctx
        "OLLAMA_HOST": f"{LOOPBACK}:{request.port}",
    }
    lines = [f"Environment={quoted(f'{name}={value}')}" for name, value in variables.items()]
    if c.use_mlock:
        lines.append("LimitMEMLOCK=infinity")
    return "\n".join(["[Service]", *lines]) + "\n"
