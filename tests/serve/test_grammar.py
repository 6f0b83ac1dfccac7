"""Grammars over the embedded model's tokens."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from serving import answers

from stratakv.errors import UserError
from stratakv.serve.request import GenerationRequest, GrammarSpec
from stratakv.serve.samplers import SamplingParams

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "maximum": 99, "minimum": 0},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


def test_answers_have_the_form_that_is_asked_for(engines: Any, text_ids: list[int]) -> None:
    engine = engines("turbo4", slots=8)
    specs = [
        GrammarSpec("json_schema", SCHEMA),
        GrammarSpec("regex", "[0-9]{3}-[a-f]{2}"),
        GrammarSpec("gbnf", 'root ::= "yes" | "no"'),
        GrammarSpec("lark", 'start: "left" | "right"'),
        None,
    ]
    requests = [
        GenerationRequest(tuple(text_ids[:30]), 60, SamplingParams(temperature=1.0, seed=seed), grammar=spec)
        for seed in (1, 2)
        for spec in specs
    ]
    results = answers(engine, requests)
    for start in (0, len(specs)):
        texts = [text for text, _, _ in results[start : start + len(specs)]]
        found = json.loads(texts[0])
        assert set(found) == {"name", "age"} and 0 <= found["age"] <= 99
        assert re.fullmatch("[0-9]{3}-[a-f]{2}", texts[1])
        assert texts[2] in ("yes", "no") and texts[3] in ("left", "right")
    assert all(
        finish.reason == "stop" for (_, _, finish), request in zip(results, requests, strict=True) if request.grammar
    )


@pytest.mark.parametrize(
    "spec",
    [
        GrammarSpec("json_schema", "{"),
        GrammarSpec("json_schema", '{"type": "nonsense"}'),
        GrammarSpec("regex", "(unclosed"),
        GrammarSpec("gbnf", "root ::= missing"),
        GrammarSpec("lark", "start: missing"),
    ],
    ids=str,
)
def test_a_wrong_grammar_is_refused_at_once(engines: Any, spec: GrammarSpec) -> None:
    engine = engines("f16")
    with pytest.raises(UserError, match=spec.kind):
        answers(engine, [GenerationRequest((5, 6), 4, grammar=spec)])
    assert engine.snapshot().healthy
