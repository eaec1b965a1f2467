"""The options and the command line with which llama-server serves a recommended configuration."""

from __future__ import annotations

from sweeper.apply.base import LOOPBACK, Request
from sweeper.apply.names import refuse_characters, refuse_outer_spaces
from sweeper.client.llama_options import DRAFT, Option, options_of


def check_alias(name: str) -> None:
    """Raise UsageError for a name that llama-server would change: it splits at commas and strips the parts."""
    refuse_characters("the name", name, ",", "llama-server would split it; choose another with --name")
    refuse_outer_spaces("the name", name, "choose another with --name")


def model_options(request: Request) -> tuple[Option, ...]:
    """Every option that the request's configuration decides, in a fixed order."""
    model = request.record.model
    return options_of(request.configuration, request.model_path, model.expert_count > 0, model.draft)


def server_argv(
    request: Request,
    program: str = "llama-server",
    *,
    model_path: str | None = None,
    draft_path: str | None = None,
    host: str = LOOPBACK,
    port: str | None = None,
) -> tuple[str, ...]:
    """The plain command line that serves this one model.

    ``model_path`` and ``draft_path`` are the paths of the model and its draft model as the server sees them.
    """
    check_alias(request.name)
    seen = {"model": model_path, DRAFT: draft_path}
    words = [program]
    for option in model_options(request):
        path = seen.get(option.key)
        words += option.argv() if path is None or option.value is None else (f"--{option.key}", path)
    return (*words, "--alias", request.name, "--host", host, "--port", port or str(request.port))
