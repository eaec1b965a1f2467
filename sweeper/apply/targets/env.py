"""A file of environment variables for llama-server, to be sourced by a shell.

``--threads-batch`` and ``--op-offload`` have no variable in llama.cpp (``common/arg.cpp``), so they are options of the
command.
"""

from __future__ import annotations

import shlex

from sweeper.apply.base import LOOPBACK, Command, Draft, Request, change
from sweeper.apply.llama_command import check_alias, model_options


def draft(request: Request) -> Draft:
    """Write the whole file; an existing one is replaced."""
    check_alias(request.name)
    path = request.target_file("llama-server.env")
    options = model_options(request)
    variables = {
        **request.environment,
        **{option.environment: option.value for option in options if option.environment and option.value},
        "LLAMA_ARG_ALIAS": request.name,
        "LLAMA_ARG_HOST": LOOPBACK,
        "LLAMA_ARG_PORT": str(request.port),
    }
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in variables.items()]
    rest = [word for option in options if not option.environment for word in option.argv()]
    script = f"set -a; . {shlex.quote(str(path))}; exec llama-server {shlex.join(rest)}"
    head = "# every setting but those that llama-server takes only on its command line, such as --threads-batch\n"
    return Draft(
        files=(change(path, head + "".join(lines)),),
        commands=(Command("start llama-server with it", ("sh", "-c", script)),),
    )
