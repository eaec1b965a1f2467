"""The table of all parameters that sweeper can tune: `Configuration` and `TUNABLES`.

Space, search, memory forecast, engine, apply targets and verify read this table. A new parameter needs a field
and a row here, and lines in `sweeper.model.llama_params` that pass it to llama.cpp.

Sources: the names come from llama-cpp-python; options, spellings and variables from llama-server
(``common/arg.cpp`` of llama.cpp); Ollama's names from its Modelfile.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from sweeper.metrics import Phase

# llama.cpp pads a context to a multiple of this many tokens (llama_context, GGML_PAD(n_ctx, 256)).
CONTEXT_PADDING = 256
# A KV cache of type q8_1 aborts llama.cpp, and type i8 crashes it, so sweeper offers neither.
QUANTISED_CACHE_TYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
CACHE_TYPES = ("f32", "f16", "bf16", *QUANTISED_CACHE_TYPES)
SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}  # enum llama_split_mode
# The kinds of speculative decoding of llama-server (common_speculative_type_names of llama.cpp).
SPECULATION = (
    *("none", "draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark"),
    *("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache"),
)
NO_SPECULATION = SPECULATION[0]
_TRUE = ("on", "true", "1", "enabled")
_PROPORTIONS = re.compile(r"\d+(\.\d+)?([,/]\d+(\.\d+)?)*")


@dataclass(frozen=True, slots=True)
class Configuration:
    """One point of the search space: every parameter has a value.

    Each default is the value at which a parameter has no effect. `sweeper.space.auto` holds the values that
    llama.cpp itself chooses on a machine.
    """

    n_gpu_layers: int = 0
    n_ctx: int = 4096
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int = 1
    n_threads_batch: int = 1
    flash_attn: bool = True
    type_k: str = "f16"
    type_v: str = "f16"
    offload_kqv: bool = True
    use_mmap: bool = True
    use_mlock: bool = False
    split_mode: str = "layer"
    main_gpu: int = 0
    n_cpu_moe: int = 0
    n_cpu_ffn: int = 0
    tensor_split: str | None = None  # proportions such as "3,1"; None: llama.cpp splits by free memory
    op_offload: bool = True
    repack: bool = True
    n_parallel: int = 1  # slots of llama-server; each has a context of n_ctx
    spec_type: str = "none"
    spec_draft_n_max: int = 3
    fit: bool = False  # llama-server chooses the placement itself
    quant: str | None = None  # None: the model file without requantisation
    power_limit_watts: int | None = None  # None: as found
    clock_limit_mhz: int | None = None  # None: as found

    def to_dict(self) -> dict[str, Any]:
        """All parameters by name, in their documented order."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def with_(self, **changes: Any) -> Configuration:
        """A copy with some parameters changed."""
        return replace(self, **changes)

    @property
    def digest(self) -> str:
        """Twelve hex digits that identify this configuration.

        A parameter added after the first release counts only if its value differs from its default. So earlier
        recorded configurations keep their digests.
        """
        values = {
            name: value
            for name, value in self.to_dict().items()
            if not (TUNABLES[name].added_later and value == DEFAULTS[name])
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Tunable:
    """The properties of one parameter.

    ``change`` is the cost of another value: a load of the model, a new context on it, or a limit set on a device.
    ``memory`` is the effect of a larger value (true counts as 1): it needs ``more`` or ``less`` memory, or moves
    memory from the host to the ``device``, or from the device to the ``host``. ``elsewhere``: another value, larger or
    smaller, moves memory from one device to another.
    """

    name: str
    kind: Literal["number", "flag", "word"]
    change: Literal["model", "context", "limit"]
    least: int | None = None  # the lowest value of a number
    words: tuple[str, ...] = ()  # the values of a word; empty: the model's files decide
    optional: bool = False  # None is a value
    idle_in: Phase | None = None  # llama.cpp does not use it in this phase
    memory: Literal["more", "less", "device", "host", "elsewhere"] | None = None
    gpu_only: bool = False  # it has no effect without a GPU
    experts_only: bool = False  # it has no effect on a model without experts
    dense_only: bool = False  # it has no effect on a model with experts
    least_gpus: int = 0  # it has no effect with fewer GPUs
    engines: tuple[str, ...] = ()  # the only engines that can set it; empty: every engine
    baseline_only: bool = False  # only the baseline of a sweep sets it, so it cannot be searched
    up_to: Literal["n_layer", "offloadable_layers"] | None = None  # the property of the model that bounds it
    tried: tuple[Any, ...] = ()  # the values of `auto`, if they do not depend on the machine or the model
    clamped_to: str | None = None  # llama.cpp cuts it to the value of this other parameter
    equal: Callable[[Configuration, int], Any] | None = (
        None  # (configuration, n_layer) -> the value in effect
    )
    option: str | None = None  # the option of llama-server, without dashes
    spellings: tuple[str, ...] = ()  # other names of that option
    environment: str | None = None  # the variable that llama-server reads for it
    is_switch: bool = False  # `--option` or `--no-option`, without a value
    option_is_new: bool = False  # older builds lack the option, so it is written only for a changed value
    in_llama_cpp_python: bool = True  # its server has a key of the same name
    ollama: str | None = None  # the PARAMETER of a Modelfile
    lm_studio: str | None = None  # the label in LM Studio's window
    added_later: bool = False  # added after the first release

    def to_word(self, value: Any) -> str:
        """A value in the spelling of llama-server's command line."""
        if value is None:
            return "default"
        if self.kind == "flag":
            return "on" if value else "off"
        return "all" if self.kind == "number" and value < 0 else str(value)

    def from_word(self, word: str) -> Any:
        """Convert a word of a command line, a file or a log to a value; ``auto`` stays ``auto``.

        Raises:
            ValueError: the parameter needs a number, and the word is not one.
        """
        if word == "auto" or self.kind == "word":
            return word
        if self.kind == "flag":
            return word.lower() in _TRUE
        return -1 if word == "all" else int(word)


def _layers_with_experts_moved(configuration: Configuration, n_layer: int) -> int:
    """The ``n_cpu_moe`` in effect: 0 if it covers only layers that ``n_gpu_layers`` leaves on the CPU anyway.

    llama.cpp offloads the last layers and counts ``n_cpu_moe`` from the first.
    """
    return _moved_beyond(configuration.n_cpu_moe, configuration, n_layer)


def _layers_with_ffn_moved(configuration: Configuration, n_layer: int) -> int:
    """The ``n_cpu_ffn`` in effect, by the same rule as `_layers_with_experts_moved`."""
    return _moved_beyond(configuration.n_cpu_ffn, configuration, n_layer)


def _moved_beyond(first: int, configuration: Configuration, n_layer: int) -> int:
    moved = min(first, n_layer)
    return moved if moved > layers_on_cpu(configuration, n_layer) else 0


def layers_on_cpu(configuration: Configuration, n_layer: int) -> int:
    """The number of layers that ``n_gpu_layers`` leaves on the CPU."""
    layers = configuration.n_gpu_layers
    return max(0, n_layer + 1 - layers) if layers >= 0 else 0


def weights_on_cpu(configuration: Configuration, n_layer: int) -> bool:
    """Whether weights of a layer stay on the CPU; true if the model's layers are unknown (0)."""
    layers = configuration.n_gpu_layers
    if 0 <= layers <= n_layer or (n_layer == 0 and layers >= 0):
        return True
    return configuration.n_cpu_moe > 0 or configuration.n_cpu_ffn > 0


def _op_offload_in_effect(configuration: Configuration, n_layer: int) -> bool:
    """``op_offload`` concerns only weights on the CPU, in batches of the prompt."""
    return configuration.op_offload or not weights_on_cpu(configuration, n_layer)


def _repack_in_effect(configuration: Configuration, n_layer: int) -> bool:
    """``repack`` concerns only weights on the CPU."""
    return configuration.repack or not weights_on_cpu(configuration, n_layer)


def _draft_length_in_effect(configuration: Configuration, n_layer: int) -> int:
    """``spec_draft_n_max`` concerns only drafts of a model; the n-gram kinds have sizes of their own."""
    return configuration.spec_draft_n_max if configuration.spec_type.startswith("draft") else 0


def _split_in_effect(configuration: Configuration, n_layer: int) -> str | None:
    """``tensor_split`` concerns only layers on more than one GPU."""
    alone = configuration.n_gpu_layers == 0 or configuration.split_mode == "none"
    return None if alone else configuration.tensor_split


TUNABLES = {
    tunable.name: tunable
    for tunable in (
        Tunable(
            "n_gpu_layers",
            "number",
            "model",
            least=-1,
            memory="device",
            gpu_only=True,
            up_to="offloadable_layers",
            option="n-gpu-layers",
            spellings=("ngl", "gpu-layers"),
            environment="LLAMA_ARG_N_GPU_LAYERS",
            ollama="num_gpu",
            lm_studio="GPU Offload (layers)",
        ),
        Tunable(
            "n_ctx",
            "number",
            "context",
            least=1,
            idle_in="decode",
            memory="more",
            option="ctx-size",
            spellings=("c",),
            environment="LLAMA_ARG_CTX_SIZE",
            ollama="num_ctx",
            lm_studio="Context Length",
        ),
        Tunable(
            "n_batch",
            "number",
            "context",
            least=1,
            idle_in="decode",
            clamped_to="n_ctx",
            option="batch-size",
            spellings=("b",),
            environment="LLAMA_ARG_BATCH",
            ollama="num_batch",
            lm_studio="Evaluation Batch Size",
        ),
        Tunable(
            "n_ubatch",
            "number",
            "context",
            least=1,
            idle_in="decode",
            memory="more",
            clamped_to="n_batch",
            option="ubatch-size",
            spellings=("ub",),
            environment="LLAMA_ARG_UBATCH",
        ),
        Tunable(
            "n_threads",
            "number",
            "context",
            least=1,
            idle_in="prefill",
            option="threads",
            spellings=("t",),
            environment="LLAMA_ARG_THREADS",
            ollama="num_thread",
            lm_studio="CPU Thread Pool Size",
        ),
        Tunable(
            "n_threads_batch",
            "number",
            "context",
            least=1,
            idle_in="decode",
            option="threads-batch",
            spellings=("tb",),
        ),
        Tunable(
            "flash_attn",
            "flag",
            "context",
            memory="less",
            tried=(True, False),
            option="flash-attn",
            spellings=("fa",),
            environment="LLAMA_ARG_FLASH_ATTN",
            lm_studio="Flash Attention",
        ),
        Tunable(
            "type_k",
            "word",
            "context",
            words=CACHE_TYPES,
            memory="more",
            tried=("f16", "q8_0"),
            option="cache-type-k",
            spellings=("ctk",),
            environment="LLAMA_ARG_CACHE_TYPE_K",
            lm_studio="K Cache Quantization Type",
        ),
        Tunable(
            "type_v",
            "word",
            "context",
            words=CACHE_TYPES,
            memory="more",
            tried=("f16", "q8_0"),
            option="cache-type-v",
            spellings=("ctv",),
            environment="LLAMA_ARG_CACHE_TYPE_V",
            lm_studio="V Cache Quantization Type",
        ),
        Tunable(
            "offload_kqv",
            "flag",
            "context",
            memory="device",
            gpu_only=True,
            option="kv-offload",
            spellings=("kvo", "nkvo"),
            environment="LLAMA_ARG_KV_OFFLOAD",
            is_switch=True,
            lm_studio="Offload KV Cache to GPU Memory",
        ),
        # llama-server has one option, `load-mode`, for the next two (`sweeper.client.llama_options`).
        Tunable("use_mmap", "flag", "model", ollama="use_mmap", lm_studio="Try mmap()"),
        Tunable("use_mlock", "flag", "model", lm_studio="Keep Model in Memory"),
        Tunable(
            "split_mode",
            "word",
            "model",
            words=tuple(SPLIT_MODES),
            memory="elsewhere",
            gpu_only=True,
            option="split-mode",
            spellings=("sm",),
            environment="LLAMA_ARG_SPLIT_MODE",
        ),
        Tunable(
            "main_gpu",
            "number",
            "model",
            least=0,
            memory="elsewhere",
            gpu_only=True,
            option="main-gpu",
            spellings=("mg",),
            environment="LLAMA_ARG_MAIN_GPU",
            ollama="main_gpu",
        ),
        Tunable(
            "n_cpu_moe",
            "number",
            "model",
            least=0,
            memory="host",
            gpu_only=True,
            experts_only=True,
            up_to="n_layer",
            equal=_layers_with_experts_moved,
            option="n-cpu-moe",
            spellings=("ncmoe", "cpu-moe", "cmoe"),
            environment="LLAMA_ARG_N_CPU_MOE",
            in_llama_cpp_python=False,
            added_later=True,
        ),
        Tunable(
            "n_cpu_ffn",
            "number",
            "model",
            least=0,
            memory="host",
            gpu_only=True,
            dense_only=True,
            engines=("llama_server",),
            up_to="n_layer",
            equal=_layers_with_ffn_moved,
            option="n-cpu-ffn",
            spellings=("ncffn",),
            environment="LLAMA_ARG_N_CPU_FFN",
            option_is_new=True,
            in_llama_cpp_python=False,
            added_later=True,
        ),
        Tunable(
            "tensor_split",
            "word",
            "model",
            optional=True,
            memory="elsewhere",
            gpu_only=True,
            least_gpus=2,
            equal=_split_in_effect,
            option="tensor-split",
            spellings=("ts",),
            environment="LLAMA_ARG_TENSOR_SPLIT",
            option_is_new=True,
            added_later=True,
        ),
        Tunable(
            "op_offload",
            "flag",
            "context",
            idle_in="decode",
            memory="more",
            gpu_only=True,
            tried=(True, False),
            equal=_op_offload_in_effect,
            option="op-offload",
            is_switch=True,
            option_is_new=True,
            in_llama_cpp_python=False,
            added_later=True,
        ),
        Tunable(
            "repack",
            "flag",
            "model",
            memory="more",
            engines=("llama_cpp", "llama_server"),
            tried=(True, False),
            equal=_repack_in_effect,
            option="repack",
            spellings=("nr",),
            environment="LLAMA_ARG_REPACK",
            is_switch=True,
            option_is_new=True,
            in_llama_cpp_python=False,
            added_later=True,
        ),
        # llama-server divides its context among its slots, so it gets n_ctx × n_parallel (`server_context`).
        Tunable(
            "n_parallel",
            "number",
            "context",
            least=1,
            memory="more",
            engines=("llama_server", "simulated"),
            option="parallel",
            spellings=("np",),
            environment="LLAMA_ARG_N_PARALLEL",
            in_llama_cpp_python=False,
            lm_studio="Max Concurrent Predictions",
            added_later=True,
        ),
        Tunable(
            "spec_type",
            "word",
            "model",
            words=SPECULATION,
            memory="more",
            engines=("llama_server",),  # never idle, because a draft model evaluates each prompt too
            option="spec-type",
            environment="LLAMA_ARG_SPEC_TYPE",
            option_is_new=True,
            in_llama_cpp_python=False,
            added_later=True,
        ),
        Tunable(
            "spec_draft_n_max",
            "number",
            "context",
            least=1,
            engines=("llama_server",),
            idle_in="prefill",
            equal=_draft_length_in_effect,
            option="spec-draft-n-max",
            environment="LLAMA_ARG_SPEC_DRAFT_N_MAX",
            option_is_new=True,
            in_llama_cpp_python=False,
            added_later=True,
        ),
        Tunable(
            "fit",
            "flag",
            "model",
            engines=("llama_server",),
            baseline_only=True,
            option="fit",
            spellings=(),
            environment="LLAMA_ARG_FIT",
            in_llama_cpp_python=False,
            added_later=True,
        ),
        Tunable("quant", "word", "model", optional=True, memory="more", in_llama_cpp_python=False),
        Tunable("power_limit_watts", "number", "limit", least=1, optional=True, in_llama_cpp_python=False),
        Tunable("clock_limit_mhz", "number", "limit", least=1, optional=True, in_llama_cpp_python=False),
    )
}
DEFAULTS = Configuration().to_dict()
PARAMETER_NAMES = tuple(TUNABLES)
MODEL_KEYS = tuple(t.name for t in TUNABLES.values() if t.change == "model")
CONTEXT_KEYS = tuple(t.name for t in TUNABLES.values() if t.change == "context")
LIMIT_KEYS = tuple(t.name for t in TUNABLES.values() if t.change == "limit")
# The parameters that change what the model predicts, and so its quality.
LOSSY_KEYS = ("quant", "type_k", "type_v")
# The parameters that a server sets itself or through its options; it sets neither quant nor limits.
SERVER_TUNABLES = tuple(t for t in TUNABLES.values() if t.change != "limit" and t.name != "quant")


NO_OFFLOAD = "this build of llama.cpp cannot offload layers, so they stay on the CPU"
NO_EXPERTS = "this model has no experts"
HAS_EXPERTS = "this model has experts, for which n_cpu_moe does the same"
_ENGINES_IN_WORDS = {"llama_server": "llama-server"}


def why_it_changes_nothing(
    name: str,
    gpu_offload: bool,
    has_experts: bool,
    gpus: int | None = None,
    engine: str | None = None,
) -> str | None:
    """Why this parameter has no effect here, in words; None if it has one.

    Args:
        name: the parameter.
        gpu_offload: the build can offload layers, and there is a device for them.
        has_experts: the model is a mixture of experts.
        gpus: the number of GPUs that llama.cpp uses; None: unknown.
        engine: the engine's name, for example ``llama_server``; None: unknown.
    """
    tunable = TUNABLES[name]
    if tunable.engines and engine is not None and engine not in tunable.engines:
        first = tunable.engines[0]
        return f"only {_ENGINES_IN_WORDS.get(first, first)} can set it (engine={first})"
    if tunable.gpu_only and not gpu_offload:
        return NO_OFFLOAD
    if tunable.experts_only and not has_experts:
        return NO_EXPERTS
    if tunable.dense_only and has_experts:
        return HAS_EXPERTS
    if gpus is not None and gpus < tunable.least_gpus:
        return f"it needs {tunable.least_gpus} GPUs, and this machine has {gpus}"
    return None


def changes_nothing(
    name: str,
    gpu_offload: bool,
    has_experts: bool,
    gpus: int | None = None,
    engine: str | None = None,
) -> bool:
    """Whether this parameter has no effect here; see `why_it_changes_nothing`."""
    return why_it_changes_nothing(name, gpu_offload, has_experts, gpus, engine) is not None


def proportions(split: str) -> tuple[float, ...]:
    """The share of each GPU in a ``tensor_split`` such as "3,1".

    Raises:
        ValueError: the text is not a list of numbers, or all of them are 0.
    """
    shares = tuple(float(word) for word in re.split("[,/]", split)) if _PROPORTIONS.fullmatch(split) else ()
    if not any(shares):
        raise ValueError(f"{split!r} is not a list of proportions such as 3,1")
    return shares


def server_context(configuration: Configuration) -> int:
    """The context in tokens that llama-server gets: its slots share it, and each must have ``n_ctx``."""
    return configuration.n_ctx * configuration.n_parallel


def padded(n_ctx: int) -> int:
    """The context length in tokens to which llama.cpp pads ``n_ctx``."""
    return -(-n_ctx // CONTEXT_PADDING) * CONTEXT_PADDING


def as_engine_has_it(name: str, configuration: Configuration) -> Any:
    """The value that llama.cpp uses: it pads contexts, and cuts batches to the requested context."""
    if name == "n_ctx":
        return padded(configuration.n_ctx)
    return clamped(name, configuration)


def clamped(name: str, configuration: Configuration) -> Any:
    """A value cut to the value of the parameter that bounds it, for example ``n_ubatch`` to ``n_batch``."""
    value, bound = getattr(configuration, name), TUNABLES[name].clamped_to
    return value if bound is None else min(value, clamped(bound, configuration))
