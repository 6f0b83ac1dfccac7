"""Bytes of a file's packed weights in memory, from its header alone."""

from __future__ import annotations

from pathlib import Path

from stratakv.weights.gguf_split import read_gguf_header


def packed_size(path: Path, itemsize: int) -> int:
    """Bytes that a file's weights take when all of its matrices stay packed. itemsize: bytes of an unpacked value."""
    return sum(
        tensor.n_bytes if len(tensor.shape) > 1 else tensor.n_elements * itemsize
        for tensor in read_gguf_header(path).tensors
    )
