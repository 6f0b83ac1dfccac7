"""Rule lines: against a slow second interpreter, and every mistake's message."""

from __future__ import annotations

import pytest
from geometries import plain, sliding
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.errors import UserError
from stratakv.profile.geometry import LayerGeometry, ModelGeometry
from stratakv.profile.presets import PRESETS
from stratakv.profile.rules import apply_rules, rule_line
from stratakv.profile.spans import NONE, Spans
from stratakv.profile.spans import PAGE_TOKENS as PAGE
from stratakv.profile.spread import fit, spread

TYPES = ["f16", "q8_0", "turbo4", "turbo3", "q4_0_rot"]


@st.composite
def lines(draw: st.DrawFn) -> tuple[int, list[tuple[list[tuple[str, int, int]], str | None, str | None]]]:
    """A layer count and clauses as data: selectors (word, low, high) and the types of both sides."""
    count = draw(st.integers(1, 12))
    clauses = []
    for _ in range(draw(st.integers(1, 5))):
        selectors = []
        for _ in range(draw(st.integers(1, 3))):
            word = draw(st.sampled_from(["first", "last", "range", "single", "negative", "rest", "all"]))
            low = draw(st.integers(0, count - 1))
            selectors.append((word, low, draw(st.integers(low, count - 1))))
        k, v = draw(st.tuples(st.sampled_from([None, *TYPES]), st.sampled_from([None, *TYPES])).filter(any))
        clauses.append((selectors, k, v))
    return count, clauses


def as_text(clauses, spaced: bool) -> str:
    def selector(word: str, low: int, high: int) -> str:
        texts = {"range": f"{low}-{high}", "single": f"{low}", "negative": f"-{low + 1}"}
        return texts.get(word, f"{word}{low + 1}" if word in ("first", "last") else word)

    def types(k: str | None, v: str | None) -> str:
        if k and v and spaced:
            return k if k == v else f"{k}/{v}"
        return " ".join(f"{side}={name}" for side, name in (("k", k), ("v", v)) if name)

    comma, semicolon = (" , ", " ; ") if spaced else (",", ";")
    return semicolon.join(f"{comma.join(selector(*s) for s in sets)}: {types(k, v)}" for sets, k, v in clauses)


def names(selector: tuple[str, int, int], layer: int, count: int) -> bool:
    word, low, high = selector
    return {
        "first": layer <= low,
        "last": count - layer <= low + 1,
        "range": low <= layer <= high,
        "single": layer == low,
        "negative": layer - count == -(low + 1),
        "all": True,
        "rest": False,
    }[word]


@settings(max_examples=300, deadline=None)
@given(lines(), st.booleans())
def test_later_rules_win_and_sides_are_apart(line, spaced):
    count, clauses = line
    expected = []
    for layer in range(count):
        pair = ["f32", "bf16"]
        for sets, k, v in clauses:
            hit = any(names(s, layer, count) for s in sets)
            if not hit and any(s[0] == "rest" for s in sets):
                hit = not any(names(s, layer, count) for others, _, _ in clauses for s in others)
            if hit:
                pair = [k or pair[0], v or pair[1]]
        expected.append(tuple(pair))
    pairs, _, _ = apply_rules(as_text(clauses, spaced), plain(count), ("f32", "bf16"))
    assert list(pairs) == expected


def test_the_line_that_started_the_project():
    pairs, _, warnings = apply_rules("first3,last3: k=q8_0 v=turbo4; rest: turbo4", plain(10))
    assert pairs == (("q8_0", "turbo4"),) * 3 + (("turbo4", "turbo4"),) * 4 + (("q8_0", "turbo4"),) * 3
    assert warnings == ()


def test_one_side_alone_keeps_the_base():
    pairs, _, _ = apply_rules("-1: v=turbo4", plain(3), ("q8_0", "f16"))
    assert pairs == (("q8_0", "f16"), ("q8_0", "f16"), ("q8_0", "turbo4"))


