"""The rule line: 'first3,last3: k=q8_0 v=turbo4; rest: turbo4; recent: 2 pages turbo8'. Later clauses win, K and V apart.

    line       = clause { ";" clause }
    clause     = selector { "," selector } ":" assignment | span ":" size
    selector   = "firstN" | "lastN" | N | N-M | -N | "rest" | "all"
    assignment = [ types ] { "," span size }, not empty
    types      = TYPE | K "/" V | "k=TYPE" | "v=TYPE" | "k=TYPE v=TYPE"
    span       = "recent" | "first"
    size       = N ( "page" | "pages" ) [ TYPE ]

Numbers are KV-layer ordinals; -1 is the last layer; N-M includes both ends; `rest` is every layer that no other
selector of the line names. A span's own clause is the whole profile's, wherever it stands: each layer gets what it can have
of it (`spread`), and what a layer's clause says wins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stratakv.errors import UserError
from stratakv.kvtypes import kv_type
from stratakv.profile.geometry import ModelGeometry
from stratakv.profile.profile import Pair, ordinals_text, pair_text
from stratakv.profile.spans import NONE, Sizes, Spans, parse_size
from stratakv.profile.spread import fit, spread

SELECTORS = "firstN, lastN, a layer N, a range N-M, -N (counted from the end), rest, all"
_SELECTOR = re.compile(
    r"(?P<end>first|last)(?P<count>\d+)|(?P<low>\d+)-(?P<high>\d+)|(?P<single>-?\d+)|(?P<word>rest|all)"
)
_SPAN = re.compile(r"(recent|first)\b\s*(.*)", re.DOTALL)
SPAN_CLAUSE = re.compile(r"\s*(recent|first)\s*:")
_SIZE = re.compile(r"(\S+)\s+pages?(?:\s+(\S+))?")


@dataclass(frozen=True)
class Clause:
    """One clause as written, its selectors, and the type of each side (None: the side keeps what it had).

    spans: what it says of them. A clause without selectors is of the whole profile.
    """

    text: str
    selectors: tuple[str, ...]
    k: str | None
    v: str | None
    spans: Sizes


def parse_pair(text: str) -> Pair:
    """'turbo4' or 'q8_0/turbo4' as a pair of known types. Raises UserError."""
    names = [name.strip() for name in text.split("/")]
    if len(names) > 2 or not all(names):
        raise UserError(f"cannot read {text.strip()!r} as types: write TYPE for both sides or K/V, such as q8_0/turbo4")
    for name in names:
        kv_type(name)
    return names[0], names[-1]


def parse_rules(text: str) -> tuple[Clause, ...]:
    """Read a rule line; the selectors are checked against a model later, by apply_rules. Raises UserError."""
    clauses = tuple(_clause(part.strip()) for part in text.split(";") if part.strip())
    if not clauses:
        raise UserError(
            "the rule line is empty: write selector: types, such as 'first3,last3: q8_0/turbo4; rest: turbo4'"
        )
    return clauses


def apply_rules(
    text: str, geometry: ModelGeometry, base: Pair | None = None
) -> tuple[tuple[Pair, ...], tuple[Spans, ...], tuple[str, ...]]:
    """The pairs and spans by KV ordinal that a rule line gives on this model, and warnings.

    base: what layers have before the first clause; without it a layer that ends without a type is an error.
    Raises UserError for anything the line says that cannot be read or does not fit the model.
    """
    read = parse_rules(text)
    clauses = tuple(clause for clause in read if clause.selectors)
    count = len(geometry.kv_layers)
    named = [[_select(selector, count, clause) for selector in clause.selectors] for clause in clauses]
    rest = set(range(count)).difference(*(chosen for sets in named for chosen in sets))
    warnings = _overlaps(clauses, count)
    k: list[str | None] = [base[0] if base else None] * count
    v: list[str | None] = [base[1] if base else None] * count
    own: list[Sizes] = [{} for _ in range(count)]
    for clause, sets in zip(clauses, named, strict=True):
        layers = set().union(*sets)
        if "rest" in clause.selectors:
            layers |= rest
            if not rest:
                warnings.append(f"'rest' names no layer: the other selectors cover all {count} KV layers")
        for ordinal in layers:
            k[ordinal] = clause.k or k[ordinal]
            v[ordinal] = clause.v or v[ordinal]
            own[ordinal] |= clause.spans
    pairs = _complete(k, v)
    spans, fewer = spread(NONE.having(whole_sizes(read)), geometry, pairs)
    spans = tuple(each.having(sizes) for each, sizes in zip(spans, own, strict=True))
    return pairs, spans, tuple(dict.fromkeys((*warnings, *fewer)))


def rule_line(pairs: Sequence[Pair], spans: Sequence[Spans] = (), geometry: ModelGeometry | None = None) -> str:
    """The shortest text of clauses that gives these by KV ordinal: 'turbo4', '0, 11: q8_0/turbo4; rest: turbo4'.

    geometry: needed with spans, since what a layer gets of the whole profile's depends on it.
    """
    whole, own = _shared(pairs, spans, geometry) if geometry and any(spans) else (NONE, [None] * len(pairs))
    groups: dict[str, list[int]] = {}
    for ordinal, (pair, each) in enumerate(zip(pairs, own, strict=True)):
        text = pair_text(pair) if each is None else f"{pair_text(pair)}, {each.in_clause()}"
        groups.setdefault(text, []).append(ordinal)
    rest = max(groups, key=lambda text: (len(ordinals_text(groups[text])), text))
    if len(groups) == 1 and own[0] is None and not whole:
        return rest
    clauses = [f"{ordinals_text(named)}: {text}" for text, named in groups.items() if text != rest]
    return "; ".join([*clauses, f"rest: {rest}", *([whole.text()] if whole else [])])


def _shared(pairs: Sequence[Pair], spans: Sequence[Spans], geometry: ModelGeometry) -> tuple[Spans, list[Spans | None]]:
    """The spans to say of the whole profile, so that fewest layers need their own, and those that do."""

    def own(whole: Spans) -> list[Spans | None]:
        got = [fit(whole, layer, pair)[0] for layer, pair in zip(geometry.kv_layers, pairs, strict=True)]
        return [None if has == gets else has for has, gets in zip(spans, got, strict=True)]

    whole = max(sorted({*spans, NONE}, key=str), key=lambda each: (own(each).count(None), each.pages))
    return whole, own(whole)


def whole_sizes(clauses: Sequence[Clause]) -> Sizes:
    """The spans of the whole profile. UserError where one is said twice."""
    sizes: Sizes = {}
    for clause in clauses:
        if not clause.selectors:
            if twice := sizes.keys() & clause.spans.keys():
                raise UserError(f"{twice.pop()}: is given twice, in {clause.text!r} too: give it once")
            sizes |= clause.spans
    return sizes


def _clause(text: str) -> Clause:
    head, colon, tail = text.partition(":")
    if not colon:
        raise UserError(f"rule {text!r} has no ':': write selector: types, such as 'rest: turbo4'")
    if whole := SPAN_CLAUSE.match(text):
        return Clause(text, (), None, None, {whole[1]: _size(tail, text)})
    selectors = tuple(selector.strip() for selector in head.split(","))
    for selector in selectors:
        if not _SELECTOR.fullmatch(selector):
            raise UserError(
                f"unknown selector {selector!r} in rule {text!r}: allowed are {SELECTORS}; recent and first stand alone"
            )
    types, *parts = [part.strip() for part in tail.split(",")]
    if _SPAN.fullmatch(types):
        types, parts = "", [types, *parts]
    spans: Sizes = {}
    for part in parts:
        match = _SPAN.fullmatch(part)
        if not match or match[1] in spans:
            raise UserError(
                f"rule {text!r}: cannot read {part!r}: after the types write recent N pages TYPE, first N pages TYPE"
            )
        spans[match[1]] = _size(match[2], text)
    try:
        k, v = (None, None) if spans and not types else _assignment(types)
    except UserError as error:
        raise UserError(f"rule {text!r}: {error}") from None
    return Clause(text, selectors, k, v, spans)


def _size(text: str, clause: str) -> tuple[int, str]:
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UserError(
            f"rule {clause!r}: cannot read {text.strip()!r} as a span: write N pages TYPE, such as 2 pages turbo8"
        )
    try:
        return parse_size(match[1], match[2])
    except UserError as error:
        raise UserError(f"rule {clause!r}: {error}") from None


def _assignment(text: str) -> tuple[str | None, str | None]:
    if "=" not in text:
        return parse_pair(text)
    sides: dict[str, str] = {}
    for token in text.split():
        side, equals, name = token.partition("=")
        if side not in ("k", "v") or not equals or not name:
            raise UserError(f"cannot read {token!r}: write k=TYPE, v=TYPE or both, without spaces around '='")
        if side in sides:
            raise UserError(f"{side}= is given twice")
        kv_type(name)
        sides[side] = name
    return sides.get("k"), sides.get("v")


def _select(selector: str, count: int, clause: Clause) -> set[int]:
    """The ordinals that a selector names; none for `rest`, which depends on the whole line."""
    match = _SELECTOR.fullmatch(selector)
    assert match is not None  # parse_rules let only these through
    if match["word"]:
        return set(range(count)) if selector == "all" else set()
    if match["end"]:
        size = int(match["count"])
        if not 1 <= size <= count:
            raise UserError(
                f"{selector!r} in rule {clause.text!r}: the model has {count} KV layers, allowed is 1 to {count}"
            )
        return set(range(size)) if match["end"] == "first" else set(range(count - size, count))
    numbers = [int(match["low"]), int(match["high"])] if match["low"] else [int(match["single"])]
    outside = [number for number in numbers if not -count <= number < count or selector.startswith("-0")]
    if outside:
        raise UserError(
            f"layer {selector} in rule {clause.text!r} is out of range: the model has {count} KV layers, "
            f"allowed are 0 to {count - 1}, or -1 to -{count} counted from the end"
        )
    if numbers[0] > numbers[-1]:
        raise UserError(f"range {selector} in rule {clause.text!r} runs backwards: write {numbers[1]}-{numbers[0]}")
    return set(range(numbers[0], numbers[-1] + 1)) if match["low"] else {numbers[0] % count}


def _overlaps(clauses: Sequence[Clause], count: int) -> list[str]:
    selectors = [selector for clause in clauses for selector in clause.selectors]
    firsts = [selector for selector in selectors if selector.startswith("first")]
    lasts = [selector for selector in selectors if selector.startswith("last")]
    warnings = []
    for first in firsts:
        for last in lasts:
            low, high = count - int(last[4:]), int(first[5:])
            if low < high:
                both = ordinals_text(range(low, high))
                warnings.append(
                    f"{first} and {last} overlap on {count} KV layers: both name {both}, the later rule wins"
                )
    return warnings


def _complete(k: Sequence[str | None], v: Sequence[str | None]) -> tuple[Pair, ...]:
    missing = [
        f"no {side} type for KV layers {ordinals_text(layers)}"
        for side, types in (("K", k), ("V", v))
        if (layers := [ordinal for ordinal, name in enumerate(types) if name is None])
    ]
    if missing:
        raise UserError(
            f"the rule line leaves {' and '.join(missing)}: add a 'rest: TYPE' clause, or give -ctk and -ctv"
        )
    return tuple((left, right) for left, right in zip(k, v, strict=True) if left is not None and right is not None)
