"""The events of a response's items, in their order, and the items that they make."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from stratakv.serve.api.answer_text import Parts
from stratakv.serve.api.tools import ToolCall
from stratakv.serve.request import Finish


class Events:
    """One response's stream. output: its items so far, whole where they are closed."""

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._count = 0
        self._open: str | None = None  # type of the last item while it grows
        self._text = ""
        self._logprobs: list[Any] = []

    def event(self, kind: str, **fields: Any) -> str:
        """One server-sent event."""
        data = {"type": kind, "sequence_number": self._count, **fields}
        self._count += 1
        return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"

    def add(self, parts: Parts, logprobs: Sequence[Any]) -> list[str]:
        """Events of what has become certain."""
        events: list[str] = []
        if parts.thought:
            events += self._begin("reasoning")
            self._text += parts.thought
            events.append(self._delta("response.reasoning_text.delta", delta=parts.thought))
        if parts.said or (logprobs and not parts.thought):
            events += self._begin("message")
            self._text += parts.said
            self._logprobs += logprobs
            events.append(self._delta("response.output_text.delta", delta=parts.said, logprobs=list(logprobs)))
        for call in parts.calls:
            events += [*self._end("completed"), *self._call(call)]
        return events

    def close(self, finish: Finish) -> list[str]:
        """Events at the end of the answer. An answer of nothing at all is an empty message."""
        events = [] if self.output else self._begin("message")
        return [*events, *self._end("incomplete" if finish.reason == "length" else "completed")]

    def _begin(self, kind: str) -> list[str]:
        if self._open == kind:
            return []
        events = self._end("completed")
        self._open, self._text, self._logprobs = kind, "", []
        item = self._item("in_progress")
        item["content"] = []
        self.output.append(item)
        added = self.event("response.output_item.added", output_index=len(self.output) - 1, item=item)
        part = self._delta("response.content_part.added", part=self._part())
        return [*events, added, part]

    def _end(self, status: str) -> list[str]:
        """Close the item that grows."""
        if self._open is None:
            return []
        if self._open == "message":
            done = self._delta("response.output_text.done", text=self._text, logprobs=self._logprobs)
        else:
            done = self._delta("response.reasoning_text.done", text=self._text)
        part = self._delta("response.content_part.done", part=self._part())
        self.output[-1] = {**self._item(status), "id": self.output[-1]["id"]}
        self._open = None
        index = len(self.output) - 1
        return [done, part, self.event("response.output_item.done", output_index=index, item=self.output[-1])]

    def _item(self, status: str) -> dict[str, Any]:
        item: dict[str, Any]
        if self._open == "message":
            item = {"type": "message", "id": f"msg_{uuid.uuid4().hex}", "role": "assistant"}
        else:
            item = {"type": "reasoning", "id": f"rs_{uuid.uuid4().hex}", "summary": []}
        return {**item, "status": status, "content": [self._part()]}

    def _part(self) -> dict[str, Any]:
        if self._open == "message":
            return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": list(self._logprobs)}
        return {"type": "reasoning_text", "text": self._text}

    def _delta(self, kind: str, **fields: Any) -> str:
        index = len(self.output) - 1
        return self.event(kind, item_id=self.output[-1]["id"], output_index=index, content_index=0, **fields)

    def _call(self, call: ToolCall) -> list[str]:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        item = {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": call.id, "name": call.name}
        whole = {**item, "arguments": arguments, "status": "completed"}
        self.output.append(whole)
        at = {"output_index": len(self.output) - 1}
        told = {**at, "item_id": item["id"]}
        return [
            self.event("response.output_item.added", **at, item={**item, "arguments": "", "status": "in_progress"}),
            self.event("response.function_call_arguments.delta", **told, delta=arguments),
            self.event("response.function_call_arguments.done", **told, name=call.name, arguments=arguments),
            self.event("response.output_item.done", **at, item=whole),
        ]
