"""A request of the Responses API in the form of the chat endpoint, by which it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.schemas import SamplingBody
from stratakv.serve.api.schemas_openai import ChatBody
from stratakv.serve.api.schemas_responses import (
    AllowedTools,
    FunctionCall,
    FunctionOutput,
    InputMessage,
    Part,
    Reasoning,
    ResponsesBody,
    TextFormat,
)
from stratakv.serve.api.turn import as_chat


def chat_body(body: ResponsesBody) -> ChatBody:
    """The same request of the chat endpoint. ApiError for what can't be kept here, and for results without their calls."""
    if body.previous_response_id is not None:
        raise ApiError(
            f"response {body.previous_response_id[:100]!r} is not kept: this server stores no responses, send the whole "
            "conversation as `input`",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    given = {name: value for name in SamplingBody.model_fields if (value := getattr(body, name)) is not None}
    given["messages"] = _messages(body)
    tools = list(body.tools or ())
    choice = body.tool_choice
    if isinstance(choice, AllowedTools):
        allowed = {tool.name for tool in choice.tools}
        tools = [tool for tool in tools if tool.name in allowed]
        given["tool_choice"] = choice.mode
    elif choice is not None:
        named = {} if isinstance(choice, str) else {"type": "function", "function": {"name": choice.name}}
        given["tool_choice"] = named or choice
    if tools:
        functions = [tool.model_dump(include={"name", "description", "parameters", "strict"}) for tool in tools]
        given["tools"] = [
            {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}
            for function in functions
        ]
    given["parallel_tool_calls"] = body.parallel_tool_calls
    if body.text is not None and body.text.format is not None:
        given["response_format"] = _format(body.text.format)
    if body.reasoning is not None:
        given["reasoning_effort"] = body.reasoning.effort
    given |= {"max_tokens": body.max_output_tokens, "chat_template_kwargs": body.chat_template_kwargs}
    if wants_logprobs(body):
        given |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    return as_chat(given)


def wants_logprobs(body: ResponsesBody) -> bool:
    """Whether the answer's tokens come with their log-probabilities."""
    return bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())


def _format(format_: TextFormat) -> dict[str, Any]:
    if format_.type != "json_schema":
        return {"type": format_.type}
    if format_.schema_ is None:
        raise ApiError("text.format of type json_schema needs its schema", param="text")
    schema = {"name": format_.name or "answer", "schema": format_.schema_, "strict": format_.strict}
    return {"type": "json_schema", "json_schema": schema}


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    """Items as messages: calls in a row, what was thought and said before them, are one message of the assistant's."""
    out: list[dict[str, Any]] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    items = [InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    called: set[str] = set()
    own: dict[str, Any] | None = None  # the assistant's message that more may belong to
    for index, item in enumerate(items):
        if isinstance(item, FunctionOutput):
            if item.call_id not in called:
                raise ApiError(f"input.{index}: no function_call {item.call_id!r} before this output", param="input")
            called.discard(item.call_id)
            out.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            own = None
            continue
        if isinstance(item, InputMessage) and item.role != "assistant":
            out.append({"role": item.role, "content": _text(item.content)})
            own = None
            continue
        if own is None or (isinstance(item, InputMessage) and (own["content"] or "tool_calls" in own)):
            own = {"role": "assistant", "content": ""}
            out.append(own)
        if isinstance(item, InputMessage):
            own["content"] = _text(item.content)
        elif isinstance(item, Reasoning):
            own["reasoning_content"] = own.get("reasoning_content", "") + _thought(item)
        else:
            called.add(item.call_id)
            own.setdefault("tool_calls", []).append(_call(item))
    return out


def _call(item: FunctionCall) -> dict[str, Any]:
    function = {"name": item.name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _thought(item: Reasoning) -> str:
    return "\n".join(part.text for part in item.content or item.summary or ())


def _text(content: str | Sequence[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text or part.refusal or "" for part in content)
