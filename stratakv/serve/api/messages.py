"""Anthropic's /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stratakv.serve.api.answer_text import Parts
from stratakv.serve.api.completion import TicketStream, gather, merge, submit_all
from stratakv.serve.api.errors import as_api_error
from stratakv.serve.api.messages_chat import chat_body
from stratakv.serve.api.requests import note_headers
from stratakv.serve.api.schemas_messages import CountBody, MessagesBody
from stratakv.serve.api.settings import Context
from stratakv.serve.api.tools import ToolCall
from stratakv.serve.api.turn import Turn, turn_of
from stratakv.serve.request import Finish

if TYPE_CHECKING:
    from stratakv.serve.ticket import Ticket


def router(context: Context) -> APIRouter:
    """The endpoints over this engine."""
    routes = APIRouter(prefix="/v1/messages", tags=["Anthropic"])

    @routes.post("")
    async def messages(body: MessagesBody, http: Request) -> Response:
        turn = await turn_of(context, chat_body(body))
        tickets = submit_all(context.engine, [turn.request])
        head = {
            "id": f"msg_{uuid.uuid4().hex[:24]}",
            "type": "message",
            "role": "assistant",
            "model": context.settings.alias,
        }
        headers = note_headers(turn.request.grammar)
        if body.stream:
            events = _with_errors(_events(head, turn, body, tickets))
            return TicketStream(events, tickets, "text/event-stream", context.settings.send_seconds, headers)
        (answer,) = await gather(http, tickets)
        parts = turn.reader().whole(answer.text, answer.tokens)
        end = _stop(answer.finish, body, bool(parts.calls))
        result = {**head, "content": _content(parts), **end, "usage": _usage(answer.finish)}
        return JSONResponse(result, headers=headers)

    @routes.post("/count_tokens")
    async def count_tokens(body: CountBody) -> JSONResponse:
        turn = await turn_of(context, chat_body(body), bound=False)
        return JSONResponse({"input_tokens": len(turn.request.prompt)})

    return routes


def _content(parts: Parts) -> list[dict[str, Any]]:
    """The blocks of a whole answer: thought, text, calls."""
    blocks: list[dict[str, Any]] = []
    if parts.thought:
        blocks.append({"type": "thinking", "thinking": parts.thought, "signature": ""})
    if parts.said or not (blocks or parts.calls):
        blocks.append({"type": "text", "text": parts.said})
    return [*blocks, *(_tool_use(call, dict(call.arguments)) for call in parts.calls)]


def _tool_use(call: ToolCall, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id.replace("call_", "toolu_"), "name": call.name, "input": arguments}


def _stop(finish: Finish, body: MessagesBody, calls: bool) -> dict[str, Any]:
    if calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if finish.reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if finish.stop_string in (body.stop_sequences or ()):
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop_string}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _usage(finish: Finish) -> dict[str, Any]:
    return {
        "input_tokens": finish.prompt_tokens - finish.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": finish.cached_tokens,
        "output_tokens": finish.completion_tokens,
    }


class _Blocks:
    """The events of an answer's blocks, one open at a time."""

    def __init__(self) -> None:
        self._index, self._open = -1, ""

    def part(self, kind: str, text: str) -> list[str]:
        """More of a thought or of a text."""
        empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}[kind]
        events = [] if self._open == kind else [*self.close(), self._start(kind, empty)]
        return [*events, *([self._delta(f"{kind}_delta", **{kind: text})] if text else [])]

    def call(self, call: ToolCall) -> list[str]:
        """A whole call."""
        block, before = _tool_use(call, {}), self.close()
        start = self._start(block.pop("type"), block)
        arguments = self._delta("input_json_delta", partial_json=json.dumps(call.arguments, ensure_ascii=False))
        return [*before, start, arguments, *self.close()]

    def close(self) -> list[str]:
        """The end of the open block."""
        if not self._open:
            return []
        signed = [self._delta("signature_delta", signature="")] if self._open == "thinking" else []
        self._open = ""
        return [*signed, _event("content_block_stop", index=self._index)]

    @property
    def none(self) -> bool:
        """Whether there was no block at all."""
        return self._index < 0

    def _start(self, kind: str, block: dict[str, Any]) -> str:
        self._index, self._open = self._index + 1, kind
        return _event("content_block_start", index=self._index, content_block={"type": kind, **block})

    def _delta(self, kind: str, **fields: Any) -> str:
        return _event("content_block_delta", index=self._index, delta={"type": kind, **fields})


async def _events(head: dict[str, Any], turn: Turn, body: MessagesBody, tickets: list[Ticket]) -> AsyncIterator[str]:
    usage = {"input_tokens": len(turn.request.prompt), "output_tokens": 0}
    message = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield _event("message_start", message=message)
    reader, blocks = turn.reader(), _Blocks()
    async for _, item in merge(tickets):
        parts = reader.close() if isinstance(item, Finish) else reader.feed(item.text, len(item.tokens))
        for event in _part_events(blocks, parts):
            yield event
        if isinstance(item, Finish):
            if blocks.none:
                for event in blocks.part("text", ""):
                    yield event
            for event in blocks.close():
                yield event
            yield _event("message_delta", delta=_stop(item, body, bool(parts.calls)), usage=_usage(item))
    yield _event("message_stop")


def _part_events(blocks: _Blocks, parts: Parts) -> list[str]:
    events = blocks.part("thinking", parts.thought) if parts.thought else []
    events += blocks.part("text", parts.said) if parts.said else []
    return [*events, *(event for call in parts.calls for event in blocks.call(call))]


def _event(kind: str, **fields: Any) -> str:
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n"


async def _with_errors(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The same stream; an error in the middle becomes its last event."""
    try:
        async for event in events:
            yield event
    except Exception as error:
        yield _event("error", error=as_api_error(error).body("/v1/messages")["error"])
