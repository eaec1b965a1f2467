"""LM Studio: it documents no file for a model's settings, so sweeper shows the steps."""

from __future__ import annotations

from sweeper.apply.base import Draft, Request, not_settable
from sweeper.parameters import TUNABLES, server_context

_SETTINGS = tuple(tunable for tunable in TUNABLES.values() if tunable.lm_studio)


def draft(request: Request) -> Draft:
    """Show the steps, one setting a line; there is no file to write."""
    c = request.configuration
    width = max(len(tunable.lm_studio or "") for tunable in _SETTINGS)
    steps = [
        f"1. Add the model to LM Studio: lms import {request.model_path}",
        "2. My Models, the gear beside the model, tab Load; set:",
        *(f"     {t.lm_studio:<{width}}  {t.to_word(getattr(c, t.name))}" for t in _SETTINGS),
        f"3. Load it with the identifier {request.name}.",
        f"4. Developer, Start server, port {request.port}; leave `Serve on Local Network` off.",
    ]
    notes = not_settable(c, "LM Studio", {t.name for t in _SETTINGS})
    if c.n_parallel > 1:
        notes = (
            *notes,
            f"if LM Studio shares the context among its predictions, set {server_context(c)} for it",
        )
    return Draft(snippet="\n".join(steps), notes=notes)