def test_overlaps_and_an_empty_rest_are_said():
    _, _, warnings = apply_rules(PRESETS["edges3"].line, plain(5))
    assert warnings == (
        "first3 and last3 overlap on 5 KV layers: both name 2, the later rule wins",
        "'rest' names no layer: the other selectors cover all 5 KV layers",
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("first3: k=q8_0; rest: turbo4", "leaves no V type for KV layers 0-2: add a 'rest: TYPE' clause, or give -ctk"),
        ("1-3,7: turbo4", "leaves no K type for KV layers 0, 4-6, 8-9 and no V type for KV layers 0, 4-6, 8-9"),
        (
            "10: turbo4",
            r"layer 10 in rule '10: turbo4' is out of range: the model has 10 KV layers, allowed are 0 to 9",
        ),
        ("-11: turbo4", "layer -11 .* out of range"),
        ("-0: turbo4", "layer -0 .* out of range"),
        ("3-12: turbo4", "layer 3-12 .* out of range"),
        ("5-3: turbo4", "range 5-3 .* runs backwards: write 3-5"),
        ("first11: turbo4", "'first11' .* has 10 KV layers, allowed is 1 to 10"),
        ("last0: turbo4", "'last0' .* allowed is 1 to 10"),
        ("middle: turbo4", "unknown selector 'middle' in rule 'middle: turbo4': allowed are firstN, lastN"),
        (": turbo4", "unknown selector ''"),
        ("all turbo4", "has no ':'"),
        (" ; ", "the rule line is empty"),
        ("all: turbo9", "rule 'all: turbo9': .*turbo9.*turbo8"),
        ("all: k=turbo9", "rule 'all: k=turbo9': .*turbo9.*turbo8"),
        ("all:", "cannot read '' as types"),
        ("all: a/b/c", "cannot read 'a/b/c' as types"),
        ("all: turbo4: x", "rule 'all: turbo4: x': .*'turbo4: x'"),
        ("all: k=q8_0 k=f16", "k= is given twice"),
        ("all: k=q8_0 turbo4", "cannot read 'turbo4': write k=TYPE"),
        ("all: k = q8_0", "cannot read 'k'"),
        ("all: q=q8_0", "cannot read 'q=q8_0'"),
        ("rest: turbo4; recent: 0 pages turbo8", "0 pages of turbo8: leave the type out"),
        ("rest: turbo4; recent: -1 pages", "'-1' is no number of pages: give 0"),
        ("rest: turbo4; recent: two pages", "'two' is no number of pages"),
        ("rest: turbo4; recent: 2", "cannot read '2' as a span: write N pages TYPE"),
        ("rest: turbo4; recent: 2 pages turbo9", "rule 'recent: 2 pages turbo9': .*turbo9.*turbo8"),
        ("rest: turbo4; recent: 2 pages; recent: 1 page", "recent: is given twice, in 'recent: 1 page' too"),
        ("rest: turbo4; recent: 2 pages f16; first: 1 page turbo8", "f16 and first pages in turbo8: both spans"),
        ("rest: turbo4; recent, first: 1 page", "unknown selector 'recent' .* recent and first stand alone"),
        ("rest: turbo4, newest 1 page", "cannot read 'newest 1 page': after the types write recent N pages TYPE"),
        ("rest: turbo4, recent 1 page, recent 2 pages", "cannot read 'recent 2 pages'"),
        ("rest: recent 1 page", "leaves no K type"),
        ("rest: q8_0; recent: 2 pages turbo4", "no layer can have the spans 'recent: 2 pages turbo4': .*as fine as"),
    ],
)
def test_mistakes(line, message):
    with pytest.raises(UserError, match=message) as error:
        apply_rules(line, plain(10))
    assert "\n" not in str(error.value)


def test_presets():
    pairs = {name: apply_rules(preset.line, plain(12))[0] for name, preset in PRESETS.items()}
    edge, middle = (0, 1, 2, 9, 10, 11), range(3, 9)
    assert {pairs["edges3"][i] for i in edge} == {("q8_0", "turbo4")}
    assert {pairs["edges3-vf16"][i] for i in edge} == {("q8_0", "f16")}
    assert {pairs["edges3-turbo3"][i] for i in edge} == {("q8_0", "turbo4")}
    assert {pairs["edges3"][i] for i in middle} == {pairs["edges3-vf16"][i] for i in middle} == {("turbo4", "turbo4")}
    assert {pairs["edges3-turbo3"][i] for i in middle} == {("turbo3", "turbo3")}
    assert all(preset.meaning.endswith(".") for preset in PRESETS.values())


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES)), min_size=1, max_size=12))
def test_any_pairs_are_a_rule_line(pairs):
    line = rule_line(pairs)
    if ":" in line:
        assert apply_rules(line, plain(len(pairs))) == (tuple(pairs), (NONE,) * len(pairs), ())
    else:
        assert set(pairs) == {(line.split("/")[0], line.split("/")[-1])}


