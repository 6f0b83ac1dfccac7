"""Types and spans under one budget: exact against brute force, and only spans that a measurement could tell apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.errors import UserError
from stratakv.pages.footprint import allocated_bytes
from stratakv.profile import LayerGeometry, ModelGeometry, Profile, Spans
from stratakv.profile.spans import NONE
from stratakv.profile.spread import fitted
from stratakv.tune.problem import Problem
from stratakv.tune.span_choice import choose_spans, span_options

FULL = tuple(LayerGeometry(i, i, "full", (64, 128), 2, 4) for i in range(2))
SLIDING = LayerGeometry(2, 2, "sliding", (128, 128), 1, 4, window=512)
GEOMETRY = ModelGeometry("made-up", (*FULL, SLIDING))
TYPES = ("turbo2", "turbo4", "tcq4", "q8_0")
PAIRS = list(itertools.product(TYPES, repeat=2))
CONTEXT = 4096
OPTIONS = (NONE, Spans(1), Spans(2, first=1))


@given(st.data(), st.integers(800_000, 4_000_000))
@settings(max_examples=40, deadline=None)
def test_no_types_with_any_spans_are_better_within_the_budget(data: st.DataObject, budget: int) -> None:
    """All assignments with all spans, their bytes as a cache of that context allocates them."""
    costs = st.integers(0, 60)
    damages = {spans: [{pair: float(data.draw(costs)) for pair in PAIRS} for _ in range(3)] for spans in OPTIONS}
    problem = Problem(GEOMETRY, budget, CONTEXT, TYPES)
    best = min(
        (
            sum(known[pair] for known, pair in zip(damages[spans], pairs, strict=True))
            for spans in OPTIONS
            for pairs in itertools.product(PAIRS, repeat=3)
            if size(spans, pairs) <= budget
        ),
        default=None,
    )
    if best is None:
        with pytest.raises(UserError, match="nothing fits"):
            choose_spans(problem, damages)
        return
    found = choose_spans(problem, damages)
    allocation = found.tried[found.problem.spans]
    assert allocation is not None and allocation.cost == best
    assert allocation.size == size(found.problem.spans, allocation.pairs) <= budget
    equal = [spans for spans, each in found.tried.items() if each is not None and each.cost == best]
    assert found.problem.spans.pages == min(spans.pages for spans in equal)


_sizes: dict[tuple[Spans, int, tuple[str, str]], int] = {}


def size(spans: Spans, pairs: tuple[tuple[str, str], ...]) -> int:
    total = 0
    for ordinal, pair in enumerate(pairs):
        key = spans, ordinal, pair
        if key not in _sizes:
            one = ModelGeometry("one", (GEOMETRY.kv_layers[ordinal],))
            alone = ModelGeometry("one", (LayerGeometry(0, 0, *_rest(one.kv_layers[0])),))
            profile = Profile("", alone, (pair,), spans=fitted(spans, alone, (pair,)))
            _sizes[key] = allocated_bytes(profile, CONTEXT)
        total += _sizes[key]
    return total


def _rest(layer: LayerGeometry) -> tuple[object, ...]:
    return layer.role, layer.head_dim, layer.kv_heads, layer.q_heads, layer.window


def test_what_was_tried_is_told() -> None:
    damages = {spans: [dict.fromkeys(PAIRS, 0.001 * (3 - n))] * 3 for n, spans in enumerate(OPTIONS)}
    found = choose_spans(Problem(GEOMETRY, 10**8, CONTEXT, TYPES), damages)
    assert found.problem.spans == Spans(2, first=1)
    told = found.told
    assert [each["spans"] for each in told["options"]] == [None, Spans(1).to_json(), Spans(2, first=1).to_json()]
    assert told["options"][0]["predicted_kld"] == pytest.approx(9e-3)
    assert told["words"].startswith(
        "recent: 2 pages turbo8; first: 1 page turbo8, predicted KLD 3 e-3 nats; instead of it none 9"
    )


def test_options_are_none_and_few_pages() -> None:
    problem = Problem(GEOMETRY, 10**8, 8192, TYPES)
    found = span_options(problem, 2048)
    assert found == (NONE, *(Spans(recent, first=first) for recent in (1, 2, 4) for first in (0, 1)))


def test_spans_that_cover_half_of_what_is_measured_are_left_out() -> None:
    problem = Problem(GEOMETRY, 10**8, 8192, TYPES)
    assert span_options(problem, 1024) == (NONE, *(Spans(recent, first=first) for recent in (1, 2) for first in (0, 1)))
    assert span_options(problem, 256) == (NONE,)
    assert span_options(Problem(GEOMETRY, 10**8, 512, TYPES), 2048) == (NONE, Spans(1))


def test_a_model_that_has_no_spans_has_no_options() -> None:
    decoded = ModelGeometry("mla", (LayerGeometry(0, 0, "mla", (512, 64), 1, 4, reads_pages=False),))
    assert span_options(Problem(decoded, 10**8, 8192, TYPES), 2048) == (NONE,)


def test_sliding_layers_alone_have_no_first_pages() -> None:
    sliding = ModelGeometry("sliding", (LayerGeometry(0, 0, "sliding", (128, 128), 1, 4, window=1024),))
    assert span_options(Problem(sliding, 10**8, 8192, TYPES), 2048) == (NONE, Spans(1), Spans(2), Spans(4))
