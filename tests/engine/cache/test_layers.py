"""A layer's sequences against plain tensors: shared pages are copied before they are written, none is lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.engine.cache.layers import PackedLayer, PackedSlidingLayer
from stratakv.engine.cache.steps import Steps
from stratakv.kernels.choice import kernel_names
from stratakv.kvtypes import kv_type

F32 = kv_type("f32")


def _states(batch: int, tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, 1, tokens, 8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kernel=st.sampled_from([kernel_names()[0], "torch"]))
def test_a_history_of_updates_crops_and_beams(data: st.DataObject, kernel: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRATAKV_KERNEL", kernel)
        layer, shadow = PackedLayer("layer", F32, F32), _states(2, 150, 0)
        layer.update(shadow.clone(), -shadow)
        for seed in range(data.draw(st.integers(1, 10))):
            action = data.draw(st.sampled_from(["update", "update", "crop", "beams", "repeat"]))
            if action == "update":
                new = _states(len(shadow), data.draw(st.integers(1, 200)), seed)
                shadow = torch.cat([shadow, new], dim=2)
                key, value = layer.update(new, -new)
                assert torch.equal(key + 0, shadow) and torch.equal(value + 0, -shadow)
            elif action == "crop":
                count = data.draw(st.integers(0, shadow.shape[2] - 1))
                layer.crop(-count)
                shadow = shadow[:, :, : shadow.shape[2] - count]
            elif action == "beams":
                chosen = torch.tensor(data.draw(st.lists(st.integers(0, len(shadow) - 1), min_size=1, max_size=4)))
                layer.batch_select_indices(chosen)
                shadow = shadow[chosen]
            elif len(shadow) < 4:
                layer.batch_repeat_interleave(2)
                shadow = shadow.repeat_interleave(2, dim=0)
            used = {page for table in layer.tables for page in table}
            assert layer.pages.used == len(used) and layer.nbytes == len(used) * layer.pool.layout.page_bytes
            assert {len(table) for table in layer.tables} == {-(-shadow.shape[2] // 128)}
        layer.reset()
        assert layer.nbytes == 0


def test_layers_with_the_same_history_share_their_steps() -> None:
    steps = Steps()
    layers = [PackedLayer(f"layer {i}", F32, F32, steps=steps) for i in range(3)]
    window = PackedSlidingLayer("window", F32, F32, 40, steps=steps)
    other = PackedLayer("other", F32, F32, steps=steps)
    other.update(_states(2, 200, 0), _states(2, 200, 0))
    other.crop(-100)
    other.batch_select_indices(torch.tensor([1, 0]))
    for tokens in (100, 1, 60, 1):
        made = []
        for layer in (*layers, window, other):
            if layer is other and tokens == 100:
                continue
            x = _states(2, tokens, tokens)
            handle, _ = layer.update(x, x)
            made.append(handle.placed.step)
        assert made[0] is made[1] is made[2]
        assert made[3] is not made[0]
        if tokens < 100:  # the same length, other pages
            assert made[4] is not made[0] and other.tables != layers[0].tables


def test_the_window_s_pages_are_used_again() -> None:
    layer = PackedSlidingLayer("window", F32, F32, 100)
    for seed in range(20):
        x = _states(1, 60, seed)
        key, _ = layer.update(x, x)
        assert torch.equal(key[:, :, -60:], x)
    assert max(page for table in layer.tables for page in table) < 4
