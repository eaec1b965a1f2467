"""Translates a configuration into llama-server's options, with every spelling that llama-server accepts.

Source: ``common/arg.cpp`` of llama.cpp. Every target that starts llama-server (a preset, a command line,
systemd, Compose, llama-swap) takes its options from here, and so does the engine: none can forget one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sweeper.parameters import (
    DEFAULTS,
    SERVER_TUNABLES,
    TUNABLES,
    Configuration,
    Tunable,
    server_context,
)
from sweeper.records import DraftModel

_VARIABLE = "LLAMA_ARG_"
# What `--load-mode` replaced in 2026: a build knows these options, or `--load-mode`, or both.
_LOAD_WORDS = ("mmap", "no-mmap", "mlock", "direct-io", "no-direct-io", "dio", "ndio")
_LOAD_VARIABLES = tuple(_VARIABLE + word for word in ("MMAP", "NO_MMAP", "MLOCK", "DIO", "NO_DIO"))
# Other places that a model comes from. With one of them, `--model` only says where the download goes.
_SOURCES = ("hf-repo", "hf", "hfr", "hf-file", "hff", "model-url", "mu", "docker-repo", "dr")
_SOURCE_VARIABLES = tuple(_VARIABLE + word for word in ("HF_REPO", "HF_FILE", "MODEL_URL", "DOCKER_REPO"))
# A draft model's file; its other names; and other places that it comes from.
DRAFT = "spec-draft-model"
DRAFT_SPELLINGS = ("md", "model-draft", "spec-draft-hf", "hfd", "hfrd", "hf-repo-draft")
_DRAFT_VARIABLES = (_VARIABLE + "MODEL_DRAFT", _VARIABLE + "SPEC_DRAFT_HF_REPO")
# With `--fit on`, llama-server decides these itself, but only if they are left to it.
PLACEMENT = ("n_gpu_layers", "n_cpu_moe", "n_cpu_ffn", "tensor_split")

# The options that a file shows first.
_FIRST = (TUNABLES["fit"], TUNABLES["n_parallel"])


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its long name without dashes, its value, and the spellings that a file may hold instead.

    Without a value, llama-server's default applies: the option is not written, and a file may not hold it either.
    """

    key: str
    value: str | None
    spellings: tuple[str, ...] = ()
    environment: str | None = None
    switch: bool = False  # `--key` or `--no-key` on the command line, without a value

    def argv(self) -> tuple[str, ...]:
        """The option's words on a command line; none without a value."""
        if self.value is None:
            return ()
        if self.switch:
            return (f"--{self.key}" if self.value == "on" else f"--no-{self.key}",)
        return (f"--{self.key}", self.value)

    def all_spellings(self) -> frozenset[str]:
        """Every key that means this option in a preset."""
        own = {self.key, *self.spellings}
        if self.environment:
            own.add(self.environment)
        if self.switch:
            own |= {f"no-{self.key}", f"{_VARIABLE}NO_{self.key.replace('-', '_').upper()}"}
        return frozenset(own)


def options_of(
    c: Configuration, model_path: str, has_experts: bool, draft: DraftModel | None = None
) -> tuple[Option, ...]:
    """Every option that the configuration ``c`` decides, in a fixed order. Those that it leaves out have no value.

    With a ``draft`` model, its file is one of them: it has a value only if ``c`` speculates with it.

    ``fit`` is off because llama-server would change layers and context to what it thinks fits, unless the
    configuration itself leaves the placement to llama-server.
    """
    load_mode = [word for word, on in (("mmap", c.use_mmap), ("mlock", c.use_mlock)) if on] or ["none"]
    return (
        Option("model", model_path, ("m", *_SOURCES, *_SOURCE_VARIABLES), "LLAMA_ARG_MODEL"),
        *(_option(t, c) for t in _FIRST),
        *(
            _option(t, c)
            for t in SERVER_TUNABLES
            if t.option and t not in _FIRST and (has_experts or not t.experts_only)
        ),
        *((_draft_option(draft, c),) if draft is not None else ()),
        Option(
            "kv-unified", "on" if c.n_parallel > 1 else None, ("kvu", "no-kvu"), "LLAMA_ARG_KV_UNIFIED", True
        ),
        Option(
            "load-mode",
            "+".join(load_mode),
            ("lm", *_LOAD_WORDS, *_LOAD_VARIABLES),
            "LLAMA_ARG_LOAD_MODE",
        ),
    )


def _draft_option(draft: DraftModel, configuration: Configuration) -> Option:
    used = draft.spec_type == configuration.spec_type
    spellings = (*DRAFT_SPELLINGS, *_DRAFT_VARIABLES)
    return Option(DRAFT, draft.file.path if used else None, spellings, "LLAMA_ARG_SPEC_DRAFT_MODEL")


def _option(tunable: Tunable, configuration: Configuration) -> Option:
    value = getattr(configuration, tunable.name)
    word: str | None = tunable.to_word(value)
    if tunable.name == "n_ctx":
        word = str(server_context(configuration))
    elif configuration.fit and tunable.name in PLACEMENT:
        word = "auto" if tunable.name == "n_gpu_layers" else None
    if value is None or (tunable.option_is_new and value == DEFAULTS[tunable.name]):
        word = None
    assert tunable.option is not None
    return Option(tunable.option, word, tunable.spellings, tunable.environment, tunable.is_switch)
