"""The page layout is a permutation, exact both ways, and pools give back what was written, however they grow."""

from __future__ import annotations

import mmap
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.kvtypes import kv_type, type_names
from stratakv.pages.layout import ORDERS, PAGE_TOKENS, Order, PageLayout
from stratakv.pages.pool import GrowingPool, Pool

TYPES = st.sampled_from(type_names())


@settings(max_examples=60, deadline=None)
@given(
    k=TYPES,
    v=TYPES,
    dims=st.sampled_from([(128, 128), (64, 64), (80, 80), (96, 96), (256, 256), (512, 64), (8, 8), (192, 128)]),
    order=st.sampled_from(ORDERS),
)
def test_positions_are_a_permutation_of_the_tile(k: str, v: str, dims: tuple[int, int], order: Order) -> None:
    layout = PageLayout(kv_type(k), kv_type(v), *dims, kv_heads=2, order=order)
    positions = layout.positions
    assert positions.shape == (PAGE_TOKENS, layout.k_bytes + layout.v_bytes)
    assert np.array_equal(np.sort(positions.reshape(-1)), np.arange(layout.tile_bytes))


def test_k_words_of_16_tokens_lie_side_by_side() -> None:
    positions = PageLayout(kv_type("turbo4"), kv_type("turbo4"), 128, 128, 1).positions
    codes = positions[:, 2:66]  # canonical bytes: an f16 norm, 64 bytes of indices
    assert codes[:16, :4].reshape(-1).tolist() == list(range(64))  # one 64-byte vector: 16 tokens x 4 bytes
    v_codes = positions[:, 66 + 2 : 132] - PAGE_TOKENS * 64
    assert v_codes[:4, :16].T.reshape(-1).tolist() == list(range(64))  # 16 bytes x 4 tokens
    norms = positions[:, 0:2]
    assert norms.reshape(-1).tolist() == list(range(PAGE_TOKENS * 128, PAGE_TOKENS * 130))


def test_in_rows_a_token_s_codes_lie_side_by_side() -> None:
    layout = PageLayout(kv_type("turbo4"), kv_type("q5_0"), 128, 64, 1, order="rows")
    assert layout.name == f"rows{PAGE_TOKENS}-v1"
    assert layout.positions[:, 2:66].reshape(-1).tolist() == list(range(PAGE_TOKENS * 64))
    norms = PAGE_TOKENS * (64 + 40)
    assert layout.positions[:, 0:2].reshape(-1).tolist() == list(range(norms, norms + 2 * PAGE_TOKENS))
    high, low = layout.positions[1, 66 + 2 : 66 + 6], layout.positions[1, 66 + 6 : 66 + 22]  # q5's first block
    assert (high - PAGE_TOKENS * 64 - 8).tolist() == list(range(4))
    assert (low - PAGE_TOKENS * (64 + 8) - 32).tolist() == list(range(16))


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="'columns': allowed are tile, rows"):
        PageLayout(kv_type("f16"), kv_type("f16"), 64, 64, 1, order="columns")  # type: ignore[arg-type]


CPU = torch.device("cpu")


def _layout(k: str = "turbo4", v: str = "turbo3", dim: int = 64, heads: int = 2) -> PageLayout:
    return PageLayout(kv_type(k), kv_type(v), dim, dim, heads)


