"""Bytes of a model's weights in memory, from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stratakv.weights import ggml
from stratakv.weights.gguf_header import read_gguf_header

if TYPE_CHECKING:
    from stratakv.engine.describe import ModelDescription


def stays_packed(description: ModelDescription) -> bool:
    """Whether a model's matrices stay in its file's blocks, as far as its header tells."""
    return bool(description.gguf) and ggml.unavailable() is None


def weights_size(description: ModelDescription, itemsize: int, *, packed: bool = True) -> int:
    """Bytes that `load_model` needs for the weights. itemsize: bytes of an unpacked one."""
    if packed and stays_packed(description):
        return packed_size(description.path, itemsize)
    return description.values * itemsize


def packed_size(path: Path, itemsize: int) -> int:
    """Bytes that a file's weights take when all of its matrices stay packed."""
    return sum(
        tensor.n_bytes if len(tensor.shape) > 1 else tensor.n_elements * itemsize
        for tensor in read_gguf_header(path).tensors
    )
