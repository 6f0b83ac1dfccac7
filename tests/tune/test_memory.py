"""The memory of gradients: told before they are asked for, and in one piece where it lasts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import loaded_tiny
from transformers import DynamicCache

from stratakv.errors import UserError
from stratakv.kvtypes import type_names
from stratakv.tune import memory
from stratakv.tune.layers import chain


@pytest.mark.parametrize(
    ("spans", "remedy", "switch"),
    [
        (False, None, "smaller -c than 512$"),
        (True, None, "smaller -c than 512 or --recent 0"),
        (False, "--far 0 does", "free: --far 0 does$"),
    ],
)
def test_too_little_memory_names_the_switches(
    spans: bool, remedy: str | None, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = loaded_tiny("llama")
    memory.check_gradient_memory(loaded, 512, 1, spans, remedy)
    monkeypatch.setattr(memory, "free_memory", lambda: 1 << 20)
    with pytest.raises(UserError, match=f"512 tokens need about .* GiB beside the weights.*{switch}"):
        memory.check_gradient_memory(loaded, 512, 1, spans, remedy)


def test_more_draws_and_pages_take_more() -> None:
    loaded = loaded_tiny("llama")
    least = memory.gradient_memory(loaded, 512, 1)
    assert least < memory.gradient_memory(loaded, 512, 2) < memory.gradient_memory(loaded, 512, 2, 4)
    assert least < memory.gradient_memory(loaded, 1024, 1)


def test_what_is_noted_of_every_page_and_type_counts() -> None:
    """More than the gradients themselves, where vectors are short."""
    loaded, types = loaded_tiny("llama"), type_names()
    layer = loaded.geometry.kv_layers[0]
    noted = 4 * len(types) * layer.kv_heads * 512 * np.dtype(np.float64).itemsize
    gradients = 4 * layer.kv_heads * sum(layer.head_dim) * 512 * 4
    assert noted > gradients
    assert memory.gradient_memory(loaded, 512, 1, 4) - memory.gradient_memory(loaded, 512, 1, 0) == noted + gradients


def test_hidden_states_of_all_layers_are_one_piece() -> None:
    loaded = loaded_tiny("llama")
    ids = torch.arange(3, 27)[None]
    links = chain(loaded, ids, DynamicCache(config=loaded.model.config))
    assert links is not None
    assert len({call.x.untyped_storage().data_ptr() for call in links.calls}) == 1
    with torch.no_grad():
        states = loaded.model(input_ids=ids, output_hidden_states=True).hidden_states
    for call, state in zip(links.calls, states, strict=False):
        torch.testing.assert_close(call.x, state)
