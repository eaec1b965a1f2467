"""The shape of a model of the llama family, which decides its size and its speed on a machine."""

from __future__ import annotations

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
        if self.architecture != "llama":
            raise ConfigError(
                f"model.shape.architecture={self.architecture}: synthetic models support only llama"
            )
        for key in ("n_layer", "embedding_length", "feed_forward_length", "head_count", "head_count_kv"):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.shape.{key}={getattr(self, key)}: must be at least 1")
        if self.embedding_length % (2 * self.head_count):
            raise ConfigError(
                f"model.shape.embedding_length={self.embedding_length}: must be an even multiple of "
                f"head_count={self.head_count}"
            )
        if self.head_count % self.head_count_kv:
            raise ConfigError(
                f"model.shape.head_count_kv={self.head_count_kv}: must divide head_count={self.head_count}"
            )
        if self.vocab_size < _MIN_VOCABULARY:
            raise ConfigError(
                f"model.shape.vocab_size={self.vocab_size}: at least {_MIN_VOCABULARY}, "
                "for the special tokens and one token for each byte"
            )
        if self.n_ctx_train < 1:
            raise ConfigError(f"model.shape.n_ctx_train={self.n_ctx_train}: must be at least 1")
        if not 0 <= self.expert_used_count <= self.expert_count or (self.expert_count > 0) != (
            self.expert_used_count > 0
        ):
            raise ConfigError(
                f"model.shape.expert_used_count={self.expert_used_count}: must lie between 1 and "
                f"expert_count={self.expert_count}, or both be 0"
            )

    @property
    def head_length(self) -> int:
        """Width of one attention head."""
        return self.embedding_length // self.head_count

    @property
    def parameters(self) -> int:
        """Number of weights in the model, including norms."""
        total = 0
        for tensor in self.tensors():
            size = 1
            for length in tensor.shape:
                size *= length
            total += size
        return total

    def tensors(self) -> Iterator[TensorShape]:
        """Every tensor, in the order of the file. Shapes have numpy's order, rows last."""
        width, wide, kv_width = (
            self.embedding_length,
            self.feed_forward_length,
            self.head_count_kv * self.head_length,
        )
        yield TensorShape("token_embd.weight", (self.vocab_size, width))
        for layer in range(self.n_layer):
            prefix = f"blk.{layer}."
            yield TensorShape(prefix + "attn_norm.weight", (width,))
            yield TensorShape(prefix + "attn_q.weight", (width, width))
            yield TensorShape(prefix + "attn_k.weight", (kv_width, width))
            yield TensorShape(prefix + "attn_v.weight", (kv_width, width))
            yield TensorShape(prefix + "attn_output.weight", (width, width))
            yield TensorShape(prefix + "ffn_norm.weight", (width,))
            if self.expert_count:
                experts = self.expert_count
                yield TensorShape(prefix + "ffn_gate_inp.weight", (experts, width))
                yield TensorShape(prefix + "ffn_gate_exps.weight", (experts, wide, width))
                yield TensorShape(prefix + "ffn_down_exps.weight", (experts, width, wide))
                yield TensorShape(prefix + "ffn_up_exps.weight", (experts, wide, width))
            else:
                yield TensorShape(prefix + "ffn_gate.weight", (wide, width))
                yield TensorShape(prefix + "ffn_down.weight", (width, wide))
                yield TensorShape(prefix + "ffn_up.weight", (wide, width))
        yield TensorShape("output_norm.weight", (width,))
        if not self.tied_embeddings:
            yield TensorShape("output.weight", (self.vocab_size, width))


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor's name and shape, rows last. ``shape[-1]`` is the fan-in of a matrix."""

    name: str
    shape: tuple[int, ...]
