"""The real texts that a sweep's generation went on with, so that `verify` measures with the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sweeper.client.prompt_file import BUNDLED, bundled_prompts, read_prompts
from sweeper.client.requests import Prompt
from sweeper.errors import SweeperError
from sweeper.records import SweepRecord


def texts_of(record: SweepRecord) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts, and a note if they are not the sweep's own; no text if the sweep's prompts were random."""
    wanted = record.workload.prompts
    if wanted is None:
        return (), ()
    bundled = _plain(bundled_prompts().prompts)
    if wanted.name == BUNDLED:
        return bundled, ()
    workload = record.config.get("workload")
    path = workload.get("prompts") if isinstance(workload, Mapping) else None
    try:
        own = read_prompts(Path(str(path)).expanduser())
    except SweeperError as error:
        why = str(error)
    else:
        if own.record.sha256 == wanted.sha256:
            return _plain(own.prompts), ()
        why = f"{path} has another content"
    return bundled, (f"the sweep's own prompts are gone ({why}): verify measured with the bundled text",)


def _plain(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The prompts as texts. A chat becomes the text of its messages, because not every server takes messages."""
    return tuple(
        prompt
        if isinstance(prompt, str)
        else "\n".join(str(message["content"]) for message in prompt if isinstance(message, dict))
        for prompt in prompts
    )
