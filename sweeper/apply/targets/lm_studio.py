"""LM Studio: it documents no file for a model's settings, so sweeper shows the steps."""

from __future__ import annotations

from sweeper.apply.base import Draft, Request, not_settable
from sweeper.parameters import TUNABLES, Configuration

# Parameters with a setting, or with a note of their own.
SETTABLE = {*(t.name for t in TUNABLES.values() if t.lm_studio), "n_ubatch", "n_threads_batch"}


def draft(request: Request) -> Draft:
    """Show the steps; there is no file to write."""
    return Draft(snippet=steps(request), notes=_cannot(request.configuration))


def steps(request: Request) -> str:
    """Numbered steps, one setting a line."""
    c = request.configuration
    values = [(t.lm_studio, t.to_word(getattr(c, t.name))) for t in TUNABLES.values() if t.lm_studio]
    width = max(len(name) for name, _ in values)
    return "\n".join(
        [
            f"1. Add the model to LM Studio: lms import {request.model_path}",
            "2. My Models, the gear beside the model, tab Load; set:",
            *(f"     {name:<{width}}  {value}" for name, value in values),
            f"3. Load it with the identifier {request.name}.",
            f"4. Developer, Start server, port {request.port}; leave `Serve on Local Network` off.",
        ]
    )


def _cannot(configuration: Configuration) -> tuple[str, ...]:
    c = configuration
    notes = []
    if c.n_ubatch != c.n_batch:
        notes.append(f"LM Studio has no setting for n_ubatch ({c.n_ubatch})")
    if c.n_threads_batch != c.n_threads:
        notes.append(f"LM Studio has one number of threads; prompts were measured with {c.n_threads_batch}")
    return (*notes, *not_settable(c, "LM Studio", SETTABLE))
