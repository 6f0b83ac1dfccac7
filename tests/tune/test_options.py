"""Sizes and constraints of the allocator's input."""

from __future__ import annotations

import pytest

from stratakv.errors import UserError
from stratakv.pages.footprint import allocated_bytes
from stratakv.profile import LayerGeometry, ModelGeometry, Profile, Spans
from stratakv.profile.spread import fitted
from stratakv.tune.options import options_for

LAYERS = (
    LayerGeometry(0, 0, "full", (128, 128), 2, 4),
    LayerGeometry(1, None, "linear", (128, 128), 2, 4, why="none"),
    LayerGeometry(2, 1, "sliding", (128, 64), 2, 4, window=1024),
)
GEOMETRY = ModelGeometry("made-up", LAYERS)
DAMAGES = [{("turbo4", "turbo4"): 1.0, ("q8_0", "turbo4"): 0.5, ("q8_0", "q8_0"): 0.1}] * 2


def test_sizes_are_those_of_the_types() -> None:
    first, second = options_for(GEOMETRY, DAMAGES)
    assert first.pairs == (("turbo4", "turbo4"), ("q8_0", "turbo4"), ("q8_0", "q8_0"))
    assert first.sizes == (2 * (66 + 66), 2 * (136 + 66), 2 * (136 + 136))
    assert second.sizes == (2 * (66 + 34), 2 * (136 + 34), 2 * (136 + 68)), "V of 64 values"
    assert first.costs == (1.0, 0.5, 0.1)


@pytest.mark.parametrize("context", [1, 128, 1000, 1024, 4096, 100_001])
def test_with_a_context_sizes_are_what_a_cache_allocates(context: int) -> None:
    """Whole pages, and of a sliding layer those that its window can touch: what `plan` says, so that what is tuned fits."""
    first, second = options_for(GEOMETRY, DAMAGES, context=context)
    for a, b in ((0, 0), (1, 2)):
        profile = Profile("", GEOMETRY, (first.pairs[a], second.pairs[b]))
        assert first.sizes[a] + second.sizes[b] == allocated_bytes(profile, context)


@pytest.mark.parametrize("context", [128, 600, 4096, 100_001])
def test_spans_count_with_a_context_and_only_there(context: int) -> None:
    wish = Spans(2, first=1)
    first, second = options_for(GEOMETRY, DAMAGES, context=context, spans=wish)
    for a, b in ((0, 0), (1, 2)):
        pairs = (first.pairs[a], second.pairs[b])
        profile = Profile("", GEOMETRY, pairs, spans=fitted(wish, GEOMETRY, pairs))
        assert first.sizes[a] + second.sizes[b] == allocated_bytes(profile, context)
    assert options_for(GEOMETRY, DAMAGES, spans=wish) == options_for(GEOMETRY, DAMAGES)


def test_constraints() -> None:
    assert [each.pairs for each in options_for(GEOMETRY, DAMAGES, types={"q8_0"})] == [(("q8_0", "q8_0"),)] * 2
    allowed = {("turbo4", "turbo4"), ("f16", "f16")}
    assert [each.pairs for each in options_for(GEOMETRY, DAMAGES, pairs=allowed)] == [(("turbo4", "turbo4"),)] * 2
    first, second = options_for(GEOMETRY, DAMAGES, floors={1: ("q8_0", "turbo4")})
    assert len(first.pairs) == 3
    assert second.pairs == (("q8_0", "turbo4"), ("q8_0", "q8_0"))


def test_constraints_that_leave_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="KV layer 0: no measured pair"):
        options_for(GEOMETRY, DAMAGES, types={"turbo2"})
    with pytest.raises(UserError, match="KV layer 5: the model has KV layers 0 to 1"):
        options_for(GEOMETRY, DAMAGES, floors={5: ("q8_0", "q8_0")})
