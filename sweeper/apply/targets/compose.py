"""Docker Compose: a service that runs llama.cpp's own server image.

The container listens on all of its own addresses and is published on 127.0.0.1 only. Compose replaces ``$``
in every string, so it is doubled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeper.apply.base import LOOPBACK, Command, Draft, Request
from sweeper.apply.llama_options import server_argv
from sweeper.apply.names import slug
from sweeper.apply.yaml_text import entry_change

_IMAGE = "ghcr.io/ggml-org/llama.cpp"
_INSIDE_PORT = 8080


def draft(request: Request) -> Draft:
    """Set one service; every other byte of the file stays."""
    path = request.target_file("compose.yaml")
    service = slug(request.name).lower()
    start = ("docker", "compose", "-f", str(path), "up", "-d", service)
    return Draft(
        files=(entry_change(path, "services", service, service_of(request)),),
        commands=(Command("start it", start),),
        notes=("the image has its own llama.cpp, not the one that the sweep measured: run `sweeper verify`",),
    )


def service_of(request: Request) -> dict[str, Any]:
    """The service, with every option in its command."""
    c = request.configuration
    gpu = c.n_gpu_layers != 0 and any(g.uuid.startswith("GPU-") for g in request.record.machine.gpus)
    inside = "/models/" + Path(request.model_path).name
    # The image's entry point is the server itself, so the command omits the program's name.
    command = server_argv(request, model_path=inside, host="0.0.0.0", port=str(_INSIDE_PORT))[1:]  # noqa: S104
    service: dict[str, Any] = {
        "image": f"{_IMAGE}:server-cuda" if gpu else f"{_IMAGE}:server",
        "command": [_doubled(word) for word in command],
        "ports": [f"{LOOPBACK}:{request.port}:{_INSIDE_PORT}"],
        "volumes": [
            {
                "type": "bind",
                "source": _doubled(request.model_path),
                "target": _doubled(inside),
                "read_only": True,
                "bind": {"create_host_path": False},
            }
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
