"""What an answer must look like: grammars and schemas by their names in each family, and calls of tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.schemas import json_object, loose_parts, schema_grammar
from stratakv.serve.api.schemas_llama import LlamaFields
from stratakv.serve.api.schemas_openai import ResponseFormat, StructuredOutputs
from stratakv.serve.gbnf import escaped
from stratakv.serve.request import GrammarSpec

# A call as Hermes' and Qwen's templates ask for it, or bare; or the answer in the form that was asked for
_CALL_OR_ANSWER = """%llguidance {{}}
start: tagged+ | call | answer
tagged: "<tool_call>" "\\n"? call "\\n"? "</tool_call>" "\\n"?
call: %json {call}
answer: %json {answer}
"""


def asked_grammar(body: LlamaFields, format_: ResponseFormat | None = None) -> GrammarSpec | None:
    """The one grammar that a body asks for, None: any text. ApiError for two."""
    outputs: StructuredOutputs | None = getattr(body, "structured_outputs", None)
    found = [
        GrammarSpec("gbnf", body.grammar, "grammar") if body.grammar else None,
        None if body.json_schema is None else schema_grammar(body.json_schema, "json_schema"),
        None if outputs is None else _structured(outputs),
        response_grammar(format_),
    ]
    given = [spec for spec in found if spec is not None]
    if len(given) > 1:
        both = f"{given[0].parameter} and {given[1].parameter}"
        raise ApiError(f"{both} were both given: give one", param=given[0].parameter)
    return given[0] if given else None


def response_grammar(format_: ResponseFormat | None) -> GrammarSpec | None:
    """What an answer in this format must look like; None: any text."""
    if format_ is None or format_.type == "text":
        return None
    wrapped = format_.json_schema
    schema = wrapped.schema_ if wrapped else format_.schema_
    if schema is not None:
        return schema_grammar(schema, "response_format", strict=bool(wrapped and wrapped.strict))
    if format_.type == "json_schema":
        raise ApiError("response_format json_schema needs json_schema.schema", param="response_format")
    return json_object("response_format")


def call_grammar(tools: Sequence[Mapping[str, Any]]) -> GrammarSpec:
    """An answer that is a call of one of these tools."""
    notes: tuple[str, ...] = ()
    for number, tool in enumerate(tools):
        function = tool["function"]
        strict, prefix = bool(function.get("strict")), f"{number}.function.parameters."
        notes += loose_parts(function.get("parameters") or {}, "tools", strict=strict, prefix=prefix)
    spec = schema_grammar(call_schema(tools), "tools")
    return GrammarSpec(spec.kind, spec.text, spec.parameter, notes)


def call_or(tools: Sequence[Mapping[str, Any]], answer: GrammarSpec) -> list[GrammarSpec]:
    """Calls of these tools, or an answer of this form: [the grammar, its parts, whose errors name their place]."""
    if answer.kind != "json_schema":
        raise ApiError(f"{answer.parameter} and tools can't be had together", param=answer.parameter)
    call = call_grammar(tools)
    text = _CALL_OR_ANSWER.format(call=call.text, answer=answer.text)
    return [GrammarSpec("lark", text, answer.parameter, call.notes + answer.notes), call, answer]


def call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of a call of one of these tools. A tool's references mean its own schema, wherever that stands here."""
    kept, calls = {}, []
    for number, tool in enumerate(tools):
        place = f"tools.{number}.function.parameters"
        kept[place] = _parameters(tool["function"].get("parameters"), f"#/$defs/{place}")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool["function"]["name"]}, "arguments": {"$ref": f"#/$defs/{place}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"$defs": kept, **(calls[0] if len(calls) == 1 else {"anyOf": calls})}


def _parameters(schema: Mapping[str, Any] | None, root: str) -> Any:
    """A tool's schema at another place. Where it names no parameters, there are none."""
    named = set(schema or ()) - {"type", "required", "title", "description", "$schema"}
    if not schema or (not named and schema.get("type", "object") == "object"):
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return _moved({key: value for key, value in schema.items() if key not in ("$schema", "$id")}, root)


def _moved(value: Any, root: str) -> Any:
    """The same with its references, which begin at "#", from another root."""
    if isinstance(value, list):
        return [_moved(each, root) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: root + each[1:] if key == "$ref" and isinstance(each, str) and each[:1] == "#" else _moved(each, root)
        for key, each in value.items()
    }


def _structured(outputs: StructuredOutputs) -> GrammarSpec | None:
    name = "structured_outputs"
    given = [key for key, value in outputs.model_dump().items() if value not in (None, False)]
    if len(given) > 1:
        names = " and ".join(key.removesuffix("_") for key in given)
        raise ApiError(f"structured_outputs: {names} were both given: give one", param=name)
    if outputs.json_ is not None:
        schema = outputs.json_
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise ApiError(f"structured_outputs.json is no JSON: {str(error)[:100]}", param=name) from None
        if not isinstance(schema, dict):
            raise ApiError("structured_outputs.json: a schema is an object", param=name)
        return schema_grammar(schema, name)
    if outputs.json_object:
        return json_object(name)
    if outputs.regex is not None:
        return GrammarSpec("regex", outputs.regex, name)
    if outputs.choice is not None:
        words = ("".join(map(escaped, word)) for word in outputs.choice)
        return GrammarSpec("regex", "|".join(words), name)
    if outputs.grammar is not None:
        return GrammarSpec("gbnf" if "::=" in outputs.grammar else "lark", outputs.grammar, name)
    return None
