"""Synthetic models that are as sure of the next token as trained ones."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFReader

from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic


def write_sharp(shape: ModelShape, path: Path, seed: int, factor: float = 100.0) -> Path:
    """A model whose logits are ``factor`` times those of random weights.

    Random weights make all tokens almost equally likely, so sampling takes another token nearly every time, and even a
    model's own draft would be refused. With large differences, sampling takes the most likely token, as it mostly does
    with a trained model.
    """
    write_synthetic(shape, path, "F16", seed)
    reader = GGUFReader(path, "r+")
    norm = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    norm.data[:] *= factor
    reader.data.flush()
    return path
