"""Gives each tensor of a synthetic model the type that llama.cpp's own quantiser would choose.

Source: ``llama_tensor_get_type_impl`` in llama.cpp's ``llama-quant.cpp`` (2026-10), for llama without an importance
matrix. A test compares the result with ``llama_model_quantize``.
"""

from __future__ import annotations

from sweeper.errors import ConfigError
from sweeper.model.ggml_types import TYPE_BY_NAME, GgmlType
from sweeper.model.shapes import ModelShape, TensorShape

# quantisation -> type of most tensors
BASE_TYPES = {
    "F32": "F32",
    "F16": "F16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q4_K_M": "Q4_K",
    "Q4_0": "Q4_0",
}
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that are not a multiple of 256
_EIGHT_EXPERTS = 8  # llama.cpp uses more bits for the attention of mixtures of exactly eight experts


def tensor_type(tensor: TensorShape, shape: ModelShape, quant: str) -> GgmlType:
    """The type of ``tensor`` in a model of quantisation ``quant``.

    Raises:
        ConfigError: synthetic models do not support this quantisation.
    """
    if quant not in BASE_TYPES:
        raise ConfigError(
            f"model.quant={quant}: a synthetic model is written as {', '.join(BASE_TYPES)}; "
            "make other levels from an F16 model with space.quant"
        )
    if len(tensor.shape) == 1 or "ffn_gate_inp" in tensor.name:
        return TYPE_BY_NAME["F32"]
    name = _preferred(tensor, shape, quant)
    if tensor.shape[-1] % TYPE_BY_NAME[name].block_elements:
        name = _FALLBACK.get(name, name)
    if tensor.shape[-1] % TYPE_BY_NAME[name].block_elements:
        name = "F16"
    return TYPE_BY_NAME[name]


def _preferred(tensor: TensorShape, shape: ModelShape, quant: str) -> str:
    base = BASE_TYPES[quant]
    if quant in ("F32", "F16", "Q8_0"):
        return base
    if tensor.name == "output.weight" or (tensor.name == "token_embd.weight" and shape.tied_embeddings):
        return "Q8_0" if tensor.shape[-1] % TYPE_BY_NAME[base].block_elements else "Q6_K"
    if not tensor.name.startswith("blk."):
        return base
    layer = int(tensor.name.split(".")[1])
    part = tensor.name.split(".")[2]
    eight = shape.expert_count == _EIGHT_EXPERTS
    if part in ("attn_k", "attn_v") and eight:
        return "Q8_0"
    if part in ("attn_v", "ffn_down", "ffn_down_exps") and quant in ("Q4_K_M", "Q5_K_M"):
        eighth = shape.n_layer // 8
        more_bits = layer < eighth or layer >= 7 * shape.n_layer // 8 or (layer - eighth) % 3 == 2
        return "Q6_K" if more_bits else base
    if part == "attn_output" and eight and quant == "Q4_K_M":
        return "Q5_K"
    return base
