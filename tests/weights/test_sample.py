"""Weights of the same shapes are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from tiny_models import loaded_tiny
from torch import nn

from stratakv.weights import ggml
from stratakv.weights.mapped_file import MappedFile
from stratakv.weights.modules import PackedEmbedding
from stratakv.weights.packed import PackedTensor
from stratakv.weights.sample import weights_sample


def test_trained_further() -> None:
    """A slot of one was taken for the other's."""
    model = loaded_tiny("llama").model
    first = weights_sample(model)
    assert weights_sample(model) == first
    with torch.no_grad():
        model.model.layers[2].self_attn.v_proj.weight += 1e-4
    assert weights_sample(model) != first


def test_other_dtypes_are_other_weights() -> None:
    model = loaded_tiny("llama").model
    assert weights_sample(model) != weights_sample(model.to(torch.bfloat16))


@pytest.mark.skipif(ggml.unavailable() is not None, reason=f"ggml's kernels: {ggml.unavailable()}")
def test_packed_weights(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)

    def sample(name: str, values: np.ndarray) -> str:
        packed, path = quantize(values, GGMLQuantizationType.Q8_0), tmp_path / name
        path.write_bytes(b"head" * 8 + packed.tobytes())
        tensor = PackedTensor(MappedFile(path), "t", GGMLQuantizationType.Q8_0, values.shape, 32, packed.nbytes)
        return weights_sample(nn.Sequential(PackedEmbedding(tensor, torch.float32)))

    assert sample("a", rows) == sample("b", rows) != sample("c", rows * 1.01)
