"""What binds an answer: tools' schemas with references of their own, tools beside a format, and what is left loose."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from servers import ALIAS, embedded

from stratakv.serve.api.binding import call_grammar, call_or, call_schema
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.schemas import schema_grammar
from stratakv.serve.grammar import Grammars
from stratakv.serve.request import GrammarSpec

GREEDY = {"model": ALIAS, "temperature": 0}
HELLO = [{"role": "user", "content": "Who goes there?"}]
POINT = {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["x"]}
COLOUR = {"type": "object", "properties": {"c": {"enum": ["red", "blue"]}}, "required": ["c"]}


def tool(name: str, parameters: Any = None, **function: Any) -> dict[str, Any]:
    given = {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": {"name": name, **given, **function}}


NESTED = [
    tool(
        "go",
        {
            "type": "object",
            key: {"P": POINT, "L": {"type": "array", "items": {"$ref": f"#/{key}/P"}, "minItems": 1, "maxItems": 1}},
            "properties": {"to": {"$ref": f"#/{key}/P"}, "by": {"$ref": f"#/{key}/L"}},
            "required": ["to", "by"],
        },
    )
    for key in ("$defs", "definitions")
]


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(embedded().tokenizer, 4096, frozenset([1]))


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def takes(grammars: Grammars, spec: GrammarSpec, text: str) -> bool:
    matcher = grammars.matcher(spec)
    for id_ in embedded().tokenizer(text, add_special_tokens=False).input_ids:
        if not bool(matcher.mask()[id_]):
            return False
        matcher.accept(id_)
    return matcher.complete or bool(matcher.mask()[1])


def call(name: str, arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


@pytest.mark.parametrize("nested", NESTED, ids=["$defs", "definitions"])
def test_references_belong_to_the_tools_own_schema(grammars, nested):
    spec = call_grammar([tool("other"), nested])
    assert takes(grammars, spec, call("go", {"to": {"x": 1}, "by": [{"x": 2}]}))
    assert not takes(grammars, spec, call("go", {"to": {"x": "1"}, "by": []}))
    assert not takes(grammars, spec, call("go", {"to": {"x": 1, "y": 2}, "by": [{"x": 2}]}))
    whole = tool("tree", {"type": "object", "properties": {"child": {"$ref": "#"}}})
    assert takes(grammars, call_grammar([whole]), call("tree", {"child": {"child": {}}}))


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_tools_without_parameters_get_none(grammars, parameters):
    spec = call_grammar([tool("look", parameters)])
    assert takes(grammars, spec, call("look", {})) and not takes(grammars, spec, call("look", {"a": 1}))
    free = call_grammar([tool("look", {"type": "object", "additionalProperties": True})])
    assert takes(grammars, free, call("look", {"a": 1}))


def test_schema_of_calls():
    one = call_schema([tool("look")])
    assert one["properties"]["name"] == {"const": "look"} and one["required"] == ["name", "arguments"]
    assert len(call_schema([tool("look"), tool("go")])["anyOf"]) == 2


def test_calls_or_an_answer(grammars):
    spec = call_or([tool("look")], schema_grammar(COLOUR, "response_format"))[0]
    look = call("look", {})
    for text in ('{"c": "red"}', look, f"<tool_call>\n{look}\n</tool_call>", f"<tool_call>{look}</tool_call>" * 2):
        assert takes(grammars, spec, text)
    for text in ('{"c": "green"}', call("go", {}), "Hello", f"<tool_call>{look}"):
        assert not takes(grammars, spec, text)


def test_what_can_not_bind_is_left_loose_unless_strict():
    tags = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True, "items": {}}}}
    spec = schema_grammar(tags, "format")
    assert spec.notes == ("format: properties.tags: uniqueItems does not bind the answer",)
    with pytest.raises(ApiError, match=r"properties.tags: uniqueItems can't bind an answer, and the schema is strict"):
        schema_grammar(tags, "format", strict=True)
    assert call_grammar([tool("a"), tool("b", tags)]).notes == (
        "tools: 1.function.parameters.properties.tags: uniqueItems does not bind the answer",
    )
    with pytest.raises(ApiError, match="strict"):
        call_grammar([tool("b", tags, strict=True)])


@pytest.mark.parametrize("nested", NESTED, ids=["$defs", "definitions"])
def test_a_forced_call_with_references(client, nested):
    answer = client.chat.completions.create(
        messages=HELLO, tools=[nested], tool_choice="required", max_tokens=80, **GREEDY
    )
    (made,) = answer.choices[0].message.tool_calls
    arguments = json.loads(made.function.arguments)
    assert set(arguments) == {"to", "by"} and isinstance(arguments["to"]["x"], int)


def test_tools_beside_a_format(client):
    format_ = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR}}
    options = {"messages": HELLO, "tools": [tool("look")], "response_format": format_, "max_tokens": 40, **GREEDY}
    for choice in ("auto", "none", "required"):
        message = client.chat.completions.create(tool_choice=choice, **options).choices[0].message
        if choice == "required" or message.tool_calls:
            assert choice != "none" and message.tool_calls[0].function.arguments == "{}"
        else:
            assert json.loads(message.content)["c"] in ("red", "blue")


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_bind_is_said(client, stream):
    schema = {**COLOUR, "not": {"const": 1}}
    format_ = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
    raw = client.chat.completions.with_raw_response.create(
        messages=HELLO, response_format=format_, max_tokens=30, stream=stream, **GREEDY
    )
    assert raw.headers["warning"] == '299 stratakv "response_format: not does not bind the answer"'
    answer = raw.parse()
    if not stream:
        assert answer.warnings == ["response_format: not does not bind the answer"]
        assert json.loads(answer.choices[0].message.content)["c"] in ("red", "blue")
    format_["json_schema"]["strict"] = True
    with pytest.raises(openai.BadRequestError, match="not can't bind an answer, and the schema is strict"):
        client.chat.completions.create(messages=HELLO, response_format=format_, max_tokens=3, **GREEDY)


@pytest.mark.parametrize(
    ("outputs", "allowed"),
    [
        ({"json": {"enum": ["a b", "c"]}}, ('"a b"', '"c"')),
        ({"json": '{"enum": ["d"]}'}, ('"d"',)),
        ({"regex": "(yes|no)"}, ("yes", "no")),
        ({"choice": ["a.b", "c(d", "e f"]}, ("a.b", "c(d", "e f")),
        ({"grammar": 'root ::= "left" | "right"'}, ("left", "right")),
        ({"grammar": 'start: "up" | "down"'}, ("up", "down")),
    ],
)
def test_structured_outputs(client, outputs, allowed):
    body = {"structured_outputs": outputs}
    answer = client.completions.create(prompt="The", max_tokens=12, extra_body=body, **GREEDY)
    assert answer.choices[0].text in allowed
    answer = client.chat.completions.create(messages=HELLO, max_tokens=12, extra_body=body, **GREEDY)
    assert answer.choices[0].message.content in allowed


def test_llama_servers_own_fields(client):
    for body in ({"grammar": 'root ::= "yes"'}, {"json_schema": {"const": "yes"}}):
        assert "yes" in client.completions.create(prompt="x", extra_body=body, **GREEDY).choices[0].text
        assert (
            "yes"
            in client.chat.completions.create(messages=HELLO, extra_body=body, **GREEDY).choices[0].message.content
        )
    body = {"n_predict": 3, "return_tokens": True, "n_probs": 2, "logit_bias": [[70, 100.0]], "timings_per_token": True}
    chat = client.chat.completions.create(messages=HELLO, extra_body=body, **GREEDY).choices[0]
    assert chat.tokens == [70] * 3 and len(chat.logprobs.content[0].top_logprobs) == 2
    text = client.completions.create(prompt="x", extra_body=body, **GREEDY).choices[0]
    assert text.tokens == [70] * 3 and len(text.logprobs.top_logprobs) == 3
    for create, prompt in (
        (client.completions.create, {"prompt": "x"}),
        (client.chat.completions.create, {"messages": HELLO}),
    ):
        timed = [
            chunk.timings
            for chunk in create(stream=True, extra_body=body, **prompt, **GREEDY)
            if hasattr(chunk, "timings")
        ]
        assert [each["predicted_n"] for each in timed] == [1, 2, 3, 3]
