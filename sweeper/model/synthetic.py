"""Writes GGUF models of a real shape with random weights, tensor by tensor, without the whole model in memory."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from sweeper import locks
from sweeper.errors import StoreError
from sweeper.model.digest import demand_space
from sweeper.model.ggml_types import FILE_TYPE_BY_NAME
from sweeper.model.shapes import ModelShape
from sweeper.model.tensor_mix import tensor_type
from sweeper.model.vocabulary import BEGIN, CHAT_TEMPLATE, END, UNKNOWN, vocabulary
from sweeper.model.weights import pieces

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


def write_synthetic(
    shape: ModelShape, path: Path, quant: str = "F16", seed: int = 0, name: str | None = None
) -> Path:
    """Write a llama model of ``shape`` with random weights to ``path``, and replace an existing file.

    The file appears completely or not at all. Float weights are Gaussian with deviation 1/√fan-in, and can be
    quantised. For a quantised ``quant``, the function draws the blocks themselves (see :mod:`sweeper.model.weights`).
    The same shape, quant and seed give the same bytes.

    Raises:
        ConfigError: synthetic models do not support this quantisation.
        StoreError: the folder cannot be written, or the disk is too small.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    with locks.held(path.with_name(f".{path.name}.lock")):
        try:
            demand_space(path.parent, synthetic_bytes(shape, quant), "the model", "choose a smaller model")
            _write(shape, partial, quant, seed, name or path.stem)
            os.replace(partial, path)
        except OSError as error:
            raise StoreError(f"cannot write the model {path}: {error.strerror or error}") from None
        finally:
            partial.unlink(missing_ok=True)
    return path


def synthetic_bytes(shape: ModelShape, quant: str) -> int:
    """The bytes of the weights of a model of ``shape``, written as ``quant``."""
    return sum(tensor_type(t, shape, quant).row_bytes(math.prod(t.shape)) for t in shape.tensors())


def write_synthetic_header(shape: ModelShape, path: Path, quant: str, name: str) -> Path:
    """Write the header of the model that `write_synthetic` would write, in a sparse file of the model's full size.

    The file takes only the header's bytes on the disk, and llama.cpp can plan its memory from it. Raises as
    `write_synthetic` does.
    """
    synthetic_bytes(shape, quant)  # refuses an unknown quantisation
    try:
        _write(shape, path, quant, 0, name, with_weights=False)
    except OSError as error:
        raise StoreError(f"cannot write the model's header {path}: {error.strerror or error}") from None
    return path


def _write(
    shape: ModelShape, path: Path, quant: str, seed: int, name: str, with_weights: bool = True
) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer: Any = GGUFWriter(path, shape.architecture)
    try:
        _add_metadata(writer, shape, quant, name, seed)
        kinds = [(tensor, tensor_type(tensor, shape, quant)) for tensor in shape.tensors()]
        for tensor, kind in kinds:
            writer.add_tensor_info(
                tensor.name,
                tensor.shape,
                np.dtype(np.float32),  # not used beside raw_dtype
                kind.row_bytes(math.prod(tensor.shape)),
                raw_dtype=GGMLQuantizationType(kind.number),
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # write_tensor_data needs a whole tensor, and a tensor of a mixture of experts has a gigabyte.
        stream = writer.fout[0]
        writer.write_padding(stream, stream.tell())
        if not with_weights:
            sizes = (kind.row_bytes(math.prod(tensor.shape)) for tensor, kind in kinds)
            stream.truncate(
                stream.tell() + sum(writer.ggml_pad(size, writer.data_alignment) for size in sizes)
            )
            return
        for tensor, kind in kinds:
            for piece in pieces(tensor, kind, seed):
                stream.write(piece.data)
            writer.write_padding(stream, stream.tell())
    finally:
        writer.close()


def _add_metadata(writer: Any, shape: ModelShape, quant: str, name: str, seed: int) -> None:
    writer.add_name(name)
    writer.add_description(f"synthetic: random weights from seed {seed}, of no use but to measure speed")
    writer.add_file_type(FILE_TYPE_BY_NAME[quant])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.embedding_length)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.feed_forward_length)
    writer.add_head_count(shape.head_count)
    writer.add_head_count_kv(shape.head_count_kv)
    writer.add_layer_norm_rms_eps(shape.rms_epsilon)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_rope_dimension_count(shape.head_length)
    writer.add_vocab_size(shape.vocab_size)
    if shape.expert_count:
        writer.add_expert_count(shape.expert_count)
        writer.add_expert_used_count(shape.expert_used_count)
    words = vocabulary(shape.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words.tokens)
    writer.add_token_scores(words.scores)
    writer.add_token_types(words.types)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
