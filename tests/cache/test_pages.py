"""The page layout is a permutation, exact both ways, and the store never moves or re-encodes what it holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.cache.pages import PageStore
from stratakv.kvtypes import kv_type, type_names
from stratakv.pages.layout import PAGE_TOKENS, PageLayout

TYPES = st.sampled_from(type_names())


@settings(max_examples=60, deadline=None)
@given(
    k=TYPES,
    v=TYPES,
    dims=st.sampled_from([(128, 128), (64, 64), (80, 80), (96, 96), (256, 256), (512, 64), (8, 8), (192, 128)]),
)
def test_positions_are_a_permutation_of_the_tile(k: str, v: str, dims: tuple[int, int]) -> None:
    layout = PageLayout(kv_type(k), kv_type(v), *dims, kv_heads=2)
    positions = layout.positions
    assert positions.shape == (PAGE_TOKENS, layout.k_bytes + layout.v_bytes)
    assert np.array_equal(np.sort(positions.reshape(-1)), np.arange(layout.tile_bytes))


def test_k_words_of_16_tokens_lie_side_by_side() -> None:
    positions = PageLayout(kv_type("turbo4"), kv_type("turbo4"), 128, 128, 1).positions
    codes = positions[:, 2:66]  # canonical bytes: an f16 norm, 64 bytes of indices
    assert codes[:16, :4].reshape(-1).tolist() == list(range(64))  # one 64-byte vector: 16 tokens x 4 bytes
    v_codes = positions[:, 66 + 2 : 132] - 128 * 64
    assert v_codes[:4, :16].T.reshape(-1).tolist() == list(range(64))  # 16 bytes x 4 tokens
    norms = positions[:, 0:2]
    assert norms.reshape(-1).tolist() == list(range(128 * 128, 128 * 128 + 256))


def _store(k: str = "turbo4", v: str = "turbo3", dim: int = 64, heads: int = 2) -> PageStore:
    return PageStore(PageLayout(kv_type(k), kv_type(v), dim, dim, heads), torch.device("cpu"))


def _random_rows(store: PageStore, tokens: int, seed: int) -> torch.Tensor:
    width = store.layout.k_bytes + store.layout.v_bytes
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (store.layout.kv_heads, tokens, width), dtype=torch.uint8, generator=generator)


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.integers(1, 300), min_size=1, max_size=6), cut=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_what_is_written_in_pieces_is_read_whole(pieces: list[int], cut: tuple[float, float]) -> None:
    store, table = _store(), []
    rows = _random_rows(store, sum(pieces), 0)
    start = 0
    for count in pieces:
        store.write(table, start, rows[:, start : start + count])
        start += count
    low, high = sorted(int(x * start) for x in cut)
    if low < high:
        assert torch.equal(store.read([table], low, high - low)[0], rows[:, low:high])
    assert store.pages == len(table) == -(-start // PAGE_TOKENS)
    assert store.nbytes == len(table) * store.layout.page_bytes


def test_growth_moves_nothing() -> None:
    store, table = _store(), []
    store.write(table, 0, _random_rows(store, 130, 1))
    addresses, first = [page.data.data_ptr() for page in table], table[0].data.clone()
    for step in range(300):
        store.write(table, 130 + step, _random_rows(store, 1, step))
    assert [page.data.data_ptr() for page in table][:2] == addresses
    assert torch.equal(table[0].data, first)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_shared_pages_are_copied_on_write_and_freed_once(data: st.DataObject) -> None:
    """A random history of append, fork and drop against plain tensors: contents right, no page lost."""
    store = _store(dim=8, heads=1)
    tables, shadows = [[]], [torch.empty(1, 0, store.layout.k_bytes + store.layout.v_bytes, dtype=torch.uint8)]
    for seed in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["append", "append", "fork", "drop"]))
        which = data.draw(st.integers(0, len(tables) - 1)) if tables else 0
        if action == "append" and tables:
            rows = _random_rows(store, data.draw(st.integers(1, 200)), seed)
            store.write(tables[which], shadows[which].shape[1], rows)
            shadows[which] = torch.cat([shadows[which], rows], dim=1)
        elif action == "fork" and tables:
            tables.append([store.share(page) for page in tables[which]])
            shadows.append(shadows[which])
        elif action == "drop" and tables:
            for page in tables.pop(which):
                store.release(page)
            shadows.pop(which)
    for table, shadow in zip(tables, shadows, strict=True):
        if shadow.shape[1]:
            assert torch.equal(store.read([table], 0, shadow.shape[1])[0], shadow)
    assert store.pages == len({id(page) for table in tables for page in table})


@pytest.mark.parametrize("name", type_names())
def test_a_vector_survives_the_page_bit_by_bit(name: str) -> None:
    store, table = _store(name, name, dim=128), []
    x = torch.randn(2, 200, 128, generator=torch.Generator().manual_seed(3))
    packed = kv_type(name).encode(x)
    store.write(table, 0, torch.cat([packed, packed], dim=-1))
    read = store.read([table], 0, 200)[0]
    assert torch.equal(read[..., : packed.shape[-1]], packed)
    assert torch.equal(read[..., packed.shape[-1] :], packed)
