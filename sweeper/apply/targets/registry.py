"""The targets of ``sweeper apply --to`` by name."""

from __future__ import annotations

from sweeper.apply.base import Target
from sweeper.apply.targets.compose import Compose
from sweeper.apply.targets.env import Env
from sweeper.apply.targets.llama_cpp_python import LlamaCppPython
from sweeper.apply.targets.llama_server import LlamaServer
from sweeper.apply.targets.llama_swap import LlamaSwap
from sweeper.apply.targets.lm_studio import LmStudio
from sweeper.apply.targets.ollama import Ollama
from sweeper.apply.targets.python_snippet import PythonSnippet
from sweeper.apply.targets.systemd import Systemd
from sweeper.apply.targets.textgen import Textgen
from sweeper.errors import UsageError


def targets() -> tuple[Target, ...]:
    """Every target, in the order in which help shows them."""
    return (
        LlamaServer(),
        LlamaCppPython(),
        Ollama(),
        LlamaSwap(),
        Textgen(),
        Compose(),
        Systemd(),
        Env(),
        PythonSnippet(),
        LmStudio(),
    )


def target_names() -> tuple[str, ...]:
    """The words that ``--to`` takes."""
    return tuple(target.name for target in targets())


def target(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: names those that there are.
    """
    for candidate in targets():
        if candidate.name == name:
            return candidate
    raise UsageError(f"no target is called {name!r}: one of {', '.join(target_names())}")
