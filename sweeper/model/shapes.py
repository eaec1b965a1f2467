"""The shape of a model of the llama family, which decides its size and its speed on a machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sweeper.errors import ConfigError

SPECIAL_TOKENS = 3  # unknown, begin, end
BYTE_TOKENS = 256  # these make every text tokenisable
_MIN_VOCABULARY = SPECIAL_TOKENS + BYTE_TOKENS


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a llama model, under GGUF's names. With an ``expert_count``, it is a mixture of experts."""

    n_layer: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    vocab_size: int = 32_000
    n_ctx_train: int = 4_096
    expert_count: int = 0
    expert_used_count: int = 0
    rope_freq_base: float = 10_000.0
    rms_epsilon: float = 1e-5
    tied_embeddings: bool = False  # the output shares the token embeddings' weights
    architecture: str = "llama"

    def __post_init__(self) -> None:
        """Refuse shapes that llama.cpp would refuse or crash on. The message names the key to correct."""
        heads, kv_heads = self.head_count, self.head_count_kv
        experts, used = self.expert_count, self.expert_used_count
        sizes = ("n_layer", "embedding_length", "feed_forward_length", "head_count", "head_count_kv")
        rules = (
            ("architecture", self.architecture == "llama", "synthetic models support only llama"),
            *((key, getattr(self, key) >= 1, "must be at least 1") for key in (*sizes, "n_ctx_train")),
            (
                "embedding_length",
                heads < 1 or self.embedding_length % (2 * heads) == 0,
                f"must be an even multiple of head_count={heads}",
            ),
            ("head_count_kv", kv_heads < 1 or heads % kv_heads == 0, f"must divide head_count={heads}"),
            (
                "vocab_size",
                self.vocab_size >= _MIN_VOCABULARY,
                f"at least {_MIN_VOCABULARY}, for the special tokens and one token for each byte",
            ),
            (
                "expert_used_count",
                (experts == used == 0) or 1 <= used <= experts,
                f"must lie between 1 and expert_count={experts}, or both be 0",
            ),
        )
        for key, kept, words in rules:
            if not kept:
                raise ConfigError(f"model.shape.{key}={getattr(self, key)}: {words}")

    @property
    def head_length(self) -> int:
        """Width of one attention head."""
        return self.embedding_length // self.head_count

    @property
    def parameters(self) -> int:
        """Number of weights in the model, including norms."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors())

    def tensors(self) -> Iterator[TensorShape]:
        """Every tensor, in the order of the file. Shapes have numpy's order, rows last."""
        width, wide = self.embedding_length, self.feed_forward_length
        kv_width = self.head_count_kv * self.head_length
        experts = (self.expert_count,) if self.expert_count else ()
        suffix = "_exps" if experts else ""
        yield TensorShape("token_embd.weight", (self.vocab_size, width))
        for layer in range(self.n_layer):
            parts = {
                "attn_norm": (width,),
                "attn_q": (width, width),
                "attn_k": (kv_width, width),
                "attn_v": (kv_width, width),
                "attn_output": (width, width),
                "ffn_norm": (width,),
                **({"ffn_gate_inp": (*experts, width)} if experts else {}),
                f"ffn_gate{suffix}": (*experts, wide, width),
                f"ffn_down{suffix}": (*experts, width, wide),
                f"ffn_up{suffix}": (*experts, wide, width),
            }
            for name, shape in parts.items():
                yield TensorShape(f"blk.{layer}.{name}.weight", shape)
        yield TensorShape("output_norm.weight", (width,))
        if not self.tied_embeddings:
            yield TensorShape("output.weight", (self.vocab_size, width))


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor's name and shape, rows last. ``shape[-1]`` is the fan-in of a matrix."""

    name: str
    shape: tuple[int, ...]