def test_the_rule_line_is_short():
    assert rule_line([("turbo4", "turbo4")] * 3) == "turbo4"
    pairs = [("q8_0", "turbo4"), *[("turbo4", "turbo4")] * 3, ("q8_0", "turbo4"), ("turbo4", "turbo3")]
    assert rule_line(pairs) == "1-3: turbo4; 5: turbo4/turbo3; rest: q8_0/turbo4"


FULL = Spans(2, "turbo8", 1, "turbo8")


def test_spans_of_the_whole_profile_and_of_a_layer():
    line = "0-1: turbo4, recent 1 page turbo8; 2: recent 0 pages, first 2 pages f16; rest: turbo3; first: 1 page turbo8"
    pairs, spans, warnings = apply_rules(line, plain(5), ("turbo4", "turbo4"))
    assert pairs == (("turbo4", "turbo4"),) * 3 + (("turbo3", "turbo3"),) * 2
    one = Spans(first=1)
    assert spans == (Spans(1, first=1), Spans(1, first=1), Spans(first=2, first_type="f16"), one, one)
    assert warnings == ()
    assert apply_rules("recent: 2 pages; rest: turbo4; first: 1 page", plain(2))[1] == (FULL, FULL)


def test_layers_get_what_they_can_have_of_a_whole_profiles_spans():
    line = "1: q8_0; 2: q8_0/turbo4; rest: turbo4; recent: 60 pages turbo8; first: 1 page turbo8"
    _, spans, warnings = apply_rules(line, sliding())
    assert spans == (Spans(1024 // PAGE), NONE, Spans(60, first=1))
    assert warnings == (
        f"spans of KV layers 0: recent: {1024 // PAGE} pages turbo8, a window of 1,024 tokens holds no more",
        "spans of KV layers 1: none, q8_0 is as fine as turbo8",
    )
    assert rule_line([("turbo4", "turbo4")] * 3, [Spans(2), Spans(2), FULL], sliding()) == (
        "rest: turbo4; recent: 2 pages turbo8; first: 1 page turbo8"
    )


@st.composite
def all_spans(draw: st.DrawFn) -> Spans:
    recent, first = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    finer = draw(st.sampled_from(["turbo8", "f16"]))
    return Spans(recent, finer if recent else "turbo8", first, finer if first else "turbo8")


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES), all_spans()), min_size=3, max_size=8))
def test_any_spans_are_a_rule_line(layers):
    geometry = sliding() if len(layers) == 3 else plain(len(layers))
    pairs = [(k, v) for k, v, _ in layers]
    spans = [
        fit(wish, layer, pair)[0] for (_, _, wish), layer, pair in zip(layers, geometry.kv_layers, pairs, strict=True)
    ]
    line = rule_line(pairs, spans, geometry)
    if ":" in line:
        assert apply_rules(line, geometry)[:2] == (tuple(pairs), tuple(spans))
    else:
        assert set(spans) == {NONE}


def test_a_rule_line_says_spans_shortly():
    turbo = [("turbo4", "turbo4")] * 4
    assert rule_line(turbo, [FULL] * 4, plain(4)) == "rest: turbo4; recent: 2 pages turbo8; first: 1 page turbo8"
    assert rule_line(turbo, [Spans(1), FULL, FULL, FULL], plain(4)) == (
        "0: turbo4, recent 1 page turbo8, first 0 pages; rest: turbo4; recent: 2 pages turbo8; first: 1 page turbo8"
    )


def test_layers_whose_head_dim_the_spans_type_can_t_store_have_none() -> None:
    odd = ModelGeometry("odd", (*plain(1).layers, LayerGeometry(1, 1, "full", (128, 120), 2, 4)))
    pairs = [("q4_0_rot", "q4_0_rot")] * 2
    spans, (warning,) = spread(Spans(1), odd, pairs)
    assert spans == (Spans(1), Spans())
    assert warning.startswith("spans of KV layers 1: none, turbo8 can't store head_dim 120")
    with pytest.raises(
        UserError, match="no layer can have the spans .*turbo8 can't store head_dim 120.*leave them out"
    ):
        spread(Spans(1), ModelGeometry("odd", (LayerGeometry(0, 0, "full", (120, 120), 2, 4),)), pairs[:1])
