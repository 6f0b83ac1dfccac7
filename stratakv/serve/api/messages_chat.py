"""Anthropic's messages in the form of the chat endpoint, by which they are answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.schemas import SamplingBody
from stratakv.serve.api.schemas_messages import (
    AssistantMessage,
    CountBody,
    Message,
    MessagesBody,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from stratakv.serve.api.schemas_openai import ChatBody
from stratakv.serve.api.turn import as_chat


def chat_body(body: CountBody) -> ChatBody:
    """The same request of the chat endpoint. ApiError for roles and results of tools in an order that can't be."""
    given = {name: value for name in SamplingBody.model_fields if (value := getattr(body, name)) is not None}
    given["messages"] = _messages(body)
    if body.tools:
        given["tools"] = [_tool(tool) for tool in body.tools]
    choice = body.tool_choice
    if choice is not None:
        given["tool_choice"] = _choice(choice.type, choice.name)
        given["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    config = body.output_config
    format_ = (config.format if config is not None else None) or body.output_format
    if format_ is not None:
        given["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": format_.schema_}}
    if config is not None and config.effort is not None:
        given["reasoning_effort"] = config.effort
    if body.thinking is not None:
        given["thinking"] = {"type": body.thinking.type}
    if isinstance(body, MessagesBody):
        given |= {"max_tokens": body.max_tokens, "stop": body.stop_sequences}
    return as_chat(given)


def _choice(kind: str, name: str | None) -> Any:
    if kind != "tool":
        return "required" if kind == "any" else kind
    if not name:
        raise ApiError("tool_choice: a choice of type 'tool' names the tool", param="tool_choice")
    return {"type": "function", "function": {"name": name}}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema, "description": tool.description}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _messages(body: CountBody) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    if body.system:
        out.append({"role": "system", "content": _text(body.system)})
    if isinstance(body.messages[0], AssistantMessage):
        raise ApiError("messages.0: the first message is the user's", param="messages")
    open_calls: dict[str, None] = {}
    for index, message in enumerate(_joined(body.messages)):
        if isinstance(message, AssistantMessage):
            plain = _assistant(message)
            open_calls = {call["id"]: None for call in plain.get("tool_calls", ())}
            out.append(plain)
        else:
            out += _user(message, f"messages.{index}", open_calls)
    return out


def _joined(messages: Sequence[Message]) -> list[UserMessage | AssistantMessage]:
    """Messages in a row of the same role are one, as Anthropic's API has it."""
    joined: list[UserMessage | AssistantMessage] = []
    for message in messages:
        if joined and joined[-1].role == message.role:
            content = [*_blocks(joined[-1]), *_blocks(message)]
            joined[-1] = joined[-1].model_copy(update={"content": content})
        else:
            joined.append(message)
    return joined


def _blocks(message: UserMessage | AssistantMessage) -> list[Any]:
    content = message.content
    return [TextBlock(type="text", text=content)] if isinstance(content, str) else list(content)


def _assistant(message: AssistantMessage) -> dict[str, Any]:
    blocks = _blocks(message)
    plain: dict[str, Any] = {"role": "assistant", "content": _text([b for b in blocks if isinstance(b, TextBlock)])}
    if thoughts := [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]:
        plain["reasoning_content"] = "\n".join(thoughts)
    if calls := [block for block in blocks if isinstance(block, ToolUseBlock)]:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.input, ensure_ascii=False)},
            }
            for call in calls
        ]
    return plain


def _user(message: UserMessage, place: str, open_calls: dict[str, None]) -> list[dict[str, Any]]:
    """The results of calls first, each a message of its own, then the text."""
    results, texts = [], []
    for number, block in enumerate(_blocks(message)):
        if isinstance(block, ToolResultBlock):
            if block.tool_use_id not in open_calls:
                raise ApiError(
                    f"{place}.content.{number}: no tool_use block {block.tool_use_id!r} in the message before",
                    param="messages",
                )
            del open_calls[block.tool_use_id]
            said = _text(block.content or "")
            text = f"Error: {said}" if block.is_error else said
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": text})
        else:
            texts.append(block)
    if open_calls:
        raise ApiError(f"{place}: a tool_result block for {next(iter(open_calls))!r} is missing", param="messages")
    return [*results, *([{"role": "user", "content": _text(texts)}] if texts or not results else [])]


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
