"""Schemas before they bind: closed objects, what can't bind, and where an error is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from servers import embedded

from stratakv.serve.grammar import Grammars
from stratakv.serve.json_schema import closed, place_of, unbound, without
from stratakv.serve.request import GrammarError, GrammarSpec

NAMED = {"type": "object", "properties": {"a": {"type": "string"}}}
OPEN = {**NAMED, "additionalProperties": True}


def is_closed(schema: Any) -> bool:
    return schema.get("additionalProperties") is False


def test_objects_with_named_properties_are_closed() -> None:
    assert is_closed(closed(NAMED)) and is_closed(closed({"properties": {}}))
    assert closed({"properties": {}})["type"] == "object"
    assert is_closed(closed({"type": "array", "items": NAMED})["items"])
    assert is_closed(closed({"type": "array", "items": [NAMED]})["items"][0])
    assert is_closed(closed({"$defs": {"P": NAMED}, "$ref": "#/$defs/P"})["$defs"]["P"])
    assert all(map(is_closed, closed({"anyOf": [NAMED, NAMED]})["anyOf"]))
    assert is_closed(closed({"allOf": [NAMED]})["allOf"][0])
    assert closed(OPEN) == OPEN and closed({"type": "object"}) == {"type": "object"}
    assert closed(True) is True and closed({"enum": [{"properties": {}}]}) == {"enum": [{"properties": {}}]}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [NAMED, {"type": "object", "properties": {"b": {}}}]},
        {"allOf": [{"$ref": "#/$defs/P"}, {"properties": {"b": {}}}], "$defs": {"P": NAMED}},
        {**NAMED, "anyOf": [{"properties": {"b": {}}}, {"required": ["a"]}]},
        {**NAMED, "required": ["b"]},
        {**NAMED, "minProperties": 2},
    ],
)
def test_what_sees_others_properties_stays_open(schema: Any) -> None:
    assert '"additionalProperties"' not in json.dumps(closed(schema))


def test_what_can_not_bind() -> None:
    schema = {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "uniqueItems": True, "items": {"type": "string", "format": "colour"}},
            "price": {"type": "string", "pattern": "^(?!x)y$"},
            "plain": {"type": "string", "pattern": r"\(?=\d", "format": "date"},
            "not": {"not": {"const": 1}, "uniqueItems": False},
        },
    }
    found = unbound(schema)
    assert sorted(place_of(*each) for each in found) == [
        "properties.not: not",
        "properties.price: pattern",
        "properties.tags.items: format",
        "properties.tags: uniqueItems",
    ]
    assert unbound(without(schema, found)) == [] and len(unbound(schema)) == 4


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "("}}}, "properties.a: pattern: unclosed group"),
        ({"properties": {"a": {"items": {"type": "nonsense"}}}}, "properties.a.items: type: "),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "properties.a: $ref: Pointer '/$defs/b' does not exist"),
        ({"$defs": {"b": {"minimum": "x"}}, "anyOf": [{"$ref": "#/$defs/b"}]}, "$defs.b: minimum: "),
        ({"type": "nonsense"}, "json_schema: type: "),
        ({"minimum": 3, "maximum": 1, "type": "integer"}, "minimum (3) is greater than maximum (1)"),
    ],
)
def test_errors_name_the_property_and_the_keyword(schema: Any, says: str) -> None:
    grammars = Grammars(embedded().tokenizer, 4096, frozenset([1]))
    with pytest.raises(GrammarError) as error:
        grammars.matcher(GrammarSpec("json_schema", json.dumps(schema)))
    assert says in str(error.value) and "\n" not in str(error.value)
