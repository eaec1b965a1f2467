"""The engine that measured a sweep, made again to measure or to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.client.requests import Prompt
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.engine.llama_server import LlamaServerEngine


def engine_of(
    config: Mapping[str, Any],
    files: Mapping[str | None, Path],
    environment: Mapping[str, str],
    prompts: Sequence[Prompt] = (),
) -> LlamaCppEngine | LlamaServerEngine:
    """The engine that the section ``engine`` of a sweep's configuration describes; by default llama-cpp-python.

    Args:
        config: the section, as the sweep kept it.
        files: the model's file by quantisation.
        environment: variables for the engine's process only.
        prompts: the user's own, if the sweep sent some.
    """
    if config.get("name") != "llama_server":
        return LlamaCppEngine(files, environment)
    arguments = config.get("arguments") or ()
    return LlamaServerEngine(binary_of(config), files, environment, arguments=arguments, prompts=prompts)


def binary_of(config: Mapping[str, Any]) -> str | list[str]:
    """The llama-server of a sweep's configuration: its path or name, or the words that start it."""
    binary = config.get("binary") or "llama-server"
    return binary if isinstance(binary, str) else [str(word) for word in binary]
