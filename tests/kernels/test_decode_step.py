"""A decode step allocates nothing of the history's size, and what it allocates doesn't grow with the context."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import profile

from stratakv import KVCache, load_model
from stratakv.kernels.choice import kernel_names

pytestmark = pytest.mark.skipif(
    len(kernel_names()) == 1, reason="installed without a C++ compiler: the torch body decodes the history"
)


def largest_allocation(loaded, tokens: int) -> int:
    """Bytes of the largest single allocation of torch during one decode step after `tokens` tokens."""
    cache = KVCache(loaded.model.config, "turbo4")
    with torch.inference_mode():
        for layer in range(12):
            cache.update(torch.randn(1, 2, tokens, 128), torch.randn(1, 2, tokens, 128), layer)
        step = torch.tensor([[7]])
        loaded.model(step, past_key_values=cache)
        with profile(profile_memory=True) as recorded:
            loaded.model(step, past_key_values=cache)
    return max(event.self_cpu_memory_usage for event in recorded.events())


def test_no_allocation_of_history_size() -> None:
    loaded = load_model("embedded")
    short, long = largest_allocation(loaded, 1000), largest_allocation(loaded, 16_000)
    packed_layer = 16_000 * 2 * 132
    assert 0 < short <= long <= short + 1024 < packed_layer / 20
