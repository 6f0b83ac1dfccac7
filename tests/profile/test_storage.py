"""A layer's bytes are computed in one place, and everything that counts bytes agrees with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from geometries import plain, sliding

from stratakv import UserError
from stratakv.kvtypes import kv_type
from stratakv.pages.footprint import allocated_bytes, allocated_in, fine_page_bytes, page_bytes
from stratakv.pages.layout import PAGE_TOKENS as PAGE
from stratakv.pages.layout import layout_of
from stratakv.profile import LayerGeometry, LayerStorage, ModelGeometry, Profile, Spans, resolve
from stratakv.tune.options import size_of

WINDOWED = LayerGeometry(0, 0, "sliding", (128, 64), 2, 8, window=4 * PAGE)
FULL = LayerGeometry(1, 1, "full", (128, 64), 2, 8)
STORAGE = LayerStorage.of(("turbo4", "q8_0"))


def test_bytes_of_tokens() -> None:
    assert LayerStorage(kv_type("turbo4"), kv_type("q8_0")) == STORAGE
    assert STORAGE.token_bytes(FULL) == (2 * 66, 2 * 68)
    assert STORAGE.nbytes(FULL, 1000) == 1000 * 268
    assert STORAGE.nbytes(WINDOWED, 1000) == 4 * PAGE * 268
    with pytest.raises(UserError, match="turbo9"):
        LayerStorage.of(("turbo9", "f16"))


def test_pages_hold_what_is_counted() -> None:
    for layer in (FULL, WINDOWED):
        assert page_bytes(layer, STORAGE) == layout_of(layer, STORAGE).page_bytes == PAGE * 268
        assert size_of(layer, ("turbo4", "q8_0"), 5000) == allocated_in(layer, STORAGE, 5000)
        assert size_of(layer, ("turbo4", "q8_0")) == 268


SPANNED = LayerStorage.of(("turbo4", "q8_0"), Spans(2, first=1))


def test_fine_pages_beside_sealed_ones() -> None:
    fine = SPANNED.fine(FULL)
    assert fine == LayerStorage.of(("turbo8", "q8_0"))  # V is finer than the span's type as it is
    assert STORAGE.fine(FULL) is None
    own, more = 268, sum(fine.token_bytes(FULL))
    for tokens in (
        1,
        PAGE - 1,
        PAGE,
        4 * PAGE - 12,
        4 * PAGE,
    ):  # the first page, and a token's own and two before it
        assert SPANNED.nbytes(FULL, tokens) == tokens * more
    assert SPANNED.nbytes(FULL, 4 * PAGE + 1) == PAGE * own + (3 * PAGE + 1) * more
    assert SPANNED.nbytes(FULL, 5 * PAGE) == PAGE * own + 4 * PAGE * more
    assert SPANNED.nbytes(FULL, 5 * PAGE + 1) == 2 * PAGE * own + (3 * PAGE + 1) * more
    recent = LayerStorage.of(("turbo4", "q8_0"), Spans(2))
    assert recent.nbytes(WINDOWED, 2 * PAGE + 44) == (2 * PAGE + 44) * more
    fine_tokens = 3 * PAGE - 24  # of pages 5, 6 and 7
    expected = (4 * PAGE - fine_tokens) * own + fine_tokens * more
    assert recent.nbytes(WINDOWED, 8 * PAGE - 24) == expected
    assert [list(SPANNED.spans.sealed(tokens)) for tokens in (0, PAGE, 4 * PAGE, 4 * PAGE + 1, 5 * PAGE + 60)] == [
        [],
        [],
        [],
        [1],
        [1, 2],
    ]
    assert list(Spans().sealed(2 * PAGE + 44)) == [0, 1, 2]
    assert list(Spans(first=5).sealed(2 * PAGE + 44)) == []


def test_pages_of_spans_are_counted_once() -> None:
    sealed, fine = page_bytes(FULL, SPANNED), fine_page_bytes(FULL, SPANNED)
    assert (sealed, fine) == (page_bytes(FULL, STORAGE), page_bytes(FULL, LayerStorage.of(("turbo8", "q8_0"))))
    # one is sealed while it is still read fine; a piece of 512 tokens takes more
    count, more = -(-5000 // PAGE), 512 // PAGE
    assert allocated_in(FULL, SPANNED, 5000) == (count - 3) * sealed + (4 + more) * fine
    assert allocated_in(FULL, SPANNED, 2 * PAGE + 44) == 3 * fine
    assert fine_page_bytes(FULL, STORAGE) == 0


def test_a_short_window_is_fine_as_a_whole() -> None:
    storage = LayerStorage.of(("turbo4", "q8_0"), Spans(4))
    assert storage.for_layer(WINDOWED) == LayerStorage.of(("turbo8", "q8_0"))
    assert storage.for_layer(FULL) == storage
    assert SPANNED.for_layer(FULL) == SPANNED
    assert STORAGE.for_layer(WINDOWED) == STORAGE
    three = LayerStorage.of(("turbo4", "q8_0"), Spans(3))
    assert three.for_layer(WINDOWED) == three
    assert storage.nbytes(WINDOWED, 5000) == 4 * PAGE * sum(LayerStorage.of(("turbo8", "q8_0")).token_bytes(WINDOWED))
    assert allocated_in(WINDOWED, storage, 5000) == (5 + 512 // PAGE) * fine_page_bytes(WINDOWED, storage)


@pytest.mark.parametrize(
    ("spans", "layer", "message"),
    [
        (
            Spans(5),
            WINDOWED,
            rf"5 recent pages \({5 * PAGE} tokens\) are beyond its window of {4 * PAGE} tokens: give at most 4",
        ),
        (
            Spans(1, first=1),
            WINDOWED,
            f"keeps {4 * PAGE} tokens and drops its first page: first must be 0 pages, not 1",
        ),
        (
            Spans(1, "turbo3"),
            FULL,
            "the spans' type turbo3 is not finer than its own turbo4/q8_0: give one of more bits",
        ),
        (
            Spans(1),
            LayerGeometry(0, 0, "mla", (512, 64), 1, 8, reads_pages=False),
            "decoded tensors instead of pages, so it has no",
        ),
        (Spans(1), LayerGeometry(0, 0, "full", (72, 72), 1, 8), "spans: turbo8 can't store head_dim 72"),
    ],
)
def test_spans_that_a_layer_cannot_have(spans: Spans, layer: LayerGeometry, message: str) -> None:
    pair = ("q8_0", "q8_0") if layer.head_dim == (72, 72) else ("turbo4", "q8_0")
    with pytest.raises(UserError, match=f"^KV layer 0: .*{message}"):
        Profile("", ModelGeometry("one", (replace(layer, layer=0, ordinal=0),)), (pair,), spans=(spans,))
    assert LayerStorage.of(pair, Spans(0)).refuses(layer) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recent": -1}, "recent: -1 pages"),
        ({"recent_type": "f16"}, "recent: 0 pages have no type, f16 is given"),
        ({"first": 1, "first_type": "turbo9"}, "turbo9"),
        (
            {"recent": 1, "recent_type": "f16", "first": 1},
            "both spans of a layer are of one type, turbo8 where none is said",
        ),
    ],
)
def test_spans_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Spans(**fields)


def test_spans_longer_than_the_context() -> None:
    most = 4096 // PAGE
    pairs, spans = (("turbo4", "turbo4"),) * 2, (Spans(30), Spans(most - 1, first=2))
    tokens = f"{(most + 1) * PAGE:,}"
    with pytest.raises(
        UserError,
        match=rf"{most + 1} pages \({tokens} tokens\) are longer than the context of 4,096 tokens: .* at most {most} p",
    ):
        Profile("", plain(2), pairs, spans=spans)
    profile = Profile("", plain(2), pairs, spans=(Spans(3), Spans(2)))
    profile.check_context(3 * PAGE)
    profile.check_context(0)
    with pytest.raises(UserError, match=f"longer than the context of {3 * PAGE - 1} tokens: .* at most 2 pages"):
        profile.check_context(3 * PAGE - 1)


def test_a_profile_is_the_sum_of_its_layers() -> None:
    profile = resolve("first1: q8_0/turbo4; rest: turbo3; recent: 2 pages; first: 1 page", sliding())
    layers = list(zip(profile.storages, profile.geometry.kv_layers, strict=True))
    assert [(storage.k.name, storage.v.name) for storage, _ in layers] == list(profile.pairs)
    assert profile.bytes_at(3000) == sum(storage.nbytes(layer, 3000) for storage, layer in layers)
    assert allocated_bytes(profile, 3000) == sum(allocated_in(layer, storage, 3000) for storage, layer in layers)
