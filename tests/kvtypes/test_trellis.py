from __future__ import annotations

import dataclasses
import hashlib
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import check_against_a_scalar_decoder, randn

from stratakv.kvtypes import kv_type
from stratakv.kvtypes.normed import NormedType
from stratakv.kvtypes.trellis import TrellisType
from stratakv.kvtypes.trellis_levels import BINS, BINS_A_DEVIATION, LEVELS
from stratakv.kvtypes.viterbi import FARTHEST, TRELLISES, Trellis

BITS = (2, 3, 4, 5, 6)
FROZEN = {
    2: ("37484e00f5c4", "19c886cff7d885de"),
    3: ("b746431a07c884f7", "8dea7d5389aa7c43"),
    4: ("bc46df43332438ba37d2", "0239f61949fcbb06"),
    5: ("de462e683c33433a35da5184", "1e9764be13de2867"),
    6: ("c6465c94417db96647961e51f7d1", "77cde3040cbc5d48"),
}
TAPS = {8: ((0, 1, 3), (2,)), 64: ((0, 1, 6), (2, 4)), 256: ((0, 2, 3, 6, 8), (1, 4, 5, 6, 7))}


def trellis_type(bits: int) -> TrellisType:
    type_ = kv_type(f"tcq{bits}")
    assert isinstance(type_, TrellisType)
    return type_


