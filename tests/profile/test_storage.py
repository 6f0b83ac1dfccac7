"""A layer's bytes are computed in one place, and everything that counts bytes agrees with it."""

from __future__ import annotations

import pytest
from geometries import sliding

from stratakv import UserError
from stratakv.kvtypes import kv_type
from stratakv.pages.footprint import allocated_bytes, allocated_in, page_bytes
from stratakv.pages.layout import PAGE_TOKENS, layout_of
from stratakv.profile import LayerGeometry, LayerStorage, resolve
from stratakv.tune.options import size_of

WINDOWED = LayerGeometry(0, 0, "sliding", (128, 64), 2, 8, window=512)
FULL = LayerGeometry(1, 1, "full", (128, 64), 2, 8)
STORAGE = LayerStorage.of(("turbo4", "q8_0"))


def test_bytes_of_tokens() -> None:
    assert LayerStorage(kv_type("turbo4"), kv_type("q8_0")) == STORAGE
    assert STORAGE.token_bytes(FULL) == (2 * 66, 2 * 68)
    assert STORAGE.nbytes(FULL, 1000) == 1000 * 268
    assert STORAGE.nbytes(WINDOWED, 1000) == 512 * 268
    assert STORAGE.nbytes(WINDOWED, 1000, windowed=False) == 1000 * 268
    with pytest.raises(UserError, match="turbo9"):
        LayerStorage.of(("turbo9", "f16"))


def test_pages_hold_what_is_counted() -> None:
    for layer in (FULL, WINDOWED):
        assert page_bytes(layer, STORAGE) == layout_of(layer, STORAGE).page_bytes == PAGE_TOKENS * 268
        assert size_of(layer, ("turbo4", "q8_0"), 5000) == allocated_in(layer, STORAGE, 5000)
        assert size_of(layer, ("turbo4", "q8_0")) == 268


def test_a_profile_is_the_sum_of_its_layers() -> None:
    profile = resolve("first1: q8_0/turbo4; rest: turbo3", sliding())
    layers = list(zip(profile.storages, profile.geometry.kv_layers, strict=True))
    assert [(storage.k.name, storage.v.name) for storage, _ in layers] == list(profile.pairs)
    assert profile.bytes_at(3000) == sum(storage.nbytes(layer, 3000) for storage, layer in layers)
    assert allocated_bytes(profile, 3000) == sum(allocated_in(layer, storage, 3000) for storage, layer in layers)
