"""A decode step's work is linear in the context, in the compiled kernel alone; nothing of the history's size is allocated."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch.profiler import profile

from stratakv import KVCache, load_model
from stratakv.kernels.choice import kernel_for, kernel_names
from stratakv.kernels.kernel import Options
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import Pool

pytestmark = pytest.mark.skipif(
    len(kernel_names()) == 1, reason="installed without a C++ compiler: the torch body decodes the history"
)


def decode_step(loaded, tokens: int) -> tuple[int, list[str]]:
    """One step after `tokens` tokens: bytes of torch's largest single allocation, and all operations of torch, in order."""
    cache = KVCache(loaded.model.config, "turbo4")
    with torch.inference_mode():
        for layer in range(12):
            cache.update(torch.randn(1, 2, tokens, 128), torch.randn(1, 2, tokens, 128), layer)
        step = torch.tensor([[7]])
        loaded.model(step, past_key_values=cache)
        with profile(profile_memory=True) as recorded:
            loaded.model(step, past_key_values=cache)
    events = recorded.events()
    return max(event.self_cpu_memory_usage for event in events), [e.name for e in events if e.name.startswith("aten::")]


def test_torch_does_the_same_and_allocates_nothing_of_history_size() -> None:
    loaded = load_model("embedded")
    (short, few), (long, many) = decode_step(loaded, 1000), decode_step(loaded, 16_000)
    packed_layer = 16_000 * 2 * 132
    assert 0 < short <= long <= short + 1024 < packed_layer / 20
    assert few == many


def test_the_kernel_s_time_is_linear_in_the_context() -> None:
    """By CPU time, the least of many calls: 4 times the tokens take 4 times as long, where quadratic work would take 16."""
    layout = PageLayout(kv_type("turbo4"), kv_type("turbo4"), 128, 128, 1)
    pool = Pool.fixed(layout, 256, torch.device("cpu"))
    states = torch.randn(pool.capacity * PAGE_TOKENS, 1, 128, generator=torch.Generator().manual_seed(0))
    kernel = kernel_for(layout, pool.device)
    kernel.append(pool, states, states, np.arange(len(states), dtype=np.int64), new_codes())
    query, threads = states[:1].expand(-1, 4, -1), torch.get_num_threads()
    torch.set_num_threads(1)
    least = {64: float("inf"), 256: float("inf")}
    for _ in range(40):
        for pages in least:
            step = Step.causal([np.arange(pages)], [pages * PAGE_TOKENS], [1])
            start = time.thread_time_ns()
            kernel.attend(query, pool, step, Options(0.1))
            least[pages] = min(least[pages], time.thread_time_ns() - start)
    torch.set_num_threads(threads)
    assert 2 < least[256] / least[64] < 8
