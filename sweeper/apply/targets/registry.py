"""The targets of ``sweeper apply --to``, in the order in which help shows them."""

from __future__ import annotations

from sweeper.apply.base import Target
from sweeper.apply.targets import (
    compose,
    env,
    llama_cpp_python,
    llama_server,
    llama_swap,
    lm_studio,
    ollama,
    python_snippet,
    systemd,
    textgen,
)
from sweeper.errors import UsageError

_TARGETS = {
    found.name: found
    for found in (
        Target("llama-server", llama_server.draft),
        Target("llama-cpp-python", llama_cpp_python.draft, default_port=8000),
        Target("ollama", ollama.draft, default_port=11434),
        Target("llama-swap", llama_swap.draft),
        Target("textgen", textgen.draft, default_port=5000),
        Target("compose", compose.draft),
        Target("systemd", systemd.draft, default_folder=systemd.FOLDER),
        Target("env", env.draft),
        Target("python", python_snippet.draft, default_port=8000),
        Target("lm-studio", lm_studio.draft, default_port=1234),
    )
}


def target_names() -> tuple[str, ...]:
    """The words that ``--to`` takes."""
    return tuple(_TARGETS)


def target(name: str) -> Target:
    """The target of that name. Raises UsageError, which lists the names, if there is none."""
    if name not in _TARGETS:
        raise UsageError(f"no target is called {name!r}: one of {', '.join(_TARGETS)}")
    return _TARGETS[name]
