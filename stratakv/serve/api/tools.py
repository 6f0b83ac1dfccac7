"""Tool calls: how they are asked for, found in a model's text, and kept out of what streams to the client."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# How models mark a call: Hermes and Qwen, Mistral, Llama 3. Without a mark an answer that begins as JSON may be one.
CALL_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
_ASK = (
    "You can use these tools:\n{tools}\n"
    'To use one, answer with <tool_call>{{"name": NAME, "arguments": {{...}}}}</tool_call> and nothing else.'
)


@dataclass(frozen=True)
class ToolCall:
    """name: of a tool that the request offered; arguments: as the model gave them."""

    name: str
    arguments: Mapping[str, Any]
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    def openai(self) -> dict[str, Any]:
        """OpenAI's form: arguments as JSON text."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        return {"id": self.id, "type": "function", "function": function}


def messages_without_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The same conversation for a template that knows no tools: they are described in a system message, calls are text."""
    plain = []
    for message in messages:
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or ()]
        text = "\n".join([message.get("content") or "", *(f"<tool_call>{call}</tool_call>" for call in calls)]).strip()
        plain.append({"role": message["role"], "content": text})
    if tools:
        listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        plain.insert(0, {"role": "system", "content": _ASK.format(tools=listed)})
    return plain


def parse_calls(text: str, names: Collection[str]) -> tuple[str, list[ToolCall]]:
    """(what the model said beside its calls, the calls). Text that names no offered tool stays text."""
    if not names:
        return text, []
    tagged = re.findall(r"<tool_call>(.*?)(?:</tool_call>|\Z)", text, re.DOTALL)
    if tagged:
        before = text[: text.index("<tool_call>")]
        values = [value for each in tagged for value in _json_values(each)]
    else:
        mark = next((mark for mark in CALL_MARKS if mark in text), "")
        before, _, rest = text.partition(mark) if mark else ("", "", text)
        values = _json_values(rest)
    calls = [_as_call(value, names) for value in values]
    if not calls or None in calls:
        return text, []
    return before.strip(), [call for call in calls if call is not None]


class ChatText:
    """An answer's text on its way to the client: text goes through as long as it can't be a tool call.

    names: of the offered tools, none: no calls are looked for. strip: drop blanks at the start, which models write after the
    plain template of base models.
    """

    def __init__(self, names: Collection[str] = (), *, strip: bool = False) -> None:
        self._names, self._strip = names, strip
        self._held, self._sent, self._holding = "", False, False

    def feed(self, text: str) -> str:
        """The part that may go to the client now."""
        self._held += text
        if self._holding:
            return ""
        if self._strip and not self._sent:
            self._held = self._held.lstrip()
        keep_from = len(self._held)
        if self._names:
            first = self._held.lstrip()[:1]
            if not self._sent and first in ("", "{", "["):
                self._holding = bool(first)
                return ""
            starts = [self._held.index(mark) for mark in CALL_MARKS if mark in self._held]
            self._holding = bool(starts)
            keep_from = min(starts) if starts else len(self._held) - _tail(self._held)
        out, self._held = self._held[:keep_from], self._held[keep_from:]
        self._sent = self._sent or bool(out)
        return out

    def close(self) -> tuple[str, list[ToolCall]]:
        """(the rest of the text, the calls) at the end of the answer."""
        return parse_calls(self._held, self._names)


def _tail(text: str) -> int:
    """Length of the longest end of text that begins a mark."""
    return max(
        (n for mark in CALL_MARKS for n in range(1, len(mark)) if text.endswith(mark[:n])),
        default=0,
    )


def _json_values(text: str) -> list[Any]:
    """JSON values that follow each other, lists opened; empty when anything else is between them."""
    decoder, values, text = json.JSONDecoder(), [], text.strip()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return []
        values += value if isinstance(value, list) else [value]
        text = text[end:].lstrip(" \t\r\n;,")
    return values


def _as_call(value: Any, names: Collection[str]) -> ToolCall | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None