def slow_values(type_: TrellisType, data: bytes, block: int) -> list[float]:
    """A block's values over its norm, one by one from its bytes, as the docstring of `trellis` draws them."""
    narrow = {2: 2, 3: 1, 4: 4, 5: 1, 6: 2}[type_.bits]
    wide = type_.bits - narrow
    apart = narrow * block // 8
    codes = data[2:]
    ratio = wide // narrow

    def narrow_field(i: int) -> int:
        return codes[(wide * block + narrow * i) // 8] >> (narrow * i) % 8 & (1 << narrow) - 1

    def u(i: int) -> int:
        low = 0
        if wide:
            byte, t = divmod(i, 8 // narrow)
            low = codes[byte + t % ratio * apart] >> wide * (t // ratio) & (1 << wide) - 1
        return low | narrow_field(i) >> 1 << wide

    path = [8 * (p % (block // 8)) + p // (block // 8) for p in range(block)]
    h0, h1 = TAPS[type_.states]
    values = [0.0] * block
    for p, i in enumerate(path):
        z1, z0 = (sum(narrow_field(path[(p - j) % block]) & 1 for j in taps) % 2 for taps in (h0, h1))
        values[i] = type_.levels.integers[4 * u(i) + 2 * z1 + z0] * type_.levels.unit(block)
    return values


@pytest.mark.parametrize("head_dim", [8, 24, 64, 80, 112, 128, 256])
@pytest.mark.parametrize("bits", BITS)
def test_bytes_against_a_scalar_decoder(head_dim: int, bits: int) -> None:
    block_bytes = kv_type(f"turbo{bits}").nbytes(128 if head_dim % 128 == 0 else head_dim)
    for states in (states for each, states in LEVELS if each == bits):
        type_ = dataclasses.replace(trellis_type(bits), states=states)
        values = partial(slow_values, type_)
        check_against_a_scalar_decoder(type_, randn(3, head_dim, seed=bits), block_bytes, values)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(BITS), st.sampled_from((8, 64, 80, 128)), st.integers(0, 2**31))
def test_any_bytes_are_codes(bits: int, block: int, seed: int) -> None:
    """Reading undoes packing whatever the codes are."""
    type_ = trellis_type(bits)
    codes = torch.randint(0, 2**bits, (3, block), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    planes = type_._pack(codes)
    assert [plane.shape[1] for plane in planes] == [f.nbytes for f in type_.fields(block) if f.kind == "codes"]
    assert torch.equal(type_._unpack(planes), codes)


@pytest.mark.parametrize("head_dim", [16, 24, 64, 80, 112, 320])
def test_less_error_than_turbo_at_every_block(head_dim: int) -> None:
    for bits in BITS:
        x, errors = randn(40_000 // head_dim, head_dim, seed=5), []
        for name in (f"tcq{bits}", f"turbo{bits}"):
            decoded = kv_type(name).decode(kv_type(name).encode(x), head_dim)
            errors.append(float(((decoded - x).square().sum(-1) / x.square().sum(-1)).mean()))
        assert errors[0] < errors[1] * 0.85, (bits, errors)


def test_more_states_have_less_error() -> None:
    x = randn(300, 128, seed=4)
    types = [dataclasses.replace(trellis_type(3), states=states) for bits, states in LEVELS if bits == 3]
    errors = [float((type_.decode(type_.encode(x), 128) - x).square().sum()) for type_ in types]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", BITS)
def test_frozen_bytes(bits: int) -> None:
    """Stored bytes are a promise: a change of one is a new version of the type."""
    i = np.arange(256)
    x = torch.from_numpy(np.float32(np.sin(0.1 * i) + 0.5 * np.cos(0.37 * i) + 6.0 * (i == 7) - 9.0 * (i == 200)))
    packed = [bytes(kv_type(f"tcq{bits}").encode(part).tolist()) for part in (x[:16], x[:80], x)]
    assert packed[0].hex() == FROZEN[bits][0]
    assert hashlib.sha256(b"".join(packed)).hexdigest()[:16] == FROZEN[bits][1]


@pytest.mark.parametrize(("states", "often", "excess"), [(8, 0.85, 0.01), (64, 0.4, 0.1), (256, 0.1, 0.35)])
def test_paths_cost_hardly_more_than_the_least(states: int, often: float, excess: float) -> None:
    """Against every way round a block of 12, which is short for the trellises of long memory."""
    trellis = TRELLISES[states]
    subsets = trellis.subsets(torch.arange(2**12)[:, None] >> torch.arange(12) & 1)
    distances = torch.randint(0, 200, (100, 12, 4), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    chosen = trellis.subsets(trellis.cheapest(distances).to(torch.int64))
    cost = distances.gather(2, chosen[..., None]).sum((1, 2))
    least = torch.stack([each.gather(1, subsets.T).sum(0).min() for each in distances])
    assert (cost >= least).all()
    assert (cost == least).float().mean() > often
    assert cost.sum() < (1 + excess) * least.sum()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(tuple(TRELLISES)), st.sampled_from((8, 16, 24, 80)), st.integers(0, 2**31), st.integers(1, 4))
def test_search_against_a_plain_one(states: int, block: int, seed: int, top: int) -> None:
    """The same rule state by state; small distances, so that there are ties."""
    trellis = TRELLISES[states]
    generator = torch.Generator().manual_seed(seed)
    distances = torch.randint(0, top + 1, (2, block, 4), generator=generator, dtype=torch.int32)
    found = trellis.cheapest(distances).tolist()
    for row, each in zip(found, distances.tolist(), strict=True):
        order = [i % block for i in range(-32, 32)]
        metric, ways = _plain(trellis, [each[i] for i in order], [0] * states)
        state = min(range(states), key=lambda s: (metric[s], s))
        for way in reversed(ways[32:]):
            state = way[state]
        start, bits = state, []
        _, ways = _plain(trellis, each, [0 if s == start else 1 << 24 for s in range(states)])
        for way in reversed(ways):
            bits.append(state & 1)
            state = way[state]
        assert state == start
        assert row == bits[::-1]


def _plain(trellis: Trellis, distances: list[list[int]], metric: list[int]) -> tuple[list[int], list[list[int]]]:
    """Metrics after the distances, and by value the state that each state comes from."""
    ways = []
    for distance in distances:
        new, way = [], []
        for t in range(trellis.states):
            candidates = [
                (metric[s] + distance[trellis.subset_of(s << 1 | t & 1)], s)
                for s in (t >> 1, (t >> 1) + trellis.states // 2)
            ]
            cost, before = min(candidates)
            new.append(cost)
            way.append(before)
        metric, ways = new, [*ways, way]
    return metric, ways


@pytest.mark.parametrize("key", LEVELS)
def test_tables(key: tuple[int, int]) -> None:
    levels = LEVELS[key]
    assert len(levels.half) == 2 ** key[0] and levels.half[-1] <= 127 and levels.half[0] >= 1
    assert (np.diff(levels.half) > 0).all()
    numbers, costs = levels.table()
    place = (np.arange(BINS) - BINS // 2) / BINS_A_DEVIATION
    all_levels = np.array(levels.integers) * 100 / levels.ratio
    assert (costs.min(1) == 0).all() and costs.min() == 0
    inside = np.abs(place) <= all_levels[-1]
    assert 0.9 * FARTHEST < costs[inside].max() <= FARTHEST == costs.max()
    for k in range(4):
        away = np.abs(place[:, None] - all_levels[k::4])
        assert np.allclose(away.min(1), np.take_along_axis(away, numbers[:, k, None].astype(int), 1)[:, 0], atol=1e-9)
    square = np.stack([np.abs(place[:, None] - all_levels[k::4]).min(1) ** 2 for k in range(4)], axis=1)
    over = square - square.min(1, keepdims=True)
    grain = over[inside].max() / costs[inside].max()
    assert np.abs(over[inside] / grain - costs[inside]).max() <= 1.1


def test_a_coordinate_beyond_the_bins_is_in_the_last() -> None:
    """A vector along one rotated axis: one coordinate is 11 standard deviations long."""
    type_ = trellis_type(4)
    for axis in (3, 77):
        x = type_.unrotate(torch.eye(128)[axis : axis + 1]) * torch.tensor([[5.0], [-5.0]])
        stored = type_.decode_stored(type_.encode(x), 128)
        assert torch.equal(stored.abs().argmax(-1), torch.tensor([axis, axis]))
        assert stored[0, axis] > 0 > stored[1, axis]


def test_only_the_states_of_the_table_are_there() -> None:
    assert all(trellis.states == states and trellis.memory <= 8 for states, trellis in TRELLISES.items())
    assert isinstance(trellis_type(4), NormedType) and trellis_type(4).states == 8


@pytest.mark.parametrize("bits", [2, 4])
def test_values_beyond_float32_are_too_large(bits: int) -> None:
    with pytest.raises(ValueError, match=f"too large for tcq{bits}"):
        kv_type(f"tcq{bits}").encode(torch.full((1, 128), 1e300, dtype=torch.float64))