def _random_rows(layout: PageLayout, tokens: int, seed: int) -> torch.Tensor:
    shape = tokens, layout.kv_heads, layout.k_bytes + layout.v_bytes
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.integers(1, 300), min_size=1, max_size=6), cut=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_what_is_written_in_pieces_is_read_whole(pieces: list[int], cut: tuple[float, float]) -> None:
    pool = Pool.fixed(_layout(), 20, CPU)
    rows = _random_rows(pool.layout, sum(pieces), 0)
    table = np.random.default_rng(len(pieces)).permutation(20)[: -(-len(rows) // PAGE_TOKENS)]
    position = np.arange(len(rows))
    slots = table[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
    for begin, count in zip(np.cumsum([0, *pieces]), pieces, strict=False):
        pool.write_tokens(slots[begin : begin + count], rows[begin : begin + count])
    low, high = sorted(int(x * len(rows)) for x in cut)
    if low < high:
        assert torch.equal(pool.read_tokens(table[None], low, high - low)[0], rows[low:high].transpose(0, 1))


@pytest.mark.parametrize("reserved", [2**30, 1])
def test_growth_keeps_what_is_there(reserved: int) -> None:
    """And moves nothing where address space was to be had."""
    pool = GrowingPool(_layout(), CPU, reserved)
    base, written = pool.base, []
    for page in range(400):
        pool.reserve(page + 1)
        written.append(_random_rows(pool.layout, PAGE_TOKENS, page)[None].transpose(1, 2))
        pool.write(torch.tensor([page]), written[-1])
    assert (pool.base == base) is (reserved > 1)
    assert torch.equal(pool.read(torch.arange(400)), torch.cat(written))


def test_growth_where_address_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a system counts what is taken (vm.overcommit_memory 2)."""
    take = mmap.mmap

    def small_only(fd: int, size: int, **options: Any) -> mmap.mmap:
        if size > 2**24:
            raise OSError("Cannot allocate memory")
        return take(fd, size, **options)

    monkeypatch.setattr(mmap, "mmap", small_only)
    pool = GrowingPool(_layout(), CPU)
    rows = _random_rows(pool.layout, 100 * PAGE_TOKENS, 0)
    for page in range(100):
        pool.reserve(page + 1)
        here = slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
        pool.write_tokens(np.arange(here.start, here.stop), rows[here])
    assert torch.equal(pool.read_tokens(np.arange(100)[None], 0, len(rows))[0], rows.transpose(0, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_take_the_memory_that_they_fill() -> None:
    """Address space is not memory, and huge pages are taken where they are filled: no layer keeps half of one unused."""
    script = (
        "import psutil, torch, numpy as np\n"
        "from stratakv.kvtypes import kv_type\n"
        "from stratakv.pages.layout import PageLayout\n"
        "from stratakv.pages.pool import GrowingPool\n"
        "layout = PageLayout(kv_type('turbo4'), kv_type('turbo4'), 128, 128, 2)\n"
        "pools = [GrowingPool(layout, torch.device('cpu')) for _ in range(30)]\n"
        "page = torch.ones(layout.page_bytes, dtype=torch.uint8)\n"
        "rss = lambda: psutil.Process().memory_info().rss\n"
        "before = rss()\n"
        "for number in range(70):\n"
        "    for pool in pools:\n"
        "        pool.reserve(number + 1)\n"
        "        pool.memory[number] = page\n"
        "print((rss() - before) / (30 * 70 * layout.page_bytes))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.1


def test_memory_of_another_shape_is_refused() -> None:
    layout = _layout()
    with pytest.raises(ValueError, match=f"uint8 \\[pages, {layout.page_bytes}\\]"):
        Pool(layout, torch.zeros(3, layout.page_bytes + 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="side by side"):
        Pool(layout, torch.zeros(3, 2 * layout.page_bytes, dtype=torch.uint8)[:, ::2])
    with pytest.raises(IndexError, match="page 3: the pool has 3"):
        Pool.fixed(layout, 3, CPU).reserve(4)


@pytest.mark.parametrize("name", type_names())
def test_a_vector_survives_the_page_bit_by_bit(name: str) -> None:
    pool = Pool.fixed(_layout(name, name, dim=128), 4, CPU)
    packed = kv_type(name).encode(torch.randn(200, 2, 128, generator=torch.Generator().manual_seed(3)))
    pool.write_tokens(np.arange(200), torch.cat([packed, packed], dim=-1))
    read = pool.read_tokens(np.arange(4)[None], 0, 200)[0].transpose(0, 1)
    assert torch.equal(read[..., : packed.shape[-1]], packed)
    assert torch.equal(read[..., packed.shape[-1] :], packed)


def test_systems_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux refuses the advice where it was built without: the server ended there."""

    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr("stratakv.pages.memory.mmap.mmap", Refusing)
    layout = PageLayout(kv_type("f16"), kv_type("f16"), 128, 128, 8)
    fixed, growing = Pool.fixed(layout, 4, torch.device("cpu")), GrowingPool(layout, torch.device("cpu"))
    for pool in (fixed, growing):
        for pages in range(1, 5):
            pool.reserve(pages)
            pool.memory[pages - 1] = pages
        assert pool.memory[:4, 0].tolist() == [1, 2, 3, 4]
