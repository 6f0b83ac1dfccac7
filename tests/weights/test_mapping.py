"""Which rows go where: transformers' own tensor processors are asked, and read right."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from stratakv.assets import embedded_model
from stratakv.engine.describe import describe_model
from stratakv.weights.build import _without_weights
from stratakv.weights.gguf_split import read_gguf_header
from stratakv.weights.mapped_file import MappedFile
from stratakv.weights.mapping import is_matrix, map_tensors, row_layout
from stratakv.weights.modules import ClampedSwiGLU, Gated, embedding_scale, gating_of

loader: Any = import_module("transformers.modeling_gguf_pytorch_utils")


def numbers(rows: int, columns: int) -> Any:
    return np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None], (rows, columns))


@given(st.permutations(range(12)), st.integers(1, 9))
def test_a_permutation_of_rows_is_found(order: list[int], columns: int) -> None:
    values = np.random.default_rng(0).standard_normal((12, columns))
    layout = row_layout(numbers(12, columns)[order], 12, columns)
    assert layout is not None and not layout.transposed
    if layout.place is None:
        assert order == sorted(order)
        return
    placed = np.empty_like(values)
    placed[list(layout.place)] = values
    np.testing.assert_array_equal(placed, values[order])


def test_a_transposed_matrix_is_found_square_or_not() -> None:
    for shape in ((6, 4), (4, 6), (5, 5)):
        layout = row_layout(numbers(*shape).T, *shape)
        assert layout is not None and layout.transposed


@pytest.mark.parametrize("moved", [numbers(4, 6) - 1, numbers(4, 6)[:3], np.zeros((4, 6), dtype=np.float32)])
def test_other_changes_are_none(moved: Any) -> None:
    assert row_layout(moved, 4, 6) is None


def test_columns_that_move_are_none() -> None:
    moved = np.arange(24, dtype=np.float32).reshape(4, 6) % 4
    assert row_layout(moved, 4, 6) is None


def test_llama_s_heads_are_what_transformers_makes_of_them() -> None:
    processor = loader.LlamaTensorProcessor(config={"num_attention_heads": 4, "num_key_value_heads": 2})
    values = np.random.default_rng(1).standard_normal((32, 16)).astype(np.float32)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight"):
        layout = row_layout(processor.process(numbers(32, 16), name).weights, 32, 16)
        assert layout is not None and layout.place is not None
        placed = np.empty_like(values)
        placed[list(layout.place)] = values
        np.testing.assert_array_equal(placed, processor.process(values, name).weights)


@pytest.fixture(scope="module")
def model() -> Any:
    return _without_weights(describe_model("embedded").config, torch.float32)


def test_every_matrix_of_the_embedded_model_stays_and_norms_don_t(model: Any) -> None:
    path = embedded_model()
    mapping = map_tensors({path: MappedFile(path)}, read_gguf_header(path), model, lambda type_: None)
    assert len(mapping.packed) == 12 * 7 + 1 and not mapping.unpacked
    assert set(mapping.plain) == {name for name, p in model.named_parameters() if p.dim() == 1}
    q = mapping.packed["model.layers.3.self_attn.q_proj.weight"]
    assert q.place is not None and mapping.packed["model.layers.3.self_attn.v_proj.weight"].place is None


def test_types_that_can_t_be_multiplied_are_unpacked_alone(model: Any) -> None:
    path = embedded_model()
    reasons = {GGMLQuantizationType.Q8_0: "no product"}
    mapping = map_tensors({path: MappedFile(path)}, read_gguf_header(path), model, reasons.get)
    assert not mapping.packed and len(mapping.unpacked) == 12 * 7 + 1
    assert mapping.unpacked[0][1] == "no product"
    expected = {name for name, _ in model.named_parameters()} - {"lm_head.weight"}
    assert set(mapping.plain) >= expected


def test_modules_that_do_more_than_a_product_are_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Scaling(nn.Embedding):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    assert is_matrix(nn.Linear(2, 3)) and is_matrix(nn.Embedding(2, 3)) and is_matrix(Conv1D(3, 2))
    assert not is_matrix(Scaled(2, 3)) and not is_matrix(Scaling(2, 3)) and not is_matrix(nn.LayerNorm(3))


def test_embeddings_that_scale_their_rows_are_known_and_their_number_is_read() -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    class Other(Gemma3TextScaledWordEmbedding):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return super().forward(input_ids) + 1

    assert embedding_scale(nn.Embedding(5, 4)) == 1.0
    assert embedding_scale(Gemma3TextScaledWordEmbedding(5, 4, 0, embed_scale=25.3)) == 25.3
    assert embedding_scale(Other(5, 4, 0, embed_scale=25.3)) is None


def test_experts_are_known_by_their_parameters() -> None:
    experts = nn.Module()
    experts.act_fn = nn.SiLU()
    experts.gate_up_proj = nn.Parameter(torch.zeros(4, 12, 8))
    experts.down_proj = nn.Parameter(torch.zeros(4, 8, 6))
    assert isinstance(gating_of(experts), Gated)
    experts.bias = nn.Parameter(torch.zeros(8))
    assert gating_of(experts) is None
    assert gating_of(nn.Linear(2, 3)) is None


def test_gpt_oss_s_experts_are_known_by_what_they_do() -> None:
    experts: Any = tiny_model("gpt_oss").model.layers[0].mlp.experts
    gating = gating_of(experts)
    assert isinstance(gating, ClampedSwiGLU) and (gating.alpha, gating.limit) == (1.702, 7.0)
    experts._apply_gate = lambda both: both[..., ::2] * both[..., 1::2]
    assert gating_of(experts) is None
