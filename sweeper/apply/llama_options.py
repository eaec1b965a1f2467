"""A configuration in llama-server's own words, and every other spelling that llama-server takes for each.

Source: ``common/arg.cpp`` of llama.cpp. Whatever starts llama-server (a preset, a command line, systemd,
Compose, llama-swap) takes its options from here, so that none of them can forget one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sweeper.apply.base import LOOPBACK, Request, on_off
from sweeper.apply.names import refuse_characters
from sweeper.errors import UsageError
from sweeper.records import Configuration


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its long name without dashes, its value, and the spellings that a file may hold instead."""

    key: str
    value: str
    spellings: tuple[str, ...] = ()
    environment: str | None = None
    switch: bool = False  # on the command line `--key` or `--no-key`, without a value

    def argv(self) -> tuple[str, ...]:
        """As on a command line."""
        if self.switch:
            return (f"--{self.key}" if self.value == "on" else f"--no-{self.key}",)
        return (f"--{self.key}", self.value)

    def all_spellings(self) -> frozenset[str]:
        """Every key by which a preset may mean this option."""
        own = {self.key, *self.spellings}
        if self.environment:
            own.add(self.environment)
        if self.switch:
            own.add(f"no-{self.key}")
        return frozenset(own)


def check_alias(name: str) -> None:
    """llama-server splits ``--alias`` at commas and strips the parts.

    Raises:
        UsageError: where that would change the name.
    """
    refuse_characters("the name", name, ",", "llama-server would split it; choose another with --name")
    if name != name.strip():
        raise UsageError(f"the name {name!r} begins or ends with a space: choose another with --name")


def load_mode(configuration: Configuration) -> str:
    """llama.cpp's word for ``use_mmap`` and ``use_mlock``."""
    words = [
        word for word, on in (("mmap", configuration.use_mmap), ("mlock", configuration.use_mlock)) if on
    ]
    return "+".join(words) or "none"


def model_options(request: Request) -> tuple[Option, ...]:
    """Every option that the configuration decides, in a fixed order.

    ``fit`` is off because llama-server would change layers and context to what it thinks fits; ``parallel``
    is 1 because the sweep measured one request at a time and the default splits the cache between four.
    """
    c = request.configuration
    layers = "all" if c.n_gpu_layers < 0 else str(c.n_gpu_layers)
    return (
        Option("model", request.model_path, ("m",), "LLAMA_ARG_MODEL"),
        Option("fit", "off", (), "LLAMA_ARG_FIT"),
        Option("n-gpu-layers", layers, ("ngl", "gpu-layers"), "LLAMA_ARG_N_GPU_LAYERS"),
        Option("split-mode", c.split_mode, ("sm",), "LLAMA_ARG_SPLIT_MODE"),
        Option("main-gpu", str(c.main_gpu), ("mg",), "LLAMA_ARG_MAIN_GPU"),
        Option("ctx-size", str(c.n_ctx), ("c",), "LLAMA_ARG_CTX_SIZE"),
        Option("parallel", "1", ("np",), "LLAMA_ARG_N_PARALLEL"),
        Option("batch-size", str(c.n_batch), ("b",), "LLAMA_ARG_BATCH"),
        Option("ubatch-size", str(c.n_ubatch), ("ub",), "LLAMA_ARG_UBATCH"),
        Option("threads", str(c.n_threads), ("t",), "LLAMA_ARG_THREADS"),
        Option("threads-batch", str(c.n_threads_batch), ("tb",)),
        Option("flash-attn", on_off(c.flash_attn), ("fa",), "LLAMA_ARG_FLASH_ATTN"),
        Option("cache-type-k", c.type_k, ("ctk",), "LLAMA_ARG_CACHE_TYPE_K"),
        Option("cache-type-v", c.type_v, ("ctv",), "LLAMA_ARG_CACHE_TYPE_V"),
        Option("kv-offload", on_off(c.offload_kqv), ("kvo", "nkvo"), "LLAMA_ARG_KV_OFFLOAD", switch=True),
        Option("load-mode", load_mode(c), ("lm",), "LLAMA_ARG_LOAD_MODE"),
    )


def server_argv(
    request: Request,
    program: str = "llama-server",
    *,
    model_path: str | None = None,
    host: str = LOOPBACK,
    port: str | None = None,
) -> tuple[str, ...]:
    """The plain command line that serves this one model; ``model_path`` is the path as the server sees it."""
    check_alias(request.name)
    words = [program]
    for option in model_options(request):
        if option.key == "model" and model_path is not None:
            words += ["--model", model_path]
        else:
            words += option.argv()
    return (*words, "--alias", request.name, "--host", host, "--port", port or str(request.port))
