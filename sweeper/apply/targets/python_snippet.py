"""Python: a snippet that loads the model with llama-cpp-python, with the measured settings."""

from __future__ import annotations

from sweeper.apply.base import Draft, Request, change, not_settable
from sweeper.apply.targets.llama_cpp_python import SETTABLE, model_settings

# Keys of the server's settings that the class `Llama` does not have.
_SERVER_ONLY = ("model", "model_alias", "cache")


def draft(request: Request) -> Draft:
    """Show the code; write it only if the user named a file."""
    text = snippet(request)
    notes = not_settable(request.configuration, "llama_cpp.Llama", SETTABLE)
    if request.file is None:
        return Draft(snippet=text, notes=notes)
    return Draft(files=(change(request.target_file(""), text, "the whole file"),), notes=notes)


def snippet(request: Request) -> str:
    """The code. Environment variables are set before the import, since OpenMP reads them once."""
    settings = model_settings(request.configuration, request.model_path, request.name)
    arguments = {"model_path": request.model_path} | {
        k: v for k, v in settings.items() if k not in _SERVER_ONLY
    }
    lines = []
    if request.environment:
        lines += [
            "import os",
            "",
            *(f"os.environ[{k!r}] = {v!r}" for k, v in request.environment.items()),
            "",
        ]
    lines += ["from llama_cpp import Llama", "", "llm = Llama("]
    lines += [f"    {name}={value!r}," for name, value in arguments.items()]
    return "\n".join([*lines, ")"]) + "\n"
