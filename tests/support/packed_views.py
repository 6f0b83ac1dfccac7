"""Random packed pages, for tests of kernels."""

from __future__ import annotations

import torch

from stratakv.cache.handle import PackedView, view_of
from stratakv.cache.pages import PageStore
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PageLayout


def pages(
    k: str, v: str, dims: tuple[int, int], tokens: int, batch: int = 2, heads: int = 2, seed: int = 0
) -> PackedView:
    generator = torch.Generator().manual_seed(seed)
    store = PageStore(PageLayout(kv_type(k), kv_type(v), *dims, heads), torch.device("cpu"))
    tables = []
    for _ in range(batch):
        k_states, v_states = (torch.randn(heads, tokens, dim, generator=generator) for dim in dims)
        table = []
        store.write(table, 0, torch.cat([kv_type(k).encode(k_states), kv_type(v).encode(v_states)], -1))
        tables.append(tuple(table))
    return view_of(store, tables, 0, tokens)
