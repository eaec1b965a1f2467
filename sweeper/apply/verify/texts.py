"""The prompts that a sweep sent, so that `verify` measures with the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sweeper.client.prompt_file import BUNDLED, bundled_prompts, read_prompts
from sweeper.client.requests import Prompt
from sweeper.errors import MissingError, SweeperError
from sweeper.records import SweepRecord


def are_own(record: SweepRecord) -> bool:
    """Whether the sweep sent the user's own prompts."""
    return record.workload.prompts is not None and record.workload.prompts.name != BUNDLED


def prompts_of(record: SweepRecord) -> tuple[Prompt, ...]:
    """The sweep's prompts; none if they were random.

    Raises:
        MissingError: the file of the user's own prompts is gone, or has another content.
        ConfigError: a line of the file is broken.
    """
    wanted = record.workload.prompts
    if wanted is None:
        return ()
    if not are_own(record):
        return bundled_prompts().prompts
    workload = record.config.get("workload")
    path = workload.get("prompts") if isinstance(workload, Mapping) else None
    own = read_prompts(Path(str(path)).expanduser())
    if own.record.sha256 != wanted.sha256:
        raise MissingError(f"{path} has another content", "restore it, or sweep again")
    return own.prompts


def texts_of(record: SweepRecord) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sweep's prompts as texts, and a note if they are not the sweep's own; no text if they were random."""
    try:
        return _plain(prompts_of(record)), ()
    except SweeperError as error:
        note = f"the sweep's own prompts are gone ({error.what}): verify measured with the bundled text"
        return _plain(bundled_prompts().prompts), (note,)


def _plain(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The prompts as texts. A chat becomes the text of its messages, because not every server takes messages."""
    return tuple(
        prompt
        if isinstance(prompt, str)
        else "\n".join(str(message["content"]) for message in prompt if isinstance(message, dict))
        for prompt in prompts
    )
