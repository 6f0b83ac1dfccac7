"""Bytes of a described model's weights in memory, from headers alone."""

from __future__ import annotations

from stratakv.engine.describe import ModelDescription
from stratakv.weights import ggml
from stratakv.weights.size import packed_size


def stays_packed(description: ModelDescription) -> bool:
    """Whether a model's matrices stay in its file's blocks, as far as its header tells."""
    return bool(description.gguf) and ggml.unavailable() is None


def weights_size(description: ModelDescription, itemsize: int, *, packed: bool = True) -> int:
    """Bytes that `load_model` needs for the weights. itemsize: bytes of an unpacked one."""
    if packed and stays_packed(description):
        return packed_size(description.path, itemsize)
    return description.values * itemsize
