"""Python: a snippet that loads the model with llama-cpp-python, with the measured settings."""

from __future__ import annotations

from sweeper.apply.base import Draft, Request, change, not_settable
from sweeper.apply.targets.llama_cpp_python import SETTABLE, model_settings

# Keys of the server's settings that the class `Llama` does not have.
_SERVER_ONLY = ("model", "model_alias", "cache")


def draft(request: Request) -> Draft:
    """Show the code; write it only if the user named a file.

    Environment variables are set before the import, since OpenMP reads them once.
    """
    settings = model_settings(request.configuration, request.model_path, request.name)
    settings = {name: value for name, value in settings.items() if name not in _SERVER_ONLY}
    settings["op_offload"] = request.configuration.op_offload  # the server has no such setting
    lines = ["import os", ""] if request.environment else []
    lines += [f"os.environ[{name!r}] = {value!r}" for name, value in request.environment.items()]
    lines += [""] if request.environment else []
    lines += ["from llama_cpp import Llama", "", "llm = Llama("]
    lines += [
        f"    {name}={value!r}," for name, value in ({"model_path": request.model_path} | settings).items()
    ]
    code = "\n".join([*lines, ")"]) + "\n"
    notes = not_settable(request.configuration, "llama_cpp.Llama", SETTABLE | {"op_offload"})
    if request.file is None:
        return Draft(snippet=code, notes=notes)
    return Draft(files=(change(request.target_file(""), code, "the whole file"),), notes=notes)
