"""With a lossless type, every architecture gives the stock cache's logits, and the geometry says what is really stored."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_model
from transformers import DynamicCache

from stratakv import KVCache, use
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.cache.layers import PackedLayer

PIECES = (7, 5, 1, 1, 4, 1)  # a prompt, a chunk, tokens, a chunk: past the windows of 6


@torch.no_grad()
def _logits(model, cache, ids: torch.Tensor) -> torch.Tensor:
    out, start = [], 0
    for count in PIECES:
        piece = ids[:, start : start + count]
        out.append(model(input_ids=piece, past_key_values=cache, use_cache=True).logits)
        start += count
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
@pytest.mark.parametrize("attention", ["stratakv", "stock"])
def test_same_logits_as_the_stock_cache(model_type: str, attention: str) -> None:
    model = tiny_model(model_type)
    ids = torch.randint(3, 97, (2, sum(PIECES)), generator=torch.Generator().manual_seed(1))
    expected = _logits(model, DynamicCache(config=model.config), ids)
    cache = KVCache(model.config, "f32")
    if attention == "stratakv":
        use(model)
    torch.testing.assert_close(_logits(model, cache, ids), expected, rtol=1e-4, atol=2e-4)
    assert cache.nbytes() > 0


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_geometry_is_what_the_model_stores(model_type: str) -> None:
    model = tiny_model(model_type)
    cache = KVCache(model.config, "f32")
    with torch.no_grad():
        model(input_ids=torch.randint(3, 97, (1, 9)), past_key_values=cache, use_cache=True)
    for layer, stored in zip(geometry_of(model.config).layers, cache.layers, strict=True):
        assert isinstance(stored, PackedLayer) is (layer.ordinal is not None), layer
        if isinstance(stored, PackedLayer):
            layout = stored.pool.layout
            assert (layout.k_dim, layout.v_dim, layout.kv_heads) == (*layer.head_dim, layer.kv_heads), layer
