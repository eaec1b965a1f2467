"""File names that break careless writers, and plans made from them."""

from __future__ import annotations

from pathlib import Path

from apply_sweep import CONFIGURATION, make_sweep
from hypothesis import strategies as st

from sweeper.apply import run as apply
from sweeper.records import Configuration

# One of each trap: quotes, expansion, comments, separators, regex signs, escapes, YAML words, non-ASCII.
NAMES = (
    "a b.gguf",
    " lead and trail ",
    "it's.gguf",
    'say "x".gguf',
    "50%n.gguf",
    "$HOME ${PORT}x $$.gguf",
    "`id` $(id).gguf",
    "a;b#c.gguf",
    "[a](b)+^x|y*?.gguf",
    "back\\slash\\n.gguf",
    "naïve-模型-Ω-Σ.gguf",
    "\U0001f600.gguf",
    "\u00a0nbsp\ufeff.gguf",
    "yes",
    "null",
    "1e3",
    "- item",
    "key: value",
    "{{ x }}.gguf",
    "!tag &a *b.gguf",
    "~",
    "-rf",
    "=,=.gguf",
    "@file",
)
_TRAPS = " '\"%$`;#[]()+^*?|\\{}:,=!&~@<>-.\u00a0"
_LETTERS = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="/")
names = st.text(st.one_of(st.sampled_from(_TRAPS), _LETTERS), min_size=1, max_size=30).filter(
    lambda name: name not in (".", "..")
) | st.sampled_from(NAMES)


def made(
    target: str,
    file_name: str,
    folder: Path,
    configuration: Configuration = CONFIGURATION,
    name: str | None = None,
    config: dict | None = None,
) -> apply.ApplyPlan:
    """The plan of a target for a model of this name; nothing is read but the target's own file."""
    sweep = make_sweep(Path("/models") / file_name, configuration, config=config or {})
    return apply.plan(sweep, 3, target, apply.Options(name=name, folder=folder))


def text_of(plan: apply.ApplyPlan, number: int = 0) -> str:
    return plan.draft.files[number].after.decode("utf-8")
