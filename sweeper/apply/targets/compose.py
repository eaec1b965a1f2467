"""Docker Compose: a service that runs llama.cpp's own server image.

The container listens on all of its own addresses and is published on 127.0.0.1 only. Compose replaces ``$``
in every string, so it is doubled.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper.apply.base import LOOPBACK, Command, Draft, Request, read_text
from sweeper.apply.kept import kept_note, with_variables
from sweeper.apply.llama_command import server_argv
from sweeper.apply.names import slug
from sweeper.apply.published import loopback_ports
from sweeper.apply.yaml_text import entry_change, mapping_of
from sweeper.errors import UsageError

_IMAGE = "ghcr.io/ggml-org/llama.cpp"
_INSIDE_PORT = 8080
# Compose reads the first of each that is there (`cli/options.go` of compose-go).
_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_OVERRIDES = tuple(
    f"{stem}.override.{end}" for stem in ("compose", "docker-compose") for end in ("yml", "yaml")
)
# Keys of a service that belong to its image, its command or its port, which sweeper replaces.
_WITH_COMMAND = ("entrypoint", "build", "extends", "healthcheck", "network_mode", "scale")


def draft(request: Request) -> Draft:
    """Set one service; every other byte of the file stays."""
    path, files = _files(request)
    name = slug(request.name).lower()
    services = {file: mapping_of(read_text(file) or "", str(file), "services") for file in files}
    request, notes = _with_free_port(request, name, services, path.parent)
    held = services[path].get(name)
    before = held if isinstance(held, dict) else {}
    ours = service_of(request)
    variables, names = with_variables(before.get("environment"), ours.get("environment", {}))
    if "environment" in ours:
        ours["environment"] = variables
    for file in files:
        beside = services[file].get(name)
        if file != path and isinstance(beside, dict) and beside.keys() & ours.keys():
            raise UsageError(
                f"{file} sets {', '.join(sorted(beside.keys() & ours.keys()))} of the service {name!r} too, "
                f"and Compose merges both files: choose another --name, or change {file.name}"
            )
    gone = [key for key in _WITH_COMMAND if key in before]
    if gone:
        notes.append(f"{', '.join(gone)} of services.{name} left with the command before")
    notes += kept_note(f"services.{name}", (*(key for key in before if key not in ours), *names))
    start = ("docker", "compose", *(word for file in files for word in ("-f", str(file))), "up", "-d", name)
    return Draft(
        files=(entry_change(path, "services", name, ours, gone),),
        commands=(Command("start it", start),),
        notes=(
            "the image has its own llama.cpp, not the build that the sweep measured: "
            f"check with `sweeper verify {shlex.quote(request.record.sweep)}`",
            *notes,
            *_parent_note(path),
            *_hidden_note(
                services, name, request.port, "include" in mapping_of(read_text(path) or "", str(path))
            ),
        ),
        port=request.port,
    )


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _files(request: Request) -> tuple[Path, tuple[Path, ...]]:
    """The file to write, and every file that Compose merges with it, in Compose's order.

    Raises UsageError for a new file that would take the place of the one that Compose reads now.
    """
    folder = request.target_file("x").parent
    read = _first(folder, _NAMES)
    path = request.target_file((read or Path(_NAMES[0])).name)
    override = _first(folder, _OVERRIDES)
    if path == override and read is not None:
        return path, (read, path)
    if path.name not in _NAMES:
        return path, (path,)
    if read is not None and not path.exists() and _NAMES.index(path.name) < _NAMES.index(read.name):
        raise UsageError(
            f"{path} would take the place of {read}, which Compose reads now: name {read.name} with --file"
        )
    return path, (path,) if override is None else (path, override)


def _parent_note(path: Path) -> tuple[str, ...]:
    """A note where Compose has read a file of a folder above, as it does in a folder without one."""
    if path.name not in _NAMES or _first(path.parent, _NAMES):
        return ()
    above = next((found for folder in path.parent.parents if (found := _first(folder, _NAMES))), None)
    return (
        ()
        if above is None
        else (f"in {path.parent}, Compose has read {above} until now; it reads this new file instead",)
    )


def _hidden_note(
    services: Mapping[Path, Mapping[str, Any]], name: str, port: int, includes: bool
) -> tuple[str, ...]:
    """A note on services whose ports the files do not tell."""
    hidden = [
        f"the service {other!r} on the host's network"
        for found in services.values()
        for other, service in found.items()
        if other != name and isinstance(service, dict) and service.get("network_mode") == "host"
    ]
    hidden += ["the included files"] if includes else []
    return (
        f"make sure that port {port} is free: sweeper cannot see the ports of {', '.join(hidden)}",
    ) * bool(hidden)


def _with_free_port(
    request: Request, name: str, services: Mapping[Path, Mapping[str, Any]], folder: Path
) -> tuple[Request, list[str]]:
    """The request with a port that no other service publishes on 127.0.0.1, and notes about it."""
    dotenv = re.findall(r"^\s*(?:export\s+)?(\w+)\s*=\s*(.*?)\s*$", read_text(folder / ".env") or "", re.M)
    variables = {key: value.strip("'\"") for key, value in dotenv} | dict(os.environ)
    taken = loopback_ports(tuple(services.values()), variables)
    taken.pop(name, None)

    def owner(port: int) -> str | None:
        return next((other for other, ports in taken.items() if any(port in span for span in ports)), None)

    other = owner(request.port)
    if other is None:
        return request, []
    says = f"the service {other!r} publishes {LOOPBACK}:{request.port} already"
    free = next((port for port in range(request.port + 1, 65536) if owner(port) is None), None)
    if request.port_is_named or free is None:
        raise UsageError(f"{says}: choose another port with --port")
    return replace(request, port=free), [f"{says}, so this one gets port {free}"]


def service_of(request: Request) -> dict[str, Any]:
    """The service, with every option in its command."""
    c = request.configuration
    gpu = c.n_gpu_layers != 0 and any(g.uuid.startswith("GPU-") for g in request.record.machine.gpus)
    inside = {request.model_path: "/models/" + Path(request.model_path).name}
    if request.draft_path is not None:  # perhaps of the same name, in another folder; or the same file
        inside.setdefault(request.draft_path, "/draft/" + Path(request.draft_path).name)
    # The image's entry point is the server itself, so the command omits the program's name.
    command = server_argv(
        request,
        model_path=inside[request.model_path],
        draft_path=inside.get(request.draft_path or ""),
        host="0.0.0.0",  # noqa: S104
        port=str(_INSIDE_PORT),
    )[1:]
    service: dict[str, Any] = {
        "image": f"{_IMAGE}:server-cuda" if gpu else f"{_IMAGE}:server",
        "command": [_doubled(word) for word in command],
        "ports": [f"{LOOPBACK}:{request.port}:{_INSIDE_PORT}"],
        "volumes": [
            {
                "type": "bind",
                "source": _doubled(source),
                "target": _doubled(target),
                "read_only": True,
                "bind": {"create_host_path": False},
            }
            for source, target in inside.items()
        ],
        "restart": "unless-stopped",
    }
    if request.environment:
        service["environment"] = {name: _doubled(value) for name, value in request.environment.items()}
    if c.use_mlock:
        service["ulimits"] = {"memlock": -1}
    if gpu:
        device = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _doubled(text: str) -> str:
    return text.replace("$", "$$")
