"""Kept angles are the rotary embedding's own, for any positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from stratakv.weights.angles import Angles


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@pytest.mark.parametrize("positions", [[[0]], [[255, 256, 257]], [[9000, 3, 511, 3]], [[700], [701]]], ids=str)
def test_angles_are_the_embedding_s(model_type: str, positions: list[list[int]]) -> None:
    rotary: Any = tiny_model(model_type).model.rotary_emb
    angles = Angles(rotary)
    x, ids = torch.zeros(1, 1, 8), torch.tensor(positions)
    for kind in rotary.layer_types if angles.by_type else [None]:
        expected = rotary(x, ids, kind) if kind else rotary(x, ids)
        for found, wanted in zip(angles(x, ids, kind), expected, strict=True):
            assert found.is_contiguous() and found.dtype == torch.float32
            torch.testing.assert_close(found.reshape(wanted.shape), wanted, rtol=0, atol=3e-7)


def test_frequencies_that_follow_the_text_are_asked_for_each_time() -> None:
    rotary: Any = tiny_model("llama").model.rotary_emb
    angles = Angles(rotary)
    x, ids = torch.zeros(1, 1, 8), torch.tensor([[5]])
    before = angles(x, ids, None)[0]
    rotary.rope_type = "dynamic"
    rotary.max_seq_len_cached = rotary.original_max_seq_len = 1 << 20
    rotary.inv_freq = rotary.inv_freq / 2
    assert not torch.allclose(angles(x, ids, None)[0], before)
