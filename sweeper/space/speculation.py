"""The kinds of speculative decoding that a sweep searches, and why it cannot search others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sweeper.errors import SpaceError
from sweeper.model.draft import MTP
from sweeper.model.obtain import RANDOM_WEIGHTS
from sweeper.parameters import DEFAULTS, NO_SPECULATION, SPECULATION

if TYPE_CHECKING:
    from sweeper.space.auto import Facts
    from sweeper.space.space import SearchSpace

NGRAMS = tuple(kind for kind in SPECULATION if kind.startswith("ngram"))
# The lengths of a draft that `auto` tries. Long drafts pay only if nearly all of their tokens are accepted.
LENGTHS = (1, 2, 3, 4, 6, 8)


def fill_speculation(spec: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values of ``spec_type`` and ``spec_draft_n_max`` in a spec that has them, and notes on what is left out.

    Raises:
        SpaceError: the spec names a kind that cannot work with this model.
    """
    wanted = spec.get("spec_type", NO_SPECULATION)
    asked = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    if wanted == "auto":
        asked = _offered(facts)
    for kind in asked:
        if why := _why_impossible(kind, facts):
            raise SpaceError(f"space.spec_type: {why}")
    unlisted = [kind for kind in asked if not _is_listed(kind, facts)]
    kinds = [kind for kind in asked if kind not in unlisted] or [NO_SPECULATION]
    notes = [f"spec_type is not searched for {kind}: this llama-server does not list it" for kind in unlisted]
    draft = facts.model.draft
    if draft is not None and draft.spec_type not in asked:
        notes.append(f"model.draft is not used: space.spec_type does not name {draft.spec_type}")
    filled: dict[str, Any] = {}
    if "spec_type" in spec:
        filled["spec_type"] = kinds if len(kinds) > 1 else kinds[0]
    if spec.get("spec_draft_n_max") == "auto":
        has_draft = any(str(kind).startswith("draft") for kind in kinds)
        filled["spec_draft_n_max"] = list(LENGTHS) if has_draft else DEFAULTS["spec_draft_n_max"]
    return filled, tuple(notes)


def speculates(space: SearchSpace) -> bool:
    """Whether any configuration of the space speculates."""
    searched = space.parameters.get("spec_type")
    values = (space.base.spec_type,) if searched is None else searched.values
    return any(kind != NO_SPECULATION for kind in values)


def _offered(facts: Facts) -> list[str]:
    """The kinds that ``auto`` tries: those that have something to draft from.

    n-gram kinds draft what was in the prompt or the answer before, so only the user's own prompts show what they give.
    """
    model, kinds = facts.model, [NO_SPECULATION]
    if model.source == "synthetic":
        return kinds
    if model.draft is not None:
        kinds.append(model.draft.spec_type)
    if model.mtp_layers and MTP not in kinds:
        kinds.append(MTP)
    if facts.workload.prompts is not None:
        kinds += [kind for kind in NGRAMS if _is_listed(kind, facts)]
    return kinds


def _is_listed(kind: str, facts: Facts) -> bool:
    """Whether this llama-server lists the kind in its help; true for words that no server knows."""
    is_known = kind in SPECULATION and kind != NO_SPECULATION
    return not is_known or facts.speculation is None or kind in facts.speculation


def _why_impossible(kind: str, facts: Facts) -> str | None:
    model = facts.model
    if kind == NO_SPECULATION or kind not in SPECULATION:
        return None  # `build_space` refuses unknown words
    if model.source == "synthetic":
        return f"{RANDOM_WEIGHTS}; give a real model with model.path=FILE, or set space.spec_type=none"
    if kind in NGRAMS or (model.draft is not None and kind == model.draft.spec_type):
        return None
    if kind == MTP:
        if model.mtp_layers:
            return None
        return f"{MTP} needs a model with MTP layers, and this one has none; leave it out"
    if model.draft is not None:
        return f"the file of model.draft is for {model.draft.spec_type}, and not for {kind}"
    return f"{kind} needs a draft model: set model.draft=FILE"
