"""Types and spans under one budget: exact against brute force, and only spans that a measurement could tell apart."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.errors import UserError
from stratakv.pages.footprint import allocated_bytes
from stratakv.profile import LayerGeometry, ModelGeometry, Profile, Spans
from stratakv.profile.profile import Pair
from stratakv.profile.spans import NONE
from stratakv.profile.spread import fitted
from stratakv.tune import span_choice
from stratakv.tune.options import Damages
from stratakv.tune.problem import Problem
from stratakv.tune.span_choice import choose_spans, span_options

FULL = tuple(LayerGeometry(i, i, "full", (64, 128), 2, 4) for i in range(2))
SLIDING = LayerGeometry(2, 2, "sliding", (128, 128), 1, 4, window=512)
GEOMETRY = ModelGeometry("made-up", (*FULL, SLIDING))
TYPES = ("turbo2", "turbo4", "tcq4", "q8_0")
PAIRS = list(itertools.product(TYPES, repeat=2))
CONTEXT = 4096
OPTIONS = (NONE, Spans(1), Spans(2, first=1))
Known = dict[Spans, list[dict[Pair, float]]]


@st.composite
def tables(draw: st.DrawFn) -> Known:
    costs = st.integers(0, 60)
    return {spans: [{pair: float(draw(costs)) for pair in PAIRS} for _ in range(3)] for spans in OPTIONS}


@given(tables(), st.integers(800_000, 4_000_000))
@settings(max_examples=40, deadline=None)
def test_no_types_with_any_spans_are_better_within_the_budget(damages: Known, budget: int) -> None:
    """All assignments, their bytes as a cache of that context allocates them: with spans of all layers alike, and of each."""
    problem = Problem(GEOMETRY, budget, CONTEXT, TYPES)
    alike = {spans: cheapest({spans: damages[spans]}, budget) for spans in OPTIONS}
    if all(cost is None for cost in alike.values()):
        with pytest.raises(UserError, match="nothing fits"):
            choose_spans(problem, damages)
        return
    found = choose_spans(problem, damages)
    assert {spans: each and each.cost for spans, each in found.tried.items()} == alike
    whole, each = min(cost for cost in alike.values() if cost is not None), cheapest(damages, budget)
    assert each is not None
    if found.by_layer is not None:
        assert found.by_layer.best.cost == each
        assert (
            found.by_layer.best.certificate["optimal"] and found.by_layer.best.certificate["lower_bound"] <= each + 1e-9
        )
    by_layer = isinstance(found.problem.spans, tuple)
    assert by_layer == (found.by_layer is not None and each < (1 - span_choice.LEAST) * whole)
    assert found.best.cost == (each if by_layer else whole)
    assert found.best.size == found.problem.size(found.best.pairs) <= budget
    profile = Profile("", GEOMETRY, found.best.pairs, spans=fitted(found.problem.spans, GEOMETRY, found.best.pairs))
    assert allocated_bytes(profile, CONTEXT) == found.best.size
    if not by_layer:
        equal = [spans for spans, cost in alike.items() if cost == whole]
        assert found.problem.spans in equal
        assert isinstance(found.problem.spans, Spans) and found.problem.spans.pages == min(s.pages for s in equal)


def cheapest(damages: Known, budget: int) -> float | None:
    """By brute force over pairs and spans of each layer."""
    columns = [
        sorted({(size(spans, i, pair), damages[spans][i][pair]) for spans in damages for pair in PAIRS})
        for i in range(3)
    ]
    fits = [
        sum(cost for _, cost in choice)
        for choice in itertools.product(*map(undominated, columns))
        if sum(nbytes for nbytes, _ in choice) <= budget
    ]
    return min(fits, default=None)


def undominated(column: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(s, c) for s, c in column if not any(a <= s and b <= c and (a, b) != (s, c) for a, b in column)]


_sizes: dict[tuple[Spans, int, Pair], int] = {}


def size(spans: Spans, ordinal: int, pair: Pair) -> int:
    """Bytes of one layer in a cache of its own."""
    key = spans, ordinal, pair
    if key not in _sizes:
        layer = GEOMETRY.kv_layers[ordinal]
        rest = layer.role, layer.head_dim, layer.kv_heads, layer.q_heads, layer.window
        alone = ModelGeometry("one", (LayerGeometry(0, 0, *rest),))
        _sizes[key] = allocated_bytes(Profile("", alone, (pair,), spans=fitted(spans, alone, (pair,))), CONTEXT)
    return _sizes[key]


def made_up(*factors: dict[Spans, float]) -> dict[Spans, Damages]:
    """Damages that fall by 4 with each bit; factors: of each layer, by its spans."""
    bits = {"turbo2": 2, "turbo4": 4, "tcq4": 4.2, "q8_0": 8}
    return {
        spans: [{(k, v): by[spans] * (4.0 ** -bits[k] + 4.0 ** -bits[v]) for k, v in PAIRS} for by in factors]
        for spans in OPTIONS
    }


LITTLE, MUCH = dict.fromkeys(OPTIONS, 1.0), {NONE: 1.0, Spans(1): 0.5, Spans(2, first=1): 0.05}


def test_layers_have_spans_where_these_help_and_the_damage_is_theirs() -> None:
    damages = made_up(LITTLE, MUCH, LITTLE)
    problem = Problem(GEOMETRY, 1_780_000, CONTEXT, TYPES)
    found = choose_spans(problem, damages)
    assert found.problem.spans == (NONE, Spans(2, first=1), NONE)
    arrays = {spans: np.full((4, 3, 2, 2), n) for n, spans in enumerate(OPTIONS)}
    assert found.of_layers(arrays)[0, :, 0, 0].tolist() == [0, 2, 0]
    told = found.told
    assert told["by_layer"]["taken"] and told["by_layer"]["spans"] == [None, Spans(2, first=1).to_json(), None]
    assert told["by_layer"]["predicted_kld"] < min(each["predicted_kld"] or 9 for each in told["options"])
    assert told["words"].startswith("1: recent 2 pages turbo8, first 1 page turbo8; rest: none, predicted KLD ")
    assert "; instead of it one for all layers: none " in told["words"]


def test_one_line_of_spans_is_kept_where_layers_own_save_little(monkeypatch: pytest.MonkeyPatch) -> None:
    damages = made_up({**MUCH, Spans(1): 0.049}, MUCH, MUCH)
    problem = Problem(GEOMETRY, 2_180_000, CONTEXT, TYPES)
    found = choose_spans(problem, damages)
    assert found.problem.spans == Spans(2, first=1)
    assert found.by_layer is not None and not found.told["by_layer"]["taken"] and ", by layer " in found.told["words"]
    monkeypatch.setattr(span_choice, "LEAST", 0.0)
    assert choose_spans(problem, damages).problem.spans == found.by_layer.spans


def test_what_was_tried_is_told() -> None:
    damages = {spans: [dict.fromkeys(PAIRS, 0.001 * (3 - n))] * 3 for n, spans in enumerate(OPTIONS)}
    found = choose_spans(Problem(GEOMETRY, 10**8, CONTEXT, TYPES), damages)
    assert found.problem.spans == Spans(2, first=1)
    told = found.told
    assert [each["spans"] for each in told["options"]] == [None, Spans(1).to_json(), Spans(2, first=1).to_json()]
    assert told["options"][0]["predicted_kld"] == pytest.approx(9e-3)
    assert "by_layer" not in told
    assert told["words"].startswith(
        "recent: 2 pages turbo8; first: 1 page turbo8, predicted KLD 3 e-3 nats; instead of it none 9"
    )


def test_128_layers_of_20_types_and_7_spans_take_seconds() -> None:
    rng = np.random.default_rng(0)
    names = ("turbo2", "turbo3", "turbo4", "turbo5", "turbo6", "tcq2", "tcq3", "tcq4", "tcq5", "tcq6", "q8_0", "f16")
    bits = dict(zip(names, (2.1, 3.1, 4.1, 5, 6, 2.2, 3.2, 4.2, 5.2, 6.2, 8, 16), strict=True))
    layers = [
        LayerGeometry(i, i, "sliding", (128, 128), 8, 32, window=1024)
        if i % 6
        else LayerGeometry(i, i, "full", (128, 128), 8, 32)
        for i in range(128)
    ]
    problem = Problem(ModelGeometry("large", tuple(layers)), 2 << 30, 131072, names)
    options = span_options(problem, 2048)
    damages = {}
    for spans in options:
        saved = (0.7**spans.recent * 0.5**spans.first) ** rng.random((128, 1))
        factors = rng.lognormal(size=(128, 2)) * saved
        damages[spans] = [
            {(k, v): a * 4.0 ** -bits[k] + b * 4.0 ** -bits[v] for k in names for v in names} for a, b in factors
        ]
    started = time.process_time()
    found = choose_spans(problem, damages)
    assert time.process_time() - started < 10
    assert isinstance(found.problem.spans, tuple) and found.best.certificate["optimal"]


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


def test_a_head_dim_that_the_spans_type_can_t_store_has_no_options() -> None:
    odd = ModelGeometry("odd", (LayerGeometry(0, 0, "full", (120, 120), 2, 4),))
    assert span_options(Problem(odd, 10**8, 8192, ("q4_0_rot", "q8_0")), 2048) == (NONE,)
